"""A run as the result file of ``vllm bench serve`` (its ``--save-result``), vLLM 0.32. Pure.

The definitions are vLLM's: served requests, from the sending of the request, with interpolated percentiles.
Refused requests count as failed. Numbers that were not measured are ``null``; vLLM writes 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from statistics import fmean, pstdev

from loadgen.exports.measured import Measured, interpolated, prompt_tokens
from loadgen.records import Attempt
from loadgen.slo import time_per_token
from loadgen.statistics import bucket_middle, merged
from loadgen.summary import EVERYONE, WHOLE, Summary

_PERCENTILES = (50, 90, 95, 99)
_BACKENDS = {"completions": "openai", "chat": "openai-chat", "embeddings": "openai-embeddings"}
"""vLLM's names of the endpoints. Others keep loadgen's name."""


def result(made: Measured, summary: Summary) -> dict[str, object]:
    """The content of the file: all tenants together."""
    meta, served = made.meta, made.served
    inputs, outputs = sum(map(prompt_tokens, served)), sum(last.tokens for last in served)
    duration = made.duration_s
    endpoint = str(meta.scenario.get("endpoint", "completions"))
    backend = _BACKENDS.get(endpoint, endpoint)
    model = meta.scenario.get("model")
    whole = summary.cell(EVERYONE, WHOLE) or summary.cells[0]
    good = whole.goodput.met / duration if whole.goodput is not None else None
    return {
        "date": datetime.fromisoformat(meta.started).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": meta.label,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": len(made.lasts),
        "tool": f"loadgen {meta.versions.get('tokenpool', '')}".rstrip(),
        "scenario": meta.name,
        "seed": meta.seed,
        "request_rate": made.due_per_s,
        "burstiness": None,
        "max_concurrency": None,
        "duration": duration,
        "completed": len(served),
        "failed": len(made.lasts) - len(served),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(served) / duration,
        "request_goodput": good,
        "output_throughput": outputs / duration,
        "total_token_throughput": (inputs + outputs) / duration,
        "max_output_tokens_per_s": max(made.output_per_second(served), default=0.0),
        "max_concurrent_requests": _most_at_once(served),
        "rtfx": 0.0,
        **_statistics("ttft", [last.first_s - last.sent_s for last in served if last.first_s is not None]),
        **_statistics("tpot", [value for last in served if (value := _per_token(last)) is not None]),
        **_gaps(served),
        **_statistics("e2el", [last.end_s - last.sent_s for last in served]),
    }


def _per_token(last: Attempt) -> float | None:
    return time_per_token(last, counted=False)


def _most_at_once(served: Sequence[Attempt]) -> int:
    """The most requests in flight at one time."""
    steps = sorted([(last.sent_s, 1) for last in served] + [(last.end_s, -1) for last in served])
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def _statistics(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """The keys of one latency, in ms."""
    ordered = sorted(1000 * value for value in seconds)
    found: dict[str, float | None] = {
        f"mean_{name}_ms": fmean(ordered) if ordered else None,
        f"median_{name}_ms": interpolated(ordered, 0.5) if ordered else None,
        f"std_{name}_ms": pstdev(ordered) if ordered else None,
    }
    for percent in _PERCENTILES:
        found[f"p{percent}_{name}_ms"] = interpolated(ordered, percent / 100) if ordered else None
    return found


def _gaps(served: Sequence[Attempt]) -> dict[str, float | None]:
    """The time between events, from the counts of a histogram: an error of at most 1 %."""
    counts = merged(last.gaps for last in served)
    total = sum(counts.values())
    if not total:
        return _statistics("itl", [])
    values = sorted((bucket_middle(bucket), count) for bucket, count in counts.items())
    mean = sum(value * count for value, count in values) / total
    spread = sum(count * (value - mean) ** 2 for value, count in values) / total
    points = {f"p{percent}": _counted(values, percent / 100 * total) for percent in _PERCENTILES}
    numbers = {"mean": mean, "median": points["p50"], "std": spread**0.5, **points}
    return {f"{name}_itl_ms": 1000 * value for name, value in numbers.items()}


def _counted(values: Sequence[tuple[float, int]], rank: float) -> float:
    """The value at a rank of ordered values with counts."""
    for value, count in values:
        rank -= count
        if rank <= 1e-9:
            return value
    return values[-1][0]
