"""Every number of a summary as CSV, with its unit and interval. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from loadgen.measures import METRICS, Kind
from loadgen.statistics import Estimate
from loadgen.summary import Cell, Summary

HEAD = ("tenant", "phase", "measure", "unit", "value", "low", "high", "reason")
_UNITS = {Kind.TIME: "s", Kind.RATE: "1/s", Kind.SHARE: "share", Kind.COUNT: "count"}


def text(summary: Summary) -> str:
    """A line for each tenant, phase and measure. A measure has the name that goals use, such as ``ttft.p99``.

    ``low`` and ``high`` are empty where the interval has no bound, and ``reason`` says why.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEAD)
    for cell in summary.cells:
        for name, unit, made in _numbers(cell):
            ends = ["" if end is None else f"{end:.9g}" for end in (made.value, made.low, made.high)]
            writer.writerow([cell.tenant, cell.phase, name, unit, *ends, made.reason])
    return out.getvalue()


def _numbers(cell: Cell) -> Iterator[tuple[str, str, Estimate]]:
    counts = {
        "requests": cell.requests,
        "attempts": cell.attempts,
        "bounds": cell.bounds,
        "short": cell.short,
    }
    counts |= {f"refused by: {reason}": count for reason, count in cell.refused_by.items()}
    counts |= {f"failed by: {reason}": count for reason, count in cell.failed_by.items()}
    yield "duration", "s", Estimate(cell.seconds)
    for name, count in counts.items():
        yield name, "count", Estimate(float(count))
    for metric, statistics in METRICS.items():
        for statistic, number in statistics.items():
            if (made := number.read(cell)) is not None:
                yield f"{metric}.{statistic}", _UNITS[number.kind], made
