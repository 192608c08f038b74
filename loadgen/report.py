"""The report of one run: a page with plots and tables, and a short table for the terminal. Pure.

`summary` defines the numbers, and `plots` draws them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from html import escape

from loadgen import failures, goals, words
from loadgen.goals import GoalResult
from loadgen.measures import Kind, shown
from loadgen.page import page, plots, warning
from loadgen.plots import Band, Frame, Mark, Series, curves, layers, log_ticks
from loadgen.records import REFUSED, EntitlementSample, LoopDelay, Meta, Outcome, Run, Sample
from loadgen.statistics import Windows, nice_width, percentile
from loadgen.summary import (
    EVERYONE,
    MEASURES,
    WHOLE,
    Cell,
    Summary,
    first_token,
    is_rate,
    requests,
    token_pieces,
)

MOST_PLOTS = 12
"""The most tenants with a plot of their own. They are the tenants with the most requests."""
_RATE = "tokens_per_second"
_UNKNOWN_FROM = 1e8
"""A limit from this many tokens per second stands for an unknown bound; no engine is so fast."""
_CURVES = (("p50", 0.5, 2, 1.5), ("p95", 0.95, 1, 1.5), ("p99", 0.99, 0, 2.5))
"""Name, share, dash and width of each tenant's curves."""
_HEAD = ("tenant", "phase", "requests", "served", "shed", "failed")


def notes(meta: Meta, summary: Summary) -> list[str]:
    """Notes above the numbers."""
    found = [f"This run {complaint}." for complaint in summary.complaints]
    if meta.is_interrupted:
        found.append(f"Interrupted after {meta.ended_s:.0f} of {meta.duration_s:.0f} s.")
    if not summary.served:
        found.insert(0, nothing_served(summary))
    totals = [cell for cell in summary.cells if cell.phase == WHOLE and cell.tenant != EVERYONE]
    if short := _short(meta, summary, ignores_eos=True):
        found.append(f"{short} responses were shorter than requested: the engine does not obey ignore_eos.")
    if bounds := sum(cell.bounds for cell in totals):
        found.append(
            f"{bounds} requests received no token; their waiting times count as times to first token, "
            "as lower bounds."
        )
    found += [*meta.notes, *summary.notes]
    if uncounted := sum(cell.uncounted for cell in totals):
        found.append(
            f"{uncounted} streams had no usage of the engine; they have no time per output token, and each "
            "event counts as one token."
        )
    found += [f"{count} reads of {url} failed." for url, count in meta.unread_states.items()]
    failed = [fault for fault in meta.faults if fault.result != "done"]
    return found + [f"The fault '{fault.what}' {fault.result}." for fault in failed]


def _short(meta: Meta, summary: Summary, *, ignores_eos: bool) -> int:
    """Responses shorter than requested, of the tenants that ask the engine to ignore their end or do not."""
    tenants = {tenant.name for tenant in meta.tenants if tenant.ignores_eos is ignores_eos}
    return sum(cell.short for cell in summary.cells if cell.phase == WHOLE and cell.tenant in tenants)


def nothing_served(summary: Summary) -> str:
    """Why a run measured nothing."""
    if not summary.failures:
        return "Nothing was served: no request was due. Raise a rate or the duration."
    return f"Nothing was served: {summary.failures[0].reason}. No latency was measured."


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
        f"sent {words.seconds(meta.lag_p50_s)} late at p50, {words.seconds(meta.lag_p99_s)} at p99; "
        f"{''.join(f'event loop {_delay(each)}; ' for each in meta.loop[:1])}"
        f"{_generator(meta)} used {meta.cpu:.0%} of a core"
    )
    warnings = [f"! {note}" for note in notes(meta, summary)]
    results = [words.text_table(_SLO_HEAD, slos)] if (slos := _slo_rows(summary)) else []
    results += [words.text_table(goals.HEAD, goals.rows(judged))] if judged else []
    remarks = [*_remarks(meta, summary), *failures.text(summary.failures)]
    return "\n".join([words.text_table((*_HEAD, *columns), rows), lag, *results, *remarks, *warnings])


def _generator(meta: Meta) -> str:
    return f"the busiest of {meta.processes} processes" if meta.processes > 1 else "the generator"


def _remarks(meta: Meta, summary: Summary) -> list[str]:
    """What a reader must know of the numbers: what counts, and why an interval is open."""
    found = []
    if meta.warm_up_s or meta.cool_down_s:
        ends = meta.duration_s - meta.cool_down_s
        found.append(f"Measured: requests that were due from {meta.warm_up_s:g} to {ends:g} s.")
    totals = [cell for cell in summary.cells if cell.phase == WHOLE and cell.tenant != EVERYONE]
    if cancelled := sum(cell.ended(Outcome.CANCELLED) for cell in totals):
        found.append(f"{cancelled} requests were cancelled by their clients, as the scenario says.")
    if short := _short(meta, summary, ignores_eos=False):
        found.append(f"{short} responses were shorter than requested, as the model chose.")
    tails = [(cell.tenant, cell.ttft.p99) for cell in totals if cell.ttft.p99 is not None]
    if open_ := [f"{name}: {p99.reason}." for name, p99 in tails if p99.high is None]:
        found.append(
            f"TTFT p99 has no upper bound. {' '.join(open_)} Run longer, or compare runs of several seeds."
        )
    return found


def _delay(loop: LoopDelay) -> str:
    return f"{words.seconds(loop.p50_s)} late at p50, {words.seconds(loop.p99_s)} at p99"


def html(run: Run, summary: Summary, judged: Sequence[GoalResult] = ()) -> str:
    """The report as a page, with the results of ``--fail-on``."""
    meta = run.meta
    frame = _frame(meta)
    windows = Windows(frame.until_s, nice_width(frame.until_s))
    parts = [
        f"<h1>{escape(meta.name)}</h1>",
        f'<p class="soft">{escape(_subtitle(meta))}</p>',
        *map(warning, notes(meta, summary)),
        *_goals(judged),
        *_slos(summary),
        "<h2>In numbers</h2>",
        *(f'<p class="soft note">{escape(remark)}</p>' for remark in _remarks(meta, summary)),
        _numbers(summary),
        *(["<h2>Not served</h2>", failures.table(summary.failures)] if summary.failures else []),
        "<h2>Time to first token, by tenant</h2>",
        plots(_latencies(run, windows, frame), pairs=True),
        "<h2>Throughput and sheds</h2>",
        plots([_throughput(run, windows, frame), _sheds(run, windows, frame)]),
        *_states(run, frame),
        "<h2>Setup</h2>",
        _setup(meta),
    ]
    return page(f"{meta.name}: load report", parts)


def _goals(judged: Sequence[GoalResult]) -> list[str]:
    if not judged:
        return []
    missed = sum(not result.is_met for result in judged)
    note = f"{len(judged) - missed} met, {missed} missed. Square brackets: the 95 % confidence interval."
    return ["<h2>Goals</h2>", words.html_table(goals.HEAD, goals.rows(judged), note)]


_SLO_HEAD = ("tenant", "phase", "within slo", "not", "share", "goodput")


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
    note = "Requests served within the goals of their tenant. Square brackets: the 95 % confidence interval."
    return ["<h2>Goodput</h2>", words.html_table(_SLO_HEAD, rows, note)] if rows else []


def _frame(meta: Meta) -> Frame:
    bands = tuple(Band(phase.name, phase.from_s, phase.to_s) for phase in meta.phases) + unmeasured(meta)
    marks = tuple(Mark(fault.what, fault.at_s) for fault in meta.faults)
    return Frame(max(meta.ended_s, 1.0) if meta.is_interrupted else meta.duration_s, bands, marks)


def unmeasured(meta: Meta) -> tuple[Band, ...]:
    """The warm-up and the cool-down, whose requests are drawn but do not count."""
    ends = meta.duration_s - meta.cool_down_s
    spans = (Band("warm-up", 0.0, meta.warm_up_s), Band("cool-down", ends, meta.duration_s))
    return tuple(band for band in spans if band.to_s > band.from_s)


def _subtitle(meta: Meta) -> str:
    return (
        f"{meta.label}, seed {meta.seed}, {meta.duration_s:g} s from {meta.started}, against "
        f"{', '.join(meta.urls)}"
    )


def _numbers(summary: Summary) -> str:
    used = _used(summary, MEASURES)
    rows = [
        [cell.tenant, cell.phase, *counts(cell), *(_shown(cell, name) for name in used)]
        for cell in summary.cells
    ]
    caption = (
        "Latencies count from when a request was due. Small: the 95 % confidence interval; ? where too few "
        "independent requests bound it. Requests that wait together count as few. Shed: 429 and 503. Failed: "
        "errors, broken connections, timeouts, preempted, cut by the run's end."
    )
    return words.html_table((*_HEAD, *used), rows, caption)


def _used(summary: Summary, names: Iterable[str]) -> tuple[str, ...]:
    """The columns with a number in any row."""
    return tuple(name for name in names if any(MEASURES[name](cell) is not None for cell in summary.cells))


def _shown(cell: Cell, measure: str) -> str:
    made, rate = MEASURES[measure](cell), is_rate(measure)
    return f"{words.estimate(made, rate=rate)}\n{words.interval(made, rate=rate)}"


def waits_by_tenant(run: Run) -> dict[str, list[tuple[float, float]]]:
    """Each tenant's times to first token, with the due times of the requests."""
    found: dict[str, list[tuple[float, float]]] = {tenant.name: [] for tenant in run.meta.tenants}
    for tries in requests(run.attempts):
        wait = first_token(tries[-1], run.meta.drain_s)
        if wait is not None:
            found[tries[-1].tenant].append((tries[-1].intended_s, max(wait[0], 1e-6)))
    return found


def percentile_points(
    waits: Iterable[tuple[float, float]], windows: Windows, share: float
) -> list[tuple[float, float | None]]:
    """A percentile for each window; a gap if no request was due."""
    groups = windows.grouped(waits)
    return [
        (at, percentile(group, share) if group else None)
        for at, group in zip(windows.middles, groups, strict=True)
    ]


def _latencies(run: Run, windows: Windows, frame: Frame) -> list[str]:
    waits = waits_by_tenant(run)
    busiest = set(sorted(waits, key=lambda name: -len(waits[name]))[:MOST_PLOTS])
    values = [wait for name in busiest for _, wait in waits[name]]
    ticks = log_ticks(min(values), max(values)) if values else None
    figures = []
    for index, tenant in enumerate(run.meta.tenants):
        if tenant.name in busiest:
            series = [
                Series(name, percentile_points(waits[tenant.name], windows, share), index, dash, width)
                for name, share, dash, width in _CURVES
            ]
            title = f"{tenant.name}{f' ({tenant.tier})' if tenant.tier else ''}, per {windows.width_s:g} s"
            figures.append(curves(title, series, frame, unit="s", is_log=True, ticks=ticks, is_half=True))
    if len(waits) > len(busiest):
        figures.append(f'<p class="soft">The {len(busiest)} tenants with the most requests are shown.</p>')
    return figures


def _throughput(run: Run, windows: Windows, frame: Frame) -> str:
    series = []
    for index, tenant in enumerate(run.meta.tenants):
        pieces = token_pieces((a for a in run.attempts if a.tenant == tenant.name), prompts=True)
        rates = [tokens / windows.width_s for tokens in windows.spread(pieces)]
        series.append(Series(tenant.name, list(zip(windows.middles, rates, strict=True)), index))
    capacity = capacity_points(run.samples)
    over = [Series("capacity", capacity, 7, 1)] if capacity else []
    return layers("Tokens per second, prompts included", series, frame, unit="tokens/s", over=over)


def capacity_points(samples: Sequence[Sample]) -> list[tuple[float, float | None]]:
    """The pool's tokens per second: from a coordinator, or else the sum of all sidecars."""
    kinds = {sample.kind for sample in samples}
    kind = "coordinator" if "coordinator" in kinds else "sidecar"
    by_second: dict[int, dict[str, float]] = defaultdict(dict)
    for sample in samples:
        if sample.kind == kind and 0 < sample.capacity.get(_RATE, 0.0) < _UNKNOWN_FROM:
            by_second[int(sample.at_s)][sample.source] = sample.capacity[_RATE]
    return [(second + 0.5, sum(said.values())) for second, said in sorted(by_second.items()) if second >= 0]


def _sheds(run: Run, windows: Windows, frame: Frame) -> str:
    refused = [attempt for attempt in run.attempts if attempt.outcome in REFUSED]
    reasons = [reason for reason, _ in Counter(attempt.reason for attempt in refused).most_common()]
    series = []
    for index, reason in enumerate(reasons):
        groups = windows.grouped((a.end_s, 1.0) for a in refused if a.reason == reason)
        rates = [len(group) / windows.width_s for group in groups]
        # Reasons have other colours than tenants.
        series.append(Series(reason, list(zip(windows.middles, rates, strict=True)), index + 3))
    return layers("Sheds by reason", series, frame, unit="attempts/s")


def _states(run: Run, frame: Frame) -> list[str]:
    """Limits, debt and engines, if state pages were read."""
    colours = {tenant.name: index for index, tenant in enumerate(run.meta.tenants)}
    sharing = [sample for sample in run.samples if sample.entitlements]
    figures = []
    if sharing:
        # Every page shows the pool's limits. A coordinator's page is preferred, because it decides them.
        best = min(sharing, key=lambda sample: sample.kind != "coordinator").source
        seen = [sample for sample in sharing if sample.source == best]
        limits = _entitlement_series(seen, colours, _known_limit)
        debts = _entitlement_series(seen, colours, lambda shown: shown.debt)
        figures += [
            curves("Limits", limits, frame, unit="tokens/s"),
            curves("Debt", debts, frame, unit=""),
        ]
    engines = _engine_series(run.samples)
    if engines:
        figures.append(curves("Sequences in the engines", engines, frame, unit="sequences"))
    return ["<h2>State of the pool</h2>", plots(figures)] if figures else []


def _known_limit(shown: EntitlementSample) -> float | None:
    limit = shown.limit.get(_RATE)
    return limit if limit is not None and limit < _UNKNOWN_FROM else None


def _entitlement_series(
    samples: Sequence[Sample], colours: dict[str, int], read: Callable[[EntitlementSample], float | None]
) -> list[Series]:
    """One curve for each entitlement, in the colour of the tenant with its name."""
    names = list(dict.fromkeys(name for sample in samples for name in sample.entitlements))
    for name in names:
        colours.setdefault(name, len(colours))
    return [
        Series(
            name,
            [
                (s.at_s, read(s.entitlements[name]) if name in s.entitlements else None)
                for s in samples
                if s.at_s >= 0
            ],
            colours[name],
        )
        for name in names
    ]


def _engine_series(samples: Sequence[Sample]) -> list[Series]:
    sources = list(dict.fromkeys(sample.source for sample in samples if sample.engine))
    series = []
    for index, source in enumerate(sources):
        for dash, what in enumerate(("running", "waiting")):
            points = [
                (s.at_s, s.engine.get(what))
                for s in samples
                if s.source == source and s.engine and s.at_s >= 0
            ]
            series.append(Series(f"{what}, {source}" if len(sources) > 1 else what, points, index, dash))
    return series


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
        "faults": "; ".join(f"{d.what} at {d.at_s:.1f} s: {d.result}" for d in meta.faults) or "none",
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    scenario = escape(json.dumps(meta.scenario, indent=1))
    return f"<dl>{listed}</dl><details><summary>the scenario</summary><pre>{scenario}</pre></details>"
