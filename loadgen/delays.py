"""The delay of the generator's own event loop, by phase, and its stalls. Times are arguments.

A timer is due every ``EVERY_S``. A request or a token that comes at a random time waits as long as a timer
that is due at this time. So a loop that is blocked for 40 ms counts as eight timers, which are 40, 35, ...
5 ms late, and the percentiles are over time. A process without a core is delayed like one that computes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from loadgen.records import LoopDelay, PhaseMeta, Stall
from loadgen.statistics import Histogram, gap_histogram, histogram_percentile
from loadgen.summary import WHOLE

EVERY_S = 0.005
STALL_S = 0.02
"""A delay from which it is recorded with its time, s."""
MOST_STALLS = 1000
"""The most recorded stalls. A run with more is unreliable as a whole, as its percentiles show."""
_MOST_POINTS = 20_000
"""The most timers that one delay counts as: 100 s. A longer pause, as of a laptop, counts as one of 100 s."""


class Delays:
    """The delays of one run. Times are seconds from the start of the run."""

    def __init__(self, phases: Sequence[PhaseMeta], from_s: float = 0.0, to_s: float = float("inf")) -> None:
        """Only delays from ``from_s`` to ``to_s`` count: without warm-up and cool-down."""
        clipped = [PhaseMeta(each.name, max(each.from_s, from_s), min(each.to_s, to_s)) for each in phases]
        self._spans = [PhaseMeta(WHOLE, from_s, to_s), *clipped]
        self._counts: list[Histogram] = [{} for _ in self._spans]
        self._longest = [0.0] * len(self._spans)
        self.stalls: list[Stall] = []

    def woke(self, due_s: float, now_s: float) -> float:
        """Count a timer that was due at ``due_s`` and ran at ``now_s``; returns the next due time."""
        late = max(now_s - due_s, 0.0)
        points = min(int(late / EVERY_S), _MOST_POINTS) + 1
        buckets = gap_histogram(late - point * EVERY_S for point in range(points))
        for index, span in enumerate(self._spans):
            if span.from_s <= due_s < span.to_s:
                counts = self._counts[index]
                for bucket, count in buckets.items():
                    counts[bucket] = counts.get(bucket, 0) + count
                self._longest[index] = max(self._longest[index], late)
        whole = self._spans[0]
        if late >= STALL_S and whole.from_s <= due_s < whole.to_s and len(self.stalls) < MOST_STALLS:
            self.stalls.append(Stall(due_s, late))
        return due_s + points * EVERY_S

    def spans(self) -> list[LoopDelay]:
        """The percentiles of the whole run and of each phase that it reached."""
        return [
            LoopDelay(
                span.name,
                histogram_percentile(counts, 0.5) or 0.0,
                histogram_percentile(counts, 0.99) or 0.0,
                longest,
            )
            for span, counts, longest in zip(self._spans, self._counts, self._longest, strict=True)
            if counts
        ]


async def watch(delays: Delays, clock: Callable[[], float]) -> None:
    """Measure the running loop until cancelled. ``clock`` counts from the start of the run."""
    loop, due = asyncio.get_running_loop(), clock()
    timer: asyncio.TimerHandle

    def ran() -> None:  # a callback costs half as much as a task that sleeps
        nonlocal due, timer
        due = delays.woke(due, now := clock())
        timer = loop.call_later(due - now, ran)

    timer = loop.call_later(0.0, ran)
    try:
        await loop.create_future()
    finally:
        timer.cancel()


def scheduled(path: Path = Path("/proc/thread-self/schedstat")) -> tuple[float, float]:
    """The seconds for which this thread ran, and for which it was ready but had no core, since its start.

    Both are 0 on a system that does not count them.
    """
    try:
        ran, waited, *_ = map(int, path.read_text().split())
    except (OSError, ValueError):
        return 0.0, 0.0
    return ran / 1e9, waited / 1e9
