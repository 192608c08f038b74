"""The input of a simulation: tenants, faults, the size of the pool, and the times of its parts."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.engine.model import Model
from tokenpool.admission.queue import QueueSettings
from tokenpool.entitlements import Entitlement, Group, Pricing, ReplicaCapacity
from tokenpool.leases.settings import LeaseSettings
from tokenpool.planning.planner import PlannerSettings

TOKENS_PER_SEQUENCE_S = 50.0
"""Tokens per second of one running sequence."""
KV_PER_SLOT = 2048.0
"""KV tokens of an engine for each of its slots."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One entitlement and its load: workers in closed loop that send each request to a random sidecar."""

    entitlement: Entitlement
    workers: int
    tokens: int = 50
    """Mean size of a request."""
    think_s: float = 0.2
    skew: float = 0.0
    """The share of requests that goes to the first sidecar instead."""
    starts_at: float = 0.0
    arrivals: float = 1.0
    """The relative rate of this tenant's arrivals in open loop."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities of faults per message, and rates of faults per sidecar and second."""

    loss: float = 0.0
    duplicates: float = 0.0
    late: float = 0.0
    """The probability of a delay of up to a second."""
    crashes: float = 0.0
    pauses: float = 0.0
    partitions: float = 0.0
    peer_loss: float = 0.0
    """The probability that an ask, an answer to it, or the request after it is lost between two sidecars."""
    peer_late: float = 0.0
    """The probability that a message between two sidecars is delayed by up to a second."""
    outages: Sequence[tuple[float, float, bool]] = ()
    """Outages of the lease store: start, end, and whether it is empty afterwards."""
    drift: float = 0.0
    """Clocks run fast or slow by up to this share."""
    quiet_after: float = math.inf
    """No fault begins later."""


class Lie(enum.Enum):
    """A replica that gives other replicas wrong information."""

    BOASTS = "boasts"
    """It always states room for its whole capacity, and refuses every ask."""
    HIDES = "hides"
    """It always states that it has no room."""
    SILENT = "silent"
    """It states its room, and answers no ask."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request of the past. Its tokens are those that the engine reported."""

    at_s: float
    """Its arrival, in seconds from the first arrival of the record."""
    entitlement: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """The leading input tokens that were in the prefix cache. They are a prefix that all requests of the
    entitlement share."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One simulation."""

    tenants: Sequence[Tenant]
    sidecars: int
    slots: int = 8
    """Sequences that each engine runs."""
    seconds: float = 20.0
    faults: Faults = Faults()
    seed: int = 1
    settings: LeaseSettings = LeaseSettings()
    queue: QueueSettings = QueueSettings()
    planner: PlannerSettings = PlannerSettings()
    warm_up_s: float = 4.0
    """The time at the start that counts for over-admission only."""
    distance_s: float = 0.00035
    """The one-way delay between a sidecar and the lease store."""
    message_s: float = 0.0001
    """The time that the lease store takes for a message ..."""
    row_s: float = 0.000024
    """... and for each entitlement in it, measured on Redis 6.2. It processes one message at a time."""
    open_loop: float = 0.0
    """Requests per second of all tenants together, independent of answers; 0 means workers in closed loop."""
    cut_at: float = math.inf
    """The time at which engines are lost for good ..."""
    kept: int = 0
    """... and the number of sidecars that are left."""
    handover: bool = True
    """Whether sidecars hand requests over to replicas with room."""
    affinity: bool = True
    """Whether they prefer the replica that has a prompt in its cache."""
    conversations: int = 0
    """The number of conversations at a time, with ``open_loop``; 0 means requests without prompts."""
    tries: int = 1
    """The number of replicas at which a client tries a request that is refused."""
    unaddressed: int = 0
    """The number of the last sidecars to which no client sends a request. All others see their room."""
    groups: Sequence[Group] = ()
    """The groups of the tenants' entitlements."""
    liars: Sequence[Lie] = ()
    """The lies of the last sidecars."""
    replay: Sequence[Recorded] = ()
    """Requests of the past, in the order of their times, in place of random ones. They need ``model``."""
    states_bound: bool = False
    """Whether a replayed request states its recorded output as its bound; otherwise it states none."""
    model: Model | None = None
    """The engine, step by step, as ``loadgen engine`` runs it. The sidecars then learn its capacity from its
    metrics. ``None``: an engine with ``slots`` sequences of constant speed, whose capacity is known."""
    replica: ReplicaCapacity = ReplicaCapacity()
    """The pool file's capacity of a replica; for ``model`` only."""
    pricing: Pricing = Pricing()
    poll_s: float = 0.25
    """The interval between two reads of the engine's metrics; for ``model`` only."""

    @property
    def notice_s(self) -> float:
        """The longest time in seconds for which free room may be unknown to a sidecar, in a small pool.

        A replica states its room at the latest one interval after a request has ended there. Another sidecar
        reads it at the latest one interval later. The statement, the message of the other sidecar and its
        answer each take one way to or from the lease store. Then follow an ask, an offer and the request.
        Each of these takes one way between sidecars. All distances are equal here, and a way takes at most
        1.7 times the distance. In a pool of more than ``MOST_PEERS + 1`` replicas an answer does not name all
        of them.
        """
        return 2 * self.settings.interval_s + 6 * 1.7 * self.distance_s
