"""The pauses before a worker is started again. Pure: times are in seconds of a monotonic clock."""

from __future__ import annotations

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""The pause after the second failure in a row, and the longest one. It doubles with each failure."""
STABLE_S = 30.0
"""A worker that ran for this time is started again at once, as after its first failure."""


class Restarts:
    """The restarts of one worker."""

    def __init__(self) -> None:
        self.count = 0
        """The restarts so far."""
        self._failures = 0
        """The failures in a row."""

    def ended(self, started_at: float, now: float) -> float:
        """The worker that was started at this time has ended. Returns the pause before the next start."""
        if now - started_at >= STABLE_S:
            self._failures = 0
        pause = min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S) if self._failures else 0.0
        self._failures = min(self._failures + 1, 16)
        self.count += 1
        return pause
