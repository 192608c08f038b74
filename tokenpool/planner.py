"""The planner: reports of one tick in, every entitlement's limits out.

A pure function, run by a lone sidecar for itself and by a coordinator for all. It keeps no state: debts
and profiles go in and come out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tokenpool import debt as debts_of
from tokenpool.allocation import Claim, Division, FairShare, Share
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement, Slo, Tier

SLO_REFERENCE_TTFT_MS = 1000.0
SLO_REFERENCE_TPOT_MS = 200.0
MOST_SLO_FACTOR = 4.0
PROFILE_S = 20.0
"""Over how long demand is averaged, to tell in which dimension service counts.

By the demand of the moment the dimension changed with every burst, to the one in which there was just much
service: with requests of unlike sizes two tenants ended 9 % above and below their shares while their debts
said that they were even. Averaged, the median over 20 mixes fell from 5.1 % to 2.8 % (simulation/mixes.py).
"""


class Report(msgspec.Struct, frozen=True, gc=False):
    """What one entitlement asked for and got since the last tick, over all sidecars."""

    demand: Amount = NOTHING
    """Offered, shed requests included."""
    service: Amount = NOTHING
    """Tokens per second spent, and the average KV tokens and sequences held."""
    floor: Amount = NOTHING
    """The largest single request of late."""


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """The constants of fairness over time."""

    debt_gain: float = 0.6
    """With 0.3, 0.6 and 1.0 the worst of 20 seeds is 2.2 to 2.9 % from the fair share, the median 1.3 % with
    each; the smallest takes longest over the first 20 s (tests/tokenpool/test_convergence.py)."""
    debt_cap_s: float = 4.0
    debt_decay_s: float = 4.0
    slo_precedence: bool = True
    lends_granted: bool = False
    """Whether spot may also use what others were granted, while the engine has room: where a guarantee ends
    spot requests to have its slots back at once (preemption), nothing has to be held free for it. What they
    used of late would not do for a measure: with Poisson arrivals an eighth of the engine stood idle."""


class EntitlementPlan(msgspec.Struct, frozen=True, gc=False):
    """One entitlement's part of a plan."""

    limit: Amount
    assured: Amount
    allocation: Amount
    demand: Amount
    fair_share: float
    """By weight alone, as a dominant share of live capacity."""
    debt: float
    """In seconds of service owed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What everyone may use until the next tick."""

    capacity: Amount
    entitlements: Mapping[str, EntitlementPlan]
    profiles: Mapping[str, Amount]
    """Everyone's demand, averaged over ``PROFILE_S``: for the next plan."""


_DEFAULTS = PlannerSettings()
_NO_REPORT = Report()
NO_PROFILES: Mapping[str, Amount] = {}


def plan(
    capacity: Amount,
    entitlements: Sequence[Entitlement],
    reports: Mapping[str, Report],
    debts: Mapping[str, float],
    elapsed_s: float,
    settings: PlannerSettings = _DEFAULTS,
    profiles: Mapping[str, Amount] = NO_PROFILES,
) -> Plan:
    """Recompute all limits.

    ``debts`` and ``profiles`` are the last plan's, ``elapsed_s`` the seconds since then. An entitlement
    without a report is idle. 1,000 entitlements take about 30 ms of one core, 4,000 about 140 ms: n log n.
    """
    claims = [_claim(e, reports.get(e.name, _NO_REPORT)) for e in entitlements]
    division = Division(capacity, claims)
    fair = division.fair_shares()
    profiles = _averaged(claims, profiles, elapsed_s)
    service = {
        name: _dominant_service(reports.get(name, _NO_REPORT).service, capacity, profile)
        for name, profile in profiles.items()
    }
    missing = _missing(fair, service)
    moved, weights = {}, {}
    for entitlement in entitlements:
        name = entitlement.name
        due = fair[name].dominant_share
        moved[name] = owed = debts_of.moved(
            debts.get(name, 0.0),
            fair_share=due,
            service=service[name] + missing * due,
            has_unmet_demand=not fair[name].is_satisfied,
            elapsed_s=elapsed_s,
            cap_s=settings.debt_cap_s,
            decay_s=settings.debt_decay_s,
        )
        weights[name] = (_weight(entitlement, owed, settings), owed if settings.debt_gain else 0.0)
    division.reweigh(weights)
    shares = division.shares()
    lent = _lent(claims, shares) if settings.lends_granted else {}
    plans = {}
    for claim in claims:
        name, share = claim.name, shares[claim.name]
        limit = share.limit
        if name in lent:
            limit = (limit + lent[name]).at_most(capacity.at_least(limit)).at_most(claim.ceiling)
        plans[name] = EntitlementPlan(
            limit,
            share.assured,
            share.allocation,
            claim.demand,
            fair[name].dominant_share,
            moved[name],
        )
    return Plan(capacity, plans, profiles)


def _lent(claims: Sequence[Claim], shares: Mapping[str, Share]) -> dict[str, Amount]:
    """All that the other tiers were granted, once more for those of spot that want it.

    Divided as what was left for spot is; evenly where nothing was.
    """
    granted = NOTHING
    for claim in claims:
        if claim.tier is not Tier.SPOT:
            granted = granted + shares[claim.name].allocation
    wanting = [claim for claim in claims if claim.tier is Tier.SPOT and claim.demand != NOTHING]
    left = NOTHING
    for claim in wanting:
        left = left + shares[claim.name].allocation
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


def _missing(fair: Mapping[str, FairShare], service: Mapping[str, float]) -> float:
    """By what part all those in want together got less than their fair shares; negative where more.

    Nobody owes that to anybody: capacity is never exactly what it is taken for. Left in, it would drive all
    debts to one end of their range, where they say nothing any more (seen with several engines: 31 % from
    the fair share instead of 5).
    """
    wanting = [name for name, share in fair.items() if not share.is_satisfied]
    due = sum(fair[name].dominant_share for name in wanting)
    got = sum(service[name] for name in wanting)
    return (due - got) / due if due > 0 and len(wanting) > 1 else 0.0


def _claim(entitlement: Entitlement, report: Report) -> Claim:
    return Claim(
        entitlement.name,
        entitlement.tier,
        entitlement.weight,
        NOTHING if entitlement.tier is Tier.SPOT else entitlement.guarantee,
        entitlement.ceiling,
        report.demand,
        report.floor,
    )


def _weight(entitlement: Entitlement, debt: float, settings: PlannerSettings) -> float:
    factor = slo_factor(entitlement.slo) if settings.slo_precedence else 1.0
    return entitlement.weight * factor * debts_of.weight_factor(debt, settings.debt_gain)


def slo_factor(slo: Slo) -> float:
    """How much precedence a latency promise gives: from 1 (none, or a loose one) to 4.

    A promise half as long as the reference doubles it; the tighter of the two promises counts. Debt takes
    the precedence back in the long run.
    """
    if slo.ttft_ms is None and slo.tpot_ms is None:
        return 1.0
    ratios = [1.0]
    if slo.ttft_ms is not None:
        ratios.append(SLO_REFERENCE_TTFT_MS / slo.ttft_ms)
    if slo.tpot_ms is not None:
        ratios.append(SLO_REFERENCE_TPOT_MS / slo.tpot_ms)
    return min(max(ratios), MOST_SLO_FACTOR)


def _averaged(claims: Sequence[Claim], profiles: Mapping[str, Amount], elapsed_s: float) -> dict[str, Amount]:
    """The profiles, moved towards the demand of now; who is new has that for its profile."""
    new = 1 - math.exp(-elapsed_s / PROFILE_S)
    averaged = {}
    for claim in claims:
        a, b, c = claim.demand.values()
        x, y, z = profiles.get(claim.name, claim.demand).values()
        averaged[claim.name] = Amount(x + (a - x) * new, y + (b - y) * new, z + (c - z) * new)
    return averaged


def _dominant_service(service: Amount, capacity: Amount, profile: Amount) -> float:
    """Service as a share of capacity, in the dimension that dominates the profile."""
    (a, b, c), (x, y, z), (rate, cache, sequences) = profile.values(), service.values(), capacity.values()
    most, share = (a / rate, x / rate) if rate > 0 else (0.0, 0.0)
    if cache > 0 and b > most * cache:
        most, share = b / cache, y / cache
    if sequences > 0 and c > most * sequences:
        share = z / sequences
    return share if a > 0 or b > 0 or c > 0 else 0.0
