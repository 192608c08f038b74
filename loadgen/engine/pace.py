"""Whether the simulator keeps up: how late its steps end, compared with their planned durations. Pure.

A step that ends late makes the next one begin earlier, so single late steps do not change rates. Time that
was lost for good, or steps that are late on average, mean that clients measure the simulator instead of the
simulated engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WINDOW_S = 5.0
LATE_SHARE = 0.1
"""The mean lateness, as a share of the mean step, from which the simulator does not keep up."""
LATE_FLOOR_S = 0.002
"""... and at least so many seconds."""
WORST_S = 0.02
"""The lateness of a single step from which it counts, if the step itself is shorter, s."""


@dataclass(frozen=True, slots=True)
class Late:
    """The steps of one window. Seconds."""

    planned_s: float
    """The mean step."""
    late_s: float
    """The mean lateness."""
    worst_s: float
    lost_s: float
    """The time by which the engine was slower than planned."""

    @property
    def is_late(self) -> bool:
        """Whether the simulator did not keep up."""
        return (
            self.lost_s > 0
            or self.late_s > max(LATE_SHARE * self.planned_s, LATE_FLOOR_S)
            or self.worst_s > max(self.planned_s, WORST_S)
        )

    def __str__(self) -> str:
        return (
            f"the simulator does not keep up: steps of {1000 * self.planned_s:.1f} ms ended"
            f" {1000 * self.late_s:.1f} ms late on average, {1000 * self.worst_s:.0f} ms at worst,"
            f" and {1000 * self.lost_s:.0f} ms were lost in {WINDOW_S:g} s; give it a core of its own,"
            " fewer --slots or a longer --step"
        )


class Pace:
    """The lateness of steps, by windows of time."""

    def __init__(self) -> None:
        self.steps = 0
        self.late_windows = 0
        """Windows since the start in which the simulator did not keep up."""
        self.worst_s = 0.0
        self._begin: float | None = None
        self._steps = 0
        self._planned = self._late = self._worst = self._lost = 0.0

    def step(self, planned_s: float, late_s: float, lost_s: float, now: float) -> Late | None:
        """Count a step. Returns the window that ends with it, if the simulator did not keep up in it."""
        self._begin = now if self._begin is None else self._begin
        self.steps += 1
        self._steps += 1
        self._planned += planned_s
        self._late += late_s
        self._lost += lost_s
        self._worst = max(self._worst, late_s)
        self.worst_s = max(self.worst_s, late_s)
        if now - self._begin < WINDOW_S:
            return None
        found = Late(self._planned / self._steps, self._late / self._steps, self._worst, self._lost)
        self._begin = now
        self._clear()
        if not found.is_late:
            return None
        self.late_windows += 1
        return found

    def shown(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {"steps": self.steps, "late_windows": self.late_windows, "worst_late_s": self.worst_s}

    def _clear(self) -> None:
        self._steps = 0
        self._planned = self._late = self._worst = self._lost = 0.0
