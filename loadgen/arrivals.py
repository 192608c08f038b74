"""Arrivals: the times and lengths of each tenant's requests. Pure and seeded; independent of answers.

Every open-loop process is a process of rate 1, whose time is scaled by the tenant's current rate. This rate
includes its phases, its start and its end. So the expected number of requests between two times is the
integral of the rate, for every process. Each tenant has its own random streams, one for each kind of value
(times, lengths, prefixes), so a change to one affects no other.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from loadgen.lengths import draw, mean
from loadgen.scenario import (
    Bursty,
    Closed,
    Constant,
    Gamma,
    OnOff,
    Poisson,
    Process,
    Ramp,
    Replay,
    Scenario,
    Tenant,
    Traced,
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``number`` counts one tenant's (or one worker's) requests from 0."""

    number: int
    input_tokens: int
    output_tokens: int
    has_prefix: bool
    is_cancelled: bool = False
    """Whether the client ends it, as the tenant's ``cancel`` says."""
    traced: Traced | None = None
    """Its origin in the tenant's trace, if there is one."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request with its due time in seconds from the start of the run."""

    at_s: float
    request: Request


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of time in which the rate is linear."""

    from_s: float
    to_s: float
    start: float
    end: float

    @property
    def area(self) -> float:
        """The expected number of requests."""
        return (self.to_s - self.from_s) * (self.start + self.end) / 2

    def when(self, area: float) -> float:
        """The time until which ``area`` requests are expected."""
        slope = (self.end - self.start) / (self.to_s - self.from_s)
        # The root of the quadratic equation in a form that includes a slope of 0.
        divisor = self.start + math.sqrt(max(self.start**2 + 2 * slope * area, 0.0))
        return min(self.from_s + (2 * area / divisor if divisor > 0 else 0.0), self.to_s)


def stream(seed: int, *names: str) -> random.Random:
    """An independent random stream for each combination of names."""
    return random.Random("\0".join((str(seed), *names)))


def arrivals(scenario: Scenario, tenant: Tenant, seed: int) -> Iterator[Arrival]:
    """The open-loop arrivals of a tenant, in order. A closed loop has none: see `requests`."""
    if isinstance(tenant.process, Replay):
        yield from _replayed(scenario, tenant, seed)
        return
    moments = warped(segments(scenario, tenant), _gaps(tenant.process, stream(seed, tenant.name, "moments")))
    for at, request in zip(moments, requests(tenant, seed), strict=False):
        yield Arrival(at, request)


def requests(tenant: Tenant, seed: int, worker: str = "", workers: int = 1) -> Iterator[Request]:
    """The endless sequence of requests of a tenant, or of one worker of a closed loop.

    ``workers`` is the largest number of workers of the run. They share the tenant's trace.
    """
    prefixes, cancels = (stream(seed, tenant.name, worker, what) for what in ("prefix", "cancel"))
    share, cancelled = _prefix_share(tenant), _cancelled_share(tenant)
    for number, (inputs, outputs, traced) in enumerate(_sizes(tenant, seed, worker, workers)):
        yield Request(
            number, inputs, outputs, prefixes.random() < share, cancels.random() < cancelled, traced
        )


def _sizes(tenant: Tenant, seed: int, worker: str, workers: int) -> Iterator[tuple[int, int, Traced | None]]:
    """The input and output of each request. The workers of a closed loop share a trace among them."""
    if tenant.trace is not None:
        for place in itertools.count(int(worker[1:]) if worker else 0, workers):
            traced = tenant.trace.requests[place % len(tenant.trace.requests)]
            yield traced.input_tokens, traced.output_tokens, traced
    inputs, outputs = (stream(seed, tenant.name, worker, what) for what in ("input", "output"))
    while True:
        yield draw(tenant.input, inputs), draw(tenant.output, outputs), None


def _prefix_share(tenant: Tenant) -> float:
    return tenant.prefix.share if tenant.prefix is not None else 0.0


def _cancelled_share(tenant: Tenant) -> float:
    return tenant.cancel.share if tenant.cancel is not None else 0.0


def expected_requests(scenario: Scenario, tenant: Tenant) -> float | None:
    """The expected number of requests of a run; ``None`` for a closed loop, which has no rate of its own.

    All turns of a conversation count, also those that the end of the run prevents.
    """
    if isinstance(tenant.process, Closed):
        return None
    if isinstance(tenant.process, Replay):
        starts, ends = scenario.span(tenant)
        moments = [starts + traced.at_s for traced in _traced(tenant)]
        return sum(scenario.factor(tenant.name, at) for at in moments if at < ends)
    turns = mean(tenant.conversation.turns) if tenant.conversation is not None else 1.0
    return turns * sum(segment.area for segment in segments(scenario, tenant))


def _traced(tenant: Tenant) -> tuple[Traced, ...]:
    return tenant.trace.requests if tenant.trace is not None else ()


def offered_rate(scenario: Scenario) -> float:
    """The expected requests per second of all tenants with a rate of their own, over the whole run."""
    counts = (expected_requests(scenario, tenant) or 0.0 for tenant in scenario.tenants)
    return sum(counts) / scenario.duration_s


def workers_at(scenario: Scenario, tenant: Tenant, at_s: float) -> int:
    """The number of active workers of a closed loop at a time."""
    starts, ends = scenario.span(tenant)
    if not isinstance(tenant.process, Closed) or not starts <= at_s < ends:
        return 0
    return round(tenant.process.workers * scenario.factor(tenant.name, at_s))


def works_from(scenario: Scenario, tenant: Tenant, worker: int, at_s: float) -> float | None:
    """The first time, not before ``at_s``, at which a worker of a closed loop is active; None if never."""
    starts, ends = scenario.span(tenant)
    edges = (moment for moment in (starts, *scenario.edges()) if at_s < moment < ends)
    moments = itertools.chain((at_s,), sorted(edges))
    return next((moment for moment in moments if worker < workers_at(scenario, tenant, moment)), None)


STAGGER_S = 0.002
"""The time between the starts of two workers, which would otherwise stay in step ..."""
STAGGERED = 0.1
"""... but all workers start within this share of the run."""


def stagger_s(scenario: Scenario, tenant: Tenant, worker: int) -> float:
    """How long after the first worker of a closed loop this one starts."""
    within = scenario.duration_s * STAGGERED
    return worker * min(STAGGER_S, within / max(most_workers(scenario, tenant), 1))


def next_turn(scenario: Scenario, tenant: Tenant, worker: int, free_s: float | None) -> float | None:
    """The due time of a worker's next request, if it became free at ``free_s``; ``None`` if it has no more.

    ``free_s`` is ``None`` before its first request. A worker that is active is due when it became free.
    """
    since = 0.0 if free_s is None else free_s
    resumes = works_from(scenario, tenant, worker, since)
    if resumes is None or (resumes == free_s):
        return resumes
    # It starts, or begins again after a phase without it.
    return works_from(scenario, tenant, worker, resumes + stagger_s(scenario, tenant, worker))


def most_workers(scenario: Scenario, tenant: Tenant) -> int:
    """The largest number of workers of a closed loop."""
    starts, ends = scenario.span(tenant)
    moments = [starts, *(edge for edge in scenario.edges() if starts <= edge < ends)]
    return max(workers_at(scenario, tenant, at) for at in moments)


def segments(scenario: Scenario, tenant: Tenant) -> list[Segment]:
    """A tenant's rate over the run, as linear segments without gaps."""
    starts, ends = scenario.span(tenant)
    inner = {*scenario.edges(), *_edges(tenant.process, starts, ends)}
    moments = sorted({starts, ends, *(moment for moment in inner if starts < moment < ends)})
    return [_segment(scenario, tenant, a, b, starts) for a, b in itertools.pairwise(moments)]


def _segment(scenario: Scenario, tenant: Tenant, from_s: float, to_s: float, starts: float) -> Segment:
    # Rates jump at edges, so factors and on/off are read in the middle. Only a ramp changes within a segment.
    middle = (from_s + to_s) / 2
    factor = scenario.factor(tenant.name, middle)
    ends = (_rate(tenant.process, at - starts, middle - starts) * factor for at in (from_s, to_s))
    return Segment(from_s, to_s, *ends)


def _edges(process: Process, starts: float, ends: float) -> Iterator[float]:
    """The times at which a process changes its own rate."""
    if isinstance(process, Ramp):
        yield starts + process.over_s
    elif isinstance(process, OnOff):
        period = process.on_s + process.off_s
        for turn in range(math.ceil((ends - starts) / period)):
            yield starts + turn * period
            yield starts + turn * period + process.on_s


def _rate(process: Process, since_s: float, middle_s: float) -> float:
    """Requests per second, ``since_s`` after the tenant's start."""
    match process:
        case Ramp(start, end, over_s):
            return start + (end - start) * min(since_s / over_s, 1.0)
        case OnOff(rate, on_s, off_s):
            return rate if middle_s % (on_s + off_s) < on_s else 0.0
        case Constant(rate) | Poisson(rate) | Bursty(rate) | Gamma(rate):
            return rate
        case Closed() | Replay():
            return 0.0


def _gaps(process: Process, source: random.Random) -> Iterator[float]:
    """The gaps of a process of rate 1."""
    if isinstance(process, Constant):
        yield source.random() or 1.0  # so that tenants with equal rates do not send at the same times
        yield from itertools.repeat(1.0)
    if isinstance(process, Gamma):
        yield from _gamma_gaps(process.cv, source)
    burst = process.burst if isinstance(process, Bursty) else 1
    while True:
        yield source.expovariate(1.0) * burst
        yield from itertools.repeat(0.0, burst - 1)


def _gamma_gaps(cv: float, source: random.Random) -> Iterator[float]:
    """Gaps with mean 1 and a gamma distribution."""
    shape, scale = cv**-2, cv**2
    # The run begins within a gap, and longer gaps are more likely to contain its beginning. Without this, a
    # clustered process would send too many requests in a short run.
    yield source.random() * source.gammavariate(shape + 1, scale)
    while True:
        yield source.gammavariate(shape, scale)


def warped(pieces: list[Segment], gaps: Iterator[float]) -> Iterator[float]:
    """The times at which the integral of the rate reaches the sum of the gaps so far."""
    gap = next(gaps)
    for piece in pieces:
        done, area = 0.0, piece.area
        while gap <= area - done:
            done += gap
            yield piece.when(done)
            gap = next(gaps)
        gap -= area - done


def _replayed(scenario: Scenario, tenant: Tenant, seed: int) -> Iterator[Arrival]:
    starts, ends = scenario.span(tenant)
    kept = stream(seed, tenant.name, "kept")
    # A trace is sent once. The requests have the numbers of their places, also if a phase leaves some out.
    for traced, request in zip(_traced(tenant), requests(tenant, seed), strict=False):
        at = starts + traced.at_s
        is_kept = kept.random() < scenario.factor(tenant.name, at)
        if at < ends and is_kept:
            yield Arrival(at, request)
