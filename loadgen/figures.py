"""The plots of a run over time: latencies, requests, tokens, and the state of the pool. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from loadgen import words
from loadgen.latencies import Latencies, Timed, over_time
from loadgen.plots import COLOURS, Band, Frame, Mark, Series, curves, layers, log_ticks
from loadgen.records import FAILED, REFUSED, Attempt, EntitlementSample, Meta, Outcome, Run, Sample
from loadgen.statistics import Windows
from loadgen.summary import token_pieces

MOST_NAMED = 12
"""The most tenants with a colour. They are the tenants with the most requests; the others are thin lines."""
MOST_REASONS = 8
OTHERS = "others"
_RATE = "tokens_per_second"
_UNKNOWN_FROM = 1e8
"""A limit from this many tokens per second stands for an unknown bound; no engine is so fast."""
_CURVES = (("p50", 0.5, 2, 1.5), ("p95", 0.95, 1, 1.5), ("p99", 0.99, 0, 2.5))
"""Name, share, dash and width of each tenant's curves."""


def frame_of(meta: Meta) -> Frame:
    """The time axis: the arrivals and the drain, with phases, warm-up, cool-down and faults."""
    until = max(meta.ended_s, 1.0) if meta.is_interrupted else max(meta.duration_s, meta.ended_s)
    drain = (Band("drain", meta.duration_s, until),) if until > meta.duration_s else ()
    bands = (
        tuple(Band(phase.name, phase.from_s, phase.to_s) for phase in meta.phases) + unmeasured(meta) + drain
    )
    return Frame(until, bands, tuple(Mark(fault.what, fault.at_s) for fault in meta.faults))


def unmeasured(meta: Meta) -> tuple[Band, ...]:
    """The warm-up and the cool-down, whose requests are drawn but do not count."""
    ends = meta.duration_s - meta.cool_down_s
    spans = (Band("warm-up", 0.0, meta.warm_up_s), Band("cool-down", ends, meta.duration_s))
    return tuple(band for band in spans if band.to_s > band.from_s)


def busiest(made: Mapping[str, Latencies]) -> list[str]:
    """The tenants with a colour, in the order of the scenario."""
    kept = set(sorted(made, key=lambda name: -made[name].requests)[:MOST_NAMED])
    return [name for name in made if name in kept]


def first_tokens(meta: Meta, made: Mapping[str, Latencies], windows: Windows, frame: Frame) -> list[str]:
    """The time to first token: a plot for each tenant, and one for all that have none."""
    chosen = busiest(made)
    values = [value for one in made.values() for _, value in one.ttft]
    ticks = log_ticks(min(values), max(values)) if values else None
    per = f"per {windows.width_s:g} s"
    figures = []
    for index, tenant in enumerate(meta.tenants):
        if tenant.name in chosen:
            series = [
                Series(name, over_time(made[tenant.name].ttft, windows, share), index % COLOURS, dash, width)
                for name, share, dash, width in _CURVES
            ]
            title = f"{words.name(tenant.name)}{f' ({tenant.tier})' if tenant.tier else ''}, {per}"
            figures.append(curves(title, series, frame, unit="s", is_log=True, ticks=ticks, is_half=True))
    rest = [name for name in made if name not in chosen]
    if rest:
        series = [Series(name, over_time(made[name].ttft, windows, 0.99), is_minor=True) for name in rest]
        title = f"The {len(rest)} tenants with fewer requests, P99, {per}"
        figures.append(curves(title, series, frame, unit="s", is_log=True, ticks=ticks, is_half=True))
    return figures


def later(made: Mapping[str, Latencies], windows: Windows, frame: Frame) -> list[str]:
    """Time per output token and end to end, P50 and P99, with a curve for each tenant."""
    read: dict[str, Callable[[Latencies], Timed]] = {
        "Time per output token": lambda one: one.tpot,
        "End to end": lambda one: one.e2e,
    }
    chosen = busiest(made)
    found = []
    for name, values in read.items():
        if not any(values(one) for one in made.values()):
            continue
        for label, share in (("P50", 0.5), ("P99", 0.99)):
            series = [
                Series(
                    tenant,
                    over_time(values(one), windows, share),
                    index,
                    width=1.5,
                    is_minor=tenant not in chosen,
                )
                for index, (tenant, one) in enumerate(made.items())
            ]
            title = f"{name}, {label}, per {windows.width_s:g} s"
            found.append(curves(title, series, frame, unit="s", is_log=True, is_half=True))
    return found


def traffic(last: Sequence[Attempt], windows: Windows, frame: Frame) -> str:
    """Requests per second by the time when they were due, of the ``last`` attempts of all requests."""
    kinds: dict[str, Callable[[Attempt], bool]] = {
        "due": lambda _: True,
        "served": lambda a: a.outcome is Outcome.SERVED,
        "refused": lambda a: a.outcome in REFUSED,
        "failed": lambda a: a.outcome in FAILED,
        "cancelled": lambda a: a.outcome is Outcome.CANCELLED,
    }
    series = []
    for index, (name, is_kind) in enumerate(kinds.items()):
        chosen = [(a.intended_s, 1.0) for a in last if is_kind(a)]
        if chosen or name == "due":
            rates = [len(group) / windows.width_s for group in windows.grouped(chosen)]
            series.append(Series(name, list(zip(windows.middles, rates, strict=True)), index, index % 3, 1.5))
    return curves("Requests per second, by due time", series, frame, unit="requests/s")


def throughput(run: Run, windows: Windows, frame: Frame, chosen: Sequence[str]) -> str:
    """Tokens per second of each tenant, stacked, beside the pool's capacity."""
    by_tenant: dict[str, list[Attempt]] = {name: [] for name in chosen}
    others: list[Attempt] = []
    for attempt in run.attempts:
        by_tenant.get(attempt.tenant, others).append(attempt)
    colours = {tenant.name: index for index, tenant in enumerate(run.meta.tenants)}
    groups = [(name, colours[name], attempts) for name, attempts in by_tenant.items()]
    if others:
        groups.append((f"{len(run.meta.tenants) - len(chosen)} {OTHERS}", 7, others))
    series = []
    for name, colour, attempts in groups:
        rates = [tokens / windows.width_s for tokens in windows.spread(token_pieces(attempts, prompts=True))]
        series.append(Series(name, list(zip(windows.middles, rates, strict=True)), colour))
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


def not_served(run: Run, windows: Windows, frame: Frame) -> str:
    """Attempts that were refused or failed, by reason, at the time of their end."""
    ended = [(_reason(a), a.end_s) for a in run.attempts if a.outcome in REFUSED or a.outcome in FAILED]
    most = [reason for reason, _ in Counter(reason for reason, _ in ended).most_common(MOST_REASONS)]
    by_reason: dict[str, list[tuple[float, float]]] = {reason: [] for reason in most}
    rest: list[tuple[float, float]] = []
    for reason, at in ended:
        by_reason.get(reason, rest).append((at, 1.0))
    if rest:
        by_reason[f"{OTHERS}: see the table"] = rest
    series = []
    for index, (reason, points) in enumerate(by_reason.items()):
        rates = [len(group) / windows.width_s for group in windows.grouped(points)]
        # Reasons have other colours than tenants.
        series.append(Series(reason, list(zip(windows.middles, rates, strict=True)), index + 3))
    return layers("Refused and failed attempts, by reason", series, frame, unit="attempts/s")


def _reason(attempt: Attempt) -> str:
    return attempt.reason or attempt.outcome.value


def states(run: Run, frame: Frame, chosen: Sequence[str]) -> list[str]:
    """Limits, debt and engines, if state pages were read. Entitlements of other tenants have thin lines."""
    colours = {tenant.name: index for index, tenant in enumerate(run.meta.tenants)}
    sharing = [sample for sample in run.samples if sample.entitlements]
    figures = []
    if sharing:
        # Every page shows the pool's limits. A coordinator's page is preferred, because it decides them.
        best = min(sharing, key=lambda sample: sample.kind != "coordinator").source
        seen = [sample for sample in sharing if sample.source == best]
        limits = _entitlement_series(seen, colours, chosen, _known_limit)
        debts = _entitlement_series(seen, colours, chosen, lambda shown: shown.debt)
        figures += [
            curves("Limits", limits, frame, unit="tokens/s"),
            curves("Debt", debts, frame, unit=""),
        ]
    engines = _engine_series(run.samples)
    if engines:
        figures.append(curves("Sequences in the engines", engines, frame, unit="sequences"))
    return figures


def _known_limit(shown: EntitlementSample) -> float | None:
    limit = shown.limit.get(_RATE)
    return limit if limit is not None and limit < _UNKNOWN_FROM else None


def _entitlement_series(
    samples: Sequence[Sample],
    colours: dict[str, int],
    chosen: Sequence[str],
    read: Callable[[EntitlementSample], float | None],
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
            is_minor=len(names) > MOST_NAMED and name not in chosen,
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
