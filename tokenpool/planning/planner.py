"""The planner: it computes the limits of all entitlements from the reports of one tick.

A pure function. A lone sidecar runs it for itself, and a coordinator runs it for all sidecars. It keeps no
state: debts and profiles are arguments and results.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from operator import attrgetter
from typing import cast

import msgspec

from tokenpool.accounting.report import Report
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement, Group, Slo, Tier
from tokenpool.planning import debt as debts_of
from tokenpool.planning.allocation import Division
from tokenpool.planning.claims import Claim, Share
from tokenpool.planning.groups import GroupTree, Standing, standings
from tokenpool.planning.idle import ONE_SEQUENCE, IdleTerms, idle_share
from tokenpool.planning.profiles import Profile, dominant_services, followed

SLO_REFERENCE_TTFT_MS = 1000.0
SLO_REFERENCE_TPOT_MS = 200.0
"""The reference latencies in milliseconds. A promise of half the reference doubles the weight."""
MOST_SLO_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """The constants of fairness over time. Times are in seconds."""

    debt_gain: float = 0.6
    """The factor of debt in the exponent of a weight. With 0.3, 0.6 and 1.0 the worst of 20 seeds is 1.1 to
    1.4 % from the fair share. The median is 0.7 to 0.8 %. 0.6 has the smallest of both
    (tests/unit/simulation/test_convergence.py)."""
    debt_cap_s: float = 4.0
    debt_decay_s: float = 4.0
    slo_precedence: bool = True


_DEFAULTS = PlannerSettings()
_NO_REPORT = Report()


@dataclass(frozen=True, slots=True)
class PlanInput:
    """The complete input of a plan."""

    capacity: Amount
    """Live capacity of all engines together."""
    entitlements: Sequence[Entitlement]
    """The entitlements to plan for. An idle one may be omitted: no other share depends on it, and
    ``idle_share`` gives its share."""
    reports: Mapping[str, Report]
    """The reports by name. An entitlement without a report is idle."""
    debts: Mapping[str, float]
    """The debts of the last plan by name, in seconds of service."""
    elapsed_s: float
    """Seconds since the last plan."""
    settings: PlannerSettings = _DEFAULTS
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    """The profiles of the last plan, by name."""
    groups: Sequence[Group] = ()
    """All groups of the pool."""
    group_debts: Mapping[str, float] = field(default_factory=dict)
    """The debts of groups of the last plan by name, in seconds of service."""

    def report(self, name: str) -> Report:
        """The report of one entitlement; an empty one if it has none."""
        return self.reports.get(name, _NO_REPORT)


class EntitlementPlan(msgspec.Struct, frozen=True, gc=False):
    """One entitlement's part of a plan."""

    limit: Amount
    assured: Amount
    allocation: Amount
    demand: Amount
    fair_share: float
    """The share by weight alone, as a dominant share of live capacity."""
    debt: float
    """Debt in seconds of service."""


class GroupPlan(msgspec.Struct, frozen=True, gc=False):
    """One group's part of a plan: the sums over its members, also over those of the groups below it."""

    allocation: Amount = NOTHING
    demand: Amount = NOTHING
    fair_share: float = 0.0
    """The sum of its members' fair shares."""
    debt: float = 0.0
    """Debt in seconds of service, relative to the groups and entitlements beside it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The limits until the next tick."""

    capacity: Amount
    entitlements: Mapping[str, EntitlementPlan]
    profiles: Mapping[str, Profile]
    """The profiles for the next plan."""
    idle: IdleTerms = IdleTerms()
    """The terms for every entitlement that is not in ``entitlements``: see ``idle_share``."""
    groups: Mapping[str, GroupPlan] = field(default_factory=dict)
    """All groups of the pool, by name."""
    bounded: Set[str] = frozenset()
    """The groups with a ceiling of their own or above them."""

    def part(self, entitlement: Entitlement) -> EntitlementPlan:
        """One entitlement's part of the plan. For an omitted entitlement: the part in a full plan."""
        found = self.entitlements.get(entitlement.name)
        if found is not None:
            return found
        share = idle_share(entitlement, self.idle, ONE_SEQUENCE, is_bounded=entitlement.group in self.bounded)
        return EntitlementPlan(share.limit, share.assured, NOTHING, NOTHING, 0.0, 0.0)


def plan(given: PlanInput) -> Plan:
    """Compute all limits, in n log n. 1,000 entitlements take 17 to 30 ms of one core, 4,000 70 to 140 ms."""
    steps = plan_steps(given)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(Plan, end.value)


def plan_steps(given: PlanInput) -> Generator[None, None, Plan]:
    """Like ``plan``, as a generator that returns the ``Plan``. The caller may do other work between steps."""
    capacity, entitlements, settings = given.capacity, given.entitlements, given.settings
    claims = [_claim(e, given.report(e.name)) for e in entitlements]
    tree = GroupTree(given.groups)
    yield
    division = Division(capacity, claims, tree.claims())
    yield
    fair = division.fair_shares()
    profiles = followed(given.profiles, entitlements, given.reports, capacity, given.elapsed_s)
    yield
    service = dominant_services(profiles, given.reports, capacity)
    yield
    standing, group_standing = standings(tree, entitlements, fair, service)
    debts = _moved_debts(given, given.debts, standing)
    group_debts = _moved_debts(given, given.group_debts, group_standing)
    weights = {
        e.name: (_weight(e, debts[e.name], settings), debts[e.name] if settings.debt_gain else 0.0)
        for e in entitlements
    }
    yield
    division.reweigh(
        weights,
        {
            group.name: (
                group.weight * debts_of.weight_factor(group_debts[group.name], settings.debt_gain),
                group_debts[group.name] if settings.debt_gain else 0.0,
            )
            for group in given.groups
        },
    )
    yield
    shares = division.shares()
    yield
    # While other tiers have unmet demand, they get the unused part of a guarantee before spot.
    preemptible = {e.name for e in entitlements if e.is_preemptible} if not division.others_want else set()
    extra = _for_preemptible(claims, shares, preemptible) if preemptible else {}
    yield
    plans = {}
    for claim in claims:
        name, share = claim.name, shares[claim.name]
        limit = share.limit
        if name in extra:
            limit = (limit + extra[name]).at_most(capacity.at_least(limit)).at_most(claim.ceiling)
        plans[name] = EntitlementPlan(
            limit,
            share.assured,
            share.allocation,
            claim.demand,
            fair[name].dominant_share,
            debts[name],
        )
    return Plan(
        capacity,
        plans,
        profiles,
        division.idle_terms(),
        _group_plans(tree, claims, plans, group_standing, group_debts) if given.groups else {},
        tree.bounded,
    )


def _group_plans(
    tree: GroupTree,
    claims: Sequence[Claim],
    plans: Mapping[str, EntitlementPlan],
    standing: Mapping[str, Standing],
    debts: Mapping[str, float],
) -> dict[str, GroupPlan]:
    ordered = sorted(claims, key=attrgetter("name"))  # sums of floats depend on the order
    sums = tree.sums((claim.group, plans[claim.name].allocation, claim.demand) for claim in ordered)
    return {
        name: GroupPlan(allocation, demand, standing[name].fair_share, debts[name])
        for name, (allocation, demand) in sums.items()
    }


def _for_preemptible(
    claims: Sequence[Claim], shares: Mapping[str, Share], preemptible: Set[str]
) -> dict[str, Amount]:
    """The amounts granted within guarantees, for the preemptible entitlements with demand.

    Their running requests are ended when a guarantee needs its slots, so no slot stays free for a guarantee.
    The recent use of guarantees is no usable measure: with Poisson arrivals an eighth of the engine was idle.
    The grants of elastic tenants beyond a guarantee are not included, because no request is ended for them.

    The amount is divided in proportion to the allocations of spot, and evenly if spot has no allocation.
    """
    granted = _total(
        shares[claim.name].allocation.at_most(claim.guarantee)
        for claim in claims
        if claim.tier is not Tier.SPOT
    )
    wanting = [claim for claim in claims if claim.name in preemptible and claim.demand != NOTHING]
    left = _total(shares[claim.name].allocation for claim in wanting)
    return {
        claim.name: Amount(
            *(
                (mine / all_left if all_left > 0 else 1 / len(wanting)) * theirs
                for mine, all_left, theirs in zip(
                    shares[claim.name].allocation.values(), left.values(), granted.values(), strict=True
                )
            )
        )
        for claim in wanting
    }


def _total(amounts: Iterable[Amount]) -> Amount:
    """The sum, rounded once: it is the same in any order."""
    rows = [amount.values() for amount in amounts]
    return Amount(*(math.fsum(column) for column in zip(*rows, strict=True)))


def _moved_debts(
    given: PlanInput, before: Mapping[str, float], standings: Mapping[str, Standing]
) -> dict[str, float]:
    """The new debts by name, of entitlements or of groups."""
    settings = given.settings
    kept = debts_of.decayed(1.0, given.elapsed_s, settings.debt_decay_s)
    moved = {}
    for name, (fair_share, service, has_unmet_demand) in standings.items():
        debt = before.get(name, 0.0)
        if has_unmet_demand:
            moved[name] = debts_of.moved(
                debt,
                fair_share=fair_share,
                service=service,
                has_unmet_demand=True,
                elapsed_s=given.elapsed_s,
                cap_s=settings.debt_cap_s,
                decay_s=settings.debt_decay_s,
            )
        else:
            moved[name] = debt * kept
    return moved


def _claim(entitlement: Entitlement, report: Report) -> Claim:
    return Claim(
        entitlement.name,
        entitlement.tier,
        entitlement.weight,
        NOTHING if entitlement.tier is Tier.SPOT else entitlement.guarantee,
        entitlement.ceiling,
        report.demand,
        report.floor,
        group=entitlement.group,
    )


def _weight(entitlement: Entitlement, debt: float, settings: PlannerSettings) -> float:
    slo = entitlement.slo
    has_slo = settings.slo_precedence and (slo.ttft_ms is not None or slo.tpot_ms is not None)
    factor = slo_factor(slo) if has_slo else 1.0
    return entitlement.weight * factor * debts_of.weight_factor(debt, settings.debt_gain)


def slo_factor(slo: Slo) -> float:
    """The factor that a latency promise puts on a weight: from 1 (no promise, or a loose one) to 4.

    A promise of half the reference doubles the weight. The tighter of the two promises counts. Debt cancels
    this precedence in the long run.
    """
    if slo.ttft_ms is None and slo.tpot_ms is None:
        return 1.0
    ratios = [1.0]
    if slo.ttft_ms is not None:
        ratios.append(SLO_REFERENCE_TTFT_MS / slo.ttft_ms)
    if slo.tpot_ms is not None:
        ratios.append(SLO_REFERENCE_TPOT_MS / slo.tpot_ms)
    return min(max(ratios), MOST_SLO_FACTOR)
