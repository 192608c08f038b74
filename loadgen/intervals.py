"""95 % confidence intervals of dependent observations. Pure.

Requests behind one queue wait together, so 1,000 requests tell as much as a few independent ones. The
observations, in the order of their due times, are split into ten batches. The spread of the batches says how
many independent requests the run is worth. If that is few, the batches depend on each other, too, and the
interval is widened. Rules and constants are chosen by simulation (decision 0104, `docs/loadgen/trust.md`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from statistics import NormalDist, fmean, median, pvariance, stdev

from loadgen.statistics import CONFIDENCE, Estimate, percentile, rank_interval

BATCHES = 10
"""With more batches, their dependence biases the interval; with fewer, it is wide for independent data."""
LEAST = 2 * BATCHES
"""The fewest observations with an interval."""
LEAST_RUNS = 3
"""The fewest runs with an interval across runs."""
_SHARES = (0.5, 0.9, 0.95, 0.99)
_PROBES = (0.5, 0.9)
"""The percentiles whose batches say how much the observations depend on each other."""
_WIDER = 1.5
_WIDER_MEAN = 10.0
"""An interval is wider by these factors times ``BATCHES`` per independent observation, beyond independent
data. A mean of few independent observations needs more, because it rarely has the rare long waits."""
_INHERITED = 0.5
"""A high percentile has few requests above it, so it takes this share of the dependence of the probes."""
_LEAST_EFFECT = 0.8
"""A batch variance below this share of that of independent observations is taken as chance."""
_WIDEST = math.log(10.0)
"""A mean is not bounded if it could be ten times as large."""
_NORMAL = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_STUDENT = {2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 9: 2.2622}
_REACH = _STUDENT[BATCHES - 1]


class Series:
    """Observations in the order of their times, and what intervals need to know of them."""

    def __init__(self, values: Sequence[float]) -> None:
        count = len(values)
        self._batches = [sorted(values[start:end]) for start, end in _batches(count)]
        self.ordered = sorted(chain.from_iterable(self._batches))
        self.count = count
        self._effects: dict[float, float] = {}

    def percentiles(self, shares: Sequence[float] = _SHARES) -> list[Estimate | None]:
        """Percentiles with their intervals. A bound is ``None`` if the independent requests are too few."""
        return [self._percentile(share) if self.count else None for share in shares]

    def mean(self) -> Estimate | None:
        """The mean with its interval, which has a bound on both sides or on none."""
        if not self.count:
            return None
        value = fmean(self.ordered)
        if self.count < LEAST:
            return Estimate(value, reason=_few(self.count))
        sums = [sum(batch) - value * len(batch) for batch in self._batches]
        reach = _REACH * self._wider(_WIDER_MEAN) * _error(sums, self.count)
        if value <= 0:
            return Estimate(value, value - reach, value + reach)
        # On a logarithmic scale, because waits have a long tail.
        if reach / value > _WIDEST:
            return Estimate(value, reason=f"{self._worth()}; they do not bound the mean")
        return Estimate(value, value * math.exp(-reach / value), value * math.exp(reach / value))

    @property
    def independent(self) -> float:
        """The number of independent observations that tell as much about the median and the P90."""
        most = max(self._effect(share) for share in _PROBES)
        return self.count / max(most, 1.0)

    def _effect(self, share: float) -> float:
        """The variance of the share below a percentile, relative to that of independent observations."""
        if share not in self._effects:
            at = percentile(self.ordered, share)
            below = bisect_right(self.ordered, at) / self.count
            sums = [bisect_right(batch, at) - below * len(batch) for batch in self._batches]
            self._effects[share] = _error(sums, self.count) ** 2 * self.count / (share * (1 - share))
        return self._effects[share]

    def _wider(self, factor: float) -> float:
        return 1 + factor * BATCHES * (1 / self.independent - 1 / self.count)

    def _percentile(self, share: float) -> Estimate:
        value = percentile(self.ordered, share)
        if self.count < LEAST:
            return Estimate(value, reason=_few(self.count))
        widened = _REACH / _NORMAL * self._wider(_WIDER)
        inherited = _INHERITED * max((self._effect(each) for each in _PROBES if each < share), default=0.0)
        effect = max(self._effect(share), inherited)
        worth = max(round(self.count / max(effect * widened**2, _LEAST_EFFECT)), 1)
        low, high = rank_interval(worth, share)
        first = self.ordered[-(-low * self.count // worth) - 1] if low >= 1 else None
        last = self.ordered[-(-high * self.count // worth) - 1] if high <= worth else None
        if first is not None and last is not None:
            return Estimate(value, first, last)
        needed = math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log(share))
        side = "an upper bound" if first is not None else "a bound"
        why = f"{_about(worth)}; {side} of the P{100 * share:g} needs {needed}"
        return Estimate(value, first, last, why)

    def _worth(self) -> str:
        return _about(max(round(self.independent), 1))


def _about(worth: int) -> str:
    return f"the run counts as about {worth} independent request{'s' if worth > 1 else ''}"


def _few(count: int) -> str:
    return f"{count} observations are fewer than {LEAST}"


def _batches(count: int) -> Iterator[tuple[int, int]]:
    return pairwise(count * index // BATCHES for index in range(BATCHES + 1))


def _error(sums: Sequence[float], count: int) -> float:
    """The standard error of a mean, from the sums of deviations in each batch."""
    batches = len(sums)
    return math.sqrt(batches / (batches - 1) * sum(each * each for each in sums)) / count


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's distribution, with an error of at most 0.001.

    ``freedom`` is at least 2.
    """
    if freedom in _STUDENT:
        return _STUDENT[freedom]
    z = _NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + terms[0] / freedom + terms[1] / freedom**2 + terms[2] / freedom**3


def share(flags: Sequence[bool]) -> Estimate | None:
    """The share of true observations in the order of their times; ``None`` without observations."""
    count = len(flags)
    if not count:
        return None
    value = sum(flags) / count
    if count < LEAST:
        return Estimate(value, reason=_few(count))
    sums = [sum(flags[start:end]) - value * (end - start) for start, end in _batches(count)]
    spread = value * (1 - value)
    effect = _error(sums, count) ** 2 * count / spread if spread else 1.0
    wider = (_REACH / _NORMAL) * (1 + _WIDER * BATCHES * max(effect - 1.0, 0.0) / count)
    worth = count / max(effect * wider**2, _LEAST_EFFECT)
    # Wilson's interval, which is not empty for shares of 0 and 1.
    square = _NORMAL**2 / worth
    middle = (value + square / 2) / (1 + square)
    reach = _NORMAL * math.sqrt(spread / worth + square / (4 * worth)) / (1 + square)
    return Estimate(value, max(middle - reach, 0.0), min(middle + reach, 1.0))


def rate(counts: Sequence[float], width_s: float) -> Estimate | None:
    """The rate per second of amounts in windows of equal width; ``None`` without windows."""
    count = len(counts)
    if not count:
        return None
    value = sum(counts) / (count * width_s)
    if count < LEAST:
        return Estimate(value, reason=f"{count} windows are fewer than {LEAST}")
    mean = fmean(counts)
    sums = [sum(counts[start:end]) - mean * (end - start) for start, end in _batches(count)]
    error, spread = _error(sums, count), pvariance(counts, mean)
    effect = error**2 * count / spread if spread else 1.0
    reach = _REACH * (1 + _WIDER * BATCHES * max(effect - 1.0, 0.0) / count) * error / width_s
    return Estimate(value, max(value - reach, 0.0), value + reach)


def across(made: Sequence[Estimate]) -> Estimate | None:
    """One number over several runs that differ in the seed: the median, and an interval for it.

    Runs are independent, so the interval does not use the observations inside them. A
    single run keeps its own interval.
    """
    if len(made) < 2:
        return made[0] if made else None
    values = [each.value for each in made]
    middle = median(values)
    if len(values) < LEAST_RUNS:
        return Estimate(middle, reason=f"{len(values)} runs are fewer than {LEAST_RUNS}")
    is_positive = min(values) > 0
    scaled = [math.log(value) for value in values] if is_positive else values
    centre, reach = fmean(scaled), student(len(values) - 1) * stdev(scaled) / math.sqrt(len(values))
    low, high = centre - reach, centre + reach
    if is_positive:
        low, high = math.exp(low), math.exp(high)
    return Estimate(middle, min(low, middle), max(high, middle))
