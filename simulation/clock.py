"""The virtual clock: scheduled calls in the order of their times. Nothing waits in real time."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class VirtualClock:
    """The time of a simulation, in seconds from its start."""

    def __init__(self) -> None:
        self.now = 0.0
        self.scheduled = 0
        """The number of calls of ``after`` so far. Calls for the same time happen in this order."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Schedule a call."""
        self.scheduled += 1
        heapq.heappush(self._events, (self.now + seconds, self.scheduled, call))

    def run_until(self, end: float) -> None:
        """Make all calls up to this time."""
        while self._events and self._events[0][0] <= end:
            self.now, _, call = heapq.heappop(self._events)
            call()
