"""A run as the report of GuideLLM 0.8 (``benchmarks.json``, version 2): one benchmark. Pure.

The definitions are GuideLLM's: a request counts from its sending, and ``request_scheduled_latency`` from when
it was due. Refused and failed requests are ``errored``; cancelled and cut ones are ``incomplete``. The tenant
is ``agent_id``. What loadgen does not measure has a count of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from loadgen.exports.measured import Measured, prompt_tokens
from loadgen.records import Attempt, Outcome

VERSION = "0.8.1"
"""The version whose reader accepts the report."""
_STATUSES = ("successful", "errored", "incomplete")
_PERCENTILES = {
    "p001": 0.001, "p01": 0.01, "p05": 0.05, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9,
    "p95": 0.95, "p99": 0.99, "p999": 0.999,
}  # fmt: skip
_MEDIA = {
    "text": ("tokens", "words", "characters"),
    "image": ("tokens", "images", "pixels", "bytes"),
    "video": ("tokens", "frames", "seconds", "bytes"),
    "audio": ("tokens", "samples", "seconds", "bytes"),
    "tool_call": ("tokens", "mixed_tokens", "count"),
}
"""The kinds of content that the report may describe."""
Weighted = list[tuple[float, float]]
"""(value, weight)."""
_FORMATS = {"completions": "/v1/completions", "embeddings": "/v1/embeddings", "responses": "/v1/responses"}


def report(made: Measured) -> dict[str, object]:
    """The content of the file."""
    meta = made.meta
    model = str(meta.scenario.get("model", ""))
    backend = {
        "kind": "openai_http",
        "target": meta.urls[0],
        "model": model,
        "request_format": _FORMATS.get(str(meta.scenario.get("endpoint")), "/v1/chat/completions"),
        "stream": meta.scenario.get("stream", True),
    }
    profile: dict[str, object] = {"kind": "replay"}
    return {
        "metadata": {
            "version": 2,
            "guidellm_version": VERSION,
            "python_version": meta.machine.python,
            "platform": f"{meta.machine.cpu}, Linux {meta.machine.kernel}",
        },
        "config": {
            "metadata": {"labels": {"tool": "loadgen", "name": meta.name, "label": meta.label}},
            "spec": {
                "backend": backend,
                "profile": profile,
                "data": [{"kind": "synthetic_text", "prompt_tokens": 1, "output_tokens": 1}],
                "seed": {"kind": "static", "value": meta.seed},
            },
        },
        "benchmarks": [_benchmark(made, backend, profile)],
        "conclusions": [],
    }


def _benchmark(made: Measured, backend: dict[str, object], profile: dict[str, object]) -> dict[str, object]:
    meta = made.meta
    start = datetime.fromisoformat(meta.started).timestamp()
    begins, ends = start + made.from_s, start + made.from_s + made.duration_s
    groups = {status: [last for last in made.lasts if _status(last) == status] for status in _STATUSES}
    totals = {status: len(group) for status, group in groups.items()} | {"total": len(made.lasts)}
    return {
        "type_": "generative_benchmark",
        "config": {
            "run_id": f"{meta.name}, seed {meta.seed}, {meta.started}",
            "run_index": 0,
            "strategy": {"type_": "trace"},
            "constraints": {},
            "sample_size": None,
            "profile": profile,
            "requests": {"scenario": meta.scenario},
            "backend": backend,
            "environment": {"tool": "loadgen", "cores": meta.machine.cores, "versions": meta.versions},
        },
        "scheduler_state": {
            "num_processes": meta.processes,
            "start_time": start,
            "end_time": ends,
            "start_requests_time": begins,
            "end_requests_time": ends,
            "created_requests": totals["total"],
            "processed_requests": totals["total"],
            "successful_requests": totals["successful"],
            "errored_requests": totals["errored"],
            "cancelled_requests": totals["incomplete"],
        },
        "scheduler_metrics": _scheduler(made, start, begins, ends, totals),
        "metrics": {"request_totals": totals, **_metrics(made, groups)},
        "requests": {
            **{s: [_request(last, start) for last in group] for s, group in groups.items()},
            "total": None,
        },
        "warnings": [],
        "start_time": begins,
        "end_time": ends,
        "duration": ends - begins,
        "warmup_duration": 0.0,
        "cooldown_duration": 0.0,
    }


def _scheduler(
    made: Measured, start: float, begins: float, ends: float, totals: dict[str, int]
) -> dict[str, object]:
    delays = [(last.sent_s - last.due_s, 1.0) for last in made.lasts]
    times = [last.end_s - last.sent_s for last in made.lasts]
    nothing = dict.fromkeys(
        (
            "queued_time_avg", "resolve_start_delay_avg", "request_start_delay_avg", "resolve_end_delay_avg",
            "finalized_delay_avg", "processed_delay_avg",
        ),
        0.0,
    )  # fmt: skip
    late = _distribution(delays)
    return {
        **nothing,
        "start_time": start,
        "request_start_time": begins,
        "measure_start_time": begins,
        "measure_end_time": ends,
        "request_end_time": ends,
        "end_time": ends,
        "requests_made": totals,
        "generation_delay": late,
        "resolve_targeted_start_delay_avg": late["mean"],
        "request_targeted_start_delay_avg": late["mean"],
        "request_time_avg": sum(times) / len(times) if times else 0.0,
        "resolve_time_avg": sum(times) / len(times) if times else 0.0,
    }


def _status(last: Attempt) -> str:
    if last.outcome is Outcome.SERVED:
        return "successful"
    return "incomplete" if last.outcome in (Outcome.CUT, Outcome.CANCELLED) else "errored"


_UNMEASURED = (
    "request_streaming_iterations_count", "time_to_last_round_trip_ms", "avg_round_trip_time_ms",
    "output_tokens_per_iteration", "iter_tokens_per_iteration",
)  # fmt: skip


def _first_ms(last: Attempt) -> tuple[float, float] | None:
    return (1000 * (last.first_s - last.sent_s), 1) if last.first_s is not None else None


def _per_token_ms(last: Attempt) -> tuple[float, float] | None:
    ends = last.last_s if last.last_s is not None else last.end_s
    return (1000 * (ends - last.sent_s) / last.tokens, last.tokens) if last.tokens else None


def _between_ms(last: Attempt) -> tuple[float, float] | None:
    if last.first_s is None or last.last_s is None or last.tokens < 2:
        return None
    return 1000 * (last.last_s - last.first_s) / (last.tokens - 1), last.tokens - 1


_PER_REQUEST: dict[str, Callable[[Attempt], tuple[float, float] | None]] = {
    "request_latency": lambda a: (a.end_s - a.sent_s, 1),
    "request_dispatch_delay": lambda a: (a.sent_s - a.intended_s, 1),
    "request_scheduled_latency": lambda a: (a.end_s - a.intended_s, 1),
    "prompt_token_count": lambda a: (prompt_tokens(a), 1),
    "output_token_count": lambda a: (a.tokens, 1),
    "total_token_count": lambda a: (prompt_tokens(a) + a.tokens, 1),
    "time_to_first_token_ms": _first_ms,
    "time_to_first_output_token_ms": _first_ms,
    "time_per_output_token_ms": _per_token_ms,
    "inter_token_latency_ms": _between_ms,
}
"""The value and the weight of a request in each distribution. GuideLLM weighs means by tokens."""


def _metrics(made: Measured, groups: dict[str, list[Attempt]]) -> dict[str, object]:
    found: dict[str, object] = {
        name: _by_status(groups, partial(_each, read)) for name, read in _PER_REQUEST.items()
    }
    over_time: dict[str, Callable[[Sequence[Attempt]], list[float]]] = {
        "requests_per_second": lambda lasts: made.per_second((a.end_s, a.end_s, 1.0) for a in lasts),
        "request_concurrency": made.in_flight,
        "prompt_tokens_per_second": lambda lasts: made.per_second(_prompts(lasts)),
        "output_tokens_per_second": made.output_per_second,
        "tokens_per_second": lambda lasts: _sum(
            made.per_second(_prompts(lasts)), made.output_per_second(lasts)
        ),
    }
    for name, rate in over_time.items():
        found[name] = _by_status(groups, partial(_seconds, rate))
    found |= {name: _by_status({}, lambda _: []) for name in _UNMEASURED}
    tokens = {
        "input": found["prompt_token_count"],
        "output": found["output_token_count"],
        "total": found["total_token_count"],
        "input_per_second": found["prompt_tokens_per_second"],
        "output_per_second": found["output_tokens_per_second"],
        "total_per_second": found["tokens_per_second"],
        **dict.fromkeys(("input_concurrency", "output_concurrency", "total_concurrency")),
    }
    media: dict[str, dict[str, object]] = {kind: dict.fromkeys(names) for kind, names in _MEDIA.items()}
    return {**found, **media, "text": {**media["text"], "tokens": tokens}}


def _each(read: Callable[[Attempt], tuple[float, float] | None], lasts: Sequence[Attempt]) -> Weighted:
    return [one for last in lasts if (one := read(last)) is not None]


def _seconds(rate: Callable[[Sequence[Attempt]], list[float]], lasts: Sequence[Attempt]) -> Weighted:
    """A rate in each second; nothing without requests."""
    return [(value, 1.0) for value in rate(lasts)] if lasts else []


def _prompts(lasts: Iterable[Attempt]) -> Iterable[tuple[float, float, float]]:
    """The prompts of the requests with a token, at their first token."""
    for last in lasts:
        if last.first_s is not None or last.outcome is Outcome.SERVED:
            at = last.first_s if last.first_s is not None else last.end_s
            yield at, at, float(prompt_tokens(last))


def _sum(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _by_status(
    groups: dict[str, list[Attempt]], read: Callable[[Sequence[Attempt]], Weighted]
) -> dict[str, object]:
    every = [last for group in groups.values() for last in group]
    found: dict[str, object] = {status: _distribution(read(groups.get(status, []))) for status in _STATUSES}
    return {**found, "total": _distribution(read(every))}


def _distribution(values: Weighted) -> dict[str, Any]:
    """A summary as GuideLLM's: percentiles are observed values."""
    kept = sorted((value, weight) for value, weight in values if weight > 0)
    weight = sum(each for _, each in kept)
    if not kept:
        zeros = dict.fromkeys(
            ("mean", "median", "mode", "variance", "std_dev", "min", "max", "total_sum"), 0.0
        )
        return {**zeros, "count": 0, "percentiles": dict.fromkeys(_PERCENTILES, 0.0), "pdf": None}
    total = sum(value * each for value, each in kept)
    mean = total / weight
    variance = sum(each * (value - mean) ** 2 for value, each in kept) / weight
    points = _points(kept, weight)
    return {
        "mean": mean,
        "median": points["p50"],
        "mode": _mode(kept),
        "variance": variance,
        "std_dev": variance**0.5,
        "min": kept[0][0],
        "max": kept[-1][0],
        "count": round(weight),
        "total_sum": total,
        "percentiles": points,
        "pdf": None,
    }


def _points(kept: Weighted, weight: float) -> dict[str, float]:
    """The percentiles of ordered values."""
    found: dict[str, float] = {}
    asked = list(_PERCENTILES.items())
    below = 0.0
    for value, each in kept:
        below += each
        while asked and below >= asked[0][1] * weight - 1e-9:
            found[asked.pop(0)[0]] = value
    return found | {name: kept[-1][0] for name, _ in asked}


def _mode(kept: Weighted) -> float:
    weights: dict[float, float] = {}
    for value, each in kept:
        weights[value] = weights.get(value, 0.0) + each
    return max(weights, key=lambda value: weights[value])


def _request(last: Attempt, start: float) -> dict[str, object]:
    """One request. GuideLLM computes its latencies from the times; scripts find them as numbers."""
    first, ends = last.first_s, last.last_s
    status = {"successful": "completed", "incomplete": "cancelled", "errored": "errored"}[_status(last)]
    first_ms, per_token, between = _first_ms(last), _per_token_ms(last), _between_ms(last)
    return {
        "type_": "generative_request_stats",
        "request_id": f"{last.tenant} {last.request}",
        "info": {
            "request_id": f"{last.tenant} {last.request}",
            "agent_id": last.tenant,
            "turn_index": max(last.turn - 1, 0),
            "status": status,
            "scheduler_start_time": start,
            "timings": {
                "targeted_start": start + last.intended_s,
                "scheduled_at": start + last.due_s,
                "resolve_start": start + last.sent_s,
                "request_start": start + last.sent_s,
                "first_token_iteration": start + first if first is not None else None,
                "first_output_token_iteration": start + first if first is not None else None,
                "last_token_iteration": start + ends if ends is not None else None,
                "request_end": start + last.end_s,
                "resolve_end": start + last.end_s,
            },
            "error": (last.message or last.reason) if status == "errored" else None,
        },
        "input_metrics": {"text_tokens": prompt_tokens(last)},
        "output_metrics": {"text_tokens": last.tokens},
        "request_latency": last.end_s - last.sent_s,
        "time_to_first_token_ms": first_ms[0] if first_ms else None,
        "time_per_output_token_ms": per_token[0] if per_token else None,
        "inter_token_latency_ms": between[0] if between else None,
        "prompt_tokens": prompt_tokens(last),
        "output_tokens": last.tokens,
    }
