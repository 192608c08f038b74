"""A simulated engine: it runs a number of requests at once. Other requests wait in the order of arrival.

Its prefix cache keeps the conversations that it computed last. The uncached tokens of a prompt take time.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from simulation.clock import VirtualClock
from simulation.setup import KV_PER_SLOT, TOKENS_PER_SEQUENCE_S

PROMPT_TOKENS_S = 2000.0
"""Prompt tokens per second that an engine computes for one sequence."""
BLOCK = 16


class Prompt(NamedTuple):
    """A prompt that continues a conversation."""

    conversation: int
    tokens: int
    shared: int = 0
    """The number of its leading tokens that belong to ``family`` and not to the conversation. Only an engine
    with steps has them."""
    family: int = 0


class Work(Protocol):
    """A request on an engine."""

    @property
    def size(self) -> int:
        """Its tokens, which determine its time."""

    @property
    def prompt(self) -> Prompt | None:
        """Its prompt; ``None`` if its time is part of the size."""

    def found(self, cached_tokens: int) -> None:
        """The engine has this number of the prompt's tokens in its cache."""

    def began(self) -> None:
        """The engine begins with it."""

    def finished(self) -> None:
        """The engine has finished it."""


class AnyEngine(Protocol):
    """An engine of a simulated replica."""

    @property
    def number(self) -> int:
        """The number of its sidecar."""

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts."""

    @property
    def found_tokens(self) -> int:
        """The number of them that were in the cache."""

    @property
    def has_room(self) -> bool:
        """Whether it has a slot for one more request."""

    @property
    def running(self) -> int:
        """The number of running requests."""

    def lose(self) -> None:
        """The engine is gone, with all its requests."""

    def add(self, work: Work) -> None:
        """A request arrives."""

    def stop(self, work: Work) -> int:
        """A request is aborted. Returns the number of its output tokens so far, if the engine counts them."""


class RoomWatch:
    """The engines with a free slot, each with the time since which it has had one without a break."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.free_since: dict[AnyEngine, float] = {}
        """In the order of these times."""

    def changed(self, engine: AnyEngine) -> None:
        """The number of requests on an engine changed, or the engine is gone."""
        if not engine.has_room:
            self.free_since.pop(engine, None)
        elif engine not in self.free_since:
            self.free_since[engine] = self._clock.now


class Engine:
    """One engine with ``slots`` sequences."""

    def __init__(self, clock: VirtualClock, slots: int, watch: RoomWatch, number: int) -> None:
        self.number = number
        """The number of its sidecar."""
        self._watch = watch
        self._clock = clock
        self._slots = slots
        self._backlog: deque[Work] = deque()
        self._running: dict[Work, None] = {}
        self._cache: dict[int, int] = {}
        """Tokens by conversation, the least recently used one first."""
        self._cached = 0
        self.prompt_tokens = self.found_tokens = 0
        """The tokens of all prompts, and the number of them that were in the cache."""
        self.is_gone = False
        watch.changed(self)

    def lose(self) -> None:
        """The engine is gone, with all its requests."""
        self.is_gone = True
        self._watch.changed(self)

    @property
    def has_room(self) -> bool:
        """Whether it has a slot for one more request."""
        return not self.is_gone and len(self._running) + len(self._backlog) < self._slots

    @property
    def running(self) -> int:
        """The number of running requests."""
        return len(self._running)

    def add(self, work: Work) -> None:
        """A request arrives."""
        self._backlog.append(work)
        self._start()

    def stop(self, work: Work) -> int:
        """See ``AnyEngine``. This engine does not count tokens."""
        if work in self._running:
            del self._running[work]
            self._start()
        elif work in self._backlog:
            self._backlog.remove(work)
            self._watch.changed(self)
        return 0

    def _start(self) -> None:
        while self._backlog and len(self._running) < self._slots and not self.is_gone:
            work = self._backlog.popleft()
            self._running[work] = None
            work.began()
            seconds = work.size / TOKENS_PER_SEQUENCE_S + self._compute(work)
            self._clock.after(seconds, lambda work=work: self._finish(work))  # type: ignore[misc]
        self._watch.changed(self)

    def _compute(self, work: Work) -> float:
        """The seconds for the uncached part of a prompt."""
        prompt = work.prompt
        if prompt is None:
            return 0.0
        before = self._cache.pop(prompt.conversation, 0)
        cached = min(before, prompt.tokens - 1) // BLOCK * BLOCK
        self._cache[prompt.conversation] = after = max(before, prompt.tokens + work.size)
        self._cached += after - before
        while self._cached > self._slots * KV_PER_SLOT:
            self._cached -= self._cache.pop(next(iter(self._cache)))
        self.prompt_tokens += prompt.tokens
        self.found_tokens += cached
        work.found(cached)
        return (prompt.tokens - cached) / PROMPT_TOKENS_S

    def _finish(self, work: Work) -> None:
        if work in self._running and not self.is_gone:
            del self._running[work]
            work.finished()
            self._start()
