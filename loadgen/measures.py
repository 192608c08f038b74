"""Every number of a cell that a goal or a regression may name, with its unit. Pure."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import msgspec

from loadgen import words
from loadgen.records import Outcome
from loadgen.statistics import Estimate
from loadgen.summary import Cell, Percentiles

Read = Callable[[Cell], Estimate | None]


class Kind(StrEnum):
    """What a number counts, which decides its units."""

    TIME = "time"
    """Seconds."""
    RATE = "rate"
    """Per second."""
    SHARE = "share"
    """From 0 to 1."""
    COUNT = "count"


class Metric(msgspec.Struct, frozen=True):
    """One number of a cell."""

    kind: Kind
    read: Read


def _points(read: Callable[[Cell], Percentiles]) -> dict[str, Metric]:
    def point(name: str) -> Read:
        def estimate(cell: Cell) -> Estimate | None:
            found: Estimate | None = getattr(read(cell), name)
            return found

        return estimate

    return {name: Metric(Kind.TIME, point(name)) for name in Percentiles.__struct_fields__}


def _seconds(read: Callable[[Cell], float | None]) -> Metric:
    def estimate(cell: Cell) -> Estimate | None:
        value = read(cell)
        return Estimate(value) if value is not None else None

    return Metric(Kind.TIME, estimate)


def _requests(count: Callable[[Cell], int], share: Read) -> dict[str, Metric]:
    return {
        "share": Metric(Kind.SHARE, share),
        "count": Metric(Kind.COUNT, lambda cell: Estimate(float(count(cell)))),
    }


METRICS: dict[str, dict[str, Metric]] = {
    "ttft": _points(lambda cell: cell.ttft),
    "ttft_sent": _points(lambda cell: cell.ttft_sent),
    "tpot": _points(lambda cell: cell.tpot),
    "e2e": _points(lambda cell: cell.e2e),
    "gap": {"p50": _seconds(lambda cell: cell.gap_p50_s), "p99": _seconds(lambda cell: cell.gap_p99_s)},
    "goodput": {
        "rate": Metric(Kind.RATE, lambda cell: cell.goodput.per_s if cell.goodput else None),
        "share": Metric(Kind.SHARE, lambda cell: cell.goodput.share if cell.goodput else None),
    },
    "output_tokens": {"rate": Metric(Kind.RATE, lambda cell: cell.output_tokens_per_s)},
    "tokens": {"rate": Metric(Kind.RATE, lambda cell: cell.tokens_per_s)},
    "served": _requests(lambda cell: cell.ended(Outcome.SERVED), lambda cell: cell.served_share),
    "refused": _requests(lambda cell: cell.refused, lambda cell: cell.refused_share),
    "failed": _requests(lambda cell: cell.failed, lambda cell: cell.failed_share),
}
"""Every number that a goal may name, by metric and statistic."""


def written(value: float, kind: Kind) -> str:
    """A number with its unit."""
    if kind is Kind.TIME:
        return words.seconds(value)
    if kind is Kind.SHARE:
        return f"{100 * value:.4g} %"
    return f"{words.amount(value)}/s" if kind is Kind.RATE else f"{value:g}"


def shown(estimate: Estimate | None, kind: Kind) -> str:
    """A measured number with its interval, or with the reason why there is none."""
    if estimate is None:
        return "nothing measured"
    value = written(estimate.value, kind)
    if estimate.low is None and estimate.high is None:
        return f"{value} (no interval: {estimate.reason})" if estimate.reason else value
    low, high = (written(end, kind) if end is not None else "?" for end in (estimate.low, estimate.high))
    return f"{value} [{low} to {high}]"
