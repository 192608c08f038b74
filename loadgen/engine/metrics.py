"""What vLLM's metrics page shows, and the counting behind it. Pure.

Names, labels and buckets are those of vLLM 0.32.0, as far as anyone here reads them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from loadgen.engine.model import Ending, Model

if TYPE_CHECKING:
    from loadgen.engine.scheduler import Scheduler, Sequence

_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    80.0,
)
_WHOLE = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
_TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
_STEP_TOKENS = tuple(float(1 << power) for power in (0, *range(3, 15)))
_FEW = (1.0, 2.0, 5.0, 10.0, 20.0)

REQUESTS, TOKENS = "max_num_queued_reqs", "max_num_queued_tokens"
"""Queue limits that refuse a request, by vLLM's names."""


class Histogram:
    """Counts by upper bounds, and a sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of each bucket alone; the last is above all bounds."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Upper bounds and how many values were not above."""
        yield from zip([*map(str, self.bounds), "+Inf"], accumulate(self.counts), strict=True)


class Statistics:
    """What has happened in one engine since it began. Times in seconds."""

    def __init__(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = self.preemptions = 0
        self.cache_queries = self.cache_hits = 0
        self.endings = dict.fromkeys(Ending, 0)
        self.rejections = {REQUESTS: 0, TOKENS: 0}
        self.time_to_first_token = Histogram(_FIRST)
        self.inter_token_latency = Histogram(_BETWEEN)
        self.time_per_output_token = Histogram(_BETWEEN)
        self.e2e_latency = Histogram(_WHOLE)
        self.queue_time = Histogram(_WHOLE)
        self.inference_time = Histogram(_WHOLE)
        self.prefill_time = Histogram(_WHOLE)
        self.decode_time = Histogram(_WHOLE)
        self.request_prompt_tokens = Histogram(_TOKENS)
        self.request_generation_tokens = Histogram(_TOKENS)
        self.max_tokens = Histogram(_TOKENS)
        self.siblings = Histogram(_FEW)
        self.step_tokens = Histogram(_STEP_TOKENS)

    def started(self, sequence: Sequence, now: float) -> None:
        """A sequence was taken in for the first time, and its prompt looked up in the cache."""
        self.cache_queries += len(sequence.prompt)
        self.cache_hits += sequence.cached
        self.queue_time.observe(now - sequence.arrived_at)

    def first_token(self, sequence: Sequence, now: float) -> None:
        """A sequence got its first token."""
        self.prompt_tokens += len(sequence.prompt)
        self.cached_tokens += sequence.cached
        self.generation_tokens += 1
        self.time_to_first_token.observe(now - sequence.arrived_at)

    def next_token(self, seconds: float) -> None:
        """A sequence got another token, so long after the one before."""
        self.generation_tokens += 1
        self.inter_token_latency.observe(seconds)

    def stepped(self, tokens: int) -> None:
        """A step computed and gave so many tokens."""
        self.step_tokens.observe(tokens)

    def ended(self, sequence: Sequence, ending: Ending, now: float) -> None:
        """A sequence ended."""
        self.endings[ending] += 1
        if ending is Ending.ABORT or sequence.started_at is None or sequence.first_token_at is None:
            return
        decode = now - sequence.first_token_at
        self.e2e_latency.observe(now - sequence.arrived_at)
        self.inference_time.observe(now - sequence.started_at)
        self.prefill_time.observe(sequence.first_token_at - sequence.started_at)
        self.decode_time.observe(decode)
        self.time_per_output_token.observe(decode / max(sequence.produced - 1, 1))
        self.request_prompt_tokens.observe(len(sequence.prompt))
        self.request_generation_tokens.observe(sequence.produced)
        self.max_tokens.observe(sequence.bound)
        self.siblings.observe(sequence.siblings)


def page(scheduler: Scheduler, started_at: float) -> str:
    """The metrics page in Prometheus' text format. ``started_at`` is Unix time."""
    return "".join(f"{line}\n" for line in _lines(scheduler, started_at))


def _lines(scheduler: Scheduler, started_at: float) -> Iterator[str]:
    model, counted = scheduler.model, scheduler.statistics
    labels = {"engine": "0", "model_name": model.name}
    yield from _plain("process_start_time_seconds", "gauge", {}, started_at)
    waiting = len(scheduler.waiting)
    for name, value in (
        ("num_requests_running", float(len(scheduler.running))),
        ("num_requests_waiting", float(waiting)),
        ("kv_cache_usage_perc", scheduler.kv_usage),
    ):
        yield from _plain(f"vllm:{name}", "gauge", labels, value)
    reasons = [({"reason": "capacity"}, waiting), ({"reason": "deferred"}, 0)]
    yield from _family("vllm:num_requests_waiting_by_reason", "gauge", labels, reasons)
    for name, value in (
        ("num_preemptions_total", counted.preemptions),
        ("prefix_cache_queries_total", counted.cache_queries),
        ("prefix_cache_hits_total", counted.cache_hits),
        ("prompt_tokens_total", counted.prompt_tokens),
        ("prompt_tokens_cached_total", counted.cached_tokens),
        ("generation_tokens_total", counted.generation_tokens),
    ):
        yield from _plain(f"vllm:{name}", "counter", labels, value)
    endings = [({"finished_reason": str(ending)}, number) for ending, number in counted.endings.items()]
    endings += [({"finished_reason": "error"}, 0), ({"finished_reason": "repetition"}, 0)]
    yield from _family("vllm:request_success_total", "counter", labels, endings)
    rejections = [({"reason": reason}, number) for reason, number in counted.rejections.items()]
    yield from _family("vllm:admission_rejections_total", "counter", {"model_name": model.name}, rejections)
    for name, histogram in _histograms(counted):
        yield from _histogram(f"vllm:{name}", labels, histogram)
    yield from _plain("vllm:cache_config_info", "gauge", labels | _cache_labels(model), 1)


def _histograms(counted: Statistics) -> Iterable[tuple[str, Histogram]]:
    return (
        ("request_prompt_tokens", counted.request_prompt_tokens),
        ("request_generation_tokens", counted.request_generation_tokens),
        ("iteration_tokens_total", counted.step_tokens),
        ("request_params_n", counted.siblings),
        ("request_params_max_tokens", counted.max_tokens),
        ("time_to_first_token_seconds", counted.time_to_first_token),
        ("inter_token_latency_seconds", counted.inter_token_latency),
        ("request_time_per_output_token_seconds", counted.time_per_output_token),
        ("e2e_request_latency_seconds", counted.e2e_latency),
        ("request_queue_time_seconds", counted.queue_time),
        ("request_inference_time_seconds", counted.inference_time),
        ("request_prefill_time_seconds", counted.prefill_time),
        ("request_decode_time_seconds", counted.decode_time),
    )


def _cache_labels(model: Model) -> dict[str, str]:
    tokens = model.blocks * model.block_size
    return {
        "block_size": str(model.block_size),
        "num_gpu_blocks": str(model.blocks),
        "kv_cache_size_tokens": str(tokens),
        "kv_cache_max_concurrency": str(tokens / model.window),
        "enable_prefix_caching": str(model.caches_prefixes),
    }


def _plain(name: str, kind: str, labels: Mapping[str, str], value: float) -> Iterator[str]:
    return _family(name, kind, labels, [({}, value)])


def _family(
    name: str, kind: str, labels: Mapping[str, str], samples: Iterable[tuple[Mapping[str, str], float]]
) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    for more, value in samples:
        yield f"{name}{_labels({**labels, **more})} {float(value)}"


def _histogram(name: str, labels: Mapping[str, str], histogram: Histogram) -> Iterator[str]:
    yield f"# TYPE {name} histogram"
    count = 0
    for bound, count in histogram.cumulative():
        yield f"{name}_bucket{_labels({**labels, 'le': bound})} {float(count)}"
    yield f"{name}_count{_labels(labels)} {float(count)}"
    yield f"{name}_sum{_labels(labels)} {histogram.total}"


def _labels(labels: Mapping[str, str]) -> str:
    return (
        "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in sorted(labels.items())) + "}"
        if labels
        else ""
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
