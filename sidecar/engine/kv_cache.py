"""The sizes of the engines' KV caches, from the series that vLLM and SGLang publish about them. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sidecar.engine.prometheus_text import Labels

LARGEST_BLOCK = 1 << 20
"""The largest accepted block size, in tokens. Every request costs at least one block."""
DEFAULT_BLOCK = 16
"""vLLM's default block size, in tokens."""

_ENGINE = (b"engine", b"dp_rank")
"""Labels that distinguish the engines behind one server: vLLM's and SGLang's."""


class KvCache(NamedTuple):
    """One engine's KV cache."""

    tokens: float
    """Infinite if the engine has no KV cache, and so no bound."""
    block_size: int
    """Tokens; 0 if it is unknown."""


def engine_of(labels: Labels) -> bytes:
    """The name of the engine that a series is about; empty if there is only one."""
    return next((labels[name] for name in _ENGINE if name in labels), b"")


def usage(used: Mapping[bytes, float], caches: Mapping[bytes, KvCache]) -> float:
    """The mean share of the caches in use, 0 to 1, weighted by size where all sizes are known."""
    used = {engine: share for engine, share in used.items() if share <= 1}
    if not used:
        return 0.0
    weights = {engine: caches[engine].tokens if engine in caches else math.inf for engine in used}
    if not all(math.isfinite(weight) for weight in weights.values()):
        return math.fsum(used.values()) / len(used)
    return math.fsum(used[e] * weights[e] for e in used) / math.fsum(weights.values())


def sglang_caches(tokens: Mapping[bytes, float], page_sizes: Iterable[float]) -> dict[bytes, KvCache]:
    """The caches by engine, from SGLang's tokens by engine and its page sizes in tokens."""
    block = max(page_sizes, default=0.0)
    return {
        engine: KvCache(size, int(block) if 1 <= block <= LARGEST_BLOCK else 0)
        for engine, size in tokens.items()
        if size > 0
    }


class _Config(NamedTuple):
    tokens: float
    blocks: float
    block_size: int


def vllm_caches(infos: Iterable[Labels]) -> dict[bytes, KvCache]:
    """The caches by engine, from the labels of each ``vllm:cache_config_info``.

    - ``kv_cache_size_tokens`` is the size of one engine's cache. It is correct for hybrid models, whose
      requests take blocks in several groups. If it is present, it decides.
    - ``num_gpu_blocks`` is one engine's if the engines' numbers differ. Equal numbers may be one engine's
      or the sum: vLLM's front-end sums over its engines and repeats the sum in each series (0.32 does). The
      sum is assumed: with an estimate that is too small the engine still serves; with one that is too large
      it preempts.
    - An encoder-only model has one block for each engine, which vLLM never uses: no KV cache.
    """
    configs = _configs(infos)
    largest = max((config.tokens for config in configs.values()), default=0.0)
    most = max((config.blocks for config in configs.values()), default=0.0)
    if largest:
        return {e: KvCache(c.tokens or largest, c.block_size) for e, c in configs.items()}
    if not most:
        return {}
    if most <= len(configs):
        return {e: KvCache(math.inf, c.block_size) for e, c in configs.items()}
    is_sum = len(configs) > 1 and all(config.blocks == most for config in configs.values())
    share = 1 / len(configs) if is_sum else 1.0
    return {
        e: KvCache(c.blocks * share * (c.block_size or DEFAULT_BLOCK), c.block_size)
        for e, c in configs.items()
        if c.blocks
    }


def _configs(infos: Iterable[Labels]) -> dict[bytes, _Config]:
    """By engine; of several series of one engine the largest numbers count."""
    configs: dict[bytes, _Config] = {}
    for labels in infos:
        engine = engine_of(labels)
        before = configs.get(engine, _Config(0.0, 0.0, 0))
        block = _whole(labels, b"effective_attention_block_size") or _whole(labels, b"block_size")
        configs[engine] = _Config(
            max(before.tokens, _whole(labels, b"kv_cache_size_tokens")),
            max(before.blocks, _whole(labels, b"num_gpu_blocks")),
            max(before.block_size, block if block <= LARGEST_BLOCK else 0),
        )
    return configs


def _whole(labels: Labels, name: bytes) -> int:
    """A label's positive whole number; 0 without one (vLLM writes ``None`` for an unknown one)."""
    text = labels.get(name, b"")
    return int(text) if text.isdigit() and len(text) <= 15 else 0
