"""A queue of a known distribution, M/M/1, to check statistics against the truth."""

from __future__ import annotations

import math
import random


def sojourns(load: float, count: int, source: random.Random, *, is_empty: bool = False) -> list[float]:
    """The times of ``count`` requests in the system, waits included, in the order of their arrivals.

    First come, first served. A service takes 1 on average. ``load`` is below 1; a load of 0 gives independent
    times. The queue is in its steady state from the first request on, unless it ``is_empty``.
    """
    if load == 0:
        return [source.expovariate(1.0) for _ in range(count)]
    wait = 0.0 if is_empty or source.random() >= load else source.expovariate(1.0 - load)
    found = []
    for _ in range(count):
        total = wait + source.expovariate(1.0)
        found.append(total)
        wait = max(total - source.expovariate(load), 0.0)
    return found


def true_percentile(load: float, share: float) -> float:
    """The percentile of the steady state: the time in the system is exponential."""
    return -math.log(1 - share) * true_mean(load)


def true_mean(load: float) -> float:
    """The mean of the steady state."""
    return 1 / (1 - load)
