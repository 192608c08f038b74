"""Histograms for Prometheus, whose buckets may become finer while they count.

A promise of the pool file needs a bucket that ends at the promised value. Only then does the histogram state
exactly how many answers kept the promise. The pool file may change at any time, so buckets are split while
the sidecar runs. A counted value stays in the upper part of a split bucket, because its exact value is not
known. So no count of a bucket ever falls.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from runtime.exposition import bound_labels

MOST_PROMISES = 16
"""The most promised values that get a bucket of their own. Each one costs a line per entitlement."""


class Buckets:
    """The upper bounds of a histogram in ascending order, and their labels. Never changed."""

    __slots__ = ("bounds", "labels")

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(sorted(set(bounds)))
        self.labels = bound_labels(self.bounds)

    def with_promises(self, promised: Iterable[float], default: Buckets) -> Buckets:
        """These buckets and one more bound for each promised value, the first ones first.

        At most ``MOST_PROMISES`` bounds are added to ``default``. A bound is never removed. Without a new
        bound the result is this object.
        """
        known = set(self.bounds)
        room = len(default.bounds) + MOST_PROMISES - len(known)
        new = [value for value in dict.fromkeys(promised) if value not in known][: max(room, 0)]
        return Buckets((*self.bounds, *new)) if new else self


class Histogram:
    """Counts by upper bound; thread-unsafe, for one event loop."""

    __slots__ = ("_last", "_last_from", "_last_to", "buckets", "counts", "total")

    def __init__(self, buckets: Buckets) -> None:
        self.buckets = buckets
        self.counts = [0] * len(buckets.labels)
        self.total = 0.0
        self._last = 0
        self._last_from = self._last_to = math.inf
        """The bucket of the last value, and its bounds. The next value is often in the same one."""

    def observe(self, value: float) -> None:
        """Count one value."""
        if not self._last_from < value <= self._last_to:
            bounds = self.buckets.bounds
            last = self._last = bisect_left(bounds, value)
            self._last_from = bounds[last - 1] if last > 0 else -math.inf
            self._last_to = bounds[last] if last < len(bounds) else math.inf
        self.counts[self._last] += 1
        self.total += value

    def refine(self, buckets: Buckets) -> None:
        """Use buckets with more bounds, which include all present ones."""
        if buckets is self.buckets:
            return
        counts = [0] * len(buckets.labels)
        for bound, count in zip(self.buckets.bounds, self.counts, strict=False):
            counts[bisect_left(buckets.bounds, bound)] = count
        counts[-1] = self.counts[-1]
        self.buckets, self.counts = buckets, counts
        self._last_from = self._last_to = math.inf

    def by(self, bounds: Sequence[float]) -> tuple[int, ...]:
        """The counts by fewer bounds, all of which are bounds of this histogram."""
        counts = [0] * (len(bounds) + 1)
        for bound, count in zip(self.buckets.bounds, self.counts, strict=False):
            counts[bisect_left(bounds, bound)] += count
        counts[-1] += self.counts[-1]
        return tuple(counts)

    def lines(self, name: str, labels: str) -> str:
        """The lines of its series. ``labels`` is formatted, without braces."""
        before = f"{name}_bucket{{{labels},le="
        lines, running = [], 0
        for le, count in zip(self.buckets.labels, self.counts, strict=True):
            running += count
            lines.append(f'{before}"{le}"}} {running}.0\n')
        lines.append(f"{name}_count{{{labels}}} {running}.0\n{name}_sum{{{labels}}} {self.total!r}\n")
        return "".join(lines)
