"""Comparison of runs: a row for each tenant, phase and label, with ratios to the first label. Pure.

Runs with the same label differ only in the seed. A label with several runs has a median, its interval across
the runs, and a worst value. A label with one run has the interval of that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import median

import msgspec

from loadgen import regressions as regression_words
from loadgen import words
from loadgen.goals import tenants
from loadgen.intervals import LEAST_RUNS, across
from loadgen.latencies import Latencies, latencies, over_time
from loadgen.notes import notes
from loadgen.page import page, plots, warning
from loadgen.plots import Band, Bar, Frame, Series, curves, intervals
from loadgen.records import Meta, Outcome, Run
from loadgen.regressions import Regression, RegressionResult
from loadgen.statistics import Estimate, Windows, nice_width
from loadgen.summary import EVERYONE, MEASURES, WHOLE, Cell, Summary, is_rate, requests

SHOWN = ("TTFT p50", "TTFT p99", "gap p99", "e2e p99", "out tok/s", "tok/s")
SHORT = ("TTFT p50", "TTFT p99", "tok/s")
"""Columns of a terminal."""
_HEAD = ("tenant", "phase", "label", "runs", "requests", "served", "refused")


class Compared(msgspec.Struct, frozen=True):
    """One number of one label over its runs, and its ratio to the first label."""

    median: float
    worst: float | None
    """The largest latency or the smallest rate of several runs; ``None`` for a single run."""
    interval: Estimate
    """The median with the interval of a single run, or with the interval across several."""
    ratio: float | None
    """The ratio of the medians; ``None`` for the first label, and if the first label has no number."""


class Row(msgspec.Struct, frozen=True):
    """A tenant in a phase with a label."""

    tenant: str
    phase: str
    label: str
    runs: int
    requests: int
    served: float
    """Share of the requests, over all runs."""
    refused: int
    measures: dict[str, Compared]


class Group(msgspec.Struct, frozen=True):
    """The runs of one label."""

    label: str
    runs: list[Run]
    summaries: list[Summary]

    def cells(self, tenant: str, phase: str) -> list[Cell]:
        """The cells of a tenant and phase in all runs."""
        found = (summary.cell(tenant, phase) for summary in self.summaries)
        return [cell for cell in found if cell is not None]


def groups(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[Group]:
    """Runs by label, in the order of the labels' first runs."""
    found: dict[str, Group] = {}
    for run, summary in zip(runs, summaries, strict=True):
        group = found.setdefault(run.meta.label, Group(run.meta.label, [], []))
        group.runs.append(run)
        group.summaries.append(summary)
    return list(found.values())


def rows(compared: Sequence[Group]) -> list[Row]:
    """The rows of all tenants and phases of any run, one for each label."""
    places = dict.fromkeys(
        (cell.tenant, cell.phase) for g in compared for summary in g.summaries for cell in summary.cells
    )
    found = []
    for tenant, phase in places:
        first = compared[0].cells(tenant, phase)
        for group in compared:
            if cells := group.cells(tenant, phase):
                found.append(
                    _row(tenant, phase, group.label, cells, first if group is not compared[0] else [])
                )
    return found


def _row(tenant: str, phase: str, label: str, cells: list[Cell], first: list[Cell]) -> Row:
    asked = sum(cell.requests for cell in cells)
    served = sum(cell.ended(Outcome.SERVED) for cell in cells)
    refused = sum(cell.refused for cell in cells)
    measures = {name: made for name in MEASURES if (made := _compared(name, cells, first)) is not None}
    return Row(tenant, phase, label, len(cells), asked, served / asked if asked else 1.0, refused, measures)


def _compared(measure: str, cells: list[Cell], first: list[Cell]) -> Compared | None:
    made = [estimate for cell in cells if (estimate := MEASURES[measure](cell)) is not None]
    against = [estimate.value for cell in first if (estimate := MEASURES[measure](cell)) is not None]
    if not made:
        return None
    values = [estimate.value for estimate in made]
    over_all = across(made)
    assert over_all is not None, "there is an estimate"
    base = median(against) if against else 0.0
    return Compared(
        median=over_all.value,
        worst=None if len(values) == 1 else min(values) if is_rate(measure) else max(values),
        interval=over_all,
        ratio=over_all.value / base if base > 0 else None,
    )


def judge(regressions: Sequence[Regression], compared: Sequence[Group]) -> list[RegressionResult]:
    """Each regression for each of its tenants in every label after the first, over whole runs.

    Raises ``GoalError`` if one names no tenant and no tier of the runs.
    """
    known = list({t.name: t for g in compared for run in g.runs for t in run.meta.tenants}.values())
    found = []
    for regression in regressions:
        read = regression.number.read
        for name in tenants(regression.text, regression.who, known):
            numbers = [
                across([made for cell in group.cells(name, WHOLE) if (made := read(cell)) is not None])
                for group in compared
            ]
            for group, after in zip(compared[1:], numbers[1:], strict=True):
                found.append(regression.result(name, group.label, numbers[0], after))
    return found


def _cell(measure: str, compared: Compared | None) -> str:
    if compared is None:
        return words.NOTHING
    rate = is_rate(measure)
    value = words.estimate(Estimate(compared.median), rate=rate)
    if compared.ratio is not None:
        value += f" ({compared.ratio:.2f}x)"
    small = [words.interval(compared.interval, rate=rate)]
    if compared.worst is not None:
        small.append(f"worst {words.estimate(Estimate(compared.worst), rate=rate)}")
    return f"{value}\n{', '.join(filter(None, small))}"


def _line(row: Row) -> list[str]:
    return [
        row.tenant,
        row.phase,
        row.label,
        str(row.runs),
        str(row.requests),
        f"{row.served:.1%}",
        str(row.refused),
        *(_cell(name, row.measures.get(name)) for name in SHOWN),
    ]


def _short_line(row: Row) -> list[str]:
    """A shorter line for a terminal: fewer columns, and the interval of the p99 only."""
    cells = [_cell(name, row.measures.get(name)).partition("\n") for name in SHORT]
    flat = [f"{value} [{small}]" if "p99" in name and small else value
            for name, (value, _, small) in zip(SHORT, cells, strict=True)]  # fmt: skip
    return [row.tenant, row.phase, row.label, f"{row.served:.1%}", str(row.refused), *flat]


def text(compared: Sequence[Group], judged: Sequence[RegressionResult] = ()) -> str:
    """The comparison for a terminal, with the results of ``--fail-if``."""
    lines = [_short_line(row) for row in rows(compared)]
    table = words.text_table(("tenant", "phase", "label", "served", "refused", *SHORT), lines, left=3)
    results = words.text_table(regression_words.HEAD, regression_words.rows(judged), left=3)
    return "\n".join(
        [
            table,
            _legend(compared),
            *([results] if judged else []),
            *(f"! {note}" for note in _notes(compared)),
        ]
    )


def _legend(compared: Sequence[Group]) -> str:
    return (
        f"Round brackets: the ratio to {compared[0].label}. Below or in square brackets: the 95 % confidence "
        f"interval, of a single run or across {LEAST_RUNS} runs and more; and the worst of several runs."
    )


def _notes(compared: Sequence[Group]) -> list[str]:
    return [
        f"{run.folder}: {note}"
        for group in compared
        for run, summary in zip(group.runs, group.summaries, strict=True)
        for note in notes(run.meta, summary)
    ]


def html(compared: Sequence[Group], judged: Sequence[RegressionResult] = ()) -> str:
    """The comparison as a page, with the results of ``--fail-if``."""
    made = rows(compared)
    title = " / ".join(group.label for group in compared)
    tenants = list(dict.fromkeys(row.tenant for row in made if row.tenant != EVERYONE))
    lines = [_line(row) for row in made]
    first = [(group.runs[0], _latencies(group.runs[0])) for group in compared]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_setting(compared))}</p>',
        *map(warning, _notes(compared)),
        *_regressions(judged),
        "<h2>In numbers</h2>",
        words.html_table((*_HEAD, *SHOWN), lines, _legend(compared), label="Comparison", left=3),
        "<h2>99th percentile of the time to first token</h2>",
        '<p class="soft note">Lines: the 95 % confidence interval, of a single run or across several '
        "runs.</p>",
        plots([_bars(tenant, made, compared) for tenant in tenants], pairs=True),
        "<h2>The same over time</h2>",
        plots([_over_time(tenant, first) for tenant in tenants], pairs=True),
    ]
    return page(f"{title}: comparison of runs", parts)


def _regressions(judged: Sequence[RegressionResult]) -> list[str]:
    if not judged:
        return []
    note = "Against the first label. Square brackets: the 95 % confidence interval."
    lines = regression_words.rows(judged)
    return [
        "<h2>Regressions</h2>",
        words.html_table(regression_words.HEAD, lines, note, label="Regressions", left=3),
    ]


def _setting(compared: Sequence[Group]) -> str:
    metas: list[Meta] = [run.meta for group in compared for run in group.runs]
    names = ", ".join(dict.fromkeys(meta.name for meta in metas))
    machines = ", ".join(dict.fromkeys(f"{m.machine.cpu} ({m.machine.cores} cores)" for m in metas))
    seeds = ", ".join(str(seed) for seed in sorted({meta.seed for meta in metas}))
    return f"{names}; seeds {seeds}; {machines}"


def _bars(tenant: str, made: Sequence[Row], compared: Sequence[Group]) -> str:
    colours = {group.label: index for index, group in enumerate(compared)}
    bars = []
    for row in made:
        number = row.measures.get("TTFT p99")
        if row.tenant != tenant or number is None:
            continue
        name = row.label if row.phase == WHOLE else f"{row.label}, {row.phase}"
        low, high = number.interval.low, number.interval.high
        note = _cell("TTFT p99", number).partition("\n")[2]
        bars.append(Bar(name, number.median, low, high, colours[row.label], note))
    return intervals(tenant, bars, unit="s", is_log=True)


def _latencies(run: Run) -> dict[str, Latencies]:
    return latencies(run.meta, [tries[-1] for tries in requests(run.attempts)])


def _over_time(tenant: str, first: Sequence[tuple[Run, dict[str, Latencies]]]) -> str:
    """The first run of each label."""
    until = max(run.meta.duration_s for run, _ in first)
    windows = Windows(until, nice_width(until, 32))
    series = [
        Series(run.meta.label, over_time(made.get(tenant, Latencies()).ttft, windows, 0.99), i, i % 3)
        for i, (run, made) in enumerate(first)
    ]
    bands = tuple(Band(p.name, p.from_s, p.to_s) for p in first[0][0].meta.phases)
    title = f"{tenant}, per {windows.width_s:g} s, first run of each label"
    return curves(title, series, Frame(until, bands), unit="s", is_log=True, is_half=True)
