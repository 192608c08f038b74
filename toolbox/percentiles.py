"""Percentiles of values in any order, for tables: no values have no percentile."""

from __future__ import annotations

import math
from collections.abc import Iterable

from loadgen import statistics


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed; NaN without values."""
    ordered = sorted(values)
    return statistics.percentile(ordered, share) if ordered else math.nan
