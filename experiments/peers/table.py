"""The table: all systems beside each other, who is first in each column, and the goals of tokenpool."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from experiments.peers.measuring import Result
from experiments.peers.systems import ALONE, OURS

LEAST_THROUGHPUT = 0.95
Groups = Mapping[str, Sequence[Result]]
"""The results of each system."""


@dataclass(frozen=True)
class Column:
    """One column."""

    title: str
    value: Callable[[Result, Groups], float | None]
    """``None`` and NaN if a system has none."""
    form: str
    is_higher_better: bool = False

    def values(self, name: str, groups: Groups) -> list[float]:
        """The values of a system, one for each seed that has one."""
        found = (self.value(result, groups) for result in groups.get(name, ()))
        return [value for value in found if value is not None and not math.isnan(value)]

    def middle(self, name: str, groups: Groups) -> float | None:
        """The median over the seeds, or ``None``."""
        values = self.values(name, groups)
        return median(values) if values else None

    def cell(self, name: str, groups: Groups) -> str:
        """The median, and the range over several seeds."""
        values = self.values(name, groups)
        if not values:
            return "-"
        least, middle, most = (self.form.format(v) for v in (min(values), median(values), max(values)))
        return middle if len(values) == 1 else f"{middle} ({least} to {most})"

    def first(self, groups: Groups, names: Sequence[str] | None = None) -> list[str]:
        """The systems with the best median, as far as the table shows a difference."""
        middles = {
            name: middle
            for name in (groups if names is None else names)
            if (middle := self.middle(name, groups)) is not None
        }
        if not middles:
            return []
        best = (max if self.is_higher_better else min)(middles.values())
        shown = self.form.format(best)
        return [name for name, middle in middles.items() if self.form.format(middle) == shown]


def _alone(result: Result, groups: Groups) -> Result | None:
    """The engine without a proxy, with the same seed and so with the same arrivals."""
    return next((one for one in groups.get(ALONE, ()) if one.seed == result.seed), None)


def _ratio(value: float, alone: float) -> float:
    return value / alone if alone else math.nan


def ttft_ratio(result: Result, groups: Groups) -> float | None:
    """The guaranteed P99 time to first token in overload, relative to that alone and without a proxy."""
    alone = _alone(result, groups)
    return None if alone is None else _ratio(result.ttft_p99_s, alone.alone_ttft_p99_s)


def whole_ratio(result: Result, groups: Groups) -> float | None:
    """The same for the time until the end of a response."""
    alone = _alone(result, groups)
    return None if alone is None else _ratio(result.whole_p99_s, alone.alone_whole_p99_s)


def _best(result: Result, groups: Groups, value: Callable[[Result], float]) -> float:
    same = [value(one) for results in groups.values() for one in results if one.seed == result.seed]
    return _ratio(value(result), max(same))


def throughput(result: Result, groups: Groups) -> float:
    """Tokens per second in overload, relative to the best system with the same seed."""
    return _best(result, groups, lambda one: one.tokens_per_s)


def used(result: Result, groups: Groups) -> float:
    """The slots in use with persistent demand, relative to the best system with the same seed.

    Tokens per second would depend on the mix: small requests cost more of the engine's time per token.
    """
    return _best(result, groups, lambda one: one.used)


TTFT = Column("guaranteed P99 to the first token, x alone", ttft_ratio, "{:.2f}")
IDLE = Column("refused while idle", lambda one, _: one.idle_refused / max(one.idle_requests, 1), "{:.1%}")
JAIN = Column("Jain by weight", lambda one, _: one.jain, "{:.3f}", is_higher_better=True)
THROUGHPUT = Column("throughput, of the best", throughput, "{:.2f}", is_higher_better=True)
USED = Column("slots in use with persistent demand, of the best", used, "{:.2f}", is_higher_better=True)
REFUSED = Column(
    "guaranteed refused", lambda one, _: one.guaranteed_refused / max(one.guaranteed, 1), "{:.1%}"
)
COLUMNS = (
    TTFT,
    Column("... of the whole response", whole_ratio, "{:.2f}"),
    REFUSED,
    THROUGHPUT,
    USED,
    IDLE,
    JAIN,
    Column("added P50, ms", lambda one, _: _ms(one.added_p50_s), "{:.1f}"),
    Column("added P99, ms", lambda one, _: _ms(one.added_p99_s), "{:.1f}"),
    Column("CPU per request, ms", lambda one, _: _ms(one.cpu_s), "{:.1f}"),
)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def table(groups: Groups) -> str:
    """All systems as Markdown."""
    lines = ["| | " + " | ".join(column.title for column in COLUMNS) + " |"]
    lines.append("| --- |" + " --- |" * len(COLUMNS))
    for name in groups:
        cells = (column.cell(name, groups) for column in COLUMNS)
        lines.append(f"| {'**' + name + '**' if name == OURS else name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def efficient(groups: Groups) -> list[str]:
    """The systems with at least ``LEAST_THROUGHPUT`` of the best throughput in overload."""
    middles = {name: THROUGHPUT.middle(name, groups) for name in groups}
    return [name for name, middle in middles.items() if middle is not None and middle >= LEAST_THROUGHPUT]


def verdicts(groups: Groups) -> list[str]:
    """A sentence for each column: who is first, and the value of tokenpool if it is not."""
    lines = []
    for column in COLUMNS:
        first = column.first(groups)
        if not first:
            continue
        line = f"{column.title}: first is {', '.join(first)}, {column.cell(first[0], groups)}"
        if OURS in groups and OURS not in first:
            line += f"; {OURS} has {column.cell(OURS, groups)}"
            among = column.first(groups, efficient(groups))
            if among and among != first:
                line += f"; first at {LEAST_THROUGHPUT} of the best throughput or more is {', '.join(among)}"
        lines.append(line)
    return lines


def goals(groups: Groups) -> list[tuple[str, bool]]:
    """The goals of tokenpool; none without it or without other systems."""
    if OURS not in groups or len(groups) < 2:
        return []
    found = [
        (f"tokenpool is first in: {column.title}", OURS in column.first(groups))
        for column in (TTFT, IDLE, JAIN)
    ]
    for column in (THROUGHPUT, USED):
        middle = column.middle(OURS, groups)
        value = math.nan if middle is None else middle
        text = f"tokenpool's {column.title} is {value:.2f}, at least {LEAST_THROUGHPUT}"
        found.append((text, value >= LEAST_THROUGHPUT))
    return found
