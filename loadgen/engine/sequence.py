"""A sequence of a simulated engine: one prompt and its answer so far."""

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
    """One prompt and the answer to it. Its scheduler alone changes it."""

    number: int
    """Unique, and in the order of arrival."""
    prompt: tuple[int, ...]
    bound: int
    """Tokens that it produces at most."""
    natural: int | None = None
    """After how many it stops by itself; ``None``: never."""
    priority: int = 0
    arrived_at: float = 0.0
    siblings: int = 1
    """Sequences of the same request, itself included."""
    state: State = State.WAITING
    ending: Ending | None = None
    produced: int = 0
    computed: int = 0
    """Tokens of its context whose KV is there."""
    cached: int = 0
    """... of these, found in the cache when it was first taken in."""
    preemptions: int = 0
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float = 0.0
    held: list[int | None] = field(default_factory=list)
    """Its blocks, in order: the key of each, ``None`` for one of unknown content."""
    _keys: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens of its context: prompt and answer so far."""
        return len(self.prompt) + self.produced

    def keys(self, count: int, block_size: int) -> Sequential[int]:
        """The keys of its first full blocks: each of the tokens up to its end.

        Nobody says again what a sequence has said, so the tokens of an answer are known by the sequence.
        """
        made = self._keys
        while len(made) < count:
            start = len(made) * block_size
            chunk = self.prompt[start : start + block_size]
            before = made[-1] if made else 0
            is_told = len(chunk) == block_size
            made.append(hash((before, chunk) if is_told else (before, chunk, self.number, len(made))))
        return made[:count]
