"""Statistics: exact percentiles, ranks, fairness, counts and tokens over time. Pure.

A percentile is always an observed value (the nearest rank). The ranks that enclose it have a binomial
distribution, whatever the distribution of the values is, if the values are independent.
`intervals` has the intervals of dependent values.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from statistics import NormalDist

import msgspec

CONFIDENCE = 0.95
_NORMAL_FROM = 25.0
"""The variance of a rank above which the normal distribution replaces the binomial."""
_GAP_FLOOR_S = 1e-5
_GAP_STEP = math.log(1.02)


class Estimate(msgspec.Struct, frozen=True):
    """A number with its 95 % confidence interval."""

    value: float
    low: float | None = None
    """``None`` if the observations are too few for a bound."""
    high: float | None = None
    reason: str = ""
    """The reason why a bound is missing."""

    @property
    def ends(self) -> tuple[float, float] | None:
        """The interval, with an unknown bound as infinite; ``None`` without any bound."""
        if self.low is None and self.high is None:
            return None
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest observed value that is not less than ``share`` of all. ``ordered`` is not empty."""
    return ordered[_rank(len(ordered), share) - 1]


def _rank(count: int, share: float) -> int:
    return min(max(math.ceil(share * count - 1e-9), 1), count)


@cache
def rank_interval(count: int, share: float, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """The ranks (from 1) that enclose the percentile; 0 and ``count + 1`` stand for unknown bounds."""
    tail = (1 - confidence) / 2
    variance = count * share * (1 - share)
    if variance > _NORMAL_FROM:
        reach = NormalDist().inv_cdf(1 - tail) * math.sqrt(variance)
        return max(math.floor(count * share - reach), 0), min(math.ceil(count * share + reach) + 1, count + 1)
    # B of the observations lie below the percentile; it lies above rank r if B >= r, below if B < r.
    below, low, high = 0.0, 0, count + 1
    for successes in range(count + 1):
        below += _binomial(count, successes, share)
        if below <= tail:
            low = successes + 1
        if below >= 1 - tail:
            high = successes + 1
            break
    return low, high


def _binomial(count: int, successes: int, share: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
    return math.exp(ways + successes * math.log(share) + (count - successes) * math.log1p(-share))


def jain(values: Iterable[float]) -> float:
    """Jain's index of fairness: 1 if all are equal, 1/n if one has everything."""
    kept = list(values)
    squares = sum(value * value for value in kept)
    return sum(kept) ** 2 / (len(kept) * squares) if squares > 0 else 1.0


class Windows:
    """The run in windows of equal width."""

    def __init__(self, until_s: float, width_s: float) -> None:
        self.width_s = width_s
        self.count = max(math.ceil(until_s / width_s - 1e-9), 1)

    @property
    def middles(self) -> list[float]:
        """The middle of each window."""
        return [(index + 0.5) * self.width_s for index in range(self.count)]

    def index(self, at_s: float) -> int | None:
        """The window of a time; ``None`` outside the run."""
        index = math.floor(at_s / self.width_s)
        return index if 0 <= index < self.count else None

    def grouped(self, points: Iterable[tuple[float, float]]) -> list[list[float]]:
        """Values by the window of their time, sorted in each window."""
        groups: list[list[float]] = [[] for _ in range(self.count)]
        for at, value in points:
            if (index := self.index(at)) is not None:
                groups[index].append(value)
        for group in groups:
            group.sort()
        return groups

    def spread(self, pieces: Iterable[tuple[float, float, float]]) -> list[float]:
        """The part of each amount, spread evenly from its start to its end, in each window."""
        sums, most, width = [0.0] * self.count, self.count, self.width_s
        for start, end, amount in pieces:
            first, last = max(math.floor(start / width), 0), math.floor(end / width)
            if first >= most:
                continue
            if last <= first:
                sums[first] += amount
                continue
            per_second = amount / (end - start)
            sums[first] += per_second * ((first + 1) * width - max(start, 0.0))
            for index in range(first + 1, min(last, most)):
                sums[index] += per_second * width
            if last < most:
                sums[last] += per_second * (end - last * width)
        return sums


def nice_width(duration_s: float, windows: int = 48) -> float:
    """A round width for about so many windows, at least half a second."""
    choices = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0)
    return choices[min(bisect_left(choices, duration_s / windows), len(choices) - 1)]


Histogram = dict[int, int]
"""The number of gaps in each bucket. Buckets are 2 % wide, so the error is at most 1 %."""


def gap_histogram(gaps: Iterable[float]) -> Histogram:
    """Gaps in seconds, counted by bucket."""
    counts: Histogram = {}
    for gap in gaps:
        bucket = int(math.log(gap / _GAP_FLOOR_S) / _GAP_STEP) if gap > _GAP_FLOOR_S else 0
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def merged(histograms: Iterable[Mapping[int, int]]) -> Histogram:
    """The sum of several histograms."""
    total: Histogram = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def bucket_middle(bucket: int) -> float:
    """The gap in seconds that stands for a bucket."""
    return _GAP_FLOOR_S * math.exp((bucket + 0.5) * _GAP_STEP)


def histogram_percentile(histogram: Mapping[int, int], share: float) -> float | None:
    """A percentile of counted gaps in seconds, with an error of at most 1 %; ``None`` without gaps."""
    count = sum(histogram.values())
    if not count:
        return None
    left = _rank(count, share)
    for bucket in sorted(histogram):
        left -= histogram[bucket]
        if left <= 0:
            return bucket_middle(bucket)
    raise AssertionError("the ranks of a histogram add up")
