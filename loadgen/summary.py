"""The results of a run: a cell of numbers for each tenant and phase. Pure.

A latency counts from the due time of the request, with retries and delays of the generator. A request without
a token is included, because an overloaded server would look fast without it. Its waiting time is a lower
bound. The exception is a request that the end of the run cut before it waited as long as the drain. Shed
requests have no latency; they are counted separately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from loadgen import prompt_lengths
from loadgen.failures import Failure, failures
from loadgen.records import Attempt, Meta, Outcome, Run
from loadgen.statistics import (
    Estimate,
    Windows,
    bootstrap,
    histogram_percentile,
    jain,
    merged,
    percentile_estimate,
)

EVERYONE = "all tenants"
WHOLE = "whole run"
_WINDOW_S = 1.0
_IMPATIENT = (Outcome.TIMEOUT, Outcome.CANCELLED)


class Percentiles(msgspec.Struct, frozen=True):
    """Three points of a distribution, in seconds; ``None`` without observations."""

    p50: Estimate | None
    p95: Estimate | None
    p99: Estimate | None


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
    bounds: int
    """The number of times to first token that are lower bounds only."""
    short: int
    """Requests served with fewer tokens than requested: the engine did not obey ``ignore_eos``."""
    ttft: Percentiles
    """Time to first token from the due time of the request."""
    ttft_sent: Percentiles
    """Time to first token from the sending of the served attempt: the server's part."""
    e2e: Percentiles
    """Time until the last token of served requests."""
    gap_p50_s: float | None
    """Time between tokens, over all tokens."""
    gap_p99_s: float | None
    output_tokens_per_s: Estimate | None
    """Output tokens of all requests within the phase."""
    tokens_per_s: Estimate | None
    """The same with prompts. A prompt counts at the time of its first output token."""

    def ended(self, outcome: Outcome) -> int:
        """The number of requests with this outcome."""
        return self.outcomes.get(outcome, 0)


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
        """The number of requests that were served."""
        return sum(c.ended(Outcome.SERVED) for c in self.cells if c.phase == WHOLE and c.tenant != EVERYONE)

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
    until = min(meta.duration_s - meta.cool_down_s, max(meta.ended_s, starts + _WINDOW_S))
    clipped = [Span(p.name, max(p.from_s, starts), min(p.to_s, until)) for p in meta.phases]
    return [Span(WHOLE, starts, until), *(span for span in clipped if span.from_s < span.to_s)]


def requests(attempts: Iterable[Attempt]) -> list[list[Attempt]]:
    """The attempts of each request in order."""
    found: dict[tuple[str, str], list[Attempt]] = {}
    for attempt in attempts:
        found.setdefault((attempt.tenant, attempt.request), []).append(attempt)
    return [sorted(tries, key=lambda attempt: attempt.attempt) for tries in found.values()]


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
    by_tenant = {t.name: [a for a in run.attempts if a.tenant == t.name] for t in meta.tenants}
    groups = {**by_tenant, EVERYONE: run.attempts} if len(by_tenant) > 1 else by_tenant
    cells = [_cell(meta, name, span, attempts) for name, attempts in groups.items() for span in spans(meta)]
    totals = [float(sum(a.tokens for a in attempts if a.is_measured)) for attempts in by_tenant.values()]
    return Summary(
        meta.label, meta.name, meta.seed, meta.complaints, meta.is_interrupted, jain(totals), cells,
        failures(run.attempts), prompt_lengths.findings(run),
    )  # fmt: skip


def _cell(meta: Meta, tenant: str, span: Span, attempts: Sequence[Attempt]) -> Cell:
    due = [a for a in attempts if span.from_s <= a.intended_s < span.to_s]
    tries = requests(due)
    last = [attempts[-1] for attempts in tries]
    waits = [wait for attempt in last if (wait := first_token(attempt, meta.drain_s)) is not None]
    served = [attempt for attempt in last if attempt.outcome is Outcome.SERVED]
    gaps = merged(attempt.gaps for attempt in due)
    return Cell(
        tenant=tenant,
        phase=span.name,
        seconds=span.to_s - span.from_s,
        requests=len(tries),
        attempts=len(due),
        outcomes=dict(Counter(attempt.outcome for attempt in last)),
        reasons=dict(Counter(attempt.reason for attempt in due if attempt.reason)),
        bounds=sum(is_bound for _, is_bound in waits),
        short=sum(0 < attempt.tokens < attempt.output_tokens for attempt in served),
        ttft=_percentiles(wait for wait, _ in waits),
        ttft_sent=_percentiles(a.first_s - a.sent_s for a in last if a.first_s is not None),
        e2e=_percentiles(attempt.end_s - attempt.intended_s for attempt in served),
        gap_p50_s=histogram_percentile(gaps, 0.5),
        gap_p99_s=histogram_percentile(gaps, 0.99),
        output_tokens_per_s=_rate(meta, span, token_pieces(attempts, prompts=False)),
        tokens_per_s=_rate(meta, span, token_pieces(attempts, prompts=True)),
    )


def _percentiles(values: Iterable[float]) -> Percentiles:
    ordered = sorted(values)
    return Percentiles(*(percentile_estimate(ordered, share) for share in (0.5, 0.95, 0.99)))


def _rate(meta: Meta, span: Span, pieces: list[tuple[float, float, float]]) -> Estimate | None:
    """Tokens per second within a span, with an interval from the rates of single seconds."""
    shifted = [(start - span.from_s, end - span.from_s, amount) for start, end, amount in pieces]
    kept = [piece for piece in shifted if piece[1] >= 0 and piece[0] >= 0] + [
        _clipped(piece) for piece in shifted if piece[0] < 0 < piece[1]
    ]
    length = span.to_s - span.from_s
    # The windows fill the span exactly, because a shorter last window would look slow.
    width = length / max(round(length / _WINDOW_S), 1)
    return bootstrap([tokens / width for tokens in Windows(length, width).spread(kept)], meta.seed)


def _clipped(piece: tuple[float, float, float]) -> tuple[float, float, float]:
    """The part of a piece after 0."""
    start, end, amount = piece
    return 0.0, end, amount * end / (end - start)


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
    "e2e p50": lambda cell: cell.e2e.p50,
    "e2e p99": lambda cell: cell.e2e.p99,
    "out tok/s": lambda cell: cell.output_tokens_per_s,
    "tok/s": lambda cell: cell.tokens_per_s,
}
"""The columns of tables. Those with a slash are rates; the others are seconds."""


def is_rate(measure: str) -> bool:
    """Whether the column is a rate in tokens per second, where more is better."""
    return "/" in measure
