"""The engine's own figures of a run: the difference of its metrics page before and after. Pure.

vLLM and the simulator have the same histograms. Their sums and counts are exact, so the means are, too.
Percentiles would be guesses within wide buckets, so there are none.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_TTFT, _BETWEEN, _WHOLE = (
    f"vllm:{name}_seconds" for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency")
)
_INPUT, _OUTPUT = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
_DELAY = "loadgen_engine_step_delay_seconds"
_LOST = "loadgen_engine_lost_seconds_total"


@dataclass(frozen=True)
class Own:
    """The engine's figures. Seconds, and tokens of a request."""

    requests: int
    ttft_mean_s: float
    between_mean_s: float
    e2e_mean_s: float
    input_tokens: float
    output_tokens: float
    delay_mean_s: float | None
    """Of the simulator: from the planned end of a step until its last token was written."""
    lost_s: float | None
    """Of the simulator: time for which it was blocked, and which it did not catch up."""


def totals(page: str) -> defaultdict[str, float]:
    """All samples without buckets, added over their labels."""
    found: defaultdict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if "le" not in sample.labels:
                found[sample.name] += sample.value
    return found


def between(before: str, after: str) -> Own | None:
    """The figures of the requests between two pages; none if no request ended."""
    start, end = totals(before), totals(after)

    def mean(name: str) -> float:
        count = end[f"{name}_count"] - start[f"{name}_count"]
        return (end[f"{name}_sum"] - start[f"{name}_sum"]) / count if count else 0.0

    requests = round(end[f"{_WHOLE}_count"] - start[f"{_WHOLE}_count"])
    if not requests:
        return None
    is_simulated = _LOST in end
    return Own(
        requests,
        mean(_TTFT),
        mean(_BETWEEN),
        mean(_WHOLE),
        mean(_INPUT),
        mean(_OUTPUT),
        mean(_DELAY) if is_simulated else None,
        end[_LOST] - start[_LOST] if is_simulated else None,
    )
