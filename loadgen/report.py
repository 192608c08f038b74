"""The report of one run: a page with plots and tables, and a short table for the terminal. Pure.

`summary` defines the numbers. `headline` has the beginning of the page, `figures` and `distributions` its
plots, and `notes` the doubts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from loadgen import distributions, failures, figures, goals, headline, words
from loadgen.goals import GoalResult
from loadgen.latencies import latencies
from loadgen.measures import METRICS, Kind, shown
from loadgen.notes import notes, remarks
from loadgen.page import cards, lead, page, plots, warning
from loadgen.records import LoopDelay, Meta, Outcome, Run
from loadgen.statistics import Windows, nice_width
from loadgen.summary import EVERYONE, MEASURES, Cell, Summary, is_rate, requests

_HEAD = ("tenant", "phase", "requests", "served", "refused", "failed")


def counts(cell: Cell) -> list[str]:
    """The columns that count requests."""
    tries = f"\n{cell.attempts} attempts" if cell.attempts > cell.requests else ""
    ended = cell.ended(Outcome.PREEMPTED)
    preempted = f"\n{ended} preempted" if ended else ""
    cancelled = cell.ended(Outcome.CANCELLED)
    by_client = f"\n{cancelled} cancelled" if cancelled else ""
    return [
        f"{cell.requests}{tries}{by_client}",
        str(cell.ended(Outcome.SERVED)),
        str(cell.refused),
        f"{cell.failed}{preempted}",
    ]


def text(meta: Meta, summary: Summary, judged: Sequence[GoalResult] = ()) -> str:
    """The report for a terminal, with the results of ``--fail-on``."""
    columns = _used(
        summary, ("TTFT p50", "TTFT p99", "gap p99", "TPOT p99", "e2e p99", "out tok/s", "tok/s", "goodput/s")
    )
    rows = [
        [cell.tenant, cell.phase, *(part.partition("\n")[0] for part in counts(cell))]
        + [words.estimate(MEASURES[name](cell), rate=is_rate(name)) for name in columns]
        for cell in summary.cells
    ]
    lag = (
        f"attempts sent {words.seconds(meta.lag_p50_s)} late at p50, {words.seconds(meta.lag_p99_s)} at p99; "
        f"{''.join(f'event loop {_delay(each)}; ' for each in meta.loop[:1])}"
        f"{_generator(meta)} used {meta.cpu:.0%} of a core"
    )
    warnings = [f"! {note}" for note in notes(meta, summary)]
    results = [words.text_table(_SLO_HEAD, slos)] if (slos := _slo_rows(summary)) else []
    results += [words.text_table(goals.HEAD, goals.rows(judged))] if judged else []
    told = [*remarks(meta, summary), *failures.text(summary.failures)]
    return "\n".join([words.text_table((*_HEAD, *columns), rows), lag, *results, *told, *warnings])


def _generator(meta: Meta) -> str:
    return f"the busiest of {meta.processes} processes" if meta.processes > 1 else "the generator"


def _delay(loop: LoopDelay) -> str:
    return f"{words.seconds(loop.p50_s)} late at p50, {words.seconds(loop.p99_s)} at p99"


def html(run: Run, summary: Summary, judged: Sequence[GoalResult] = ()) -> str:
    """The report as a page, with the results of ``--fail-on``."""
    meta = run.meta
    parts = [
        f"<h1>{escape(meta.name)}</h1>",
        f'<p class="soft">{escape(_subtitle(meta))}</p>',
        lead(headline.sentences(meta, summary, judged)),
        cards(headline.cards(summary, judged)),
        *map(warning, notes(meta, summary)),
        *_goals(judged),
        *_slos(summary),
        "<h2>In numbers</h2>",
        *(f'<p class="soft note">{escape(remark)}</p>' for remark in remarks(meta, summary)),
        _numbers(summary),
        *(["<h2>Errors and refusals</h2>", failures.table(summary.failures)] if summary.failures else []),
        *_figures(run),
        "<h2>All percentiles</h2>",
        _percentiles(summary),
        "<h2>Setup</h2>",
        _setup(meta),
    ]
    return page(f"{meta.name}: load report", parts)


def _figures(run: Run) -> list[str]:
    """All plots, with their headings."""
    meta, last = run.meta, [tries[-1] for tries in requests(run.attempts)]
    made = latencies(meta, last)
    frame = figures.frame_of(meta)
    windows = Windows(frame.until_s, nice_width(frame.until_s))
    chosen = figures.busiest(made)
    spread = distributions.figures(meta, made, chosen)
    states = figures.states(run, frame, chosen)
    return [
        *(["<h2>Distributions</h2>", plots(spread, pairs=True)] if spread else []),
        "<h2>Time to first token, by tenant</h2>",
        plots(figures.first_tokens(meta, made, windows, frame), pairs=True),
        *(
            ["<h2>Time per output token, and end to end</h2>", plots(rest, pairs=True)]
            if (rest := figures.later(made, windows, frame))
            else []
        ),
        "<h2>Requests and tokens</h2>",
        plots(
            [
                figures.traffic(last, windows, frame),
                figures.not_served(run, windows, frame),
                figures.throughput(run, windows, frame, chosen),
            ]
        ),
        *(["<h2>State of the pool</h2>", plots(states)] if states else []),
    ]


def _goals(judged: Sequence[GoalResult]) -> list[str]:
    if not judged:
        return []
    missed = sum(not result.is_met for result in judged)
    ordered = sorted(judged, key=lambda result: result.is_met)
    note = f"{len(judged) - missed} met, {missed} missed. Square brackets: the 95 % confidence interval."
    return ["<h2>Goals</h2>", words.html_table(goals.HEAD, goals.rows(ordered), note, label="Goals")]


_SLO_HEAD = ("tenant", "phase", "within slo", "not within", "share", "goodput")


def _slo_rows(summary: Summary) -> list[list[str]]:
    return [
        [
            cell.tenant,
            cell.phase,
            str(cell.goodput.met),
            str(cell.goodput.missed),
            shown(cell.goodput.share, Kind.SHARE),
            shown(cell.goodput.per_s, Kind.RATE),
        ]
        for cell in summary.cells
        if cell.goodput is not None
    ]


def _slos(summary: Summary) -> list[str]:
    rows = _slo_rows(summary)
    note = "Requests that met the slo of their tenant. Square brackets: the 95 % confidence interval."
    return ["<h2>Goodput</h2>", words.html_table(_SLO_HEAD, rows, note, label="Goodput")] if rows else []


def _subtitle(meta: Meta) -> str:
    return (
        f"{meta.label}, seed {meta.seed}, {meta.duration_s:g} s from {meta.started}, against "
        f"{', '.join(meta.urls)}"
    )


_COLUMNS = (
    "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "e2e p50", "e2e p99", "out tok/s", "tok/s", "goodput/s",
)  # fmt: skip
"""The columns of the page's first table. `_percentiles` has the other statistics."""


def _ordered(summary: Summary) -> list[Cell]:
    """All tenants together first."""
    return sorted(summary.cells, key=lambda cell: cell.tenant != EVERYONE)


def _numbers(summary: Summary) -> str:
    used = _used(summary, _COLUMNS)
    rows = [
        [cell.tenant, cell.phase, *counts(cell), *(_shown(cell, name) for name in used)]
        for cell in _ordered(summary)
    ]
    caption = (
        "Latencies count from when a request was due. Small: the 95 % confidence interval; ? where too few "
        "independent requests bound it. Requests that wait together count as few. Refused: 429, 503 and 529. "
        "Failed: errors, broken connections, timeouts, preempted, cut by the end of the run."
    )
    return words.html_table((*_HEAD, *used), rows, caption, label="The numbers of each tenant and phase")


_LATENCIES = {
    "ttft": "time to first token",
    "ttft_sent": "the same from the sending",
    "tpot": "time per output token",
    "e2e": "end to end",
    "gap": "gap between events",
}
_POINTS = ("p50", "p90", "p95", "p99", "mean")


def _percentiles(summary: Summary) -> str:
    """Every statistic of every latency, folded, because most readers need few of them."""
    rows = []
    for cell in _ordered(summary):
        for metric, name in _LATENCIES.items():
            made = [
                METRICS[metric][point].read(cell) if point in METRICS[metric] else None for point in _POINTS
            ]
            if any(one is not None for one in made):
                numbers = [
                    f"{words.estimate(one, rate=False)}\n{words.interval(one, rate=False)}" for one in made
                ]
                rows.append([cell.tenant, cell.phase, name, *numbers])
    note = "Small: the 95 % confidence interval. The file summary.csv has the same numbers."
    head = ("tenant", "phase", "latency", *_POINTS)
    table = words.html_table(head, rows, note, label="All percentiles", left=3)
    return f"<details><summary>{len(rows)} rows</summary>{table}</details>"


def _used(summary: Summary, names: Iterable[str]) -> tuple[str, ...]:
    """The columns with a number in any row."""
    return tuple(name for name in names if any(MEASURES[name](cell) is not None for cell in summary.cells))


def _shown(cell: Cell, measure: str) -> str:
    made, rate = MEASURES[measure](cell), is_rate(measure)
    return f"{words.estimate(made, rate=rate)}\n{words.interval(made, rate=rate)}"


def _setup(meta: Meta) -> str:
    facts = {
        "command": " ".join(meta.command),
        "machine": f"{meta.machine.cpu}, {meta.machine.cores} cores, Linux {meta.machine.kernel}",
        "versions": ", ".join(
            [
                f"Python {meta.machine.python}",
                *(f"{name} {version}" for name, version in meta.versions.items()),
            ]
        ),
        "sent late": f"{words.seconds(meta.lag_p50_s)} (p50), {words.seconds(meta.lag_p99_s)} (p99), "
        f"{words.seconds(meta.lag_max_s)} (most)",
        "event loop": "; ".join(
            f"{_delay(each)}, {words.seconds(each.max_s)} most ({each.phase})" for each in meta.loop
        )
        or "not measured",
        "generator": f"{_generator(meta)} used {meta.cpu:.0%} of a core; it waited for a core for "
        f"{meta.waited:.1%} of the run",
        "stalls": _stalls(meta),
        "faults": "; ".join(f"{d.what} at {d.at_s:.1f} s: {d.result}" for d in meta.faults) or "none",
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    scenario = escape(json.dumps(meta.scenario, indent=1))
    return f"<dl>{listed}</dl><details><summary>the scenario</summary><pre>{scenario}</pre></details>"


def _stalls(meta: Meta) -> str:
    if not meta.stalls:
        return "none of 20 ms or longer"
    longest = max(meta.stalls, key=lambda stall: stall.seconds)
    most = f"{words.seconds(longest.seconds)} at {longest.at_s:.1f} s"
    return f"{len(meta.stalls)} of 20 ms or longer, the longest {most}"
