"""Allocation: one tick's division of live capacity among claims, in four stages.

1. Each guarantee gets its demand. If live capacity is too small for all, they shrink in proportion.
2. The rest goes to elastic claims and bursts, by weighted dominant-resource fairness.
3. The rest of that goes to spot claims, in the same way.
4. Any claim may use the capacity that is still free.

Pure arithmetic on amounts. The planner decides the weight of a claim, and ``debt`` changes weights over time.

Claims are parallel lists of numbers, not objects. Most of a plan's time is spent here, and with an object per
claim a plan took a fifth more instructions.

The model is Leontief's: the requests of an entitlement use all dimensions in the proportions of its demand.
So an allocation is a share ``x`` of the demand vector, from 0 to 1. It is never less than the part of the
guarantee that is in demand. A ceiling in one dimension scales the whole vector, so no entitlement gets
capacity that it cannot use. ``filling`` finds the shares.

Groups form a tree. Stages 2 and 3 divide at each level of it. The ceiling of a group bounds its members
together. In stage 1 its members with demand also get the part of its guarantee that is beyond theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tokenpool.amounts import NOTHING, UNBOUNDED, Amount
from tokenpool.entitlements import Tier
from tokenpool.planning.claims import Claim, FairShare, GroupClaim, Share
from tokenpool.planning.curves import GroupNode
from tokenpool.planning.filling import Filling
from tokenpool.planning.idle import IdleTerms
from tokenpool.planning.tree import Tree
from tokenpool.planning.vectors import (
    DIMENSIONS,
    EPSILON,
    ZERO,
    Vector,
    counted,
    dominant_shares,
    larger,
    smaller,
)

_ALL = 1 - EPSILON
"""A claim with this part of its demand is satisfied."""


class Division:
    """A division of one capacity among the same claims, repeated for each set of weights.

    The parts that do not depend on weights (demands within ceilings, guarantees) are computed once.
    """

    def __init__(self, capacity: Amount, claims: Sequence[Claim], groups: Sequence[GroupClaim] = ()) -> None:
        tokens, cache, sequences = counted(capacity.values())
        self._capacity = (tokens, cache, float(math.floor(sequences + EPSILON)))
        """Live capacity, in whole sequences."""
        ordered = sorted(claims, key=lambda claim: claim.name)
        trees = [Tree(groups), Tree(groups)] if groups else [None, None]
        self._stages = [
            _Stage([claim for claim in ordered if (claim.tier is Tier.SPOT) is is_spot], self._capacity, tree)
            for is_spot, tree in zip((False, True), trees, strict=True)
        ]
        """The claims in filling order: spot gets the capacity that the others leave."""
        self._is_assured = False
        self._left = self._divide()

    def reweigh(
        self,
        weights: Mapping[str, tuple[float, float]],
        group_weights: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Divide again, with another weight and priority for each claim and each group, by name.

        The priority of a group adds to those of its members.
        """
        for stage in self._stages:
            stage.weights = [weights[claim.name][0] for claim in stage.claims]
            stage.priorities = [weights[claim.name][1] for claim in stage.claims]
            if stage.tree is not None and group_weights is not None:
                stage.tree.reweigh(group_weights)
                added = stage.tree.priorities(len(stage.claims))
                stage.priorities = [a + b for a, b in zip(stage.priorities, added, strict=True)]
        self._left = self._divide()

    def shares(self) -> dict[str, Share]:
        """The share of each claim, by name.

        Spot has no floor while other claims have unmet demand. With a floor, eight spot tenants took a sixth
        of a pool from elastic tenants, which retry less often.
        """
        others, spot = self._stages
        return others.shares(self._left) | spot.shares(self._left, has_floor=not self.others_want)

    @property
    def others_want(self) -> bool:
        """Whether a claim other than spot wants more than it was granted, and no group's ceiling forbids."""
        return self._stages[0].wants_more

    def idle_terms(self) -> IdleTerms:
        """The terms for any claim without demand."""
        return IdleTerms(self._left, self._capacity, self.others_want)

    def fair_shares(self) -> dict[str, FairShare]:
        """The dominant share of each claim, by name."""
        others, spot = self._stages
        return others.fair_shares() | spot.fair_shares()

    def _divide(self) -> Vector:
        """Run stages 1 to 3; returns the capacity that is left.

        While other claims have unmet demand, spot is filled from whole sequences only. A remaining part of a
        sequence can run no request, but it took tokens from the headroom of the others.
        """
        others, spot = self._stages
        for stage in self._stages:
            stage.prepare()
        if not self._is_assured or (others.tree is not None and others.tree.has_guarantees):
            # The rest of a group's guarantee is divided by the weights of its members.
            _assure_guarantees(self._stages, self._capacity)
            self._is_assured = True
        tokens, cache, sequences = _fill(others, self._capacity)
        if self.others_want:
            sequences = float(math.floor(sequences + EPSILON))
        if others.tree is None or spot.tree is None or not others.tree.has_ceilings:
            return _fill(spot, (tokens, cache, sequences))
        spot.tree.limit_to(others.tree.rooms_after(others.grants()))
        left = _fill(spot, (tokens, cache, sequences))
        others.rooms = spot.rooms = spot.tree.rooms_after(spot.grants())
        return left


class _Stage:
    """Claims that are filled together, with their state in the stages. Each list has one item per claim."""

    def __init__(self, claims: Sequence[Claim], capacity: Vector, tree: Tree | None) -> None:
        self.claims = claims
        self.tree = tree
        """The groups of the claims; ``None`` if the pool has no groups."""
        self.rooms: Mapping[str, Vector] = {}
        """By group with a ceiling: the room that all stages leave below it."""
        if tree is not None:
            tree.place([claim.group for claim in claims])
        self.capacity = capacity
        self.top = GroupNode("", None)
        """The top of a tree without groups."""
        self.top.claims = list(range(len(claims)))
        self.weights = [claim.weight for claim in claims]
        self.priorities = [claim.priority for claim in claims]
        self.demands = [_within_ceiling(claim) for claim in claims]
        self.dominants = dominant_shares(self.demands, capacity)
        """The largest share of capacity in each demand."""
        self.guarantees = [
            ZERO if claim.guarantee == NOTHING else smaller(counted(claim.guarantee.values()), demand)
            for claim, demand in zip(claims, self.demands, strict=True)
        ]
        whole = [
            demand if dominant else held
            for demand, dominant, held in zip(self.demands, self.dominants, self.guarantees, strict=True)
        ]
        a, b, c = (math.fsum(column) for column in zip(*whole, strict=True)) if whole else ZERO
        self._whole: Vector = (a, b, c)
        """The use by all claims if each has its whole demand."""
        self.held = list(self.guarantees)
        """The part of each guarantee that is in demand and within capacity."""
        self.parts: list[float] = []
        """The granted part of each demand, from 0 to 1."""
        self._granted: list[Vector] = []
        """The amounts that follow from ``parts`` and ``held``, before whole sequences."""
        self._sequences: list[float] = []

    def prepare(self) -> None:
        """Prepare a filling with the present weights. ``held`` may still change."""
        self.filling = Filling(
            self.demands, self.held, self.dominants, self.weights, self.capacity, self._whole
        )
        if self.tree is not None:
            self.tree.prepare(self.filling, self.demands, self.held)

    def grant(self, left: Vector) -> Vector:
        """Compute the grants after the filling; returns the rest of ``left``."""
        granted = self._granted = [
            (
                x if (x := a * part) > u else u,
                y if (y := b * part) > v else v,
                z if (z := c * part) > w else w,
            )
            for (a, b, c), (u, v, w), part in zip(self.demands, self.held, self.parts, strict=True)
        ]
        if not granted:
            return left
        columns = tuple(zip(*granted, strict=True))
        if any(max(column) > most for column, most in zip(columns, self.capacity, strict=True)):
            self._granted = [smaller(each, self.capacity) for each in granted]  # by rounding errors
        tokens, cache = (max(left[k] - math.fsum(columns[k]), 0.0) for k in (0, 1))
        # ``round_sequences`` subtracts the sequences.
        return tokens, cache, left[2]

    def round_sequences(self, available: float) -> float:
        """Round the concurrency of unsatisfied claims to whole sequences; returns the sequences left.

        A satisfied claim keeps its fraction. An average of 0.3 sequences means one sequence from time to
        time, so its limit is rounded up. An unsatisfied claim cannot use a part of a sequence. Each gets the
        whole sequences of its grant. The rest goes to the claims with the highest sum of priority and
        remainder, one sequence each. With debt as priority, a claim that gets none has a higher priority the
        next time.
        """
        granted = [sequences for _, _, sequences in self._granted]
        self._sequences = rounded = [
            sequences if part >= _ALL else float(int(sequences + EPSILON))
            for sequences, part in zip(granted, self.parts, strict=True)
        ]
        available -= math.fsum(rounded)
        wanting = [
            index
            for index, (sequences, whole) in enumerate(zip(granted, rounded, strict=True))
            if (rest := sequences - whole) > EPSILON
            and rest > EPSILON * sequences
            and whole + 1 <= self.claims[index].ceiling.concurrency
        ]
        first = {index: rounded[index] - granted[index] - self.priorities[index] for index in wanting}
        chosen = sorted(wanting, key=first.__getitem__)
        if self.tree is not None:
            chosen = self.tree.within_rooms(chosen, rounded)
        extra = max(min(int(available), len(chosen)), 0)
        for index in chosen[:extra]:
            rounded[index] += 1
        return max(available - extra, 0.0)

    def grants(self) -> list[Vector]:
        """The amounts after rounding."""
        return [(a, b, c) for (a, b, _), c in zip(self._granted, self._sequences, strict=True)]

    @property
    def wants_more(self) -> bool:
        """Whether a claim wants more than it was granted, and no ceiling of a group forbids it."""
        if self.tree is None:
            return not all(self.are_satisfied)
        return not all(
            is_satisfied or bound is not None
            for is_satisfied, bound in zip(self.are_satisfied, self.bounds(), strict=True)
        )

    def bounds(self) -> Sequence[str | None]:
        """By claim: the group whose ceiling keeps it from more."""
        return [None] * len(self.claims) if self.tree is None else self.tree.bounds()

    @property
    def are_satisfied(self) -> list[bool]:
        """Whether each claim has its whole demand; true for a claim without demand."""
        return [
            part >= _ALL or not dominant for part, dominant in zip(self.parts, self.dominants, strict=True)
        ]

    def shares(self, headroom: Vector, *, has_floor: bool = True) -> dict[str, Share]:
        """The share of each claim, by name. Without ``has_floor`` limits are not raised to floors."""
        shares = {}
        most_tokens, most_cache, most_sequences = self.capacity
        more = [headroom] * len(self.claims)
        if self.tree is not None:
            more = self.tree.headroom(headroom, self.rooms, self.dominants)
        for claim, (tokens, cache, _), sequences, (more_tokens, more_cache, more_sequences) in zip(
            self.claims, self._granted, self._sequences, more, strict=True
        ):
            whole = float(math.ceil(sequences - EPSILON))
            # The grant and the headroom, at most the capacity.
            x = x if (x := tokens + more_tokens) < most_tokens else most_tokens
            y = y if (y := cache + more_cache) < most_cache else most_cache
            z = z if (z := sequences + more_sequences) < most_sequences else most_sequences
            if claim.ceiling != UNBOUNDED:
                limit, assured = _below_ceiling(claim, (tokens, cache, whole), (x, y, z), has_floor=has_floor)
                shares[claim.name] = Share(Amount(tokens, cache, sequences), assured, limit)
                continue
            u, v, w = tokens, cache, whole
            if has_floor:
                a, b, c = claim.floor.values()
                u, v, w = u if u > a else a, v if v > b else b, w if w > c else c
            assured = NOTHING
            if claim.tier is not Tier.SPOT:
                if claim.guarantee is not NOTHING:
                    u, v, w = larger((u, v, w), claim.guarantee.values())
                assured = Amount(u, v, w)
            limit = Amount(x if x > u else u, y if y > v else v, z if z > w else w)
            shares[claim.name] = Share(Amount(tokens, cache, sequences), assured, limit)
        return shares

    def fair_shares(self) -> dict[str, FairShare]:
        """The dominant share that each claim was granted, before whole sequences."""
        return {
            claim.name: FairShare(share, is_satisfied, None if is_satisfied else bound)
            for claim, share, is_satisfied, bound in zip(
                self.claims,
                dominant_shares(self._granted, self.capacity),
                self.are_satisfied,
                self.bounds(),
                strict=True,
            )
        }


def _fill(stage: _Stage, left: Vector) -> Vector:
    """Run stage 2 or 3 for some claims; returns the capacity that is left."""
    top = stage.top if stage.tree is None else stage.tree.top
    top.limit_to(left)
    stage.filling.fill(top)
    stage.parts = stage.filling.parts
    tokens, cache, sequences = stage.grant(left)
    return tokens, cache, stage.round_sequences(sequences)


def _below_ceiling(claim: Claim, whole: Vector, headed: Vector, *, has_floor: bool) -> tuple[Amount, Amount]:
    """The limit of a claim with a ceiling, and its assured part.

    ``whole`` is its grant, and ``headed`` the grant with the headroom.
    """
    ceiling = claim.ceiling.values()
    if has_floor:
        whole = larger(whole, smaller(claim.floor.values(), ceiling))
    if claim.tier is Tier.SPOT:
        return Amount(*smaller(larger(headed, whole), ceiling)), NOTHING
    at_least = larger(whole, claim.guarantee.values())
    limit = smaller(larger(headed, at_least), ceiling)
    return Amount(*limit), Amount(*smaller(at_least, limit))


def _within_ceiling(claim: Claim) -> Vector:
    """The demand vector, shortened until it fits the ceiling in every dimension."""
    a, b, c = demand = counted(claim.demand.values())
    if claim.ceiling == UNBOUNDED:
        return demand
    x, y, z = ceiling = counted(claim.ceiling.values())
    if a <= x and b <= y and c <= z:
        return demand
    scale = min(ceiling[k] / demand[k] for k in DIMENSIONS if demand[k] > ceiling[k])
    return (a * scale, b * scale, c * scale)


def _assure_guarantees(stages: Iterable[_Stage], capacity: Vector) -> None:
    """Run stage 1: guarantees up to demand, in proportion if live capacity is too small for all.

    The rest of a group's guarantee goes to its members with demand.
    """
    for stage in stages:
        stage.held[:] = stage.guarantees
        if stage.tree is not None and any(claim.tier is not Tier.SPOT for claim in stage.claims):
            stage.tree.top_up()
    scale = [1.0, 1.0, 1.0]
    for k in DIMENSIONS:
        promised = math.fsum([held[k] for stage in stages for held in stage.held])
        if promised > capacity[k]:
            scale[k] = capacity[k] / promised
    if min(scale) < 1:
        for stage in stages:
            stage.held[:] = [ZERO if held is ZERO else _scaled(held, scale) for held in stage.held]


def _scaled(vector: Vector, factors: Sequence[float]) -> Vector:
    (a, b, c), (x, y, z) = vector, factors
    return (a * x, b * y, c * z)
