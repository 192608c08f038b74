"""The tree of one stage: groups with the claims that are filled together, and what their ceilings mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from tokenpool.amounts import NOTHING
from tokenpool.planning.claims import GroupClaim
from tokenpool.planning.curves import GroupNode
from tokenpool.planning.filling import Filling
from tokenpool.planning.vectors import DIMENSIONS, EPSILON, ZERO, Vector, counted, larger, smaller


class Tree:
    """The groups of one stage. Only groups with claims have a node."""

    def __init__(self, groups: Sequence[GroupClaim]) -> None:
        self._groups = {group.name: group for group in groups}
        self.top = GroupNode("", None)
        self._nodes: dict[str, GroupNode] = {}
        self._parents: list[GroupNode] = []
        """The node of each claim."""
        self._priorities: Mapping[str, tuple[float, float]] = {}
        self._bounded: list[GroupNode] = []
        """The nodes with a ceiling, from the bottom."""
        self._rooms: dict[str, Vector] = {
            group.name: counted(group.ceiling.values())
            for group in groups
            if min(group.ceiling.values()) < math.inf
        }
        """The room of each group with a ceiling, at the beginning of the stage."""
        self._filling: Filling | None = None
        self.has_ceilings = bool(self._rooms)
        """Whether a group has a ceiling."""
        self.has_guarantees = any(group.guarantee != NOTHING for group in groups)
        """Whether a group has a guarantee of its own."""

    def place(self, names: Sequence[str | None]) -> None:
        """Place the claims, by the names of their groups. Called once."""
        nodes: dict[str | None, GroupNode] = {}
        for index, name in enumerate(names):
            node = nodes.get(name)
            if node is None:
                node = nodes[name] = self._node(name)
            node.claims.append(index)
            self._parents.append(node)
        for node in self._nodes.values():
            # Sums of floats depend on the order, and the order of the input must not matter.
            node.children.sort(key=lambda child: child.name)
        self.top.children.sort(key=lambda child: child.name)
        self.limit_to(self._rooms)
        self._bounded = [node for node in self.top.below() if node.is_bounded]

    def _node(self, name: str | None) -> GroupNode:
        group = self._groups.get(name) if name is not None else None
        if group is None:
            return self.top
        node = self._nodes.get(group.name)
        if node is None:
            parent = self._node(group.parent)
            node = self._nodes[group.name] = GroupNode(group.name, parent)
            node.weight = group.weight
            parent.children.append(node)
        return node

    # --- input ---

    def reweigh(self, weights: Mapping[str, tuple[float, float]]) -> None:
        """Set another weight and priority for each group, by name."""
        self._priorities = weights
        for name, node in self._nodes.items():
            node.weight = weights[name][0]

    def priorities(self, claims: int) -> list[float]:
        """The priorities that the groups of each claim add to its own."""
        added = {id(self.top): 0.0}
        for node in reversed(self.top.below()):
            if node.parent is not None:
                added[id(node)] = added[id(node.parent)] + self._priorities[node.name][1]
        return [added[id(self._parents[index])] for index in range(claims)]

    def limit_to(self, rooms: Mapping[str, Vector]) -> None:
        """Set the room below each ceiling, by group."""
        self._rooms = dict(rooms)
        for name, node in self._nodes.items():
            if name in rooms:
                node.limit_to(rooms[name])

    def prepare(self, filling: Filling, demands: Sequence[Vector], held: list[Vector]) -> None:
        """Set the filling of the claims. ``held`` is changed by ``top_up``."""
        self._filling, self._demands, self._held = filling, demands, held

    # --- the stages ---

    def top_up(self) -> None:
        """Give the members of each group with a guarantee of its own the rest of it, up to their demand.

        Groups below come first, so a group counts what its members' groups have given.
        """
        if not self.has_guarantees:
            return
        for node in self.top.below():
            group = self._groups.get(node.name)
            if group is None or group.guarantee == NOTHING:
                continue
            guarantee, room = counted(group.guarantee.values()), node.room
            a, b, c = guarantee
            node.limit_to((a or room[0], b or room[1], c or room[2]))
            filling = self._fill(node)
            node.limit_to(room)
            for each in node.below():
                for index in each.claims:
                    part, (x, y, z) = filling.parts[index], self._demands[index]
                    named = (x * part if a else 0.0, y * part if b else 0.0, z * part if c else 0.0)
                    self._held[index] = larger(self._held[index], named)

    def _fill(self, node: GroupNode) -> Filling:
        filling = self._filling
        assert filling is not None
        filling.fill(node)
        return filling

    # --- results ---

    def bounds(self) -> list[str | None]:
        """By claim: the group whose ceiling keeps it from more."""
        assert self._filling is not None
        return [
            node.name if node is not None and node.parent is not None else None
            for node in self._filling.bounds
        ]

    def rooms_after(self, grants: Sequence[Vector]) -> dict[str, Vector]:
        """The room below each ceiling after these grants, by group."""
        rooms = dict(self._rooms)
        for node in self._bounded:
            rows = [grants[index] for index in _claims_below(node)]
            a, b, c = (max(node.room[k] - math.fsum([row[k] for row in rows]), 0.0) for k in DIMENSIONS)
            rooms[node.name] = (a, b, c)
        return rooms

    def within_rooms(self, chosen: Sequence[int], sequences: Sequence[float]) -> list[int]:
        """The claims, in order, for which the ceilings leave room for one more sequence each."""
        rooms = {
            id(node): node.room[2] - math.fsum([sequences[index] for index in _claims_below(node)]) + EPSILON
            for node in self._bounded
            if node.room[2] < math.inf
        }
        if not rooms:
            return list(chosen)
        kept = []
        for index in chosen:
            above = [id(node) for node in self._parents[index].above() if id(node) in rooms]
            if all(rooms[each] >= 1 for each in above):
                kept.append(index)
                for each in above:
                    rooms[each] -= 1
        return kept

    def headroom(
        self, whole: Vector, rooms: Mapping[str, Vector], dominants: Sequence[float]
    ) -> list[Vector]:
        """By claim: the capacity that it may use beyond its grant.

        A claim without demand in a group with a ceiling has none. So its share does not depend on the room
        of its group, and a plan may omit it.
        """
        found: dict[int, tuple[Vector, bool]] = {id(self.top): (whole, False)}
        for node in reversed(self.top.below()):
            if node.parent is not None:
                most, is_bounded = found[id(node.parent)]
                if node.name in rooms:
                    most, is_bounded = smaller(most, rooms[node.name]), True
                found[id(node)] = most, is_bounded
        return [
            ZERO if found[id(node)][1] and not dominant else found[id(node)][0]
            for node, dominant in zip(self._parents, dominants, strict=True)
        ]


def _claims_below(node: GroupNode) -> Iterator[int]:
    for each in node.below():
        yield from each.claims
