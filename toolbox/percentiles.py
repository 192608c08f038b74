"""Percentiles of unsorted values."""

from __future__ import annotations

import math
from collections.abc import Iterable

from loadgen import statistics


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that is not less than ``share`` of all values; NaN without values."""
    ordered = sorted(values)
    return statistics.percentile(ordered, share) if ordered else math.nan
