"""The results of a run: a cell of numbers for each tenant and phase. Pure.

A latency counts from the due time of the request, with retries and delays of the generator. A request without
a token is included, because an overloaded server would look fast without it. Its waiting time is a lower
bound. The exception is a request that the end of the run cut before it waited as long as the drain. Shed
requests have no latency; they are counted separately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from loadgen import intervals, prompt_lengths, trust
from loadgen.failures import Failure, failures
from loadgen.records import FAILED, REFUSED, Attempt, Meta, Outcome, Run
from loadgen.slo import time_per_token, verdict
from loadgen.statistics import (
    Estimate,
    Windows,
    histogram_percentile,
    jain,
    merged,
)

EVERYONE = "all tenants"
WHOLE = "whole run"
_IMPATIENT = (Outcome.TIMEOUT, Outcome.CANCELLED)
_LEAST_S = 1.0
_WINDOWS = 100
"""The windows of a rate. Their width does not matter, because their batches decide the interval."""


class Percentiles(msgspec.Struct, frozen=True):
    """Points of a distribution and its mean, in seconds; ``None`` without observations."""

    p50: Estimate | None = None
    p90: Estimate | None = None
    p95: Estimate | None = None
    p99: Estimate | None = None
    mean: Estimate | None = None


class Goodput(msgspec.Struct, frozen=True):
    """The requests that were served within their tenant's ``slo``."""

    met: int
    missed: int
    """Served too late, refused or failed. Requests that the end of the run cut count as neither."""
    per_s: Estimate | None
    """Requests per second that met it."""
    share: Estimate | None
    """Their share of all requests; ``None`` without requests."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant in one phase. Requests belong to the phase in which they were due."""

    tenant: str
    phase: str
    seconds: float
    requests: int
    attempts: int
    outcomes: dict[Outcome, int]
    """Requests by the outcome of their last attempt."""
    reasons: dict[str, int]
    """Attempts that were refused or failed, by reason."""
    refused_by: dict[str, int]
    """Requests that were refused in the end, by reason."""
    failed_by: dict[str, int]
    """Requests that failed in the end, by kind and reason, as in ``broken: stream ended early``."""
    bounds: int
    """The number of times to first token that are lower bounds only."""
    served_share: Estimate | None
    """The share of the requests with this end; ``None`` without requests."""
    refused_share: Estimate | None
    failed_share: Estimate | None
    short: int
    """Requests served with fewer tokens than requested, by the engine's count."""
    ttft: Percentiles
    """Time to first token from the due time of the request."""
    ttft_sent: Percentiles
    """Time to first token from the sending of the served attempt: the server's part."""
    e2e: Percentiles
    """Time until the end of the response of served requests, from the due time."""
    tpot: Percentiles
    """Time per output token after the first, of served requests, by the engine's count of tokens."""
    uncounted: int
    """Streamed and served requests for which the engine did not report its count of output tokens."""
    gap_p50_s: float | None
    """Time between events with tokens, over all events. An event may carry several tokens."""
    gap_p99_s: float | None
    output_tokens_per_s: Estimate | None
    """Output tokens of all requests within the phase."""
    tokens_per_s: Estimate | None
    """The same with prompts. A prompt counts at the time of its first output token."""
    goodput: Goodput | None
    """``None`` if no tenant of the cell has an ``slo``."""

    def ended(self, outcome: Outcome) -> int:
        """The number of requests with this outcome."""
        return self.outcomes.get(outcome, 0)

    @property
    def refused(self) -> int:
        """The number of requests that were refused in the end."""
        return sum(self.ended(outcome) for outcome in REFUSED)

    @property
    def failed(self) -> int:
        """The number of requests that failed in the end."""
        return sum(self.ended(outcome) for outcome in FAILED)


class Summary(msgspec.Struct, frozen=True):
    """The numbers of a run."""

    label: str
    name: str
    seed: int
    complaints: list[str]
    is_interrupted: bool
    fairness: float
    """Jain's index over the tenants' tokens."""
    cells: list[Cell]
    failures: list[Failure] = []
    """The reasons of attempts that were not served, the most frequent first."""
    notes: list[str] = []
    """Findings about the requests, in sentences."""

    @property
    def served(self) -> int:
        """The number of requests that were served, or that a client cancelled as planned."""
        whole = [cell for cell in self.cells if cell.phase == WHOLE and cell.tenant != EVERYONE]
        return sum(cell.ended(Outcome.SERVED) + cell.ended(Outcome.CANCELLED) for cell in whole)

    def cell(self, tenant: str, phase: str) -> Cell | None:
        """The cell of a tenant and phase."""
        return next((c for c in self.cells if c.tenant == tenant and c.phase == phase), None)


class Span(msgspec.Struct, frozen=True):
    """A phase, or the whole run."""

    name: str
    from_s: float
    to_s: float


def spans(meta: Meta) -> list[Span]:
    """The measured part of the run, and of the phases that it reached: without warm-up and cool-down."""
    starts = meta.warm_up_s
    until = min(meta.duration_s - meta.cool_down_s, max(meta.ended_s, starts + _LEAST_S))
    clipped = [Span(p.name, max(p.from_s, starts), min(p.to_s, until)) for p in meta.phases]
    return [Span(WHOLE, starts, until), *(span for span in clipped if span.from_s < span.to_s)]


def requests(attempts: Iterable[Attempt]) -> list[list[Attempt]]:
    """The attempts of each request in order."""
    found: dict[tuple[str, str], list[Attempt]] = {}
    for attempt in attempts:
        found.setdefault((attempt.tenant, attempt.request), []).append(attempt)
    for tries in found.values():
        if len(tries) > 1:
            tries.sort(key=lambda attempt: attempt.attempt)
    return list(found.values())


def first_token(last: Attempt, drain_s: float) -> tuple[float, bool] | None:
    """A request's time to first token by its last attempt, and whether it is a lower bound.

    ``None`` for requests that were shed, failed or cut early.
    """
    if last.first_s is not None:
        return last.first_s - last.intended_s, False
    waited = last.end_s - last.intended_s
    if last.outcome is Outcome.SERVED:
        return waited, False  # not streamed: the first token arrives with the last
    gave_up = last.outcome in _IMPATIENT or (last.outcome is Outcome.CUT and waited >= drain_s > 0)
    return (waited, True) if gave_up else None


def token_pieces(attempts: Iterable[Attempt], *, prompts: bool) -> list[tuple[float, float, float]]:
    """Tokens as (from, to, count): output evenly from first to last, a prompt at its first token."""
    pieces = []
    for attempt in attempts:
        first = attempt.end_s if attempt.first_s is None else attempt.first_s
        if attempt.tokens:
            pieces.append((first, attempt.end_s, float(attempt.tokens)))
        if prompts and (attempt.tokens or _is_read(attempt)):
            prompt = attempt.prompt_tokens or attempt.input_tokens
            pieces.append((first, first, float(prompt)))
    return pieces


def _is_read(attempt: Attempt) -> bool:
    """Whether it was served by an endpoint without output, such as embeddings."""
    return attempt.outcome is Outcome.SERVED and not attempt.output_tokens


def summarise(run: Run) -> Summary:
    """The numbers of a run."""
    meta = run.meta
    by_tenant: dict[str, list[Attempt]] = {tenant.name: [] for tenant in meta.tenants}
    for attempt in run.attempts:
        by_tenant[attempt.tenant].append(attempt)
    groups = [_group(name, attempts) for name, attempts in by_tenant.items()]
    if len(groups) > 1:
        groups.append(_together(groups))
    cells = [_cell(meta, group, span) for group in groups for span in spans(meta)]
    periods = [
        trust.Period(span.name, span.from_s, span.to_s, _due(run.attempts, span)) for span in spans(meta)
    ]
    doubts = trust.doubts(meta, _figures(cells), periods, run.samples)
    totals = [float(sum(a.tokens for a in attempts if a.is_measured)) for attempts in by_tenant.values()]
    return Summary(
        label=meta.label,
        name=meta.name,
        seed=meta.seed,
        complaints=[*meta.complaints, *doubts],
        is_interrupted=meta.is_interrupted,
        fairness=jain(totals),
        cells=cells,
        failures=failures(run.attempts),
        notes=prompt_lengths.findings(run),
    )


def _due(attempts: Iterable[Attempt], span: Span) -> list[Attempt]:
    return [attempt for attempt in attempts if span.from_s <= attempt.intended_s < span.to_s]


def _figures(cells: Iterable[Cell]) -> Iterable[trust.Figure]:
    """The latencies of all cells that the generator's own delays may distort."""
    for cell in cells:
        for name in ("TTFT p50", "TTFT p99", "e2e p50", "e2e p99", "gap p50", "gap p99"):
            if (made := MEASURES[name](cell)) is not None:
                share = 0.5 if name.endswith("p50") else 0.99
                is_due = not name.startswith("gap")
                yield trust.Figure(cell.phase, cell.tenant, name, share, made.value, is_due)


class _Group(NamedTuple):
    """The requests of a tenant or of all, and their tokens."""

    name: str
    tries: list[list[Attempt]]
    """The attempts of each request, in the order in which the requests were due, which intervals need."""
    output: list[tuple[float, float, float]]
    tokens: list[tuple[float, float, float]]


def _group(name: str, attempts: Sequence[Attempt]) -> _Group:
    tries = sorted(requests(attempts), key=lambda tries: tries[0].intended_s)
    return _Group(name, tries, token_pieces(attempts, prompts=False), token_pieces(attempts, prompts=True))


def _together(groups: Sequence[_Group]) -> _Group:
    """All tenants."""
    tries = sorted((tries for each in groups for tries in each.tries), key=lambda tries: tries[0].intended_s)
    output, tokens = (
        [piece for each in groups for piece in getattr(each, name)] for name in ("output", "tokens")
    )
    return _Group(EVERYONE, tries, output, tokens)


def _cell(meta: Meta, group: _Group, span: Span) -> Cell:
    tries = [attempts for attempts in group.tries if span.from_s <= attempts[0].intended_s < span.to_s]
    due = [attempt for attempts in tries for attempt in attempts]
    last = [attempts[-1] for attempts in tries]
    waits = [wait for attempt in last if (wait := first_token(attempt, meta.drain_s)) is not None]
    served = [attempt for attempt in last if attempt.outcome is Outcome.SERVED]
    gaps = merged(attempt.gaps for attempt in due)
    return Cell(
        tenant=group.name,
        phase=span.name,
        seconds=span.to_s - span.from_s,
        requests=len(tries),
        attempts=len(due),
        outcomes=dict(Counter(attempt.outcome for attempt in last)),
        reasons=dict(Counter(attempt.reason for attempt in due if attempt.reason)),
        refused_by=dict(Counter(a.reason for a in last if a.outcome in REFUSED)),
        failed_by=dict(Counter(_failure(a) for a in last if a.outcome in FAILED)),
        bounds=sum(is_bound for _, is_bound in waits),
        served_share=intervals.share([a.outcome is Outcome.SERVED for a in last]),
        refused_share=intervals.share([a.outcome in REFUSED for a in last]),
        failed_share=intervals.share([a.outcome in FAILED for a in last]),
        short=sum(a.is_counted and 0 < a.tokens < a.output_tokens for a in served),
        ttft=_percentiles(wait for wait, _ in waits),
        ttft_sent=_percentiles(a.first_s - a.sent_s for a in last if a.first_s is not None),
        e2e=_percentiles(attempt.end_s - attempt.intended_s for attempt in served),
        tpot=_percentiles(value for a in served if (value := time_per_token(a)) is not None),
        uncounted=sum(a.first_s is not None and not a.is_counted for a in served),
        gap_p50_s=histogram_percentile(gaps, 0.5),
        gap_p99_s=histogram_percentile(gaps, 0.99),
        output_tokens_per_s=_rate(span, group.output),
        tokens_per_s=_rate(span, group.tokens),
        goodput=_goodput(meta, group.name, span, last),
    )


def _failure(last: Attempt) -> str:
    return f"{last.outcome.value}: {last.reason}" if last.reason else last.outcome.value


def _goodput(meta: Meta, name: str, span: Span, last: Iterable[Attempt]) -> Goodput | None:
    slos = {t.name: t.slo for t in meta.tenants if t.slo is not None and name in (t.name, EVERYONE)}
    if not slos:
        return None
    windows = Windows(span.to_s - span.from_s, (span.to_s - span.from_s) / _WINDOWS)
    counts = [0.0] * windows.count
    verdicts = []
    for attempt in last:
        slo = slos.get(attempt.tenant)
        made = verdict(attempt, first_token(attempt, meta.drain_s), slo) if slo is not None else None
        if made is None:
            continue
        verdicts.append(made)
        if made and (index := windows.index(attempt.intended_s - span.from_s)) is not None:
            counts[index] += 1
    per_s = intervals.rate(counts, windows.width_s)
    return Goodput(sum(verdicts), len(verdicts) - sum(verdicts), per_s, intervals.share(verdicts))


def _percentiles(values: Iterable[float]) -> Percentiles:
    """Points of the distribution of values in the order of the requests."""
    series = intervals.Series(list(values))
    p50, p90, p95, p99 = series.percentiles((0.5, 0.9, 0.95, 0.99))
    return Percentiles(p50, p90, p95, p99, series.mean())


def _rate(span: Span, pieces: Sequence[tuple[float, float, float]]) -> Estimate | None:
    """Tokens per second within a span."""
    kept = [
        _clipped(start - span.from_s, end - span.from_s, amount)
        for start, end, amount in pieces
        if start < span.to_s and (end > span.from_s or start >= span.from_s)
    ]
    length = span.to_s - span.from_s
    windows = Windows(length, length / _WINDOWS)
    return intervals.rate(windows.spread(kept), windows.width_s)


def _clipped(start: float, end: float, amount: float) -> tuple[float, float, float]:
    """The part of a piece after 0."""
    return (start, end, amount) if start >= 0 else (0.0, end, amount * end / (end - start))


Measure = Callable[[Cell], Estimate | None]


def _plain(read: Callable[[Cell], float | None]) -> Measure:
    def estimate(cell: Cell) -> Estimate | None:
        value = read(cell)
        return Estimate(value) if value is not None else None

    return estimate


MEASURES: dict[str, Measure] = {
    "TTFT p50": lambda cell: cell.ttft.p50,
    "TTFT p95": lambda cell: cell.ttft.p95,
    "TTFT p99": lambda cell: cell.ttft.p99,
    "gap p50": _plain(lambda cell: cell.gap_p50_s),
    "gap p99": _plain(lambda cell: cell.gap_p99_s),
    "TPOT p50": lambda cell: cell.tpot.p50,
    "TPOT p99": lambda cell: cell.tpot.p99,
    "e2e p50": lambda cell: cell.e2e.p50,
    "e2e p99": lambda cell: cell.e2e.p99,
    "out tok/s": lambda cell: cell.output_tokens_per_s,
    "tok/s": lambda cell: cell.tokens_per_s,
    "goodput/s": lambda cell: cell.goodput.per_s if cell.goodput is not None else None,
}
"""The columns of tables. Those with a slash are rates; the others are seconds."""


def is_rate(measure: str) -> bool:
    """Whether the column is a rate, where more is better: tokens or requests per second."""
    return "/" in measure
