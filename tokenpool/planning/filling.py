"""Filling: it computes the part of its demand that each claim of a tree of groups gets.

The rule is dominant-resource fairness (Ghodsi et al., NSDI 2011), at each level of the tree: the children of
a group are raised together by their weights. Each group has an inner *level*. A claim with weight ``w`` that
nothing stops has the part ``level * w / dominant share of its demand``. A child group has the share
``level * w``. The share of a group is the sum of its members' dominant shares. After a claim stops, its
siblings get the rest first. So the share of a group does not depend on the number of its members.

Guarantees count towards the dominant share: a claim with a guarantee gets more only after the other claims
have reached its level.

A group with a ceiling has that as its *room*; the room of the top is the capacity. A claim that grows in a
dimension without room stops. A part is a function of its group's level alone, until it stops, and a group's
level is a function of its share. So each group with a room is filled alone, from the bottom, and the result
is one number per claim: the part at which it stops. The same steps fill the top.

``curves`` finds the level at which a dimension is full. It takes a few evaluations, each with one look-up for
each group. So a filling costs n log n, with groups and without.

Shares are sums, not the dominant share of the summed use. That share may not rise while members grow, if they
need different dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tokenpool.planning.curves import Curves, GroupNode
from tokenpool.planning.vectors import DIMENSIONS, EPSILON, ZERO, Vector

_Cap = tuple[float, "GroupNode | None"]
"""The part at which a room stopped a claim, and the group with that room."""


class Filling:
    """Fills one tree, or a part of it. The results are in ``parts`` and ``bounds``."""

    def __init__(
        self,
        demands: Sequence[Vector],
        held: Sequence[Vector],
        dominants: Sequence[float],
        weights: Sequence[float],
        capacity: Vector,
        whole: Vector,
    ) -> None:
        """Each list has one item per claim: demand, guarantee in demand, dominant share, weight.

        ``held`` may change between two fillings. ``whole`` is the use by all claims without a bound.
        """
        self._demands = demands
        self._held = held
        self._weights = weights
        self._capacity = capacity
        self._whole = whole
        self._most = [1.0 if dominant else 0.0 for dominant in dominants]
        """The part of each claim without a bound. Without demand in a dimension with capacity it is 0."""
        self._speeds = [w / d if d else 0.0 for w, d in zip(weights, dominants, strict=True)]
        """The part of each claim per unit of level."""
        self.parts = list(self._most)
        """The granted part of each demand, 0 to 1."""
        self._curves: Curves | None = None
        self._is_any_stopped = False
        self.bounds: list[GroupNode | None] = [None] * len(demands)
        """The group whose room stopped each claim, also the top; ``None`` if it has its whole demand."""

    def fill(self, top: GroupNode) -> None:
        """Raise all claims below ``top`` until each is satisfied or needs a dimension without room."""
        nodes = top.below()
        for node in nodes:
            node.base_level = node.base_share = 0.0
            for index in node.claims:
                self.parts[index], self.bounds[index] = self._most[index], None
        self._curves = None
        self._is_any_stopped = False
        for node in nodes:
            if node.is_bounded:
                self._fill_alone(node, 0.0, {})

    def _fill_alone(self, top: GroupNode, level: float, caps: Mapping[int, _Cap]) -> None:
        """Raise the level of ``top`` from a level on, and stop what has no room there.

        ``caps`` are the parts at which rooms above have stopped claims.
        """
        nodes = top.below()
        inner = [node for node in nodes[:-1] if node.is_bounded]
        caps = dict(caps)
        claims = [index for node in nodes for index in node.claims]
        open_to = [k for k in DIMENSIONS if top.room[k] < math.inf]
        bases = [(node.base_level, node.base_share) for node in nodes]
        while open_to and not self._fit(claims, top.room, open_to):
            full = -1 if level else self._full_of_guarantees(nodes, open_to)
            if full < 0:
                curves = self._made_curves()
                curves.begin(nodes, claims)
                level, full = curves.first_full(top, nodes[-2::-1], open_to, level)
            open_to.remove(full)
            stopped, is_any_growing = self._stop(top, nodes, full, caps if inner else None)
            if not is_any_growing:
                break
            if level:
                for node in nodes:
                    node.rest_here()
            if inner:
                self._fill_inner(nodes, stopped, caps)
        for node, (base_level, base_share) in zip(nodes, bases, strict=True):
            node.base_level, node.base_share = base_level, base_share

    def _made_curves(self) -> Curves:
        """The curves. They are made when a filling needs them first, because many need none."""
        if self._curves is None:
            self._curves = Curves(
                self._demands, self._held, self._weights, self._speeds, self.parts, self._capacity
            )
        return self._curves

    def _full_of_guarantees(self, nodes: Sequence[GroupNode], dimensions: Sequence[int]) -> int:
        """A dimension of the last node that its members' guarantees fill; -1 if there is none.

        Sets all levels to 0. With this, spot without any room costs no curves.
        """
        room = nodes[-1].room
        rows = [held for node in nodes for index in node.claims if (held := self._held[index]) is not ZERO]
        for node in nodes:
            node.level = 0.0
        return next((k for k in dimensions if sum([row[k] for row in rows]) >= room[k] * (1 - EPSILON)), -1)

    def _fit(self, claims: Sequence[int], room: Vector, dimensions: Sequence[int]) -> bool:
        """Whether there is room for all that the claims may grow to."""
        if len(claims) == len(self.parts) and not self._is_any_stopped:
            return all(self._whole[k] <= room[k] for k in dimensions)
        demands, all_held, parts = self._demands, self._held, self.parts
        a = b = c = 0.0
        for index in claims:
            part = parts[index]
            if part == 1:
                x, y, z = demands[index]
                a += x
                b += y
                c += z
                continue
            (x, y, z), (u, v, w) = demands[index], all_held[index]
            x, y, z = x * part, y * part, z * part
            a += x if x > u else u
            b += y if y > v else v
            c += z if z > w else w
        used = (a, b, c)
        return all(used[k] <= room[k] for k in dimensions)

    def _stop(
        self, top: GroupNode, nodes: Sequence[GroupNode], full: int, caps: dict[int, _Cap] | None
    ) -> tuple[list[GroupNode], bool]:
        """Stop all claims that need the dimension ``full``, at the levels of their groups.

        Returns the groups of such claims, and whether any other claim grows. ``caps`` gets the stops, also of
        claims that a room below stops earlier.
        """
        demands, held, parts, speeds = self._demands, self._held, self.parts, self._speeds
        bounds, changed, is_any_growing = self.bounds, [], False
        for node in nodes:
            level, is_changed = node.level, False
            for index in node.claims:
                part = level * speeds[index]
                if part >= parts[index]:
                    continue
                demand = demands[index][full]
                if demand > (guarantee := held[index][full]):
                    if guarantee and part < (least := guarantee / demand):
                        part = least
                        is_any_growing = True
                    if caps is not None and (index not in caps or part < caps[index][0]):
                        caps[index] = part, top
                    if part < parts[index]:
                        parts[index], bounds[index], is_changed = part, top, True
                else:
                    is_any_growing = True
            if is_changed:
                changed.append(node)
                self._is_any_stopped = True
        return changed, is_any_growing

    def _fill_inner(
        self, nodes: Sequence[GroupNode], stopped: Sequence[GroupNode], caps: Mapping[int, _Cap]
    ) -> None:
        """Fill the groups with a room again, after a room above has stopped some of their claims.

        Their other claims may now grow beyond the parts at which the group's own room would have stopped
        them.
        """
        changed = {id(each) for node in stopped for each in node.above()}
        below = {id(node) for node in nodes[:-1]}
        again: dict[int, GroupNode] = {}
        for changed_node in (node for node in nodes[:-1] if node.is_bounded and id(node) in changed):
            for node in changed_node.below():
                level = node.level
                for index in node.claims:
                    if id(self.bounds[index]) in below and level * self._speeds[index] < self.parts[index]:
                        self.parts[index], self.bounds[index] = caps.get(index, (self._most[index], None))
                        again |= {id(each): each for each in node.above()}
        for node, level in [
            (node, node.level) for node in nodes[:-1] if node.is_bounded and id(node) in again
        ]:
            self._fill_alone(node, level, caps)
