"""The delay of the event loop, measured with a timer that is due every 50 ms. Any request waits as long.

A long step of this process causes delays, and so does a machine without a free core.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from runtime.exposition import bound_labels

EVERY_S = 0.05
WINDOW_S = 30.0
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LoopDelay:
    """Delays of one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts = [0] * (len(BOUNDS) + 1)
        self._total = 0.0
        self._largest = self._largest_before = 0.0
        """The largest delays of the current window and of the one before."""
        self._window_ends = clock() + WINDOW_S

    def observe(self, delay: float, now: float) -> None:
        """A timer came ``delay`` seconds late. ``now`` is in seconds by the clock."""
        delay = max(delay, 0.0)
        self._counts[bisect_left(BOUNDS, delay)] += 1
        self._total += delay
        self._rotate(now)
        self._largest = max(self._largest, delay)

    def largest(self, now: float) -> float:
        """The largest delay within the last half minute, or a little longer."""
        self._rotate(now)
        return max(self._largest, self._largest_before)

    def _rotate(self, now: float) -> None:
        if now >= self._window_ends:
            is_recent = now < self._window_ends + WINDOW_S
            self._largest_before = self._largest if is_recent else 0.0
            self._largest = 0.0
            self._window_ends = now + WINDOW_S

    def metrics(self) -> Iterator[Metric]:
        """The metrics for Prometheus."""
        histogram = HistogramMetricFamily(
            "tokenpool_loop_delay_seconds", "Delay with which the event loop runs a timer that is due."
        )
        buckets, running = [], 0
        for le, count in zip(bound_labels(BOUNDS), self._counts, strict=True):
            running += count
            buckets.append((le, float(running)))
        histogram.add_metric((), buckets, self._total)
        yield histogram
        yield GaugeMetricFamily(
            "tokenpool_loop_delay_max_seconds",
            "The largest such delay within the last 30 to 60 s.",
            value=self.largest(self._clock()),
        )

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = self._clock() + EVERY_S
            await asyncio.sleep(EVERY_S)
            now = self._clock()
            self.observe(now - due, now)
