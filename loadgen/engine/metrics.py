"""The metrics page of a simulated engine in Prometheus' text format, with vLLM 0.32.0's names. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from loadgen.engine.counters import Histogram, Statistics
from loadgen.engine.model import Model
from loadgen.engine.scheduler import Scheduler


def page(scheduler: Scheduler, started_at: float, now: float) -> str:
    """The metrics page in Prometheus' text format. ``started_at`` and ``now`` are Unix times."""
    return "".join(f"{line}\n" for line in _lines(scheduler, started_at, now))


def _lines(scheduler: Scheduler, started_at: float, now: float) -> Iterator[str]:
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
    # The simulator's own error, which a real engine does not have.
    yield from _histogram("loadgen_engine_step_delay_seconds", labels, counted.step_delay)
    yield from _plain("loadgen_engine_lost_seconds_total", "counter", labels, counted.lost_s)
    yield from _plain("vllm:cache_config_info", "gauge", labels | _cache_labels(model), 1)
    if model.max_loras:
        # Like vLLM, it has no label for the model, and its value is the time of the last update.
        loras = {"max_lora": str(model.max_loras), "running_lora_adapters": "", "waiting_lora_adapters": ""}
        yield from _plain("vllm:lora_requests_info", "gauge", loras, now)


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
