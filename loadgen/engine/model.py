"""The model of an engine: its size, the costs of its steps, its scheduling. Validated records."""

from __future__ import annotations

import enum
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


class Policy(enum.StrEnum):
    """The order of service."""

    FCFS = "fcfs"
    PRIORITY = "priority"
    """Lower priority values first, then by arrival."""


class Ending(enum.StrEnum):
    """The reason of a sequence's end: vLLM's ``finish_reason``."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Costs:
    """The duration of the engine's steps, in seconds."""

    step_s: float = 0.01
    """The cost of every step."""
    per_sequence_s: float = 0.0005
    """The cost of each sequence that decodes in a step."""
    per_prompt_token_s: float = 0.00002
    """The cost of each token of context that a step computes."""
    per_request_s: float = 0.0
    """The cost of each sequence that a step admits: tokenising, queueing, the first response."""
    noise: float = 0.0
    """The relative deviation of a step's time (log-normal with mean 1)."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{each.name} is {value}; it must be 0 or more")

    def seconds(self, *, decoding: int, prefilled: int, started: int, chance: random.Random) -> float:
        """The duration of a step, s."""
        plain = (
            self.step_s
            + self.per_sequence_s * decoding
            + self.per_prompt_token_s * prefilled
            + self.per_request_s * started
        )
        if not self.noise:
            return plain
        return plain * math.exp(chance.gauss(-self.noise * self.noise / 2, self.noise))


_COUNTS = (
    *("slots", "blocks", "block_size", "window", "batched_tokens", "vocabulary"),
    *("stream_interval", "embedding_size", "cores"),
)
"""Fields that must be 1 or more."""


@dataclass(frozen=True, slots=True)
class Model:
    """One engine."""

    name: str = "tiny"
    cores: int = 1
    """Engine cores (``--data-parallel-size``). All sizes are those of one core."""
    slots: int = 8
    """The most running sequences (``--max-num-seqs``)."""
    blocks: int = 4096
    """KV blocks."""
    block_size: int = 16
    """Tokens of a block."""
    window: int = 2048
    """The most tokens of one sequence (``--max-model-len``)."""
    batched_tokens: int = 2048
    """The most tokens computed in one step; a longer prompt takes several steps."""
    caches_prefixes: bool = True
    policy: Policy = Policy.FCFS
    refuses_priority: bool = True
    """Whether a priority is refused under first come, first served. vLLM 0.32.0 ignores it instead."""
    max_queued_requests: int | None = None
    """The most unfinished sequences; further requests are refused with 503."""
    max_queued_tokens: int | None = None
    """The number of uncomputed prompt tokens from which requests are refused with 503."""
    tells_cached_tokens: bool = False
    """Whether usage has ``prompt_tokens_details`` (``--enable-prompt-tokens-details``)."""
    max_loras: int = 0
    """The most LoRA adapters of one batch (``--max-loras``); 0 without LoRA."""
    adapters: tuple[str, ...] = ()
    """Names of LoRA adapters (``--lora-modules``)."""
    stream_interval: int = 1
    """Tokens of a stream's event (``--stream-interval``); the first token has an event of its own."""
    is_encoder: bool = False
    """Whether it is an encoder without KV cache: it serves embeddings, scores and reranking only."""
    cache_labels: tuple[tuple[str, str], ...] = ()
    """Labels of ``vllm:cache_config_info`` beside the usual ones, or in place of them; empty: absent."""
    has_old_names: bool = False
    """Whether metrics have the names of older releases (``vllm:gpu_cache_usage_perc``)."""
    embedding_size: int = 64
    """The dimensions of an embedding, and of a row of ``prompt_embeds``."""
    takes_embeds: bool = False
    """Whether a completion may have ``prompt_embeds`` (``--enable-prompt-embeds``)."""
    tokens_per_byte: float = 0.25
    vocabulary: int = 32000
    """The number of token ids."""
    output_tokens: float = 0.0
    """Mean length of a response that may end by itself; 0 means that all responses have their bound."""
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.max_loras < 0:
            raise ValueError(f"max_loras is {self.max_loras}; it must be 0 (no LoRA) or more")
        if self.adapters and not self.max_loras:
            raise ValueError("max_loras is 0, but there are LoRA adapters: give --max-loras 1 or more")
        names = (self.name, *self.adapters)
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(f"the names of models and adapters are {', '.join(names)}: give distinct names")
        if not 0 < self.tokens_per_byte <= 1:
            raise ValueError(f"tokens_per_byte is {self.tokens_per_byte}; it must be above 0, and 1 at most")
        if not 0 <= self.output_tokens < math.inf:
            raise ValueError(f"output_tokens is {self.output_tokens}; it must be 0 (off) or 1 and more")
        needed = blocks_for(self.window, self.block_size)
        if self.blocks < needed:
            raise ValueError(
                f"{self.blocks} blocks of {self.block_size} tokens cannot hold one sequence of {self.window}"
                f" tokens: give --blocks {needed} or more, or a smaller --window"
            )

    def natural_length(self, chance: random.Random) -> int | None:
        """The number of tokens after which a response ends by itself (geometric); ``None`` means never."""
        if not self.output_tokens:
            return None
        if self.output_tokens <= 1:
            return 1
        return 1 + int(math.log(1.0 - chance.random()) / math.log(1.0 - 1.0 / self.output_tokens))


def blocks_for(tokens: int, block_size: int) -> int:
    """KV blocks that hold so many tokens."""
    return -(-tokens // block_size)


class LikeError(ValueError):
    """A calibration file cannot be used. The text names the file and the problem."""


LIKE_COSTS = tuple(each.name for each in fields(Costs))
LIKE_SIZES = ("slots", "blocks", "block_size", "window")


def read_like(path: Path) -> Mapping[str, float]:
    """The content of a file of ``loadgen.engine.calibrate``, by field. Raises ``LikeError``."""
    try:
        content: Any = json.loads(path.read_text())
    except OSError as error:
        raise LikeError(
            f"{path}: {error.strerror}; write it with python -m loadgen.engine.calibrate"
        ) from None
    except ValueError as error:
        raise LikeError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise LikeError(f"{path}: must be an object with {', '.join(LIKE_COSTS)}")
    found: dict[str, float] = {}
    for name in (*LIKE_COSTS, *LIKE_SIZES):
        if name not in content:
            continue
        value, whole = content[name], name in LIKE_SIZES
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value < 0:
            raise LikeError(
                f"{path}: {name} is {value!r}, not a {'whole ' if whole else ''}number of 0 or more"
            )
        found[name] = value
    if not found:
        raise LikeError(f"{path}: has none of {', '.join((*LIKE_COSTS, *LIKE_SIZES))}")
    return found
