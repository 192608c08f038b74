"""The scheduler: selects the sequences of each step, and gives them tokens. Pure.

The caller plans a step (``plan``), waits for its duration, and completes it (``complete``). Time is an
argument, in seconds of a monotonic clock. The rules are vLLM's:

- Running sequences come before waiting ones, each in their order, within one token budget per step. A context
  that exceeds the rest of the budget continues in the next step.
- A waiting sequence is admitted when there is a slot, and blocks for its whole context. None overtakes it,
  unless it waits for its LoRA adapter: the running ones have at most ``max_loras`` different adapters.
- If there is no block for the next token of a running sequence, the last one in order is preempted. It loses
  its blocks, and is computed again before the sequences that wait behind it.
- A sequence ends exactly once, and then holds nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Sequential
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from loadgen.engine.cache import BlockPool
from loadgen.engine.counters import REQUESTS, TOKENS, Statistics
from loadgen.engine.model import Ending, Model, Policy, blocks_for
from loadgen.engine.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of one step."""

    parts: tuple[tuple[Sequence, int], ...]
    """The sequences of the step, each with the number of context tokens to compute."""
    decoding: int
    """The number of sequences with a computed context except for the last token."""
    prefilled: int
    """Context tokens of the other sequences."""
    started: int
    """Sequences that are admitted for the first time."""


class _Batch:
    """A plan under construction."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.parts: dict[Sequence, int] = {}
        self.started = 0
        self.has_preempted = False

    def add(self, sequence: Sequence, count: int) -> None:
        self.parts[sequence] = count
        self.budget -= count

    def drop(self, sequence: Sequence) -> None:
        self.has_preempted = True
        self.budget += self.parts.pop(sequence, 0)

    def plan(self) -> Plan:
        decoding = prefilled = 0
        for sequence, count in self.parts.items():
            if sequence.produced and sequence.computed == sequence.length - 1:
                decoding += 1
            else:
                prefilled += count
        return Plan(tuple(self.parts.items()), decoding, prefilled, self.started)


class Scheduler:
    """The sequences of one engine."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.pool = BlockPool(model.blocks)
        self.statistics = Statistics()
        self.waiting: list[Sequence] = []
        """Waiting sequences in the order of admission."""
        self.running: list[Sequence] = []
        self.prefilling_tokens = 0
        """Prompt tokens of the sequences without a first token."""
        self._order: Callable[[Sequence], Any] = (
            attrgetter("priority", "number") if model.policy is Policy.PRIORITY else attrgetter("number")
        )

    @property
    def unfinished(self) -> int:
        """Sequences that have not ended."""
        return len(self.waiting) + len(self.running)

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that are held."""
        return self.pool.used / self.pool.blocks

    def add(self, sequence: Sequence) -> None:
        """Add a new sequence. The caller ensures that its context fits the model's window."""
        assert 0 < len(sequence.prompt) <= len(sequence.prompt) + sequence.bound <= self.model.window
        self.prefilling_tokens += len(sequence.prompt)
        insort(self.waiting, sequence, key=self._order)

    def abort(self, sequence: Sequence, now: float) -> bool:
        """End the sequence of a disconnected client, and free its blocks; ``False`` if it had ended."""
        if sequence.state is State.ENDED:
            return False
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
        else:
            del self.waiting[bisect_left(self.waiting, self._order(sequence), key=self._order)]
        self._end(sequence, Ending.ABORT, now)
        return True

    def plan(self, now: float) -> Plan:
        """The work of the next step; empty only without unfinished sequences."""
        batch = _Batch(self.model.batched_tokens)
        for sequence in tuple(self.running):
            if batch.budget <= 0:
                break
            # An earlier sequence may have preempted it.
            if sequence.state is State.RUNNING:
                self._continue(sequence, batch)
        if not batch.has_preempted:
            self._admit(batch, now)
        return batch.plan()

    def complete(self, plan: Plan, now: float) -> list[Sequence]:
        """Complete a step. Returns the sequences that get a token; ended sequences get none."""
        served = []
        for sequence, count in plan.parts:
            if sequence.state is not State.RUNNING:
                continue
            sequence.computed += count
            if sequence.computed == sequence.length:
                self._give_token(sequence, now)
                served.append(sequence)
        self.statistics.stepped(len(served) + plan.prefilled)
        if self.model.adapters:
            running, waiting = _adapters(self.running), _adapters(self.waiting)
            self.statistics.adapters[",".join(running), ",".join(waiting)] = now
        return served

    def _continue(self, sequence: Sequence, batch: _Batch) -> None:
        count = min(sequence.length - sequence.computed, batch.budget)
        fresh = self._fresh(sequence, sequence.computed + count)
        while not self.pool.fits(fresh):
            victim = max(self.running, key=self._order)
            self._preempt(victim, batch)
            if victim is sequence:
                return
        self._occupy(sequence, fresh, sequence.computed + count)
        batch.add(sequence, count)

    def _admit(self, batch: _Batch, now: float) -> None:
        passed = 0
        while passed < len(self.waiting) and len(self.running) < self.model.slots and batch.budget > 0:
            sequence = self.waiting[passed]
            if not self._has_room_for(sequence.adapter):
                # As in vLLM, sequences of other adapters overtake it.
                passed += 1
                continue
            shared = self._cached(sequence)
            if not self.pool.fits(self._fresh(sequence, sequence.length) - len(shared), shared):
                return
            del self.waiting[passed]
            self._start(sequence, shared, batch, now)

    def _has_room_for(self, adapter: str) -> bool:
        """Whether one batch may have this adapter beside those of the running sequences."""
        if not adapter:
            return True
        running = _adapters(self.running)
        return adapter in running or len(running) < self.model.max_loras

    def _cached(self, sequence: Sequence) -> Sequential[int]:
        """The leading keys in the cache. The last token is always computed, because it gives the next one."""
        if not self.model.caches_prefixes:
            return ()
        keys = sequence.keys((sequence.length - 1) // self.model.block_size, self.model.block_size)
        return keys[: self.pool.known(keys)]

    def _start(self, sequence: Sequence, shared: Sequential[int], batch: _Batch, now: float) -> None:
        sequence.state = State.RUNNING
        self.running.append(sequence)
        self.pool.share(shared)
        sequence.held.extend(shared)
        sequence.computed = len(shared) * self.model.block_size
        if sequence.started_at is None:
            batch.started += 1
            sequence.started_at, sequence.cached = now, sequence.computed
            self.statistics.started(sequence, now)
        count = min(sequence.length - sequence.computed, batch.budget)
        end = sequence.computed + count
        self._occupy(sequence, self._fresh(sequence, end), end)
        batch.add(sequence, count)

    def _fresh(self, sequence: Sequence, tokens: int) -> int:
        """The number of missing blocks for so many tokens of context."""
        return blocks_for(tokens, self.model.block_size) - len(sequence.held)

    def _occupy(self, sequence: Sequence, fresh: int, tokens: int) -> None:
        """Hold fresh blocks. The blocks that the step fills get their keys now, as in vLLM."""
        self.pool.take(fresh)
        sequence.held.extend([None] * fresh)
        if not self.model.caches_prefixes:
            return
        size = self.model.block_size
        filled, before = tokens // size, sequence.computed // size
        if filled == before:
            return
        keys = sequence.keys(filled, size)
        for index in range(before, filled):
            if self.pool.name(keys[index]):
                sequence.held[index] = keys[index]

    def _preempt(self, sequence: Sequence, batch: _Batch) -> None:
        self.running.remove(sequence)
        batch.drop(sequence)
        self._release(sequence)
        sequence.state = State.WAITING
        sequence.preemptions += 1
        self.statistics.preemptions += 1
        insort(self.waiting, sequence, key=self._order)

    def _give_token(self, sequence: Sequence, now: float) -> None:
        if sequence.first_token_at is None:
            sequence.first_token_at = now
            self.prefilling_tokens -= len(sequence.prompt)
            self.statistics.first_token(sequence, now)
        else:
            self.statistics.next_token(now - sequence.last_token_at)
        sequence.last_token_at = now
        sequence.produced += sequence.bound > 0
        ending = _ending(sequence)
        if ending is not None:
            self.running.remove(sequence)
            self._end(sequence, ending, now)

    def _end(self, sequence: Sequence, ending: Ending, now: float) -> None:
        sequence.state, sequence.ending = State.ENDED, ending
        self._release(sequence)
        if sequence.first_token_at is None:
            self.prefilling_tokens -= len(sequence.prompt)
        self.statistics.ended(sequence, ending, now)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.held)
        sequence.held.clear()
        sequence.computed = 0


def _adapters(sequences: Iterable[Sequence]) -> list[str]:
    """The LoRA adapters of sequences, each once, in their order."""
    return list(dict.fromkeys(sequence.adapter for sequence in sequences if sequence.adapter))


def limit_reached(schedulers: Sequential[Scheduler], sequences: int) -> str | None:
    """The limit of one server's queue that so many more sequences exceed, by vLLM's name."""
    model = schedulers[0].model
    unfinished = sum(scheduler.unfinished for scheduler in schedulers)
    if model.max_queued_requests is not None and unfinished + sequences > model.max_queued_requests:
        return REQUESTS
    # vLLM compares the backlog without the tokens of the request.
    backlog = sum(scheduler.prefilling_tokens for scheduler in schedulers)
    if model.max_queued_tokens is not None and backlog >= model.max_queued_tokens:
        return TOKENS
    return None


def _ending(sequence: Sequence) -> Ending | None:
    """The ending, if the sequence ends with its newest token, or with its prompt."""
    if not sequence.bound:
        return Ending.STOP
    if sequence.natural is not None and sequence.produced >= sequence.natural:
        return Ending.STOP
    return Ending.LENGTH if sequence.produced >= sequence.bound else None
