"""Allocation: one tick's division of live capacity among claims, in design.md's four stages.

Pure arithmetic on amounts. What a claim's weight is made of, and what happens over time (debt), is the
planner's and ``debt``'s business.

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
        tokens, cache, sequences = _vector(capacity)
        self._capacity = (tokens, cache, float(math.floor(sequences + _EPSILON)))
        """In whole sequences."""
        self._workings = [_Working(c, self._capacity) for c in sorted(claims, key=lambda c: c.name)]
        _grant_guarantees(self._workings, self._capacity)
        self._left = self._divide()

    def reweigh(self, weights: Mapping[str, tuple[float, float]]) -> None:
        """Divide anew, with another weight and priority for every claim, by name."""
        for w in self._workings:
            w.weight, w.priority = weights[w.claim.name]
            w.x = w.sequences = 0.0
        self._left = self._divide()

    def shares(self) -> dict[str, Share]:
        """What everyone gets."""
        return {w.claim.name: w.share(self._capacity, self._left) for w in self._workings}

    def fair_shares(self) -> dict[str, FairShare]:
        """What everyone gets, as a dominant share."""
        return {w.claim.name: w.fair_share(self._capacity) for w in self._workings}

    def _divide(self) -> Vector:
        """All stages; returns what is left over."""
        left = self._capacity
        for is_spot in (False, True):
            group = [w for w in self._workings if (w.claim.tier is Tier.SPOT) is is_spot]
            _fill(group, left)
            for w in group:
                w.grant(self._capacity)
            tokens, cache, _ = _rest(left, group)
            left = (tokens, cache, _round_sequences(group, left[2]))
        return left


class _Working:
    """One claim on its way through the stages."""

    __slots__ = (
        "claim",
        "demand",
        "dominant",
        "granted",
        "held",
        "priority",
        "sequences",
        "weight",
        "x",
    )

    def __init__(self, claim: Claim, capacity: Vector) -> None:
        self.claim = claim
        self.weight, self.priority = claim.weight, claim.priority
        self.demand = _within_ceiling(_vector(claim.demand), _vector(claim.ceiling))
        self.held: Vector = (0.0, 0.0, 0.0)
        """The part of the guarantee that is in demand and can be carried."""
        self.x = 0.0
        self.granted: Vector = (0.0, 0.0, 0.0)
        """What ``x`` and ``held`` come to, before whole sequences."""
        self.sequences = 0.0
        self.dominant = 0.0
        """The largest share of capacity that it demands."""
        for k in _DIMENSIONS:
            if capacity[k] > 0 and self.demand[k] > self.dominant * capacity[k]:
                self.dominant = self.demand[k] / capacity[k]

    @property
    def is_satisfied(self) -> bool:
        """Whether all that it demands below its ceiling is granted."""
        return self.x >= 1 - _EPSILON

    def grant(self, capacity: Vector) -> None:
        """The filling is over: work out what is granted."""
        (a, b, c), (x, y, z), part = self.demand, self.held, self.x
        a, b, c = a * part, b * part, c * part
        self.granted = _least((a if a > x else x, b if b > y else y, c if c > z else z), capacity)

    def share(self, capacity: Vector, headroom: Vector) -> Share:
        claim, (tokens, cache, _), sequences = self.claim, self.granted, self.sequences
        allocation = Amount(tokens, cache, sequences)
        ceiling, floor = claim.ceiling.values(), claim.floor.values()
        whole = _most((tokens, cache, float(math.ceil(sequences - _EPSILON))), _least(floor, ceiling))
        headed = (tokens + headroom[0], cache + headroom[1], sequences + headroom[2])
        limit = _most(_least(headed, capacity), whole)
        if claim.tier is Tier.SPOT:
            return Share(allocation, NOTHING, Amount(*_least(limit, ceiling)))
        assured = _most(whole, claim.guarantee.values())
        limit = _least(_most(limit, assured), ceiling)
        return Share(allocation, Amount(*_least(assured, limit)), Amount(*limit))

    def fair_share(self, capacity: Vector) -> FairShare:
        """The largest share of a dimension that it demands and was granted, before whole numbers."""
        granted, demand = self.granted, self.demand
        most = 0.0
        for k in _DIMENSIONS:
            if capacity[k] > 0 and demand[k] > 0 and granted[k] > most * capacity[k]:
                most = granted[k] / capacity[k]
        return FairShare(most, self.is_satisfied)


def _within_ceiling(demand: Vector, ceiling: Vector) -> Vector:
    """The demand vector, shortened until it fits the ceiling in every dimension."""
    scale = 1.0
    for k in _DIMENSIONS:
        if demand[k] > ceiling[k]:
            scale = min(scale, ceiling[k] / demand[k])
    return (demand[0] * scale, demand[1] * scale, demand[2] * scale)


def _grant_guarantees(workings: Iterable[_Working], capacity: Vector) -> None:
    """Stage 1: guarantees up to demand; in proportion where live capacity cannot carry them."""
    held = [(w, _least(_vector(w.claim.guarantee), w.demand)) for w in workings]
    scale = [1.0, 1.0, 1.0]
    for k in _DIMENSIONS:
        promised = math.fsum(h[k] for _, h in held)
        if promised > capacity[k]:
            scale[k] = capacity[k] / promised
    for working, h in held:
        working.held = (h[0] * scale[0], h[1] * scale[1], h[2] * scale[2])


def _fill(group: Sequence[_Working], capacity: Vector) -> None:
    """Stages 2 and 3: raise dominant shares together until everyone is satisfied or held up."""
    _Filling(group, capacity).run()


class _Filling:
    """One progressive filling, as a sweep over the events of its claims.

    ``_speeds[i]`` says how fast claim ``i`` would use each dimension as the level rises, ``_slope`` how fast
    all of those do that have begun to and are not frozen.
    """

    def __init__(self, group: Sequence[_Working], capacity: Vector) -> None:
        self._capacity = capacity
        self._used = [math.fsum([w.held[k] for w in group]) for k in _DIMENSIONS]
        self._slope = [0.0, 0.0, 0.0]
        # Who demands something, and of nothing that does not exist.
        self._group = [w for w in group if w.dominant > 0]
        self._speeds: list[Vector] = []
        for w in self._group:
            per_level, (a, b, c) = w.weight / w.dominant, w.demand
            self._speeds.append((a * per_level, b * per_level, c * per_level))
        self._began: list[list[bool]] = [[False] * len(self._group) for _ in _DIMENSIONS]
        self._users = [0, 0, 0]
        self._frozen = [False] * len(self._group)
        self._level = 0.0
        self._saturated = [used >= c * (1 - _EPSILON) for used, c in zip(self._used, capacity, strict=True)]

    def run(self) -> None:
        """Sweep the level upwards."""
        frozen, saturated = self._frozen, self._saturated
        for level, index, dimension in sorted(self._events()):
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

    def _events(self) -> list[tuple[float, int, int]]:
        """``(level, claim, dimension)``: it begins to use a dimension, or is satisfied.

        What holds nothing of a dimension begins at once: most do, and nothing needs sorting for that.
        """
        events = [(w.dominant / w.weight, index, _SATISFIED) for index, w in enumerate(self._group)]
        for k in _DIMENSIONS:
            saturated, began, speeds = self._saturated[k], self._began[k], self._speeds
            for index, w in enumerate(self._group):
                held = w.held[k]
                if w.demand[k] > held:
                    if held or saturated:
                        events.append((held / speeds[index][k], index, k))
                    else:
                        began[index] = True
            self._sum_up(k)
        return events

    def _sum_up(self, k: int) -> None:
        """How fast a dimension is used by all that have begun to and grow."""
        begun = [
            speed[k]
            for speed, has_begun, frozen in zip(self._speeds, self._began[k], self._frozen, strict=True)
            if has_begun and not frozen
        ]
        self._users[k], self._slope[k] = len(begun), sum(begun)

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
            for index, begun in enumerate(self._began[full]):
                if begun and not self._frozen[index]:
                    self._hold(index, self._level)
            for k in _DIMENSIONS:
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
        w = self._group[index]
        x = level * w.weight / w.dominant
        w.x = x if x < 1.0 else 1.0


def _rest(capacity: Vector, group: Iterable[_Working]) -> Vector:
    """What a group leaves of the capacity."""
    granted = [w.granted for w in group]
    rest = [max(capacity[k] - math.fsum(g[k] for g in granted), 0.0) for k in _DIMENSIONS]
    return (rest[0], rest[1], rest[2])


def _round_sequences(group: Sequence[_Working], available: float) -> float:
    """Turn the concurrency of those in want into whole sequences; return what is left.

    A satisfied claim keeps its grant as it is: 0.3 sequences on average are one now and then, and its limit
    is rounded up for it. To those who are held up a part of a sequence is worth nothing. Each gets the whole
    ones of its grant; what is left over goes, one each, to those whose priority and remainder are highest,
    so that with debt as priority those who went without come first the next time.
    """
    wanting: list[tuple[float, str, _Working]] = []
    for w in group:
        granted = w.granted[2]
        if w.is_satisfied:
            w.sequences = granted
            available -= granted
            continue
        w.sequences = whole = float(math.floor(granted + _EPSILON))
        available -= whole
        remainder = granted - whole
        if (
            remainder > _EPSILON
            and remainder > _EPSILON * granted
            and whole + 1 <= w.claim.ceiling.concurrency
        ):
            wanting.append((-(remainder + w.priority), w.claim.name, w))
    wanting.sort(key=lambda row: row[:2])
    extra = max(min(int(available), len(wanting)), 0)
    for _, _, w in wanting[:extra]:
        w.sequences += 1
    return max(available - extra, 0.0)


def _vector(amount: Amount) -> Vector:
    """The three numbers; what is too small to count is nothing, so that no quotient overflows."""
    return (
        amount.tokens_per_second if amount.tokens_per_second > _EPSILON else 0.0,
        amount.kv_tokens if amount.kv_tokens > _EPSILON else 0.0,
        amount.concurrency if amount.concurrency > _EPSILON else 0.0,
    )


def _most(one: Vector, other: Vector) -> Vector:
    (a, b, c), (x, y, z) = one, other
    return (a if a > x else x, b if b > y else y, c if c > z else z)


def _least(one: Vector, other: Vector) -> Vector:
    (a, b, c), (x, y, z) = one, other
    return (a if a < x else x, b if b < y else y, c if c < z else z)
