"""The metrics page of a simulated engine in Prometheus' text format, with vLLM 0.32.0's names. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from loadgen.engine.counters import Histogram, Statistics
from loadgen.engine.model import Model
from loadgen.engine.scheduler import Scheduler

Sample = tuple[Mapping[str, str], float]
"""The labels and the value of one series."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The times of a page."""

    started_at: float
    """The start of the server, Unix time, s."""
    now: float
    """Unix time, s."""
    clock: float
    """The same moment by the schedulers' clock, s."""


def page(schedulers: Sequence[Scheduler], rejections: Mapping[str, int], moment: Moment) -> str:
    """The metrics page of one server with one or several engine cores."""
    return "".join(f"{line}\n" for line in _lines(schedulers, rejections, moment))


def _lines(schedulers: Sequence[Scheduler], rejections: Mapping[str, int], moment: Moment) -> Iterator[str]:
    model = schedulers[0].model
    cores = [(_core_labels(model, number), core) for number, core in enumerate(schedulers)]
    yield from _family("process_start_time_seconds", "gauge", [({}, moment.started_at)])
    for name, read in _GAUGES:
        told = _name(name, model)
        yield from _family(told, "gauge", [(labels, read(core)) for labels, core in cores])
    reasons = [
        (labels | {"reason": reason}, len(core.waiting) if reason == "capacity" else 0)
        for labels, core in cores
        for reason in ("capacity", "deferred")
    ]
    yield from _family("vllm:num_requests_waiting_by_reason", "gauge", reasons)
    for name, count in _COUNTERS:
        counts = [(labels, count(core.statistics)) for labels, core in cores]
        yield from _family(_name(name, model), "counter", counts)
    endings = [
        (labels | {"finished_reason": reason}, number)
        for labels, core in cores
        for reason, number in (*core.statistics.endings.items(), ("error", 0), ("repetition", 0))
    ]
    yield from _family("vllm:request_success_total", "counter", endings)
    refused = [({"model_name": model.name, "reason": reason}, each) for reason, each in rejections.items()]
    yield from _family("vllm:admission_rejections_total", "counter", refused)
    for name, histogram in _HISTOGRAMS:
        yield f"# TYPE vllm:{name} histogram"
        for labels, core in cores:
            yield from _histogram(f"vllm:{name}", labels, histogram(core.statistics))
    yield from _own_lateness(cores)
    info = [(labels | _cache_labels(model), 1) for labels, _ in cores]
    yield from _family("vllm:cache_config_info", "gauge", info)
    if model.max_loras:
        yield from _family("vllm:lora_requests_info", "gauge", _adapters(schedulers, moment))


def _own_lateness(cores: Sequence[tuple[dict[str, str], Scheduler]]) -> Iterator[str]:
    """The simulator's own error, which a real engine does not have."""
    name = "loadgen_engine_step_delay_seconds"
    yield f"# TYPE {name} histogram"
    for labels, core in cores:
        yield from _histogram(name, labels, core.statistics.step_delay)
    lost = [(labels, core.statistics.lost_s) for labels, core in cores]
    yield from _family("loadgen_engine_lost_seconds_total", "counter", lost)


def _name(name: str, model: Model) -> str:
    """The name of a metric, in the model's release."""
    return f"vllm:{_OLD_NAMES.get(name, name) if model.has_old_names else name}"


def _core_labels(model: Model, number: int) -> dict[str, str]:
    return {"engine": str(number), "model_name": model.name}


def _adapters(schedulers: Sequence[Scheduler], moment: Moment) -> Iterator[Sample]:
    """A series for each set of adapters since the start; the value is the Unix time of its last use.

    As in vLLM, it has no label for the model or the core.
    """
    model, seen = schedulers[0].model, {("", ""): moment.clock}
    if any(core.statistics.adapters for core in schedulers):
        seen = {}
    for core in schedulers:
        for key, at in core.statistics.adapters.items():
            seen[key] = max(seen.get(key, at), at)
    for (running, waiting), at in seen.items():
        labels = {
            "max_lora": str(model.max_loras),
            "running_lora_adapters": running,
            "waiting_lora_adapters": waiting,
        }
        yield labels, moment.now - (moment.clock - at)


_OLD_NAMES = {
    "kv_cache_usage_perc": "gpu_cache_usage_perc",
    "prefix_cache_queries_total": "gpu_prefix_cache_queries_total",
    "prefix_cache_hits_total": "gpu_prefix_cache_hits_total",
}
_GAUGES: tuple[tuple[str, Callable[[Scheduler], float]], ...] = (
    ("num_requests_running", lambda core: len(core.running)),
    ("num_requests_waiting", lambda core: len(core.waiting)),
    ("kv_cache_usage_perc", lambda core: 0.0 if core.model.is_encoder else core.kv_usage),
)
_COUNTERS: tuple[tuple[str, Callable[[Statistics], float]], ...] = (
    ("num_preemptions_total", attrgetter("preemptions")),
    ("prefix_cache_queries_total", attrgetter("cache_queries")),
    ("prefix_cache_hits_total", attrgetter("cache_hits")),
    ("prompt_tokens_total", attrgetter("prompt_tokens")),
    ("prompt_tokens_cached_total", attrgetter("cached_tokens")),
    ("generation_tokens_total", attrgetter("generation_tokens")),
)
_HISTOGRAMS: tuple[tuple[str, Callable[[Statistics], Histogram]], ...] = (
    ("request_prompt_tokens", attrgetter("request_prompt_tokens")),
    ("request_generation_tokens", attrgetter("request_generation_tokens")),
    ("iteration_tokens_total", attrgetter("step_tokens")),
    ("request_params_n", attrgetter("siblings")),
    ("request_params_max_tokens", attrgetter("max_tokens")),
    ("time_to_first_token_seconds", attrgetter("time_to_first_token")),
    ("inter_token_latency_seconds", attrgetter("inter_token_latency")),
    ("request_time_per_output_token_seconds", attrgetter("time_per_output_token")),
    ("e2e_request_latency_seconds", attrgetter("e2e_latency")),
    ("request_queue_time_seconds", attrgetter("queue_time")),
    ("request_inference_time_seconds", attrgetter("inference_time")),
    ("request_prefill_time_seconds", attrgetter("prefill_time")),
    ("request_decode_time_seconds", attrgetter("decode_time")),
)


def _cache_labels(model: Model) -> dict[str, str]:
    # vLLM 0.32.0 repeats the sum of the cores' blocks in each series. An encoder has one block, and no cache.
    blocks = (1 if model.is_encoder else model.blocks) * model.cores
    tokens = model.blocks * model.block_size
    told = {
        "block_size": str(model.block_size),
        "num_gpu_blocks": str(blocks),
        "kv_cache_size_tokens": "None" if model.is_encoder else str(tokens),
        "kv_cache_max_concurrency": "None" if model.is_encoder else str(tokens / model.window),
        "enable_prefix_caching": str(model.caches_prefixes),
    }
    return {name: value for name, value in (told | dict(model.cache_labels)).items() if value}


def _family(name: str, kind: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{_labels(labels)} {float(value)}"


def _histogram(name: str, labels: Mapping[str, str], histogram: Histogram) -> Iterator[str]:
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
