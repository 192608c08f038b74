"""The result files of the instruments, each read into the same figures. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """What an instrument reports about one run. Seconds."""

    served: int
    failed: int
    rate: float
    """Requests sent per second, from the first to the last."""
    ttft_mean_s: float
    """Time to first token, from the sending."""
    ttft_p50_s: float
    ttft_p99_s: float
    between_mean_s: float
    """Between two tokens of a response."""
    between_p50_s: float
    e2e_mean_s: float
    e2e_p50_s: float


class Unreadable(ValueError):
    """Results that have no figures. The text says what is missing."""


def sent_rate(times: Iterable[float]) -> float:
    """Requests per second between the first and the last sending, given in seconds."""
    ordered = sorted(times)
    if len(ordered) < 2 or ordered[-1] == ordered[0]:
        raise Unreadable(f"{len(ordered)} requests have no rate")
    return (len(ordered) - 1) / (ordered[-1] - ordered[0])


def loadgen(summary: Json, attempts: Sequence[Json]) -> Figures:
    """``summary.json`` and the lines of ``requests.jsonl``."""
    cell = summary["cells"][0]
    served = cell["outcomes"].get("served", 0)
    if not served:
        raise Unreadable("no request was served")
    ttft, e2e = cell["ttft_sent"], cell["e2e"]
    return Figures(
        served=served,
        failed=cell["requests"] - served,
        rate=sent_rate(attempt["sent_s"] for attempt in attempts),
        ttft_mean_s=ttft["mean"]["value"],
        ttft_p50_s=ttft["p50"]["value"],
        ttft_p99_s=ttft["p99"]["value"],
        between_mean_s=cell["tpot"]["mean"]["value"],
        between_p50_s=cell["gap_p50_s"],
        e2e_mean_s=e2e["mean"]["value"],
        e2e_p50_s=e2e["p50"]["value"],
    )


def vllm_bench(result: Json) -> Figures:
    """The file of ``--save-result --save-detailed``, in milliseconds."""
    if not result["completed"]:
        raise Unreadable("no request was served")
    return Figures(
        served=result["completed"],
        failed=result["failed"],
        rate=sent_rate(result["start_times"]),
        ttft_mean_s=result["mean_ttft_ms"] / 1000,
        ttft_p50_s=result["p50_ttft_ms"] / 1000,
        ttft_p99_s=result["p99_ttft_ms"] / 1000,
        between_mean_s=result["mean_itl_ms"] / 1000,
        between_p50_s=result["p50_itl_ms"] / 1000,
        e2e_mean_s=result["mean_e2el_ms"] / 1000,
        e2e_p50_s=result["p50_e2el_ms"] / 1000,
    )


def guidellm(report: Json) -> Figures:
    """The JSON report. Latencies of requests are in seconds, of tokens in milliseconds."""
    benchmark = report["benchmarks"][0]
    requests = benchmark["requests"]
    served = requests["successful"] or []
    if not served:
        raise Unreadable("no request was served")
    failed = [*(requests["errored"] or []), *(requests["incomplete"] or [])]
    ttft, between, e2e = (
        benchmark["metrics"][name]["successful"]
        for name in ("time_to_first_token_ms", "inter_token_latency_ms", "request_latency")
    )
    return Figures(
        served=len(served),
        failed=len(failed),
        rate=sent_rate(request["request_start_time"] for request in served),
        ttft_mean_s=ttft["mean"] / 1000,
        ttft_p50_s=ttft["percentiles"]["p50"] / 1000,
        ttft_p99_s=ttft["percentiles"]["p99"] / 1000,
        between_mean_s=between["mean"] / 1000,
        between_p50_s=between["percentiles"]["p50"] / 1000,
        e2e_mean_s=e2e["mean"],
        e2e_p50_s=e2e["percentiles"]["p50"],
    )


def aiperf(summary: Json, records: Sequence[Json]) -> Figures:
    """``profile_export_aiperf.json`` in milliseconds, and the lines of ``profile_export.jsonl``."""
    if "time_to_first_token" not in summary:
        raise Unreadable("no request was served")
    ttft, between, e2e = (
        summary[name] for name in ("time_to_first_token", "inter_token_latency", "request_latency")
    )
    served = round(summary["request_count"]["avg"])
    return Figures(
        served=served,
        failed=len(records) - served,
        rate=sent_rate(record["metadata"]["request_start_ns"] / 1e9 for record in records),
        ttft_mean_s=ttft["avg"] / 1000,
        ttft_p50_s=ttft["p50"] / 1000,
        ttft_p99_s=ttft["p99"] / 1000,
        between_mean_s=between["avg"] / 1000,
        between_p50_s=between["p50"] / 1000,
        e2e_mean_s=e2e["avg"] / 1000,
        e2e_p50_s=e2e["p50"] / 1000,
    )


def inference_perf(summary: Json, requests: Sequence[Json]) -> Figures:
    """``summary_lifecycle_metrics.json`` in seconds, and ``per_request_lifecycle_metrics.json``."""
    successes = summary["successes"]
    if not successes["count"]:
        raise Unreadable("no request was served")
    latency = successes["latency"]
    ttft, between, e2e = (
        latency[name] for name in ("time_to_first_token", "inter_token_latency", "request_latency")
    )
    return Figures(
        served=successes["count"],
        failed=summary["failures"]["count"],
        rate=sent_rate(request["start_time"] for request in requests),
        ttft_mean_s=ttft["mean"],
        ttft_p50_s=ttft["median"],
        ttft_p99_s=ttft["p99"],
        between_mean_s=between["mean"],
        between_p50_s=between["median"],
        e2e_mean_s=e2e["mean"],
        e2e_p50_s=e2e["median"],
    )
