"""Filling through groups: it computes the part of its demand that each claim of a tree gets.

The rule is that of ``filling``, at each level of the tree: the children of a group are raised together by
their weights. The share of a group is the sum of its members' dominant shares. After a claim stops, its
siblings get the rest first. So the share of a group does not depend on the number of its members.

Each group has an inner *level*: a child with weight ``w`` that nothing stops has the share ``level * w``. The
level is a function of the group's share, and linear between two events. A *schedule* has this function, with
the use of each dimension. For the group above it, each of its segments is an event. The level of the top
rises by itself.

A group with a ceiling has that as its room; the room of the top is the capacity. A claim that grows in a
dimension without room stops. A schedule ends where a group becomes full, because the claims that stop then
change it.

Shares are sums, not the dominant share of the summed use. That share may not rise while members grow, if they
need different dimensions.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence

from tokenpool.planning.vectors import DIMENSIONS, EPSILON, ZERO, Vector, dominant_shares

_Event = tuple[float, float, float, float, float, float, int]
"""A level, and the changes there: of the use of each dimension per unit of level, of the weights of growing
members with and without rising shares, and of the number of growing members."""

_BELOW_GUARANTEES = 1e-3
"""The part of a weight that counts while no member that grows has more than its guarantee's share.

Such members grow only in dimensions that their guarantees do not name, so no share rises. The level must
still be a function of the group's share."""


_Segment = tuple[float, float, float, float, float, float]
"""A part of a schedule, up to the share of the next segment. It has the share and the level at its beginning.
Per unit of share, it has the use of each dimension and the rise of the level."""

_AHEAD = 1.1
"""Schedules are computed up to this multiple of the level at which the top would be full without guarantees.
Most events of complete schedules never happen: they take 5 ms more for 1,000 claims in 100 groups."""


class GroupNode:
    """One group of a tree, or its top. The owner sets weights and rooms; the rest belongs to the filling."""

    __slots__ = (
        "children",
        "claims",
        "fills_up",
        "full_at",
        "held_share",
        "is_bounded",
        "level",
        "members",
        "name",
        "parent",
        "room",
        "segments",
        "share",
        "shown",
        "used",
        "weight",
    )

    def __init__(self, name: str, parent: GroupNode | None) -> None:
        self.name = name
        self.parent = parent
        self.children: list[GroupNode] = []
        self.claims: list[int] = []
        """The claims that are children of the group, by index."""
        self.weight = 1.0
        self.room: Vector = (math.inf, math.inf, math.inf)
        """The most that its members may use together."""
        self.is_bounded = False
        """Whether ``room`` is finite in a dimension."""
        self.used = [0.0, 0.0, 0.0]
        """The use of its members at the beginning of its schedule; kept only if it is bounded."""
        self.level = 0.0
        self.share = 0.0
        """The share to which the group was raised. It waits while this is less than ``held_share``."""
        self.held_share = 0.0
        """The sum of its members' shares at the beginning of its schedule."""
        self.segments: list[_Segment] = []
        """Its schedule, as far as it is computed."""
        self.shown = 0
        """The number of segments that the node above has taken over."""
        self.members: _Members | None = None
        """The members that grow at the end of its schedule."""
        self.full_at = math.inf
        """The share at which it, or a group below it, has no room in a dimension."""
        self.fills_up: tuple[GroupNode, int] | None = None
        """That group and that dimension."""

    def limit_to(self, room: Vector) -> None:
        """Set the room."""
        self.room, self.is_bounded = room, min(room) < math.inf

    def below(self) -> list[GroupNode]:
        """The node and all groups below it, from the bottom."""
        found = [each for child in self.children for each in child.below()]
        found.append(self)
        return found

    def above(self) -> list[GroupNode]:
        """The node and all groups above it, with the top."""
        found = [self]
        while (parent := found[-1].parent) is not None:
            found.append(parent)
        return found


class TreeFilling:
    """Fills one tree, or a part of it. The results are in ``parts`` and ``bounds``."""

    def __init__(
        self,
        demands: Sequence[Vector],
        held: Sequence[Vector],
        dominants: Sequence[float],
        weights: Sequence[float],
        capacity: Vector,
    ) -> None:
        """Each list has one item per claim: demand, guarantee in demand, dominant share, weight.

        ``held`` may change between two fillings.
        """
        self._demands = demands
        self._held = held
        self._dominants = dominants
        self._weights = weights
        self._capacity = capacity
        self._held_shares = [0.0] * len(demands)
        self._most = [0.0] * len(demands)
        """The part at which each claim stops."""
        self.parts = [0.0] * len(demands)
        """The granted part of each demand, 0 to 1."""
        self.bounds: list[GroupNode | None] = [None] * len(demands)
        """The group whose room stopped each claim, also the top; ``None`` if it has its whole demand."""

    def fill(self, top: GroupNode) -> None:
        """Raise all claims below ``top`` until each is satisfied or needs a dimension without room."""
        nodes = top.below()
        claims = [index for node in nodes for index in node.claims]
        shares = dominant_shares([self._held[index] for index in claims], self._capacity)
        for index, share in zip(claims, shares, strict=True):
            most = 1.0 if self._dominants[index] else 0.0
            self._held_shares[index], self._most[index] = share, most
            self.parts[index], self.bounds[index] = most, None
        if all(self._fits(node) for node in reversed(nodes) if node.is_bounded):
            return
        for index in claims:
            self.parts[index] = 0.0
        for node in nodes:
            node.level = node.share = 0.0
            if node.is_bounded:
                self._sum_up(node)
        for node in nodes:
            for k in DIMENSIONS if node.is_bounded else ():
                if node.used[k] >= node.room[k] * (1 - EPSILON):
                    self._stop_growth(node, k)
        while any(self.parts[index] < self._most[index] for index in claims) and not self._raise(top):
            pass

    def _fits(self, node: GroupNode) -> bool:
        """Whether its members' whole demand has room, so that it divides nothing."""
        self._sum_up(node)
        return all(used <= room for used, room in zip(node.used, node.room, strict=True))

    def _sum_up(self, node: GroupNode) -> None:
        """Set the use of a node from the parts of the claims below it."""
        demands, all_held, parts = self._demands, self._held, self.parts
        a = b = c = 0.0
        for each in node.below():
            for index in each.claims:
                (x, y, z), (u, v, w), part = demands[index], all_held[index], parts[index]
                x, y, z = x * part, y * part, z * part
                a += x if x > u else u
                b += y if y > v else v
                c += z if z > w else w
        node.used = [a, b, c]

    def _stop_growth(self, node: GroupNode, k: int) -> bool:
        """Stop all claims below ``node`` that need dimension ``k`` at what they have of it.

        Returns whether there was one.
        """
        demands, held, parts, most = self._demands, self._held, self.parts, self._most
        is_stopped = False
        for each in node.below():
            for index in each.claims:
                demand = demands[index][k]
                if demand > held[index][k]:
                    stop = max(parts[index], held[index][k] / demand)
                    if stop < most[index]:
                        most[index], self.bounds[index] = stop, node
                        is_stopped = True
        return is_stopped

    def _become_full(self, node: GroupNode, k: int) -> None:
        """A node has used its room in dimension ``k``: stop at least one claim, so that each filling ends.

        By rounding errors it may be that no claim needs the dimension. Then all below the node stop.
        """
        if self._stop_growth(node, k):
            return
        for each in node.below():
            for index in each.claims:
                if self.parts[index] < self._most[index]:
                    self._most[index], self.bounds[index] = self.parts[index], node

    def _halt(self, node: GroupNode, share: float) -> None:
        """Bring a node with a schedule up to date at this share, with all below it."""
        segments = node.segments
        if segments:
            begin, level, _, _, _, speed = segments[bisect_right(segments, (share, math.inf)) - 1]
            node.level = level + speed * (share - begin) if share > begin else level
            # After its last event a group does not grow, whatever the level above it.
            node.share = share if node.members is not None or share < segments[-1][0] else segments[-1][0]
        self._settle(node)
        for child in node.children:
            self._halt(child, node.level * child.weight)
        if segments and node.members is None and share >= segments[-1][0]:
            self._finish(node)
        if node.is_bounded:
            self._sum_up(node)

    def _finish(self, node: GroupNode) -> None:
        """All claims below a node have stopped. By rounding errors their parts may be below that.

        A claim with such a rest would begin another schedule, in the past of the levels above it.
        """
        parts, most = self.parts, self._most
        for each in node.below():
            for index in each.claims:
                parts[index] = most[index]

    def _settle(self, node: GroupNode) -> None:
        """Set the parts of a node's own claims from its level."""
        level, parts, most = node.level, self.parts, self._most
        for index in node.claims:
            if parts[index] < most[index]:
                part = level * self._weights[index] / self._dominants[index]
                parts[index] = part if part < most[index] else most[index]

    # --- the top ---

    def _raise(self, top: GroupNode) -> bool:
        """Raise the level of the top until it has no room in a dimension, or nothing grows any more.

        Returns whether nothing grows any more.
        """
        members = _Members(top)
        self._add_claims(top, members)
        growing = [child for child in top.children if self._grows(child)]
        for child in growing:
            self._begin(child)
            members.add_child(child)
        events = members.events
        full: list[tuple[float, int]] = []
        """The levels at which a group below the top becomes full, and the position of the child."""
        while members.growing:
            horizon = _AHEAD * min(
                (room / slope for room, slope in zip(top.room, members.potential, strict=True) if slope > 0),
                default=math.inf,
            )
            if horizon <= top.level:
                ahead, dimension = _reach(top, members.slope, math.inf)
                if ahead <= EPSILON * top.level and dimension >= 0:
                    # The rest is a rounding error. A horizon at the present level would never be passed.
                    self._halt_all(top, growing)
                    self._become_full(top, dimension)
                    return False
                horizon = top.level + _AHEAD * ahead
            for position, child in enumerate(growing):
                if child.members is not None and child.full_at == math.inf:
                    self._extend(child, horizon * child.weight)
                    members.follow(child)
                    if child.full_at < math.inf:
                        heapq.heappush(full, (child.full_at / child.weight, position))
            events.sort(reverse=True)
            if self._raise_to(top, growing, members, full, horizon):
                return False
        self._halt_all(top, growing)
        return True

    def _grows(self, node: GroupNode) -> bool:
        """Whether a claim below a node can grow."""
        parts, most = self.parts, self._most
        return any(parts[index] < most[index] for index in node.claims) or any(
            self._grows(child) for child in node.children
        )

    def _raise_to(
        self,
        top: GroupNode,
        growing: Sequence[GroupNode],
        members: _Members,
        full: list[tuple[float, int]],
        horizon: float,
    ) -> bool:
        """Raise the level of the top to the end of all schedules, or until it has no room: then true."""
        events = members.events
        while members.growing and top.level < horizon:
            end = min(events[-1][0] if events else horizon, full[0][0] if full else horizon, horizon)
            end = max(end, top.level)  # by rounding errors, an event may be in the past
            (a, b, c), step = members.slope, end - top.level
            (x, y, z), (u, v, w) = top.used, top.room
            if x + a * step > u or y + b * step > v or z + c * step > w:
                step, dimension = _reach(top, (a, b, c), step)
                if dimension >= 0:
                    top.level += step
                    top.used = [x + a * step, y + b * step, z + c * step]
                    self._halt_all(top, growing)
                    self._become_full(top, dimension)
                    return True
            top.used = [x + a * step, y + b * step, z + c * step]
            top.level = end
            members.apply(end)
            while full and full[0][0] <= end:
                _, position = heapq.heappop(full)
                child = growing[position]
                self._go_on(child, members, horizon)
                events.sort(reverse=True)
                if child.full_at < math.inf:
                    heapq.heappush(full, (child.full_at / child.weight, position))
        return False

    def _halt_all(self, top: GroupNode, growing: Sequence[GroupNode]) -> None:
        self._settle(top)
        for child in growing:
            self._halt(child, top.level * child.weight)

    def _go_on(self, child: GroupNode, above: _Members, horizon: float) -> None:
        """A child of the top has raised its share until a group is full: compute its next schedule."""
        assert child.fills_up is not None
        node, dimension = child.fills_up
        above.drop(child)
        self._halt(child, child.full_at)
        self._become_full(node, dimension)
        self._begin(child)
        above.add_child(child)
        if child.members is not None:
            self._extend(child, horizon * child.weight)
            above.follow(child)

    # --- the groups ---

    def _add_claims(self, node: GroupNode, members: _Members) -> None:
        """Add a node's own claims to its members that grow."""
        demands, dominants, weights = self._demands, self._dominants, self._weights
        parts, all_most, held_shares, level = self.parts, self._most, self._held_shares, node.level
        append = members.events.append
        a = b = c = joined = shares = 0.0
        growing = 0
        for index in node.claims:
            part, most = parts[index], all_most[index]
            if part >= most:
                share = part * dominants[index]
                shares += share if share > held_shares[index] else held_shares[index]
                continue
            weight = weights[index]
            per_level = weight / dominants[index]
            if self._held[index] != ZERO:
                # Its share may still be 0: a dimension without capacity has no part in a share.
                members.add_claim_with_guarantee(
                    demands[index], self._held[index], held_shares[index], weight, per_level, most / per_level
                )
                continue
            x, y, z = demands[index]
            x *= per_level
            y *= per_level
            z *= per_level
            a += x
            b += y
            c += z
            joined += weight
            growing += 1
            append((most / per_level, -x, -y, -z, -weight, 0.0, -1))
        x, y, z = members.slope
        members.slope = (x + a, y + b, z + c)
        x, y, z = members.potential
        members.potential = (x + a, y + b, z + c)
        members.joined += joined
        members.weights += joined
        members.growing += growing
        members.shares += shares + joined * level

    def _begin(self, node: GroupNode) -> None:
        """Begin a schedule of a node at its present level and share, with its first segment."""
        members = _Members(node)
        self._add_claims(node, members)
        node.segments, node.shown = [], 0
        node.full_at, node.fills_up = math.inf, None
        for child in node.children:
            self._begin(child)
            if child.members is not None:
                self._extend(child, math.inf)
            members.add_child(child)
            members.follow(child)
            if child.full_at / child.weight < members.limit:
                members.limit, members.fills_up = child.full_at / child.weight, child.fills_up
        node.held_share = members.shares
        if not members.growing:
            node.members = None
            return
        node.members = members
        members.events.sort(reverse=True)
        members.share = node.share
        members.waits = members.shares > node.share * (1 + EPSILON)
        if members.waits:
            members.wakes_at = members.first_join()
        members.used = node.used
        node.segments.append(members.segment())

    def _extend(self, node: GroupNode, until: float) -> None:  # noqa: PLR0912, PLR0915 - see its text
        """Compute the schedule of a node up to a share, or until a group is full, or nothing grows.

        The state is in local variables and nothing is a call: with calls, a plan took 5 ms longer.
        """
        members, segments = node.members, node.segments
        assert members is not None
        events, limit, held_share = members.events, members.limit, members.shares
        share, level, waits, wakes_at = members.share, members.level, members.waits, members.wakes_at
        (a, b, c), used, speed = members.slope, members.used, segments[-1][5]
        joined, waiting, growing, least = members.joined, members.waiting, members.growing, members.least
        while share < until:
            if not speed:
                # Its guarantees hold more than its share. It grows when the others have reached its share.
                share, waits = held_share, False
            else:
                end = limit
                if events and events[-1][0] < end:
                    end = events[-1][0]
                if waits and wakes_at < end:
                    end = wakes_at
                if end < level:
                    end = level  # by rounding errors, an event may be in the past
                step = end - level
                if node.is_bounded:
                    step, dimension = _reach(node, (a, b, c), step, used)
                    if dimension >= 0:
                        node.full_at, node.fills_up = share + step / speed, (node, dimension)
                        break
                    used = (used[0] + a * step, used[1] + b * step, used[2] + c * step)
                share += step / speed
                level = end
                if end >= limit:
                    node.full_at, node.fills_up = share, members.fills_up
                    break
                while events and events[-1][0] <= end:
                    _, x, y, z, v, w, n = events.pop()
                    a += x
                    b += y
                    c += z
                    joined += v
                    waiting += w
                    growing += n
                if waits and (wakes_at <= end or share >= held_share):
                    share, waits = held_share, False
                if not growing:
                    segments.append((share, end, 0.0, 0.0, 0.0, 0.0))
                    node.members = None
                    return
            if waits:
                speed = (wakes_at - level) / (held_share - share) if wakes_at > level else 0.0
            elif joined > least:
                speed = 1 / joined
            else:
                speed = 1 / (max(waiting, least) * _BELOW_GUARANTEES)
            segments.append((share, level, a * speed, b * speed, c * speed, speed))
        members.share, members.level, members.waits = share, level, waits
        members.slope, members.used = (a, b, c), used
        members.joined, members.waiting, members.growing = joined, waiting, growing


def _reach(
    node: GroupNode, slope: Vector, step: float, used: Sequence[float] | None = None
) -> tuple[float, int]:
    """How far the level can rise, at most by ``step``, and the dimension without room then; -1 for none."""
    full, use, room = -1, used or node.used, node.room
    for k in DIMENSIONS:
        left = room[k] - use[k]
        if slope[k] > 0 and left < slope[k] * step:
            step, full = max(left / slope[k], 0.0), k
    return step, full


class _Members:
    """The members of one node that grow, and the events that change them."""

    __slots__ = (
        "events",
        "fills_up",
        "growing",
        "joined",
        "joins",
        "level",
        "limit",
        "potential",
        "share",
        "shares",
        "slope",
        "used",
        "waiting",
        "waits",
        "wakes_at",
        "weights",
    )

    def __init__(self, node: GroupNode) -> None:
        self.level = node.level
        self.share = 0.0
        self.used: Sequence[float] = ()
        self.slope: Vector = (0.0, 0.0, 0.0)
        """The use of each dimension per unit of the node's level."""
        self.potential: Vector = (0.0, 0.0, 0.0)
        """The same if no member held a guarantee: a bound for the level, while no member stops."""
        self.joined = 0.0
        """The weights of members whose shares rise."""
        self.waiting = 0.0
        """The weights of members whose guarantees hold more than their shares."""
        self.growing = 0
        self.shares = 0.0
        """The sum of the shares of all members at the beginning."""
        self.weights = 0.0
        """The sum of all weights, for rounding errors."""
        self.events: list[_Event] = []
        """In the order in which they happen, from the end."""
        self.joins: list[float] = []
        """The levels at which shares begin to rise."""
        self.limit = math.inf
        """The level at which a group below is full."""
        self.fills_up: tuple[GroupNode, int] | None = None
        self.waits = False
        """Whether the guarantees of the members hold more than the node's share."""
        self.wakes_at = 0.0
        """The level at which a node that waits has that share."""

    def first_join(self) -> float:
        """The level at which the first share rises: now, if one rises already."""
        return self.level if self.joined > 0 else min(self.joins, default=self.level)

    @property
    def least(self) -> float:
        """A sum of weights below this is a rounding error."""
        return EPSILON * self.weights

    def segment(self) -> _Segment:
        """The first segment. Its speed is 0 while the node waits without growth."""
        if self.waits:
            if self.wakes_at <= self.level:
                return (self.share, self.level, 0.0, 0.0, 0.0, 0.0)
            speed = (self.wakes_at - self.level) / (self.shares - self.share)
        elif self.joined > self.least:
            speed = 1 / self.joined
        else:
            speed = 1 / (max(self.waiting, self.least) * _BELOW_GUARANTEES)
        a, b, c = self.slope
        return (self.share, self.level, a * speed, b * speed, c * speed, speed)

    def apply(self, level: float) -> None:
        """The events up to this level happen."""
        events = self.events
        while events and events[-1][0] <= level:
            _, x, y, z, joined, waiting, growing = events.pop()
            a, b, c = self.slope
            self.slope = (a + x, b + y, c + z)
            self.joined += joined
            self.waiting += waiting
            self.growing += growing

    def add_claim_with_guarantee(
        self,
        demand: Vector,
        held: Vector,
        held_share: float,
        weight: float,
        per_level: float,
        stops_at: float,
    ) -> None:
        """Add a claim that grows in each dimension only beyond its guarantee, until a level."""
        level, began = self.level, [0.0, 0.0, 0.0]
        slope = list(self.slope)
        x, y, z = self.potential
        a, b, c = demand
        self.potential = (x + a * per_level, y + b * per_level, z + c * per_level)
        for k in DIMENSIONS:
            if demand[k] > held[k]:
                speed, begins = demand[k] * per_level, held[k] / demand[k] / per_level
                if begins >= stops_at:
                    continue
                began[k] = speed
                if begins <= level:
                    slope[k] += speed
                else:
                    x, y, z = (speed if k == each else 0.0 for each in DIMENSIONS)
                    self.events.append((begins, x, y, z, 0.0, 0.0, 0))
        a, b, c = slope
        self.slope = (a, b, c)
        self.growing += 1
        a, b, c = began
        self._join(weight, held_share, stops_at, (-a, -b, -c))

    def add_child(self, child: GroupNode) -> None:
        """Add a group with the first segment of its schedule."""
        if child.members is None and not child.segments:
            self.shares += max(child.held_share, child.share)
            return
        self.growing += 1
        weight, (_, _, a, b, c, _) = child.weight, child.segments[0]
        x, y, z = self.slope
        self.slope = (x + a * weight, y + b * weight, z + c * weight)
        child.shown = 1
        if child.members is not None:
            x, y, z = self.potential
            a, b, c = child.members.potential
            part = weight / child.members.weights
            self.potential = (x + a * part, y + b * part, z + c * part)
        self._join(weight, child.held_share, math.inf, None)

    def follow(self, child: GroupNode) -> None:
        """Take over the segments that were added to a group's schedule."""
        segments, weight = child.segments, child.weight
        if len(segments) > child.shown:
            append = self.events.append
            _, _, a, b, c, _ = segments[child.shown - 1]
            for share, _, x, y, z, _ in segments[child.shown :]:
                append((share / weight, (x - a) * weight, (y - b) * weight, (z - c) * weight, 0.0, 0.0, 0))
                a, b, c = x, y, z
            child.shown = len(segments)
        if segments and child.members is None:
            stops_at = segments[-1][0] / weight
            joins = child.held_share / weight <= max(stops_at, self.level)
            self.events.append(
                (stops_at, 0.0, 0.0, 0.0, -weight if joins else 0.0, 0.0 if joins else -weight, -1)
            )

    def drop(self, child: GroupNode) -> None:
        """Remove a child of the top, whose schedule has ended because a group is full."""
        weight, (_, _, a, b, c, _) = child.weight, child.segments[-1]
        x, y, z = self.slope
        self.slope = (x - a * weight, y - b * weight, z - c * weight)
        self.growing -= 1

    def _join(self, weight: float, held_share: float, stops_at: float, stop: Vector | None) -> None:
        """Count the share of a member, which rises beyond ``held_share``; ``stop`` is its end at a level."""
        self.weights += weight
        joins_at = held_share / weight
        joins = joins_at < stops_at
        if joins_at <= self.level * (1 + EPSILON):
            # A member that waits for a rounding error makes a segment without length and with a large slope.
            # Such slopes grow at each level of the tree, and their sums lose the digits of all others.
            self.joined += weight
            self.shares += weight * self.level
            joins = True
        else:
            self.waiting += weight
            self.shares += held_share
            if joins:
                self.joins.append(joins_at)
                self.events.append((joins_at, 0.0, 0.0, 0.0, weight, -weight, 0))
        if stop is not None:
            a, b, c = stop
            self.events.append((stops_at, a, b, c, -weight if joins else 0.0, 0.0 if joins else -weight, -1))
