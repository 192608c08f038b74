"""Live capacity: what one replica sustains now, from its pool file and from what the engine shows.

Pure: an observation of the engine in, an amount out. Polling the engine is the sidecar's engine
watcher's job.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenpool.amounts import NO_KV_BOUND, NO_KV_BOUND_FROM, Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.entitlements import ReplicaCapacity

UNLEARNED_TOKENS_PER_SECOND = 1e9
"""Stands for a throughput that nothing has shown a bound of yet."""
DEFAULT_SLOTS = 256.0
"""vLLM's own default of ``--max-num-seqs``, until its queue shows how many it really runs."""
LOOKS_QUEUED = 4
"""Looks in a row at a queue after which it is one. With two, arrivals between the steps of a nearly idle
engine were taken for a queue: 1 % of small tenants' requests were shed."""
LEARNED_SLACK = 1.15
"""What an engine was seen to sustain is what it was given to do: a little more may be tried at any time."""
SATURATED = 0.85
"""From this part of its slots on an engine counts as saturated: a look may fall between one request's end
and the next one's begin. With all of them asked for, most looks took a busy engine for one with room, and
what was learned rose to twice the truth: service was then counted in slots, and large requests had more
tokens of it."""
SATURATION_MEMORY_S = 5.0
"""Time constant of the throughput that is learned while the engine is saturated."""
PROBE_PER_SECOND = 0.1
"""How fast a learned throughput is raised while it holds requests back from an engine with room."""
PROBE_SLOTS = 0.15
"""By what part (at least one) learned slots are raised while they hold requests back from such an engine."""
FIRST_PROBE_S, LONGEST_PROBE_S = 5.0, 60.0
"""After a probe that met a queue the next one waits; each time twice as long."""


@dataclass(frozen=True, slots=True)
class EngineObservation:
    """One look at the engine's own metrics. Counters are totals since the engine's start."""

    at: float
    """Seconds on the observer's monotonic clock."""
    running: float
    waiting: float
    kv_usage: float
    """Share of the KV cache in use, 0 to 1."""
    kv_tokens: float | None = None
    """Capacity of the KV cache in tokens: infinite where the engine has none (encoder-only models), ``None``
    where it does not say."""
    block_size: int = 16
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    cached_tokens: float = 0.0
    started_at: float | None = None
    """Start of the engine's process, on its own wall clock: it changes when the engine restarts."""
    is_vllm: bool = False
    """Whether the page is vLLM's."""


class CapacityModel:
    """One replica's capacity. ``None`` in the pool file (``auto``) is read from the engine or learned."""

    __slots__ = (
        "_bound",
        "_cache",
        "_is_unsaid",
        "_last",
        "_looks_queued",
        "_probe_at",
        "_probe_wait_s",
        "_queued_at",
        "_slots",
        "_spec",
        "_throughput",
    )

    def __init__(self, spec: ReplicaCapacity) -> None:
        self._spec = spec
        self._last: EngineObservation | None = None
        self._queued_at = 0.0
        """How many sequences ran while others waited, at some looks in a row: one may catch an arrival."""
        self._looks_queued = 0
        self._cache: float | None = None
        self._is_unsaid = False
        """Whether the engine was asked for its KV capacity and did not say it."""
        self._begin()

    def _begin(self) -> None:
        """Learn from the start."""
        start = self._spec.start
        self._slots = start.concurrency or DEFAULT_SLOTS
        self._throughput: float | None = start.tokens_per_second or None
        self._probe_at, self._probe_wait_s = 0.0, FIRST_PROBE_S
        self._bound = math.inf
        """How many ran when requests last waited: the engine runs no more, until it is seen to."""

    def reconfigure(self, spec: ReplicaCapacity) -> None:
        """Take over a changed pool file; what was learned stays, unless learning is to begin elsewhere."""
        begins_anew, self._spec = spec.start != self._spec.start, spec
        if begins_anew:
            self._begin()

    def forget(self) -> None:
        """The engine restarted: its counters start again, and it may be another engine altogether."""
        self._last = self._cache = None
        self._is_unsaid = False
        self._queued_at = 0.0
        self._begin()

    def distrust(self) -> None:
        """There is no look that tells what runs now: only what the sidecar counts itself does.

        The KV capacity that the engine said before stays in force. Where nothing says one, there is no KV
        bound: concurrency and throughput still bind, and an engine that serves is not left idle.
        """
        self._last = None
        self._is_unsaid = self._cache is None

    def learn_cache(self, kv_tokens: float | None) -> None:
        """What the engine says of its KV capacity; ``None`` where it says nothing of it."""
        if kv_tokens is not None:
            self._cache = min(kv_tokens, NO_KV_BOUND)
        self._is_unsaid = self._cache is None

    @property
    def is_known(self) -> bool:
        """Whether the KV capacity is known, or it is known that nothing says one."""
        return self._has_kv_number or self._is_unsaid

    @property
    def lacks_kv_bound(self) -> bool:
        """Whether there is no KV bound because nothing says one. Not so of an engine without a KV cache."""
        return self._is_unsaid and not self._has_kv_number

    @property
    def _has_kv_number(self) -> bool:
        return self._cache is not None or self._spec.kv_tokens is not None or self._spec.start.kv_tokens > 0

    def observe(
        self, seen: EngineObservation, *, lacked_throughput: bool = False, lacked_slots: bool = False
    ) -> None:
        """Learn from one look: since the last, throughput limits ``held_back`` requests, or slots lacked."""
        last, self._last = self._last, seen
        self._looks_queued = self._looks_queued + 1 if seen.waiting > 0 else 0
        queues = self._looks_queued >= LOOKS_QUEUED
        self._queued_at = max(seen.running, last.running) if queues and last is not None else 0.0
        self.learn_cache(seen.kv_tokens)
        if last is None or seen.at <= last.at:
            return
        self._learn_slots(seen, last, lacked_slots=lacked_slots)
        # One look at a waiting request may catch an arrival: at 3 requests/s a simulated engine of 700
        # tokens/s was taken for one of 100 to 320, and spot was delayed for 15 s until that was unlearned.
        saturated = queues or seen.running >= SATURATED * self.amount().concurrency
        self._learn_throughput(seen, last, saturated=saturated, lacked=lacked_throughput)

    def _learn_slots(self, seen: EngineObservation, last: EngineObservation, *, lacked_slots: bool) -> None:
        """An engine that keeps requests waiting shows how many sequences it runs; one that does not, and is
        full as far as is known while requests are delayed for it, may run more."""
        waits = min(seen.waiting, last.waiting)
        # Two looks may each catch one arrival at an engine with room. While more slots are tried than are
        # proven, one request that waits is enough to see that there are none.
        is_probed = self._slots > self._bound
        if waits > 1 or (waits > 0 and (is_probed or self._looks_queued >= LOOKS_QUEUED)):
            runs = max(seen.running, last.running, 1.0)
            if runs < self._slots < DEFAULT_SLOTS:
                self._probe_at = seen.at + self._probe_wait_s
                self._probe_wait_s = min(self._probe_wait_s * 2, LONGEST_PROBE_S)
            self._slots = runs
            if self._looks_queued >= LOOKS_QUEUED:
                self._bound = runs
            return
        if seen.running > self._bound:
            self._bound = math.inf
        self._slots = max(self._slots, seen.running)
        is_full = seen.running >= math.floor(self._slots) and seen.waiting == 0
        if is_full and lacked_slots and seen.at >= self._probe_at:
            # What is tried is not proven: a guarantee does not wait for it.
            self._bound = math.floor(self._slots)
            self._slots = math.floor(self._slots) + max(math.floor(self._slots * PROBE_SLOTS), 1.0)

    def _learn_throughput(
        self, seen: EngineObservation, last: EngineObservation, *, saturated: bool, lacked: bool
    ) -> None:
        elapsed = seen.at - last.at
        computed = (seen.prompt_tokens - seen.cached_tokens) - (last.prompt_tokens - last.cached_tokens)
        rate = (max(computed, 0.0) + max(seen.generation_tokens - last.generation_tokens, 0.0)) / (elapsed)
        if saturated and rate > 0:
            if self._throughput is None:
                self._throughput = rate
            else:
                kept = math.exp(-elapsed / SATURATION_MEMORY_S)
                self._throughput = self._throughput * kept + rate * (1 - kept)
        elif lacked and self._throughput is not None:
            self._throughput *= 1 + PROBE_PER_SECOND * elapsed

    def amount(self) -> Amount:
        """What the replica sustains now.

        No KV tokens until the engine was asked for them (``is_known``), ``NO_KV_BOUND`` where they have no
        bound, ``UNLEARNED_TOKENS_PER_SECOND`` while no throughput is learned.
        """
        spec = self._spec
        throughput = spec.tokens_per_second
        if throughput is None:
            learned = self._throughput
            throughput = learned * LEARNED_SLACK if learned else UNLEARNED_TOKENS_PER_SECOND
        cache = spec.kv_tokens if spec.kv_tokens is not None else self._cache or spec.start.kv_tokens
        if self._cache is not None:
            cache = min(cache, self._cache)
        elif not self._has_kv_number and self._is_unsaid:
            cache = NO_KV_BOUND
        slots = spec.concurrency if spec.concurrency is not None else self._slots
        return Amount(throughput, cache, slots)

    def room(self, own_sequences: int, own_kv_tokens: int) -> EngineRoom:
        """The engine's room, with the load that is not ours told apart.

        ``own_*`` is what the ledger held when the last observation was made. What an engine with a queue
        runs is all it can run, whatever the pool file says.
        """
        amount = self.amount()
        seen = self._last
        if seen is None:
            return EngineRoom(amount.concurrency, amount.kv_tokens, proven_slots=amount.concurrency)
        slots = amount.concurrency
        if self._queued_at > 0:
            slots = max(min(slots, self._queued_at), 1.0)
        cache = self._cache or amount.kv_tokens
        in_cache = seen.kv_usage * cache if cache < NO_KV_BOUND_FROM else 0.0
        return EngineRoom(
            slots,
            amount.kv_tokens,
            max(seen.running + seen.waiting - own_sequences, 0.0),
            max(in_cache - own_kv_tokens, 0.0),
            proven_slots=min(slots, self._bound),
        )
