"""A sequence of a simulated engine: one prompt and its output so far."""

from __future__ import annotations

import enum
from collections.abc import Sequence as Sequential
from dataclasses import dataclass, field

from loadgen.engine.model import Ending


class State(enum.Enum):
    """The state of a sequence."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and its output. Only the scheduler changes it."""

    number: int
    """A unique number in the order of arrival."""
    prompt: tuple[int, ...]
    bound: int
    """The most output tokens; 0 for a pooled prompt, which ends without output."""
    natural: int | None = None
    """The number of output tokens after which it stops by itself; ``None`` means never."""
    priority: int = 0
    arrived_at: float = 0.0
    siblings: int = 1
    """The number of sequences of the same request."""
    adapter: str = ""
    """The LoRA adapter; empty for the base model."""
    state: State = State.WAITING
    ending: Ending | None = None
    produced: int = 0
    computed: int = 0
    """The number of context tokens with KV values."""
    cached: int = 0
    """... the number of these that were cached at its first admission."""
    preemptions: int = 0
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float = 0.0
    held: list[int | None] = field(default_factory=list)
    """The keys of its blocks in order; ``None`` for a block without a key."""
    _keys: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """The number of context tokens: prompt and output so far."""
        return len(self.prompt) + self.produced

    def keys(self, count: int, block_size: int) -> Sequential[int]:
        """The keys of its first full blocks. A key identifies all tokens up to the end of its block.

        Prompts do not repeat the output of a sequence, so its number identifies its output tokens.
        """
        made = self._keys
        while len(made) < count:
            start = len(made) * block_size
            chunk = self.prompt[start : start + block_size]
            before = made[-1] if made else hash(self.adapter)
            is_told = len(chunk) == block_size
            made.append(hash((before, chunk) if is_told else (before, chunk, self.number, len(made))))
        return made[:count]
