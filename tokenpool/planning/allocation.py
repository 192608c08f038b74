"""Allocation: one tick's division of live capacity among claims, in design.md's four stages.

Pure arithmetic on amounts. What a claim's weight is made of, and what happens over time (debt), is the
planner's and ``debt``'s business.

Claims are kept as parallel lists of numbers, not as objects: most of a plan's time is spent here, and with an
object for each claim a plan took a fifth more instructions.

The model is Leontief's: an entitlement's requests use all dimensions in the proportions of its demand, so
an allocation is a share ``x`` of the demand vector, from 0 to 1, and never less than the part of the
guarantee that is in demand. A dimension that a ceiling binds scales the whole vector: nobody is given what
it could not use.

Progressive filling (dominant-resource fairness, Ghodsi et al., NSDI 2011) runs from event to event: at
*level* ``L`` an unfrozen claim has ``x = L * weight / dominant share of its demand``. Each dimension's use
is piecewise linear in ``L``; the events where its slope changes are sorted once, so a stage costs n log n.
Guarantees count towards the dominant share: who holds one gets more only when the others have come up to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Tier

_EPSILON = 1e-9
"""Relative slack of comparisons between sums of floats."""
_ALL = 1 - _EPSILON
"""Who is filled with so much of its demand is satisfied."""
_DIMENSIONS = range(3)
_SATISFIED = 3
"""Sorts behind every dimension, so that a claim's last event is its being satisfied."""

Vector = tuple[float, float, float]


class Claim(msgspec.Struct, frozen=True, gc=False):
    """What one entitlement brings to a tick."""

    name: str
    tier: Tier
    weight: float
    """Above 0, with SLO factor and debt already in it."""
    guarantee: Amount
    ceiling: Amount
    demand: Amount
    """Offered load, shed requests included."""
    floor: Amount = Amount()
    """Its largest single request of late: the limit never shuts out a request that fits the ceiling."""
    priority: float = 0.0
    """Who gets the odd sequence that whole numbers leave over: the highest (the planner passes debt)."""


class Share(msgspec.Struct, frozen=True, gc=False):
    """What one entitlement gets of a tick."""

    allocation: Amount
    """Granted to be used: stages 1 to 3. The concurrency of whoever is in want is a whole number."""
    assured: Amount
    """What never needs physical room on an engine: nothing for spot."""
    limit: Amount
    """The most it may use now."""


class IdleTerms(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The terms for the share of every claim without demand. Positional on the wire: append new fields.

    Such a claim changes no other claim's share. So a division needs only the claims with demand, and the cost
    of a tick depends on the number of active tenants, not on all that exist.
    """

    headroom: Vector = (0.0, 0.0, 0.0)
    """Capacity that was granted to no claim: tokens per second, KV tokens, sequences."""
    capacity: Vector = (0.0, 0.0, 0.0)
    """Live capacity, in whole sequences."""
    others_want: bool = False
    """Whether a claim other than spot wants more than it was granted."""

    def share(self, tier: Tier, guarantee: Amount, ceiling: Amount, floor: Amount) -> Share:
        """The share of one claim that has no demand; ``floor`` as in ``Claim``."""
        limit, most = _least(self.headroom, self.capacity), ceiling.values()
        whole: Vector = (0.0, 0.0, 0.0)
        if tier is Tier.SPOT:
            if not self.others_want:
                whole = _least(floor.values(), most)
            return Share(NOTHING, NOTHING, Amount(*_least(_most(limit, whole), most)))
        at_least = _most(_least(floor.values(), most), guarantee.values())
        limit = _least(_most(limit, at_least), most)
        return Share(NOTHING, Amount(*_least(at_least, limit)), Amount(*limit))


class FairShare(msgspec.Struct, frozen=True, gc=False):
    """What one entitlement would get by its weight alone."""

    dominant_share: float
    """Of live capacity."""
    is_satisfied: bool


def allocate(capacity: Amount, claims: Sequence[Claim]) -> dict[str, Share]:
    """Divide live capacity. The order of the claims does not matter."""
    return Division(capacity, claims).shares()


def fair_shares(capacity: Amount, claims: Sequence[Claim]) -> dict[str, FairShare]:
    """The division alone, without the limits that follow from it."""
    return Division(capacity, claims).fair_shares()


class Division:
    """One capacity among the same claims, divided as often as weights are tried.

    What does not depend on weights (demands within ceilings, guarantees) is worked out once.
    """

    def __init__(self, capacity: Amount, claims: Sequence[Claim]) -> None:
        tokens, cache, sequences = _counted(capacity.values())
        self._capacity = (tokens, cache, float(math.floor(sequences + _EPSILON)))
        """In whole sequences."""
        ordered = sorted(claims, key=lambda claim: claim.name)
        self._groups = [
            _Group([claim for claim in ordered if (claim.tier is Tier.SPOT) is is_spot], self._capacity)
            for is_spot in (False, True)
        ]
        """In the order in which they are filled: spot takes what the others leave."""
        _assure_guarantees(self._groups, self._capacity)
        self._left = self._divide()

    def reweigh(self, weights: Mapping[str, tuple[float, float]]) -> None:
        """Divide anew, with another weight and priority for every claim, by name."""
        for group in self._groups:
            group.weights = [weights[claim.name][0] for claim in group.claims]
            group.priorities = [weights[claim.name][1] for claim in group.claims]
        self._left = self._divide()

    def shares(self) -> dict[str, Share]:
        """What everyone gets.

        Spot has no floor while others are in want: eight spot tenants took a sixth of a pool from elastic
        ones, which come back more seldom.
        """
        others, spot = self._groups
        return others.shares(self._left) | spot.shares(self._left, has_floor=not self.others_want)

    @property
    def others_want(self) -> bool:
        """Whether anybody but spot wants more than it was granted."""
        return not all(self._groups[0].are_satisfied)

    def idle_terms(self) -> IdleTerms:
        """The terms for a claim without demand, whether it was among the claims or not."""
        return IdleTerms(self._left, self._capacity, self.others_want)

    def fair_shares(self) -> dict[str, FairShare]:
        """What everyone gets, as a dominant share."""
        others, spot = self._groups
        return others.fair_shares() | spot.fair_shares()

    def _divide(self) -> Vector:
        """All stages; returns what is left over.

        While others are in want, spot is filled from whole sequences only. The part of one that their whole
        numbers leave over would carry no stream, but it took tokens from their headroom.
        """
        others, spot = self._groups
        tokens, cache, sequences = _fill(others, self._capacity)
        if self.others_want:
            sequences = float(math.floor(sequences + _EPSILON))
        return _fill(spot, (tokens, cache, sequences))


class _Group:
    """Claims that are filled together, on their way through the stages; each list has one item for each."""

    def __init__(self, claims: Sequence[Claim], capacity: Vector) -> None:
        self.claims = claims
        self._capacity = capacity
        self.weights = [claim.weight for claim in claims]
        self.priorities = [claim.priority for claim in claims]
        self.demands = [_within_ceiling(claim) for claim in claims]
        self.dominants = _dominant_shares(self.demands, capacity)
        """The largest share of capacity that each demands."""
        self.held: list[Vector] = []
        """The part of the guarantee that is in demand and can be carried."""
        self.parts: list[float] = []
        """How much of its demand each was filled with: 1 is all of it."""
        self._granted: list[Vector] = []
        """What ``parts`` and ``held`` come to, before whole sequences."""
        self._sequences: list[float] = []

    def lease(self, left: Vector) -> Vector:
        """The filling is over: work out what is granted, and what that leaves of what was left."""
        capacity = self._capacity
        self._granted = [
            _least(_most((a * part, b * part, c * part), held), capacity)
            for (a, b, c), held, part in zip(self.demands, self.held, self.parts, strict=True)
        ]
        tokens, cache = (max(left[k] - math.fsum([g[k] for g in self._granted]), 0.0) for k in (0, 1))
        # Of sequences nothing is gone before they are whole.
        return tokens, cache, left[2]

    def round_sequences(self, available: float) -> float:
        """Turn the concurrency of those in want into whole sequences; return what is left.

        A satisfied claim keeps its lease as it is: 0.3 sequences on average are one now and then, and its
        limit is rounded up for it. To those who are held up a part of a sequence is worth nothing. Each gets
        the whole ones of its lease; what is left over goes, one each, to those whose priority and remainder
        are highest, so that with debt as priority those who went without come first the next time.
        """
        self._sequences = rounded = []
        wanting: list[tuple[float, int]] = []
        for index, ((_, _, sequences), part) in enumerate(zip(self._granted, self.parts, strict=True)):
            if part >= _ALL:
                rounded.append(sequences)
                available -= sequences
                continue
            whole = float(math.floor(sequences + _EPSILON))
            rounded.append(whole)
            available -= whole
            rest, most = sequences - whole, self.claims[index].ceiling.concurrency
            if rest > _EPSILON and rest > _EPSILON * sequences and whole + 1 <= most:
                wanting.append((-(rest + self.priorities[index]), index))
        wanting.sort()
        extra = max(min(int(available), len(wanting)), 0)
        for _, index in wanting[:extra]:
            rounded[index] += 1
        return max(available - extra, 0.0)

    @property
    def are_satisfied(self) -> list[bool]:
        """Whether each has all that it wants; who wants nothing has."""
        return [
            part >= _ALL or not dominant for part, dominant in zip(self.parts, self.dominants, strict=True)
        ]

    def shares(self, headroom: Vector, *, has_floor: bool = True) -> dict[str, Share]:
        """What each gets; without its floor only where that is granted."""
        shares = {}
        more_tokens, more_cache, more_sequences = headroom
        for claim, (tokens, cache, _), sequences in zip(
            self.claims, self._granted, self._sequences, strict=True
        ):
            ceiling = claim.ceiling.values()
            whole = (tokens, cache, float(math.ceil(sequences - _EPSILON)))
            if has_floor:
                whole = _most(whole, _least(claim.floor.values(), ceiling))
            headed = (tokens + more_tokens, cache + more_cache, sequences + more_sequences)
            limit, assured = _most(_least(headed, self._capacity), whole), NOTHING
            if claim.tier is Tier.SPOT:
                limit = _least(limit, ceiling)
            else:
                at_least = _most(whole, claim.guarantee.values())
                limit = _least(_most(limit, at_least), ceiling)
                assured = Amount(*_least(at_least, limit))
            shares[claim.name] = Share(Amount(tokens, cache, sequences), assured, Amount(*limit))
        return shares

    def fair_shares(self) -> dict[str, FairShare]:
        """The largest share of a dimension that each was granted, before whole numbers."""
        return {
            claim.name: FairShare(share, is_satisfied)
            for claim, share, is_satisfied in zip(
                self.claims, _dominant_shares(self._granted, self._capacity), self.are_satisfied, strict=True
            )
        }


def _fill(group: _Group, left: Vector) -> Vector:
    """Stages 2 and 3 for one group; returns what that leaves."""
    group.parts = _Filling(group, left).run()
    tokens, cache, sequences = group.lease(left)
    return tokens, cache, group.round_sequences(sequences)


def _within_ceiling(claim: Claim) -> Vector:
    """The demand vector, shortened until it fits the ceiling in every dimension."""
    a, b, c = demand = _counted(claim.demand.values())
    x, y, z = ceiling = _counted(claim.ceiling.values())
    if a <= x and b <= y and c <= z:
        return demand
    scale = min(ceiling[k] / demand[k] for k in _DIMENSIONS if demand[k] > ceiling[k])
    return (a * scale, b * scale, c * scale)


def _dominant_shares(vectors: Iterable[Vector], capacity: Vector) -> list[float]:
    """The largest share of capacity in each vector; of what does not exist nobody has a share."""
    tokens, cache, sequences = (1 / c if c > 0 else 0.0 for c in capacity)
    shares = []
    for vector in vectors:
        a, b, c = vector[0] * tokens, vector[1] * cache, vector[2] * sequences
        if b > a:
            a = b
        shares.append(c if c > a else a)
    return shares


def _assure_guarantees(groups: Iterable[_Group], capacity: Vector) -> None:
    """Stage 1: guarantees up to demand; in proportion where live capacity cannot carry them."""
    for group in groups:
        group.held = [
            _least(_counted(claim.guarantee.values()), demand)
            for claim, demand in zip(group.claims, group.demands, strict=True)
        ]
    scale = [1.0, 1.0, 1.0]
    for k in _DIMENSIONS:
        promised = math.fsum([held[k] for group in groups for held in group.held])
        if promised > capacity[k]:
            scale[k] = capacity[k] / promised
    a, b, c = scale
    if min(scale) < 1:
        for group in groups:
            group.held = [(x * a, y * b, z * c) for x, y, z in group.held]


class _Filling:
    """Stages 2 and 3: raise dominant shares together until everyone is satisfied or held up.

    A sweep over the events of a group's claims. ``_speeds[i]`` says how fast claim ``i`` would use each
    dimension as the level rises, ``_slope`` how fast all of those do that have begun to and are not frozen.
    """

    def __init__(self, group: _Group, capacity: Vector) -> None:
        self._group = group
        self._capacity = capacity
        self._used = [math.fsum([held[k] for held in group.held]) for k in _DIMENSIONS]
        self._slope = [0.0, 0.0, 0.0]
        self._frozen = [dominant == 0 for dominant in group.dominants]
        """Who demands nothing, or nothing that exists, is not filled."""
        self._growing = 0
        """How many are not frozen."""
        self._full_at = [
            dominant / weight for dominant, weight in zip(group.dominants, group.weights, strict=True)
        ]
        """The level at which each is satisfied."""
        self._speeds = [
            (a / level, b / level, c / level) if level else (0.0, 0.0, 0.0)
            for (a, b, c), level in zip(group.demands, self._full_at, strict=True)
        ]
        self._began: list[list[bool]] = [[False] * len(group.claims) for _ in _DIMENSIONS]
        self._users = [0, 0, 0]
        self._parts = [0.0] * len(group.claims)
        self._level = 0.0
        self._saturated = [used >= c * (1 - _EPSILON) for used, c in zip(self._used, capacity, strict=True)]

    def run(self) -> list[float]:
        """Sweep the level upwards; how much of its demand each claim is filled with."""
        frozen, saturated = self._frozen, self._saturated
        self._shut_out()
        for level, index, dimension in sorted(self._events()):
            if not self._growing:
                break
            if frozen[index]:
                continue
            if level > self._level:
                self._rise_to(level)
                if frozen[index]:
                    continue
            if dimension == _SATISFIED or saturated[dimension]:
                self._freeze(index, level)
            else:
                self._began[dimension][index] = True
                self._users[dimension] += 1
                self._slope[dimension] += self._speeds[index][dimension]
        return self._parts

    def _shut_out(self) -> None:
        """Freeze whoever needs something of a dimension of which nothing is left, and holds nothing of it."""
        for k in _DIMENSIONS:
            if self._saturated[k]:
                for index, (demand, held) in enumerate(
                    zip(self._group.demands, self._group.held, strict=True)
                ):
                    if demand[k] > held[k] == 0:
                        self._frozen[index] = True
        self._growing = self._frozen.count(False)

    def _events(self) -> list[tuple[float, int, int]]:
        """``(level, claim, dimension)``: it begins to use a dimension, or is satisfied.

        What holds nothing of a dimension begins at once: most do, and nothing needs sorting for that.
        """
        growing = [index for index, frozen in enumerate(self._frozen) if not frozen]
        events = [(self._full_at[index], index, _SATISFIED) for index in growing]
        demands, all_held = self._group.demands, self._group.held
        for k in _DIMENSIONS:
            began = self._began[k]
            for index in growing:
                held = all_held[index][k]
                if demands[index][k] > held:
                    if held:
                        events.append((held / self._speeds[index][k], index, k))
                    else:
                        began[index] = True
            self._sum_up(k)
        return events

    def _sum_up(self, k: int) -> None:
        """How fast a dimension is used by all that have begun to and grow."""
        speeds = [
            speed[k]
            for speed, began, frozen in zip(self._speeds, self._began[k], self._frozen, strict=True)
            if began and not frozen
        ]
        self._users[k], self._slope[k] = len(speeds), sum(speeds)

    def _rise_to(self, level: float) -> None:
        """Raise the level, stopping where dimensions saturate on the way."""
        capacity, used, slope, saturated = self._capacity, self._used, self._slope, self._saturated
        while self._level < level:
            stop, full = level, -1
            for k in _DIMENSIONS:
                if slope[k] > 0 and not saturated[k]:
                    reach = self._level + (capacity[k] - used[k]) / slope[k]
                    if reach < stop:
                        stop, full = reach, k
            rise = stop - self._level
            if rise > 0:
                for k in _DIMENSIONS:
                    used[k] += slope[k] * rise
                self._level = stop
            if full < 0:
                self._level = level
                return
            saturated[full] = True
            for index, (began, frozen) in enumerate(zip(self._began[full], self._frozen, strict=True)):
                if began and not frozen:
                    self._hold(index, self._level)
            for k in _DIMENSIONS if self._growing else ():
                self._sum_up(k)

    def _freeze(self, index: int, level: float) -> None:
        """A claim grows no more: it is satisfied, or needs a dimension that is used up."""
        self._hold(index, level)
        for k in _DIMENSIONS:
            if self._began[k][index]:
                self._users[k] -= 1
                # Sums of floats drift: nobody left means no slope at all.
                self._slope[k] = self._slope[k] - self._speeds[index][k] if self._users[k] else 0.0

    def _hold(self, index: int, level: float) -> None:
        self._frozen[index] = True
        self._growing -= 1
        part = level / self._full_at[index]
        self._parts[index] = part if part < 1.0 else 1.0


def _counted(vector: Vector) -> Vector:
    """What is too small to count is nothing, so that no quotient overflows."""
    a, b, c = vector
    return (a if a > _EPSILON else 0.0, b if b > _EPSILON else 0.0, c if c > _EPSILON else 0.0)


def _most(one: Vector, other: Vector) -> Vector:
    (a, b, c), (x, y, z) = one, other
    return (a if a > x else x, b if b > y else y, c if c > z else z)


def _least(one: Vector, other: Vector) -> Vector:
    (a, b, c), (x, y, z) = one, other
    return (a if a < x else x, b if b < y else y, c if c < z else z)
