"""Curves: the use of a tree of groups as a function of its level, for one filling (see ``filling``).

The use of a group's own claims is piecewise linear in the group's level, and so is its share. A curve has the
segments of both, as far as an evaluation needs them. Claims with guarantees have no events in it except those
of their shares, because each of their dimensions would begin at another level. Each evaluation sums them up.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from tokenpool.planning.vectors import EPSILON, ZERO, Vector, dominant_shares

_BELOW_GUARANTEES = 1e-3
"""The part of a weight that counts while no member that grows has more than its guarantee's share.

Such members grow only in dimensions that their guarantees do not name, so no share rises. The level must
still be a function of the group's share."""
_NEARLY = 1e-13
"""A dimension within this part of its room is full."""
_MOST_EVALUATIONS = 200
"""Newton's method needs about five. Bisection, its fallback, needs about a hundred."""

_Event = tuple[float, float, int, float]
"""A level, and three changes there: of the weights of members with rising shares, of their number, and of the
weights of members that wait for their guarantees' shares."""
_Segment = tuple[float, float, float, float, float, float, float, float]
"""A part of a curve, up to the level of the next one. It has its level, and the use of each dimension there.
It also has their rise and that of the share, per unit of level."""


_UNBOUNDED: Vector = (math.inf, math.inf, math.inf)


class GroupNode:
    """One group of a tree, or its top. The owner sets weights and rooms; the rest belongs to the filling."""

    __slots__ = (
        "_below",
        "base_level",
        "base_share",
        "children",
        "claims",
        "count",
        "end_share",
        "events",
        "guaranteed",
        "held_share",
        "is_bounded",
        "least",
        "level",
        "levels",
        "name",
        "parent",
        "plain",
        "potential",
        "rate",
        "reached",
        "rising",
        "room",
        "segments",
        "shares",
        "waiting",
        "wakes_at",
        "weight",
    )

    # The curve of its own claims, from ``base_level`` on as far as it is known. Set by ``Curves.begin``.
    segments: list[_Segment]
    levels: list[float]
    """The level at the beginning of each segment."""
    shares: list[float]
    """The share at the beginning of each segment."""
    held_share: float
    """The sum of its members' shares at the beginning. It waits while its share is less."""
    end_share: float
    """The share after the last event, when nothing grows; infinite until the curve is known to there."""
    wakes_at: float
    """The level at which a share begins to rise. A group that waits has a lower level."""
    events: list[_Event]
    """The changes after the last segment, except of ``plain``; the next is at the end."""
    guaranteed: list[int]
    """The claims with a guarantee that grow. Their use is not in the segments."""
    plain: list[int]
    """The claims without a guarantee that stop after the last segment; the next is at the end."""
    count: int
    """The number of members with rising shares in the last segment."""
    rising: float
    """The sum of their weights."""
    waiting: float
    """The weights of the members that wait for their guarantees' shares then."""
    least: float
    """A sum of weights below this is a rounding error."""
    potential: Vector
    """The use of each dimension per unit of share, without guarantees and while nothing stops; for the top,
    per unit of level."""
    rate: float
    """The rise of the level per unit of the level of the evaluated group."""

    def __init__(self, name: str, parent: GroupNode | None) -> None:
        self.name = name
        self.parent = parent
        self.children: list[GroupNode] = []
        self.claims: list[int] = []
        """The claims that are children of the group, by index."""
        self.weight = 1.0
        self.room = _UNBOUNDED
        """The most that its members may use together."""
        self.is_bounded = False
        """Whether ``room`` is finite in a dimension."""
        self.level = 0.0
        """The level at the last evaluation."""
        self.base_level = self.base_share = 0.0
        """The level and the share at which its curve begins."""
        self.reached = 1.0
        """The level at which the last filling found a full dimension, relative to its first guess."""
        self._below: Sequence[GroupNode] = ()

    def limit_to(self, room: Vector) -> None:
        """Set the room."""
        self.room, self.is_bounded = room, min(room) < math.inf

    def rest_here(self) -> None:
        """The next curve begins at the level of the last evaluation."""
        self.base_level = self.level
        if self.parent is not None:
            self.base_share = min(self.parent.level * self.weight, self.end_share)

    def below(self) -> Sequence[GroupNode]:
        """The node and all groups below it, from the bottom. After this its children must not change."""
        if not self._below:
            found = [each for child in self.children for each in child.below()]
            found.append(self)
            self._below = found
        return self._below

    def above(self) -> list[GroupNode]:
        """The node and all groups above it, with the top."""
        found = [self]
        while (parent := found[-1].parent) is not None:
            found.append(parent)
        return found


class Curves:
    """The curves of one tree. Each list has one item per claim."""

    def __init__(
        self,
        demands: Sequence[Vector],
        held: Sequence[Vector],
        weights: Sequence[float],
        speeds: Sequence[float],
        parts: Sequence[float],
        capacity: Vector,
    ) -> None:
        """``speeds`` are the parts per unit of level. ``parts`` are those at which claims stop; they change.

        A claim whose ``held`` is ``ZERO`` itself has no guarantee.
        """
        self._demands = demands
        self._held = held
        self._weights = weights
        self._speeds = speeds
        self._parts = parts
        self._held_shares = dominant_shares(held, capacity)
        self._stops = [0.0] * len(demands)
        """The level at which each claim stops."""

    def begin(self, nodes: Sequence[GroupNode], claims: Sequence[int]) -> None:
        """Begin the curves of these nodes, which are in order from the bottom, with these claims."""
        parts, speeds, stops = self._parts, self._speeds, self._stops
        for index in claims:
            part = parts[index]
            stops[index] = part / speeds[index] if part else 0.0
        for node in nodes:
            self._begin(node, is_top=node is nodes[-1])

    def _begin(self, node: GroupNode, *, is_top: bool) -> None:  # noqa: PLR0912, PLR0915 - see its text
        """Begin the curve of a node, after those of its children. ``_extend`` continues it.

        The state is in local variables and nothing is a call, because it takes a third of a filling's time.
        """
        demands, all_held, weights = self._demands, self._held, self._weights
        speeds, stops, base = self._speeds, self._stops, node.base_level
        joined = base * (1 + EPSILON)
        # A member that waits for a rounding error would make a segment without length.
        events: list[_Event] = []
        a = b = c = d = e = f = rising = share = waiting = 0.0
        plain: list[int] = []
        guaranteed: list[int] = []
        rest: list[int] = []
        for index in node.claims:
            stop = stops[index]
            if all_held[index] is not ZERO:
                (guaranteed if stop else rest).append(index)
            elif stop > base:
                x, y, z = demands[index]
                speed = speeds[index]
                a += x * speed
                b += y * speed
                c += z * speed
                rising += weights[index]
                plain.append(index)
            elif stop:
                rest.append(index)
        total, count = rising, len(plain)
        for index in guaranteed:
            x, y, z = demands[index]
            speed, weight = speeds[index], weights[index]
            d += x * speed
            e += y * speed
            f += z * speed
            total += weight
            if is_top:
                continue
            joins_at, stops_at = self._held_shares[index] / weight, stops[index]
            share += weight * max(min(base, stops_at), joins_at)
            if base >= stops_at:
                continue
            if joins_at >= stops_at:
                waiting += weight
                events.append((stops_at, 0.0, 0, -weight))
                continue
            if joins_at > joined:
                waiting += weight
                events.append((joins_at, weight, 1, -weight))
            else:
                rising += weight
                count += 1
            events.append((stops_at, -weight, -1, 0.0))
        d, e, f = a + d, b + e, c + f
        for child in node.children:
            is_growing, weight = child.end_share > child.held_share, child.weight
            if is_growing:
                x, y, z = child.potential
                d += x * weight
                e += y * weight
                f += z * weight
                total += weight
            if is_top:
                continue
            self._extend(child, math.inf)
            share += child.held_share
            if is_growing:
                joins_at = child.held_share / weight
                if joins_at > joined:
                    waiting += weight
                    events.append((joins_at, weight, 1, -weight))
                else:
                    rising += weight
                    count += 1
                events.append((child.end_share / weight, -weight, -1, 0.0))
        node.potential = (d, e, f) if is_top or not total else (d / total, e / total, f / total)
        events.sort(reverse=True)
        plain.sort(key=stops.__getitem__, reverse=True)
        node.events, node.plain, node.guaranteed = events, plain, guaranteed
        node.count, node.rising, node.waiting = count, rising, waiting
        node.least = least = EPSILON * (rising + waiting)
        for index in plain:
            share += weights[index] * base
        u, v, w = a * base, b * base, c * base
        for index in rest:
            part = self._parts[index]
            (x, y, z), (p, q, r) = demands[index], all_held[index]
            u += max(x * part, p)
            v += max(y * part, q)
            w += max(z * part, r)
            share += max(self._held_shares[index], stops[index] * weights[index])
        node.wakes_at = base
        waits = share > node.base_share * (1 + EPSILON)
        if not waits:
            share = node.base_share
        elif not count:
            node.wakes_at = next((event[0] for event in reversed(events) if event[2] > 0), base)
        speed = rising
        if not count:
            speed = 0.0 if node.wakes_at > base else max(waiting, least) * _BELOW_GUARANTEES
        node.held_share = share
        node.levels, node.shares = [base], [share]
        node.segments = [(base, u, v, w, a, b, c, speed)]
        node.end_share = math.inf if events or plain else share

    def _extend(self, node: GroupNode, level_to: float, share_to: float = math.inf) -> None:
        """Continue the curve of a node to a level or a share, whichever comes first, or to its end."""
        demands, speeds, weights, stops = self._demands, self._speeds, self._weights, self._stops
        events, plain, least = node.events, node.plain, node.least
        levels, shares, segments = node.levels, node.shares, node.segments
        count, rising, waiting, wakes_at = node.count, node.rising, node.waiting, node.wakes_at
        level, u, v, w, a, b, c, speed = segments[-1]
        share = shares[-1]
        while (plain or events) and level <= level_to and share <= share_to:
            before, x, y, z = level, 0.0, 0.0, 0.0
            if plain and (not events or stops[plain[-1]] <= events[-1][0]):
                index = plain.pop()
                end, rise = stops[index], speeds[index]
                x, y, z = demands[index]
                x, y, z, weight, number = x * rise, y * rise, z * rise, -weights[index], -1
            else:
                end, weight, number, waits = events.pop()
                waiting += waits
            step = end - before
            if step > 0:
                u += a * step
                v += b * step
                w += c * step
                share += speed * step
                level = end
            if x or y or z:
                a -= x
                b -= y
                c -= z
            rising += weight
            count += number
            if count:
                speed = rising if rising > least else least
            elif level < wakes_at:
                speed = 0.0
            else:
                speed = max(waiting, least) * _BELOW_GUARANTEES
            levels.append(level)
            shares.append(share)
            segments.append((level, u, v, w, a, b, c, speed))
        node.count, node.rising, node.waiting = count, rising, waiting
        if not plain and not events:
            node.end_share = share

    def first_full(
        self, top: GroupNode, below: Sequence[GroupNode], dimensions: Sequence[int], level: float
    ) -> tuple[float, int]:
        """The lowest level of ``top``, from ``level`` on, at which a dimension is full, and that dimension.

        Sets the level of ``top`` and of each node ``below`` it. These are in order from the top.
        """
        room = top.room
        if level:  # at level 0 the caller knows
            used, rise = self._evaluate(top, below, level)
            for k in dimensions:
                if used[k] >= room[k] * (1 - EPSILON):
                    return level, k
        low, high, at, ratio, full = level, math.inf, level, 0.0, dimensions[0]
        guess = min(
            [room[k] / top.potential[k] for k in dimensions if top.potential[k] > 0], default=math.inf
        )
        following = guess * top.reached
        for _ in range(_MOST_EVALUATIONS):
            if not low < following < high:
                if high == math.inf:
                    high = following = self._end(top)
                else:
                    following = (low + high) / 2
                    if not low < following < high:
                        break
            at = following
            used, rise = self._evaluate(top, below, at)
            ratio, full = max((used[k] / room[k] if room[k] > 0 else math.inf, k) for k in dimensions)
            if abs(ratio - 1) <= _NEARLY:
                break
            if ratio < 1:
                low = at
            else:
                high = at
            steps = [
                (room[k] - used[k]) / rise[k]
                for k in dimensions
                if rise[k] > 0 and (ratio < 1 or used[k] > room[k])
            ]
            following = at + min(steps, default=math.inf)
        top.reached = at / guess if 0 < guess < math.inf else 1.0
        return at, full

    def _end(self, top: GroupNode) -> float:
        """A level of ``top`` at which nothing grows any more."""
        self._extend(top, math.inf)
        ends = [top.levels[-1], *(self._stops[index] for index in top.guaranteed)]
        for child in top.children:
            self._extend(child, math.inf)
            ends.append(child.end_share / child.weight)
        return max(ends) * (1 + EPSILON)

    def _evaluate(self, top: GroupNode, below: Sequence[GroupNode], level: float) -> tuple[Vector, Vector]:
        """The use of each dimension at a level of ``top``, and its rise. Sets the level of each node."""
        top.level, top.rate = level, 1.0
        if top.levels[-1] <= level:
            self._extend(top, level)
        start, u, v, w, a, b, c, _ = top.segments[bisect_right(top.levels, level) - 1]
        step = level - start
        u += a * step
        v += b * step
        w += c * step
        guaranteed = [top] if top.guaranteed else []
        for node in below:
            parent, shares, segments = node.parent, node.shares, node.segments
            assert parent is not None
            share, rate = parent.level * node.weight, parent.rate * node.weight
            if shares[-1] <= share:
                self._extend(node, math.inf, share)
            if share >= node.end_share:
                start, x, y, z, d, e, f, _ = segments[-1]
                step = rate = 0.0
            elif share >= node.held_share:
                place = bisect_right(shares, share) - 1
                start, x, y, z, d, e, f, speed = segments[place]
                step = (share - shares[place]) / speed
                rate /= speed
            else:
                # It waits.
                speed = (node.wakes_at - node.base_level) / (node.held_share - node.base_share)
                level = node.base_level + speed * max(share - node.base_share, 0.0)
                rate *= speed
                if node.levels[-1] <= level:
                    self._extend(node, level)
                start, x, y, z, d, e, f, _ = segments[bisect_right(node.levels, level) - 1]
                step = level - start
            node.level, node.rate = start + step, rate
            u += x + d * step
            v += y + e * step
            w += z + f * step
            if rate:
                a += d * rate
                b += e * rate
                c += f * rate
            if node.guaranteed:
                guaranteed.append(node)
        return self._add_guaranteed(guaranteed, (u, v, w), (a, b, c))

    def _add_guaranteed(
        self, nodes: Sequence[GroupNode], used: Vector, rise: Vector
    ) -> tuple[Vector, Vector]:
        """Add the claims with guarantees that grow in these nodes to a use and its rise."""
        demands, all_held, parts, speeds = self._demands, self._held, self._parts, self._speeds
        (u, v, w), (a, b, c) = used, rise
        for node in nodes:
            level, rate = node.level, node.rate
            for index in node.guaranteed:
                speed, part = speeds[index], parts[index]
                (x, y, z), (d, e, f) = demands[index], all_held[index]
                if level * speed < part:
                    part = level * speed
                    speed *= rate
                else:
                    speed = 0.0
                if x * part >= d:
                    d = x * part
                    a += x * speed
                if y * part >= e:
                    e = y * part
                    b += y * speed
                if z * part >= f:
                    f = z * part
                    c += z * speed
                u += d
                v += e
                w += f
        return (u, v, w), (a, b, c)
