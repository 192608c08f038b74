"""Profiles: the dimension in which the service of each entitlement counts, updated at each plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from tokenpool.accounting.report import Report
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement

PROFILE_S = 20.0
"""The time in seconds over which service is averaged, to choose the dimension in which it counts.

With momentary demand, the dimension changed with every burst, to the one with much service at that moment.
With requests of different sizes, two tenants then ended 9 % above and below their shares with equal debts.
The median over 20 mixes was 5.1 %; with averages it is 2.8 % (simulation/mixes.py).

Averaged demand is not used, because demand is an estimate and a learned throughput has slack. It was fair in
simulation, but 6 to 10 % off in an engine's first half minute. Averaged service was 0.5 to 2 % off
(experiments/scarcity.py).
"""
CLEARLY = 1.1
"""The factor by which another dimension must exceed the current one, to replace it.

Tokens are charged at admission. In a tie, an entitlement that just spent tokens would be counted by tokens.
After that it would be counted by sequences, until its next request. Both are too much: service was 18 % from
the fair share (tests/unit/simulation/test_convergence.py).
"""


class Profile(msgspec.Struct, frozen=True, gc=False):
    """The dimension in which the service of one entitlement counts, and the averages behind that choice."""

    service: Amount = NOTHING
    """The average service over ``PROFILE_S``, or over ``age_s`` while that is shorter."""
    place: int = 2
    """The index of the dimension with the entitlement's largest share of capacity, or with a share within
    ``CLEARLY`` of the largest. Before any service it is the index of sequences."""
    age_s: float = 0.0
    """Seconds since the first plan with this entitlement."""


NO_PROFILE = Profile()
_NO_REPORT = Report()


def followed(
    profiles: Mapping[str, Profile],
    entitlements: Sequence[Entitlement],
    reports: Mapping[str, Report],
    capacity: Amount,
    elapsed_s: float,
) -> dict[str, Profile]:
    """The profiles of all entitlements, after ``elapsed_s`` seconds with the service in the reports."""
    least = 1 - math.exp(-elapsed_s / PROFILE_S)
    rate, cache, sequences = capacity.values()
    moved = {}
    for entitlement in entitlements:
        name = entitlement.name
        profile = profiles.get(name, NO_PROFILE)
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


def after_idle_time(profile: Profile, elapsed_s: float) -> Profile:
    """The profile after ``elapsed_s`` seconds without service. Plans in that time would give the same."""
    if elapsed_s <= 0:
        return profile
    counted = min(elapsed_s, max(PROFILE_S - profile.age_s, 0.0))
    age_s = profile.age_s + counted
    kept = math.exp(-(elapsed_s - counted) / PROFILE_S) * (profile.age_s / age_s if age_s > 0 else 1.0)
    return Profile(profile.service * kept, profile.place, profile.age_s + elapsed_s)


def dominant_services(
    profiles: Mapping[str, Profile], reports: Mapping[str, Report], capacity: Amount
) -> dict[str, float]:
    """The service of each entitlement with a profile, as a share of capacity in the dimension of its profile.

    It is 0 without capacity.
    """
    whole = capacity.values()
    return {
        name: reports.get(name, _NO_REPORT).service.values()[place] / whole[place]
        if whole[place] > 0
        else 0.0
        for name, place in ((name, profile.place) for name, profile in profiles.items())
    }
