"""The engine's metrics page: bytes in the Prometheus text format in, one observation out. No I/O.

The page is fed slice by slice, so that a large one never holds the event loop for long. Only the series that
``_FIELDS`` names are read; a line that breaks the format is skipped. A page of 186 kB takes 1.2 ms in all and
0.1 ms at once (``prometheus_client.parser`` takes 72 ms, in one piece).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tokenpool.capacity.model import EngineObservation

SLICE_BYTES = 8 * 1024
"""What is fed at once. The worst slice, of nothing but wanted lines or labels, takes 0.7 ms."""
MOST_PAGE_BYTES = 8 * 1024 * 1024
MOST_LINE_BYTES = 16 * 1024
"""vLLM's longest line, ``vllm:cache_config_info``, has 2 kB."""
MOST_SERIES = 4096
"""Wanted series on one page: an engine has about ten, and a server some tens of engines."""
LARGEST_BLOCK = 1 << 20
"""A larger block size is not believed: every request would cost at least so many tokens."""
DEFAULT_BLOCK = 16

_FIELDS: Mapping[str, tuple[bytes, ...]] = {
    "running": (b"vllm:num_requests_running", b"sglang:num_running_reqs"),
    "waiting": (b"vllm:num_requests_waiting", b"sglang:num_queue_reqs"),
    "kv_usage": (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc", b"sglang:token_usage"),
    "prompt": (b"vllm:prompt_tokens_total", b"vllm:prompt_tokens", b"sglang:prompt_tokens_total"),
    "generation": (
        b"vllm:generation_tokens_total",
        b"vllm:generation_tokens",
        b"sglang:generation_tokens_total",
    ),
    # Local and external hits together where there is such a counter; the others count local hits alone.
    "cached": (
        b"vllm:prompt_tokens_cached_total",
        b"vllm:prompt_tokens_cached",
        b"vllm:prefix_cache_hits_total",
        b"vllm:prefix_cache_hits",
        b"vllm:gpu_prefix_cache_hits_total",
        b"vllm:gpu_prefix_cache_hits",
        b"sglang:cached_tokens_total",
    ),
    "started": (b"process_start_time_seconds",),
    "cache_config": (b"vllm:cache_config_info",),
    "cache_tokens": (b"sglang:max_total_num_tokens",),
    "page_size": (b"sglang:page_size",),
}
"""Each number with its names. Of several names on one page the first counts, and the others are ignored:
releases that rename a series publish both names for a while, and their sum would be twice the truth."""

_ENGINE = (b"engine", b"dp_rank")
"""Labels that tell the engines behind one server apart: vLLM's and SGLang's."""
_RANKS = frozenset((b"tp_rank", b"pp_rank", b"moe_ep_rank"))
"""SGLang's labels of workers that compute the same requests: their series repeat each other."""

_NAMES = frozenset(name for names in _FIELDS.values() for name in names)
_LINE = re.compile(
    rb"\n(" + b"|".join(re.escape(n) for n in sorted(_NAMES, reverse=True)) + rb")(?=[{ \t])([^\n]*)"
)
_LABEL = re.compile(
    rb'[ \t]*(?:([a-zA-Z_][a-zA-Z0-9_]*)|"((?:[^"\\]|\\.)*)")[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(,|(?=\}))'
)
_LABELS_END = re.compile(rb"[ \t]*\}")
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?Inf|NaN")
_ESCAPE = re.compile(rb'\\([\\"n])')
_UNESCAPED = {b"\\": b"\\", b'"': b'"', b"n": b"\n"}

Labels = dict[bytes, bytes]


class PageUnusable(Exception):
    """The page says nothing that can be used; the text says why."""


class Sample(NamedTuple):
    """One line of a page."""

    name: bytes
    labels: Labels
    value: float


def read_sample(name: bytes, rest: bytes) -> Sample | None:
    """A sample from what follows its name; ``None`` where the line breaks the format.

    A timestamp or an exemplar may follow the value; both are ignored.
    """
    labels: Labels = {}
    rest = rest.strip(b" \t\r")
    if rest.startswith(b"{"):
        at = 1
        while (label := _LABEL.match(rest, at)) is not None:
            plain, quoted, value, _ = label.groups()
            labels[plain if plain is not None else _unescaped(quoted)] = _unescaped(value)
            at = label.end()
        end = _LABELS_END.match(rest, at)
        if end is None:
            return None
        rest = rest[end.end() :]
    words = rest.split(None, 1)
    if not words or _NUMBER.fullmatch(words[0]) is None:
        return None
    return Sample(name, labels, float(words[0]))


def _unescaped(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: _UNESCAPED[found[1]], text) if b"\\" in text else text


class PageReader:
    """Reads one page. ``feed`` it, then ask for its ``observation``; both raise ``PageUnusable``."""

    def __init__(self) -> None:
        self._rest = b""
        self._size = 0
        self._series: dict[bytes, dict[tuple[tuple[bytes, bytes], ...], float]] = {}
        self._count = 0

    def feed(self, data: bytes) -> None:
        """Read some more of the page: at most ``SLICE_BYTES`` at once, wherever it is cut."""
        self._size += len(data)
        if self._size > MOST_PAGE_BYTES:
            raise PageUnusable(f"it is larger than {MOST_PAGE_BYTES >> 20} MiB")
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        self._rest = rest
        if len(rest) > MOST_LINE_BYTES:
            raise PageUnusable(f"it has a line of more than {MOST_LINE_BYTES >> 10} KiB")
        if newline:
            for name, text in _LINE.findall(b"\n" + whole):
                self._add(name, text)

    def _add(self, name: bytes, text: bytes) -> None:
        sample = read_sample(name, text)
        if sample is None or sample.labels.get(b"priority"):
            return  # SGLang repeats a queue's requests by priority, besides their total
        if not (0 <= sample.value < math.inf):
            return
        series = self._series.setdefault(name, {})
        key = tuple(sorted(item for item in sample.labels.items() if item[0] not in _RANKS))
        if key not in series:
            self._count += 1
            if self._count > MOST_SERIES:
                raise PageUnusable(f"it has more than {MOST_SERIES} series of the engine's load")
        series[key] = max(series.get(key, 0.0), sample.value)

    def observation(self, at: float) -> EngineObservation:
        """What the whole page says. ``at`` is when it was read, in seconds."""
        if self._rest.strip() not in (b"", b"# EOF"):
            raise PageUnusable("it ends in the middle of a line")
        running = self._sum("running")
        if running is None:
            raise PageUnusable(
                "it is no metrics page of vLLM or SGLang: it lacks vllm:num_requests_running and"
                " sglang:num_running_reqs"
            )
        cache = _of_vllm(self._labels("cache_config")) or self._of_sglang()
        tokens = [engine.tokens for engine in cache.values()]
        started = self._numbers("started")
        return EngineObservation(
            at=at,
            running=running,
            waiting=self._sum("waiting") or 0.0,
            kv_usage=self._usage(cache),
            kv_tokens=math.fsum(tokens) if tokens else None,
            block_size=next((e.block_size for e in cache.values() if e.block_size), DEFAULT_BLOCK),
            prompt_tokens=self._sum("prompt") or 0.0,
            generation_tokens=self._sum("generation") or 0.0,
            cached_tokens=self._sum("cached") or 0.0,
            started_at=max(started.values(), default=None),
            is_vllm=any(name.startswith(b"vllm:") for name in self._series),
        )

    def _of(self, field: str) -> Mapping[tuple[tuple[bytes, bytes], ...], float]:
        """The series of a number, under the first of its names that the page has."""
        return next((self._series[name] for name in _FIELDS[field] if name in self._series), {})

    def _sum(self, field: str) -> float | None:
        """Over all models and engines; ``None`` where the page has no such number."""
        series = self._of(field)
        return math.fsum(series.values()) if series else None

    def _numbers(self, field: str) -> dict[bytes, float]:
        """By engine; of several series of one engine the largest counts, such as of several models."""
        numbers: dict[bytes, float] = {}
        for key, value in self._of(field).items():
            engine = _engine(dict(key))
            numbers[engine] = max(numbers.get(engine, 0.0), value)
        return numbers

    def _labels(self, field: str) -> Iterable[Labels]:
        return [dict(key) for key in self._of(field)]

    def _of_sglang(self) -> dict[bytes, _Cache]:
        sizes = self._numbers("page_size")
        block = max(sizes.values(), default=0.0)
        return {
            engine: _Cache(tokens, int(block) if 1 <= block <= LARGEST_BLOCK else 0)
            for engine, tokens in self._numbers("cache_tokens").items()
            if tokens > 0
        }

    def _usage(self, cache: Mapping[bytes, _Cache]) -> float:
        """The mean over the engines, by the size of their caches where all have said it."""
        usage = {engine: use for engine, use in self._numbers("kv_usage").items() if use <= 1}
        if not usage:
            return 0.0
        weights = {e: cache[e].tokens if e in cache else math.inf for e in usage}
        if not all(math.isfinite(weight) for weight in weights.values()):
            return math.fsum(usage.values()) / len(usage)
        return math.fsum(usage[e] * weights[e] for e in usage) / math.fsum(weights.values())


class _Cache(NamedTuple):
    """One engine's KV cache."""

    tokens: float
    """Infinite where the engine has no KV cache, and so no bound."""
    block_size: int
    """0 where it is not known."""


def _engine(labels: Labels) -> bytes:
    return next((labels[name] for name in _ENGINE if name in labels), b"")


class _Config(NamedTuple):
    tokens: float
    blocks: float
    block_size: int


def _of_vllm(infos: Iterable[Labels]) -> dict[bytes, _Cache]:
    """The caches that ``vllm:cache_config_info`` describes, by engine.

    - ``kv_cache_size_tokens`` is one engine's, and right for hybrid models, whose requests take blocks in
      several groups: it counts where it is.
    - ``num_gpu_blocks`` is one engine's where the engines' differ. Where all are equal it may be one's or the
      sum: vLLM's front-end sums it over its engines and repeats the sum in each series (0.32 does). The sum
      is assumed: a cache taken for too small serves, one taken for too large makes engines preempt.
    - An encoder-only model has one block for each engine, which vLLM never uses: no KV cache.
    """
    configs: dict[bytes, _Config] = {}
    for labels in infos:
        engine = _engine(labels)
        before = configs.get(engine, _Config(0.0, 0.0, 0))
        block = _whole(labels, b"effective_attention_block_size") or _whole(labels, b"block_size")
        configs[engine] = _Config(
            max(before.tokens, _whole(labels, b"kv_cache_size_tokens")),
            max(before.blocks, _whole(labels, b"num_gpu_blocks")),
            max(before.block_size, block if block <= LARGEST_BLOCK else 0),
        )
    told = max((config.tokens for config in configs.values()), default=0.0)
    most = max((config.blocks for config in configs.values()), default=0.0)
    if told:
        return {e: _Cache(c.tokens or told, c.block_size) for e, c in configs.items()}
    if not most:
        return {}
    if most <= len(configs):
        return {e: _Cache(math.inf, c.block_size) for e, c in configs.items()}
    is_sum = len(configs) > 1 and all(config.blocks == most for config in configs.values())
    share = 1 / len(configs) if is_sum else 1.0
    return {
        e: _Cache(c.blocks * share * (c.block_size or DEFAULT_BLOCK), c.block_size)
        for e, c in configs.items()
        if c.blocks
    }


def _whole(labels: Labels, name: bytes) -> int:
    """A label's positive whole number; 0 where it has none (``None`` where vLLM does not know it)."""
    text = labels.get(name, b"")
    return int(text) if text.isdigit() and len(text) <= 15 else 0
