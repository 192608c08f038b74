"""The prompt tokens that an engine's prefix cache holds, computed from the block ids of a trace. Pure.

The engine keeps whole blocks of its own size. It always computes the last token of a prompt, so that one is
never a hit. Requests count one after the other: each one finds the blocks of all earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from loadgen.scenario import Trace, Traced

Key = tuple[int, ...]


def hits(trace: Trace, block_size: int = 16, blocks: int | None = None) -> int:
    """The hits in tokens, for one cache of so many blocks, or without a bound.

    A bounded cache evicts the block that was used the longest ago. Of one request, the last block counts as
    used first, as in vLLM. Answers take blocks, too.
    """
    cache: dict[Key, None] = {}  # the block that is evicted first comes first
    found = 0
    for number, request in enumerate(trace.requests):
        keys = list(_keys(trace, request, number, block_size))
        most = (request.input_tokens - 1) // block_size
        known = next((n for n, key in enumerate(keys[:most]) if key not in cache), most)
        found += known * block_size
        for key in keys[:known]:
            del cache[key]
        held = -(-_computed(request) // block_size)
        while blocks is not None and cache and len(cache) + held > blocks:
            del cache[next(iter(cache))]
        for key in reversed(keys):
            cache.setdefault(key)
    return found


def best_share(trace: Trace, block_size: int = 16) -> float:
    """The hits of an unbounded cache as a share of the prompt tokens, 0 to 1."""
    return hits(trace, block_size) / sum(request.input_tokens for request in trace.requests)


def _keys(trace: Trace, request: Traced, number: int, size: int) -> Iterator[Key]:
    """A key for each block of the engine that the request fills. Equal keys mean equal contexts up to there.

    A block of the engine is known by the id that its last token lies in, because an id stands for the whole
    prompt up to its end. What has no id is the request's own.
    """
    told = min(request.input_tokens, len(request.blocks) * trace.block_tokens)
    for end in range(size, _computed(request) + 1, size):
        if end <= told:
            place = (end - 1) // trace.block_tokens
            yield request.blocks[place], end - place * trace.block_tokens
        else:
            yield -1, number, end


def _computed(request: Traced) -> int:
    """The tokens of the context that the engine computes: all but the last one of the answer."""
    return request.input_tokens + request.output_tokens - 1
