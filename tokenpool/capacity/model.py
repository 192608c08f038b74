"""Live capacity: the load that one replica sustains now, from its pool file and from the engine's metrics.

Pure: it takes observations of the engine, and returns an ``Amount`` and an ``EngineRoom``. The sidecar's
engine watcher polls the engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenpool.amounts import NO_KV_BOUND, NO_KV_BOUND_FROM, Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.entitlements import ReplicaCapacity

UNLEARNED_TOKENS_PER_SECOND = 1e9
"""The assumed throughput of an engine before an observation shows a bound."""
DEFAULT_SLOTS = 256.0
"""vLLM's default of ``--max-num-seqs``, used until the engine's queue shows the actual number of slots."""
OBSERVATIONS_UNTIL_QUEUED = 4
"""The number of successive observations with waiting requests that prove a queue. With two, arrivals between
the steps of a nearly idle engine counted as a queue: 1 % of small tenants' requests were shed."""
LEARNED_SLACK = 1.15
"""The factor on learned throughput. An engine shows only the load that it gets, so slightly more is always
tried."""
SATURATED = 0.85
"""An engine that runs at least this part of its slots counts as saturated. An observation may fall between
one request's end and the next one's start. When all slots had to be in use, a busy engine seemed to
have room in most observations. Learned throughput rose to twice the true value. So service was counted in
slots, and tenants with large requests got more tokens."""
SATURATION_MEMORY_S = 5.0
"""Time constant in seconds of the throughput that is learned while the engine is saturated."""
PROBE_PER_SECOND = 0.1
"""The relative growth per second of a learned throughput that sheds requests while the engine has room."""
PROBE_SLOTS = 0.15
"""The part of the learned slots (at least one slot) that is added when they shed requests although the engine
has no queue."""
FIRST_PROBE_S, LONGEST_PROBE_S = 5.0, 60.0
"""The pause in seconds after a probe that caused a queue. It doubles with each such probe."""


@dataclass(frozen=True, slots=True)
class EngineObservation:
    """One observation of the engine's metrics page. Counters are totals since the engine's start."""

    at: float
    """Seconds on the observer's monotonic clock."""
    running: float
    """Sequences that the engine runs."""
    waiting: float
    """Requests that wait in the engine's own queue."""
    kv_usage: float
    """The share of the KV cache in use, 0 to 1."""
    kv_tokens: float | None = None
    """The capacity of the KV cache in tokens: infinite if the engine has no cache (encoder-only models),
    ``None`` if the page does not state it."""
    block_size: int = 16
    """Tokens in one block of the KV cache."""
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    cached_tokens: float = 0.0
    """Prompt tokens that the engine found in its prefix cache."""
    started_at: float | None = None
    """The start of the engine's process, on its own wall clock. It changes when the engine restarts."""
    is_vllm: bool = False
    """Whether the page is vLLM's."""


class CapacityModel:
    """One replica's capacity. Numbers that the pool file leaves ``auto`` are read from the engine or
    learned."""

    __slots__ = (
        "_bound",
        "_is_kv_unstated",
        "_kv_tokens",
        "_last",
        "_probe_at",
        "_probe_wait_s",
        "_queued_observations",
        "_running_with_queue",
        "_slots",
        "_spec",
        "_throughput",
    )

    def __init__(self, spec: ReplicaCapacity) -> None:
        self._spec = spec
        self._last: EngineObservation | None = None
        """The last observation; ``None`` while the load of the engine is unknown."""
        self._queued_observations = 0
        """The number of successive observations with waiting requests."""
        self._running_with_queue = 0.0
        """Sequences that ran while the engine had a queue; 0 while it has none."""
        self._kv_tokens: float | None = None
        """The KV capacity that the engine stated."""
        self._is_kv_unstated = False
        """Whether the engine was asked for its KV capacity and did not state it."""
        self._begin()

    def _begin(self) -> None:
        """Learn from the pool file's starting values."""
        start = self._spec.start
        self._slots = start.concurrency or DEFAULT_SLOTS
        self._throughput: float | None = start.tokens_per_second or None
        self._probe_at, self._probe_wait_s = 0.0, FIRST_PROBE_S
        self._bound = math.inf
        """Sequences that ran when requests last waited: no observation has shown that the engine runs
        more."""

    def reconfigure(self, spec: ReplicaCapacity) -> None:
        """Apply a changed pool file. Learned values stay, unless the starting values changed."""
        starts_differ, self._spec = spec.start != self._spec.start, spec
        if starts_differ:
            self._begin()

    def engine_restarted(self) -> None:
        """Forget all learned values: the engine's counters start again, and it may be another engine."""
        self._last = self._kv_tokens = None
        self._is_kv_unstated = False
        self._running_with_queue = 0.0
        self._begin()

    def forget_load(self) -> None:
        """The engine's metrics page is not usable: the load on the engine is unknown.

        The KV capacity that the engine stated before stays in force. If nothing states one, KV tokens have no
        bound. Concurrency and throughput still bind, so a serving engine is used.
        """
        self._last = None
        self._is_kv_unstated = self._kv_tokens is None

    def learn_kv_tokens(self, kv_tokens: float | None) -> None:
        """Take over the KV capacity in tokens that the engine stated; ``None`` if it stated none."""
        if kv_tokens is not None:
            self._kv_tokens = min(kv_tokens, NO_KV_BOUND)
        self._is_kv_unstated = self._kv_tokens is None

    @property
    def is_known(self) -> bool:
        """Whether the KV capacity is known, or the engine was asked and did not state one."""
        return self._has_kv_number or self._is_kv_unstated

    @property
    def lacks_kv_bound(self) -> bool:
        """Whether KV tokens have no bound because nothing states one; false for an engine without a cache."""
        return self._is_kv_unstated and not self._has_kv_number

    @property
    def _has_kv_number(self) -> bool:
        return (
            self._kv_tokens is not None or self._spec.kv_tokens is not None or self._spec.start.kv_tokens > 0
        )

    def observe(
        self, seen: EngineObservation, *, lacked_throughput: bool = False, lacked_slots: bool = False
    ) -> None:
        """Learn from one observation.

        ``lacked_throughput`` and ``lacked_slots`` state whether requests were shed since the last observation
        because throughput or slots were missing.
        """
        last, self._last = self._last, seen
        self._queued_observations = self._queued_observations + 1 if seen.waiting > 0 else 0
        has_queue = self._queued_observations >= OBSERVATIONS_UNTIL_QUEUED
        self._running_with_queue = max(seen.running, last.running) if has_queue and last is not None else 0.0
        self.learn_kv_tokens(seen.kv_tokens)
        if last is None or seen.at <= last.at:
            return
        self._learn_slots(seen, last, has_queue=has_queue, lacked=lacked_slots)
        # One waiting request may be an arrival. At 3 requests/s a simulated engine of 700 tokens/s seemed to
        # have 100 to 320. Spot was delayed for 15 s until that was corrected.
        saturated = has_queue or seen.running >= SATURATED * self.amount().concurrency
        self._learn_throughput(seen, last, saturated=saturated, lacked=lacked_throughput)

    def _learn_slots(
        self, seen: EngineObservation, last: EngineObservation, *, has_queue: bool, lacked: bool
    ) -> None:
        """Learn how many sequences the engine runs.

        A queue in the engine shows the number. An engine without a queue may run more. If all known slots are
        in use and requests are shed because slots are missing, more slots are probed.
        """
        waits = min(seen.waiting, last.waiting)
        # At an engine with room, each of two observations may fall on one arrival. While slots are probed,
        # one waiting request is enough to show that the engine does not run more.
        is_probed = self._slots > self._bound
        if waits > 1 or (waits > 0 and (is_probed or has_queue)):
            runs = max(seen.running, last.running, 1.0)
            if runs < self._slots < DEFAULT_SLOTS:
                self._probe_at = seen.at + self._probe_wait_s
                self._probe_wait_s = min(self._probe_wait_s * 2, LONGEST_PROBE_S)
            self._slots = runs
            if has_queue:
                self._bound = runs
            return
        if seen.running > self._bound:
            self._bound = math.inf
        self._slots = max(self._slots, seen.running)
        is_full = seen.running >= math.floor(self._slots) and seen.waiting == 0
        if is_full and lacked and seen.at >= self._probe_at:
            # Probed slots are not proven: a guaranteed request does not wait for one.
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
        """The load that the replica sustains now.

        KV tokens are 0 until the engine was asked for its capacity (``is_known``), and ``NO_KV_BOUND``
        without a bound. Throughput is ``UNLEARNED_TOKENS_PER_SECOND`` until it is learned.
        """
        spec = self._spec
        throughput = spec.tokens_per_second
        if throughput is None:
            learned = self._throughput
            throughput = learned * LEARNED_SLACK if learned else UNLEARNED_TOKENS_PER_SECOND
        kv_tokens = spec.kv_tokens if spec.kv_tokens is not None else self._kv_tokens or spec.start.kv_tokens
        if self._kv_tokens is not None:
            kv_tokens = min(kv_tokens, self._kv_tokens)
        elif self.lacks_kv_bound:
            kv_tokens = NO_KV_BOUND
        slots = spec.concurrency if spec.concurrency is not None else self._slots
        return Amount(throughput, kv_tokens, slots)

    def room(self, own_sequences: int, own_kv_tokens: int) -> EngineRoom:
        """The engine's room, with the load that other clients put on it.

        ``own_sequences`` and ``own_kv_tokens`` are the load in this sidecar's ledger at the last observation.
        An engine with a queue runs no more sequences than now, even if the pool file states more.
        """
        amount = self.amount()
        seen = self._last
        if seen is None:
            return EngineRoom(amount.concurrency, amount.kv_tokens, proven_slots=amount.concurrency)
        slots = amount.concurrency
        if self._running_with_queue > 0:
            slots = max(min(slots, self._running_with_queue), 1.0)
        cache = self._kv_tokens or amount.kv_tokens
        in_cache = seen.kv_usage * cache if cache < NO_KV_BOUND_FROM else 0.0
        return EngineRoom(
            slots,
            amount.kv_tokens,
            max(seen.running + seen.waiting - own_sequences, 0.0),
            max(in_cache - own_kv_tokens, 0.0),
            proven_slots=min(slots, self._bound),
        )
