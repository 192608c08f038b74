"""The results of runs at several rates: a page, a table for the terminal, CSV and JSON. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape

import msgspec

from loadgen import words
from loadgen.page import Card, State, cards, lead, page, plots, warning
from loadgen.plots import Band, Frame, Mark, Series, curves
from loadgen.rates.knee import ascending, telling
from loadgen.rates.points import Point, kept_up
from loadgen.records import Machine, Outcome
from loadgen.statistics import Estimate
from loadgen.summary import EVERYONE, MEASURES, Cell, is_rate

REPORT, DATA, TABLE = "report.html", "rates.json", "rates.csv"
_MEASURES = ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "e2e p50", "e2e p99", "out tok/s")
_HEAD = ("rate", "due/s", "runs", "requests", "served", "served/s", *_MEASURES, "keeps up")
_RATE_UNIT = "requests/s"


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows, and the content of the JSON file."""

    kind: str
    """``sweep`` or ``capacity``."""
    name: str
    """The scenario's."""
    statements: list[str]
    """The result in sentences, the most important first."""
    notes: list[str]
    """Reasons to doubt it."""
    result: dict[str, object]
    """The result as numbers and words."""
    points: list[Point]
    marks: list[tuple[str, float]]
    """Rates to mark in the plots, with their names."""
    marked: str
    """The meaning of the marks."""
    folders: list[str]
    urls: list[str]
    command: list[str]
    started: str
    machine: Machine
    versions: dict[str, str]
    verdicts: list[list[str]] = []
    """A table of goals, with its head; empty for a sweep."""


def _row(point: Point) -> list[str]:
    cell = point.whole
    shown = []
    for name in _MEASURES:
        made = MEASURES[name](cell)
        rate = is_rate(name)
        shown.append(f"{words.estimate(made, rate=rate)}\n{words.interval(made, rate=rate)}")
    counts = [words.amount(point.rate), words.amount(point.due_per_s), str(point.runs), str(point.requests)]
    return [*counts, f"{point.served:.1%}", words.amount(point.served_per_s), *shown, kept_up(point)]


def text(results: Results) -> str:
    """The results for a terminal."""
    rows = [[cell.partition("\n")[0] for cell in _row(point)] for point in ascending(results.points)]
    lines = [words.text_table(_HEAD, rows, left=0)]
    if results.verdicts:
        head, *table = results.verdicts
        lines += ["", words.text_table(head, table)]
    return "\n".join([*lines, "", *results.statements, *(f"! {note}" for note in results.notes)])


_CSV_HEAD = (
    "rate", "tenant", "runs", "seconds", "requests", "served", "served_per_s", "measure", "value", "low",
    "high", "keeps_up", "obstacle",
)  # fmt: skip


def csv_text(results: Results) -> str:
    """A line for each rate, tenant and measure. Times are seconds, rates are per second."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for point in ascending(results.points):
        for cell in point.summary.cells:
            served = cell.ended(Outcome.SERVED)
            counts = [point.rate, cell.tenant, point.runs, point.seconds, cell.requests]
            counts += [served / cell.requests if cell.requests else "", served / point.seconds]
            for name, made in _numbers(point, cell):
                ends = [made.value, made.low, made.high] if made is not None else [None] * 3
                blank = ["" if end is None else f"{end:.6g}" for end in ends]
                writer.writerow([*counts, name, *blank, str(point.keeps_up).lower(), point.obstacle])
    return out.getvalue()


def _numbers(point: Point, cell: Cell) -> Iterable[tuple[str, Estimate | None]]:
    for name, read in MEASURES.items():
        yield name, read(cell)
    if cell is point.whole:
        yield "e2e mean", point.latency_mean
        yield "power", point.power


def html(results: Results) -> str:
    """The results as a page."""
    points = ascending(results.points)
    title = f"{results.name}: {'rate sweep' if results.kind == 'sweep' else 'capacity'}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_subtitle(results))}</p>',
        lead(results.statements[:_MOST_LEADING]),
        cards(_cards(results, points)),
        *(f"<p>{escape(line)}</p>" for line in results.statements[_MOST_LEADING:]),
        *map(warning, results.notes),
        "<h2>Latency over rate</h2>",
        _note(_CURVES_NOTE),
        plots(_figures(results, points), pairs=True),
        "<h2>In numbers</h2>",
        words.html_table(
            _HEAD, [_row(point) for point in points], _NUMBERS_NOTE, label="Results by rate", left=0
        ),
        *_goals(results),
        "<h2>Setup</h2>",
        _setup(results),
    ]
    return page(title, parts)


_MOST_LEADING = 3
"""The most sentences above the cards."""


def _cards(results: Results, points: Sequence[Point]) -> list[Card]:
    """The rate that was searched for, its neighbours, and the latency there."""
    name, at = results.marks[0] if results.marks else (results.marked, None)
    marked = next((point for point in points if point.rate == at), None)
    kept = [point.rate for point in telling(points) if point.keeps_up]
    lost = [point.rate for point in telling(points) if not point.keeps_up]
    return [
        Card(
            name.capitalize(),
            words.amount(at) if at is not None else "not found",
            _RATE_UNIT if at is not None else "",
            State.PLAIN if at is not None else State.DOUBT,
        ),
        Card(
            "Kept up with", words.amount(max(kept)) if kept else words.NOTHING, f"{_RATE_UNIT}, the highest"
        ),
        Card(
            "Not kept up with",
            words.amount(min(lost)) if lost else words.NOTHING,
            f"{_RATE_UNIT}, the lowest",
        ),
        _slowest(marked, name),
        Card("Runs", str(sum(point.runs for point in points)), f"at {len(points)} rates"),
    ]


def _slowest(marked: Point | None, name: str) -> Card:
    """The tenant with the largest P99 at the marked rate."""
    title = "Worst P99 to first token"
    cells = [cell for cell in marked.summary.cells if cell.tenant != EVERYONE] if marked is not None else []
    tails = [(cell.ttft.p99, cell.tenant) for cell in cells if cell.ttft.p99 is not None]
    if not tails:
        return Card(title, words.NOTHING, f"no {name}")
    p99, tenant = max(tails, key=lambda pair: pair[0].value)
    return Card(title, words.seconds(p99.value), f"{tenant}, at the {name}")


_CURVES_NOTE = (
    "Lines at the points: the 95 % confidence interval; no mark where there are too few requests for a "
    "bound. Shaded: rates from the first that was not kept up with."
)
_NUMBERS_NOTE = (
    "All tenants together. Rates are in requests per second, as they were set. Small: the 95 % confidence "
    "interval; ? where there are too few requests to bound it. The folder of each run has its own report."
)


def _note(text_: str) -> str:
    return f'<p class="soft note">{escape(text_)}</p>'


def _subtitle(results: Results) -> str:
    runs = sum(point.runs for point in results.points)
    return f"{runs} runs from {results.started}, against {', '.join(results.urls)}"


def _figures(results: Results, points: Sequence[Point]) -> list[str]:
    if not points:
        return []
    frame = _frame(results, points)
    figures = [
        curves("Time to first token, all tenants", _lines(points, "TTFT p50", "TTFT p99"), frame, unit="s",
               is_log=True, is_half=True),
        curves("Time per output token, all tenants", _lines(points, "TPOT p50", "TPOT p99"), frame, unit="s",
               is_log=True, is_half=True),
        curves("End to end, all tenants", _lines(points, "e2e p50", "e2e p99"), frame, unit="s", is_log=True,
               is_half=True),
        curves("Served requests per second", [_served(points)], frame, unit=_RATE_UNIT, is_half=True),
        curves("Power: served requests per second / mean latency", [_power(points)], frame, unit="1/s²",
               is_half=True),
        curves("Output tokens per second", _lines(points, "out tok/s"), frame, unit="tokens/s", is_half=True),
    ]  # fmt: skip
    tenants = list(dict.fromkeys(cell.tenant for point in points for cell in point.summary.cells))
    if len(tenants) > 1:
        series = [
            _line(points, name, "TTFT p99", index, _of(name)) for index, name in enumerate(tenants[:-1])
        ]
        title = "99th percentile of the time to first token, by tenant"
        figures.append(curves(title, series, frame, unit="s", is_log=True, is_half=True))
    return figures


def _frame(results: Results, points: Sequence[Point]) -> Frame:
    until = points[-1].rate * 1.05
    failed = next((point for point in telling(points) if not point.keeps_up), None)
    bands = (Band("not kept up with", failed.rate, until),) if failed is not None else ()
    marks = tuple(Mark(name, at) for name, at in results.marks)
    return Frame(until, bands, marks, axis="requests per second", unit=_RATE_UNIT, marked=results.marked)


def _of(tenant: str) -> Callable[[Point], Cell | None]:
    return lambda point: point.tenant(tenant)


def _lines(points: Sequence[Point], *measures: str) -> list[Series]:
    return [_line(points, name, name, index, lambda p: p.whole) for index, name in enumerate(measures)]


def _line(
    points: Sequence[Point], name: str, measure: str, colour: int, read: Callable[[Point], Cell | None]
) -> Series:
    made = [(p.rate, MEASURES[measure](cell) if (cell := read(p)) is not None else None) for p in points]
    return _series(name, made, colour)


def _series(name: str, made: Sequence[tuple[float, Estimate | None]], colour: int) -> Series:
    values = [(at, one.value if one is not None else None) for at, one in made]
    ranges = [(at, one.low, one.high) for at, one in made if one is not None]
    return Series(name, values, colour, width=1.5, ranges=ranges)


def _served(points: Sequence[Point]) -> Series:
    return _series("served", [(point.rate, Estimate(point.served_per_s)) for point in points], 2)


def _power(points: Sequence[Point]) -> Series:
    return _series("power", [(point.rate, point.power) for point in points], 3)


def _goals(results: Results) -> list[str]:
    if not results.verdicts:
        return []
    head, *rows = results.verdicts
    note = "Each rate is judged by all of its runs together."
    return ["<h2>Goals</h2>", words.html_table(head, rows, note, label="Goals")]


def _setup(results: Results) -> str:
    facts = {
        "command": " ".join(results.command),
        "machine": f"{results.machine.cpu}, {results.machine.cores} cores, Linux {results.machine.kernel}",
        "versions": ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        "runs": ", ".join(results.folders),
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{listed}</dl>"
