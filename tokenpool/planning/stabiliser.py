"""The stabiliser: it turns successive needs into scale hints that do not flap.

It keeps a short history that it can pass to another process. Time is an argument.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from tokenpool.planning.scaling import Need, ScalingSettings


@dataclass(frozen=True, slots=True)
class ScaleHint:
    """The hint for the autoscaler."""

    replicas: int
    need: Need
    reason: str
    """A text with the dimension and the numbers, or with the reason for a hint that differs from the need."""


@dataclass(frozen=True, slots=True)
class StabiliserState:
    """The state of a stabiliser, for the next leader. Times are ages, so no two clocks are compared."""

    held: int
    lows: tuple[tuple[float, int], ...]
    """For the up window: the seconds since a number was last needed, and the number."""
    highs: tuple[tuple[float, int], ...]
    """The same for the down window."""


@dataclass(frozen=True, slots=True)
class PublishedHint:
    """The scale hint as the leader stores it. All coordinators serve it; a new leader continues from it."""

    hint: ScaleHint
    min_replicas: int
    max_replicas: int
    """The bounds in the leader's pool file."""
    state: StabiliserState


class _Window:
    """The lowest (``sign`` -1) or the highest (1) number of a window. A number counts until the next one.

    It keeps only the numbers that can still become the result. They all differ, so it keeps at most as many
    numbers as the pool may have replicas.
    """

    def __init__(self, seconds: float, sign: int) -> None:
        self._seconds = seconds
        self._sign = sign
        self._kept: deque[tuple[float, int]] = deque()
        """The time until which a number counted, and the number. The last number still counts."""

    def follow(self, number: int, now: float) -> int:
        kept, sign = self._kept, self._sign
        if kept:
            kept[-1] = (now, kept[-1][1])
        while kept and kept[-1][1] * sign <= number * sign:
            kept.pop()
        kept.append((math.inf, number))
        while kept[0][0] <= now - self._seconds:
            kept.popleft()
        return kept[0][1]

    def ages(self, now: float) -> tuple[tuple[float, int], ...]:
        return tuple((max(now - until, 0.0), number) for until, number in self._kept)

    def restore(self, ages: Iterable[tuple[float, int]], at: float) -> None:
        self._kept = deque((at - age, number) for age, number in ages)
        if self._kept:
            self._kept[-1] = (math.inf, self._kept[-1][1])


class Stabiliser:
    """A hint rises to the lowest need of the up window, and falls to the highest need of the down window.

    The Kubernetes autoscaler has the same rule. So the hint behaves in the same way if the autoscaler applies
    it.
    """

    def __init__(self, settings: ScalingSettings) -> None:
        self._settings = settings
        self._lows = _Window(settings.up_window_s, -1)
        self._highs = _Window(settings.down_window_s, 1)
        self._held: int | None = None

    def follow(self, need: Need, now: float, *, running: int = 0) -> ScaleHint:
        """The hint after one more need. ``now`` is seconds on any monotonic clock.

        The first call keeps at least the ``running`` replicas: a new coordinator has not observed the down
        window after which some may be removed.
        """
        settings, held = self._settings, self._held
        if held is None and running > need.replicas:
            self._highs.follow(running, now)
        up, down = self._lows.follow(need.replicas, now), self._highs.follow(need.replicas, now)
        if held is None:
            if running > need.replicas:
                return self._hold(running, need, f"{need.replicas} would be enough; {running} run")
            return self._hold(need.replicas, need, _reason(need))
        if up > held:
            return self._hold(up, need, _reason(need))
        if down < held:
            return self._hold(down, need, _reason(need))
        if need.replicas < held:
            return self._hold(
                held,
                need,
                f"{need.replicas} would be enough; held for {settings.down_window_s:g} s of less need",
            )
        if need.replicas > held:
            return self._hold(
                held, need, f"{need.replicas} are needed; held until that lasted {settings.up_window_s:g} s"
            )
        return self._hold(held, need, _reason(need))

    def state(self, now: float) -> StabiliserState:
        """Its state, for ``restore`` in another process."""
        return StabiliserState(self._held or 0, self._lows.ages(now), self._highs.ages(now))

    def restore(self, state: StabiliserState, at: float) -> None:
        """Continue from the state of another stabiliser. ``at`` is the time of that state by this clock."""
        self._held = state.held or None
        self._lows.restore(state.lows, at)
        self._highs.restore(state.highs, at)

    def _hold(self, replicas: int, need: Need, reason: str) -> ScaleHint:
        self._held = max(replicas, need.floor)
        return ScaleHint(self._held, need, reason)


def _reason(need: Need) -> str:
    if need.unbounded > need.replicas:
        return f"{need.dimension} needs {need.unbounded}, the pool may have {need.replicas}"
    if need.dimension is None:
        return f"the minimum of {need.replicas} is enough"
    return f"{need.dimension} needs {need.replicas}"
