"""Progressive filling: it computes the part of its demand that each claim of one group gets.

The rule is dominant-resource fairness (Ghodsi et al., NSDI 2011). At *level* ``L`` a claim that is not frozen
has ``x = L * weight / dominant share of its demand``. The use of each dimension is piecewise linear in ``L``.
The events that change a slope are sorted once, so filling costs n log n. Guarantees count towards the
dominant share: a claim with a guarantee gets more only after the other claims have reached its level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokenpool.planning.vectors import DIMENSIONS, EPSILON, Vector

_SATISFIED = 3
"""The event in which a claim is satisfied. It sorts after all dimensions, as the last event of a claim."""


class Filling:
    """Raises dominant shares together until every claim is satisfied or needs a saturated dimension.

    It processes the events of one group in order. ``_speeds[i]`` is the use of each dimension by claim ``i``
    per unit of level. ``_slope`` is the sum over the claims that grow in a dimension and are not frozen.
    """

    def __init__(
        self,
        demands: Sequence[Vector],
        held: Sequence[Vector],
        dominants: Sequence[float],
        weights: Sequence[float],
        capacity: Vector,
    ) -> None:
        """Each list has one item per claim: demand, guarantee in demand, dominant share, weight."""
        self._demands = demands
        self._held = held
        self._capacity = capacity
        self._used = [math.fsum([each[k] for each in held]) for k in DIMENSIONS]
        self._slope = [0.0, 0.0, 0.0]
        self._frozen = [dominant == 0 for dominant in dominants]
        """Whether each claim gets no more. Without demand in a dimension with capacity, it is frozen at
        once."""
        self._growing = 0
        """The number of claims that are not frozen."""
        self._full_at = [dominant / weight for dominant, weight in zip(dominants, weights, strict=True)]
        """The level at which each claim is satisfied."""
        self._speeds = [
            (a / level, b / level, c / level) if level else (0.0, 0.0, 0.0)
            for (a, b, c), level in zip(demands, self._full_at, strict=True)
        ]
        self._began: list[list[bool]] = [[False] * len(demands) for _ in DIMENSIONS]
        """By dimension: whether each claim grows, beyond its guarantee."""
        self._users = [0, 0, 0]
        """By dimension: the number of claims in ``_slope``."""
        self._parts = [0.0] * len(demands)
        self._level = 0.0
        self._saturated = [used >= c * (1 - EPSILON) for used, c in zip(self._used, capacity, strict=True)]

    def run(self) -> list[float]:
        """Raise the level through all events; returns the granted part of each demand, 0 to 1."""
        frozen, saturated = self._frozen, self._saturated
        self._freeze_shut_out()
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

    def _freeze_shut_out(self) -> None:
        """Freeze each claim that needs a saturated dimension and has no guarantee in it."""
        for k in DIMENSIONS:
            if self._saturated[k]:
                for index, (demand, held) in enumerate(zip(self._demands, self._held, strict=True)):
                    if demand[k] > held[k] == 0:
                        self._frozen[index] = True
        self._growing = self._frozen.count(False)

    def _events(self) -> list[tuple[float, int, int]]:
        """``(level, claim, dimension)``: the claim begins to grow in a dimension, or is satisfied.

        A claim without a guarantee in a dimension begins at once. Most claims do, and that needs no event.
        """
        growing = [index for index, frozen in enumerate(self._frozen) if not frozen]
        events = [(self._full_at[index], index, _SATISFIED) for index in growing]
        demands, all_held = self._demands, self._held
        for k in DIMENSIONS:
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
        """Sum the speeds in one dimension of all claims that grow in it and are not frozen."""
        speeds = [
            speed[k]
            for speed, began, frozen in zip(self._speeds, self._began[k], self._frozen, strict=True)
            if began and not frozen
        ]
        self._users[k], self._slope[k] = len(speeds), sum(speeds)

    def _rise_to(self, level: float) -> None:
        """Raise the level, and stop at each level that saturates a dimension."""
        capacity, used, slope, saturated = self._capacity, self._used, self._slope, self._saturated
        while self._level < level:
            stop, full = level, -1
            for k in DIMENSIONS:
                if slope[k] > 0 and not saturated[k]:
                    reach = self._level + (capacity[k] - used[k]) / slope[k]
                    if reach < stop:
                        stop, full = reach, k
            rise = stop - self._level
            if rise > 0:
                for k in DIMENSIONS:
                    used[k] += slope[k] * rise
                self._level = stop
            if full < 0:
                self._level = level
                return
            saturated[full] = True
            for index, (began, frozen) in enumerate(zip(self._began[full], self._frozen, strict=True)):
                if began and not frozen:
                    self._stop(index, self._level)
            for k in DIMENSIONS if self._growing else ():
                self._sum_up(k)

    def _freeze(self, index: int, level: float) -> None:
        """Stop a claim that is satisfied or needs a saturated dimension, and remove it from the slopes."""
        self._stop(index, level)
        for k in DIMENSIONS:
            if self._began[k][index]:
                self._users[k] -= 1
                # Sums of floats have rounding errors, but without users the slope is exactly zero.
                self._slope[k] = self._slope[k] - self._speeds[index][k] if self._users[k] else 0.0

    def _stop(self, index: int, level: float) -> None:
        self._frozen[index] = True
        self._growing -= 1
        part = level / self._full_at[index]
        self._parts[index] = part if part < 1.0 else 1.0
