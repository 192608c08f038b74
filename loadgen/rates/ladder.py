"""The rates of a sweep that chooses them itself (``--rates auto``). Pure.

The first rate is the scenario's own. It doubles until the server does not keep up, or halves until it does.
Then the widest gap beside the knee, or below the limit, is halved on a logarithmic scale, until all of them
are narrower than the resolution. No rate is run twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from loadgen.rates import knee
from loadgen.rates.points import Point


def next_rate(points: Sequence[Point], first: float, resolution: float) -> float | None:
    """The next rate to try; ``None`` at the end. ``resolution`` is the relative width of the last gaps."""
    if not points:
        return first
    found = knee.find(points)
    if found.at is None:
        return min(point.rate for point in points) / 2
    if found.fails_at is None:
        return max(point.rate for point in points) * 2
    below = [point.rate for point in knee.sustained(points)]
    rates = [*below, found.fails_at]
    index = rates.index(found.at)
    gaps = {(rates[index], rates[index + 1]), (below[-1], found.fails_at)}
    if index > 0:
        gaps.add((rates[index - 1], rates[index]))
    low, high = max(gaps, key=lambda gap: (gap[1] / gap[0], -gap[0]))
    between = math.sqrt(low * high)
    is_known = any(math.isclose(point.rate, between) for point in points)
    return between if high / low > (1 + resolution) * (1 + 1e-9) and not is_known else None
