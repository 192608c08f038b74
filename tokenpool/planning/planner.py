"""The planner: reports of one tick in, every entitlement's limits out.

A pure function, run by a lone sidecar for itself and by a coordinator for all. It keeps no state: debts
and profiles go in and come out.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import cast

import msgspec

from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement, Slo, Tier
from tokenpool.planning import debt as debts_of
from tokenpool.planning.allocation import Claim, Division, FairShare, IdleTerms, Share

SLO_REFERENCE_TTFT_MS = 1000.0
SLO_REFERENCE_TPOT_MS = 200.0
MOST_SLO_FACTOR = 4.0
PROFILE_S = 20.0
"""Over how long service is averaged, to tell in which dimension it counts.

By what was asked for at the moment the dimension changed with every burst, to the one in which there was just
much service: with requests of unlike sizes two tenants ended 9 % above and below their shares while their
debts said that they were even (median over 20 mixes 5.1 %; averaged 2.8 %, simulation/mixes.py). What is
asked for is an estimate, and throughput that is learned has slack: averaged demand was fair in simulation and
6 to 10 % off over an engine's first half minute, averaged service 0.5 to 2 % (experiments/scarcity.py).
"""
CLEARLY = 1.1
"""By what factor another dimension must exceed the one in which service counts, to take its place.

Tokens are charged at admission. In a tie, whoever just had some would be counted by them, and by its
sequences until the next: always too much (18 % from the fair share;
tests/unit/simulation/test_convergence.py).
"""


class Profile(msgspec.Struct, frozen=True, gc=False):
    """In which dimension one entitlement's service counts, and why."""

    service: Amount = NOTHING
    """Averaged over ``PROFILE_S``, or over ``age_s`` while that is less."""
    place: int = 2
    """Of the dimension: the one of which it has the largest share of capacity, or had, within ``CLEARLY``.
    Sequences before any service."""
    age_s: float = 0.0


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
    """With 0.3, 0.6 and 1.0 the worst of 20 seeds is 1.1 to 1.4 % from the fair share and the median 0.7 to
    0.8 %; 0.6 has the smallest of both (tests/unit/simulation/test_convergence.py)."""
    debt_cap_s: float = 4.0
    debt_decay_s: float = 4.0
    slo_precedence: bool = True


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
    profiles: Mapping[str, Profile]
    """For the next plan."""
    idle: IdleTerms = IdleTerms()
    """The terms for every entitlement that is not in ``entitlements``: see ``idle_share``."""

    def part(self, entitlement: Entitlement) -> EntitlementPlan:
        """One entitlement's part. For an idle one without an entry: the part that a full plan would give."""
        found = self.entitlements.get(entitlement.name)
        if found is not None:
            return found
        share = idle_share(entitlement, self.idle, ONE_SEQUENCE)
        return EntitlementPlan(share.limit, share.assured, NOTHING, NOTHING, 0.0, 0.0)


ONE_SEQUENCE = Amount(0.0, 0.0, 1.0)
"""The smallest request."""
_DEFAULTS = PlannerSettings()
_NO_REPORT = Report()
_NO_PROFILE = Profile()
NO_PROFILES: Mapping[str, Profile] = {}


def plan(
    capacity: Amount,
    entitlements: Sequence[Entitlement],
    reports: Mapping[str, Report],
    debts: Mapping[str, float],
    elapsed_s: float,
    settings: PlannerSettings = _DEFAULTS,
    profiles: Mapping[str, Profile] = NO_PROFILES,
) -> Plan:
    """Recompute all limits.

    ``debts`` and ``profiles`` are the last plan's, ``elapsed_s`` the seconds since then. An entitlement
    without a report is idle. An idle one may be left out: nobody's part depends on it, and ``idle_share``
    tells its own. 1,000 entitlements take 17 to 30 ms of one core, 4,000 70 to 140: n log n.
    """
    steps = plan_steps(capacity, entitlements, reports, debts, elapsed_s, settings, profiles)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(Plan, end.value)


def plan_steps(
    capacity: Amount,
    entitlements: Sequence[Entitlement],
    reports: Mapping[str, Report],
    debts: Mapping[str, float],
    elapsed_s: float,
    settings: PlannerSettings = _DEFAULTS,
    profiles: Mapping[str, Profile] = NO_PROFILES,
) -> Generator[None, None, Plan]:
    """Like ``plan``, as a generator that returns the ``Plan``: the caller can do other work between steps."""
    claims = [_claim(e, reports.get(e.name, _NO_REPORT)) for e in entitlements]
    yield
    division = Division(capacity, claims)
    yield
    fair = division.fair_shares()
    profiles = _followed(profiles, entitlements, reports, capacity, elapsed_s)
    yield
    service = {
        name: _dominant_service(reports.get(name, _NO_REPORT).service, capacity, profile)
        for name, profile in profiles.items()
    }
    yield
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
    yield
    division.reweigh(weights)
    yield
    shares = division.shares()
    yield
    # While others than spot are in want, what a guarantee leaves idle is theirs before it is spot's.
    yielding = {e.name for e in entitlements if e.is_preemptible} if not division.others_want else set()
    lent = _lent(claims, shares, yielding) if yielding else {}
    yield
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
    return Plan(capacity, plans, profiles, division.idle_terms())


def idle_share(entitlement: Entitlement, terms: IdleTerms, floor: Amount) -> Share:
    """The part of an entitlement without demand: exactly the part that a plan with it would give.

    ``floor`` is its largest single request, at least one sequence.
    """
    guarantee = NOTHING if entitlement.tier is Tier.SPOT else entitlement.guarantee
    return terms.share(entitlement.tier, guarantee, entitlement.ceiling, floor)


def rested(profile: Profile, elapsed_s: float) -> Profile:
    """The profile after ``elapsed_s`` without service: equal to the result of plans in that time."""
    if elapsed_s <= 0:
        return profile
    counted = min(elapsed_s, max(PROFILE_S - profile.age_s, 0.0))
    age_s = profile.age_s + counted
    kept = math.exp(-(elapsed_s - counted) / PROFILE_S) * (profile.age_s / age_s if age_s > 0 else 1.0)
    return Profile(profile.service * kept, profile.place, profile.age_s + elapsed_s)


def _lent(claims: Sequence[Claim], shares: Mapping[str, Share], yielding: Set[str]) -> dict[str, Amount]:
    """All that was granted within guarantees, once more for the preemptible entitlements that want it.

    Their running requests are ended when a guarantee needs its slots, so nothing has to be held free for it.
    Recent use of guarantees is not a usable measure: with Poisson arrivals an eighth of the engine stood
    idle. What elastic tenants have beyond a guarantee is theirs alone: nothing is ended for it.

    It is divided in proportion to what was left for spot, and evenly where nothing was left.
    """
    granted = _total(
        shares[claim.name].allocation.at_most(claim.guarantee)
        for claim in claims
        if claim.tier is not Tier.SPOT
    )
    wanting = [claim for claim in claims if claim.name in yielding and claim.demand != NOTHING]
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


def _followed(
    profiles: Mapping[str, Profile],
    entitlements: Sequence[Entitlement],
    reports: Mapping[str, Report],
    capacity: Amount,
    elapsed_s: float,
) -> dict[str, Profile]:
    """The profiles, moved towards the service of now."""
    least = 1 - math.exp(-elapsed_s / PROFILE_S)
    rate, cache, sequences = capacity.values()
    followed = {}
    for entitlement in entitlements:
        name = entitlement.name
        profile = profiles.get(name, _NO_PROFILE)
        age_s = profile.age_s + elapsed_s
        new = least if age_s >= PROFILE_S else elapsed_s / age_s if age_s > 0 else 1.0
        (a, b, c), (x, y, z) = reports.get(name, _NO_REPORT).service.values(), profile.service.values()
        a, b, c = x + (a - x) * new, y + (b - y) * new, z + (c - z) * new
        shares = (
            a / rate if rate > 0 else 0.0,
            b / cache if cache > 0 else 0.0,
            c / sequences if sequences > 0 else 0.0,
        )
        most, place = max(shares), profile.place
        if most > shares[place] * CLEARLY:
            place = shares.index(most)
        followed[name] = Profile(Amount(a, b, c), place, age_s)
    return followed


def _dominant_service(service: Amount, capacity: Amount, profile: Profile) -> float:
    """Service as a share of capacity, in the dimension in which it counts."""
    whole = capacity.values()[profile.place]
    return service.values()[profile.place] / whole if whole > 0 else 0.0
