"""Profiles: the dimension in which the service of each entitlement counts, followed over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from tokenpool.accounting.report import Report
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement

PROFILE_S = 20.0
"""The time over which service is averaged, to choose the dimension in which it counts.

With momentary demand, the dimension changed with every burst, to the one with much service at that moment.
With requests of different sizes two tenants then ended 9 % above and below their shares while their debts
were even (median over 20 mixes 5.1 %; averaged 2.8 %, simulation/mixes.py). Demand is an estimate, and a
learned throughput has slack: averaged demand was fair in simulation and 6 to 10 % off over an engine's first
half minute, averaged service 0.5 to 2 % (experiments/scarcity.py).
"""
CLEARLY = 1.1
"""The factor by which another dimension must exceed the one in which service counts, to replace it.

Tokens are charged at admission. In a tie, an entitlement that just had some would be counted by tokens, and
by its sequences until its next request: always too much (18 % from the fair share;
tests/unit/simulation/test_convergence.py).
"""


class Profile(msgspec.Struct, frozen=True, gc=False):
    """The dimension in which the service of one entitlement counts, and the averages behind that choice."""

    service: Amount = NOTHING
    """Averaged over ``PROFILE_S``, or over ``age_s`` while that is less."""
    place: int = 2
    """The index of the dimension: the one with the entitlement's largest share of capacity, or with a share
    within ``CLEARLY`` of that. Sequences before any service."""
    age_s: float = 0.0
    """The time since the first plan with this entitlement."""


_NO_PROFILE = Profile()
_NO_REPORT = Report()


def followed(
    profiles: Mapping[str, Profile],
    entitlements: Sequence[Entitlement],
    reports: Mapping[str, Report],
    capacity: Amount,
    elapsed_s: float,
) -> dict[str, Profile]:
    """The profiles of all entitlements after ``elapsed_s`` with the service in the reports."""
    least = 1 - math.exp(-elapsed_s / PROFILE_S)
    rate, cache, sequences = capacity.values()
    moved = {}
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
        moved[name] = Profile(Amount(a, b, c), place, age_s)
    return moved


def rested(profile: Profile, elapsed_s: float) -> Profile:
    """The profile after ``elapsed_s`` without service: equal to the result of plans in that time."""
    if elapsed_s <= 0:
        return profile
    counted = min(elapsed_s, max(PROFILE_S - profile.age_s, 0.0))
    age_s = profile.age_s + counted
    kept = math.exp(-(elapsed_s - counted) / PROFILE_S) * (profile.age_s / age_s if age_s > 0 else 1.0)
    return Profile(profile.service * kept, profile.place, profile.age_s + elapsed_s)


def dominant_service(service: Amount, capacity: Amount, profile: Profile) -> float:
    """Service as a share of capacity, in the dimension in which it counts; 0 without capacity."""
    whole = capacity.values()[profile.place]
    return service.values()[profile.place] / whole if whole > 0 else 0.0
