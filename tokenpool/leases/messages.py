"""The records of the lease protocol, between sidecars, the lease store and the coordinator.

The records that Redis scripts read or write are positional on the wire. ``row_layout`` derives the positions
from the types here, so a new field goes to the end of its type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from tokenpool.amounts import NOTHING, Amount
from tokenpool.planning.idle import IdleTerms

Vector = tuple[float, float, float]
"""An amount on the wire, in the order of ``Amount``: tokens per second, KV tokens, sequences."""

REMEMBER_S = 60.0
"""The time for which the lease store remembers the usage totals of a sidecar whose leases expired."""
CONTENDED_S = 0.5
"""The time for which sidecars return unused leases after one of them lacked capacity.

The lease store asks again after half of it."""
WAIT_S = 0.25
"""The time for which the lease store notifies a waiting sidecar of free capacity."""
REQUEST_SIZE_MEMORY_S = 60.0
"""Time constant in seconds with which the remembered size of the largest request decays.

With 5 s, a tenant with one request in three seconds had a limit of half a request at its next one."""

KEEP_S = 600.0
"""The time for which the lease store keeps what it stores, after the last write: limits, the pool file, the
secret, learned prices. Rows of leases stay two minutes longer than their record."""
MOST_PRICES = 16
"""The most sidecars whose prices the lease store keeps: those that wrote last. This bounds each read."""

RECLAIM, FREED, CREDENTIALS = "reclaim", "freed", "credentials"
"""The kinds of a ``Push``."""

_ZERO: Vector = (0.0, 0.0, 0.0)


class Limit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The amount that one entitlement may use pool-wide."""

    tokens_per_second: float = 0.0
    kv_tokens: float = 0.0
    concurrency: float = 0.0
    depth: float = 0.0
    """The size of its bucket in tokens."""
    assured_kv_tokens: float = 0.0
    assured_concurrency: float = 0.0
    debt: float = 0.0
    """Debt in seconds of service. It is stored here, so a new coordinator continues from it."""

    @property
    def amount(self) -> Amount:
        """The limit in each dimension."""
        return Amount(self.tokens_per_second, self.kv_tokens, self.concurrency)

    @property
    def assured(self) -> Amount:
        """The part that never needs physical room on an engine."""
        return Amount(0.0, self.assured_kv_tokens, self.assured_concurrency)


NO_LIMIT = Limit()


class ReplicaRoom(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The free room of one replica, as its sidecar states it with each message."""

    kv_tokens: float = 0.0
    """Free KV-cache tokens of its engine."""
    sequences: float = 0.0
    """Free slots of its engine, less the requests that wait there for the engine; at least 0."""
    tokens_spent: float = 0.0
    """Throughput tokens charged less refunds, since this sidecar started. It may fall."""
    address: str = ""
    """``HOST:PORT`` of its peer port; empty if it accepts no handover."""
    cached: str = ""
    """The beginnings of prompts in its engine's cache. The store does not decode it
    (``PrefixCaches.statement``)."""


class PeerRoom(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The free room of another replica, as its sidecar last stated it."""

    name: str
    """The id of its sidecar."""
    address: str
    kv_tokens: float
    sequences: float
    cached: str = ""
    """See ``ReplicaRoom``."""


MOST_PEERS = 4
"""The most replicas in one answer. The store chooses them at random, so that not all sidecars ask the same
one."""
MOST_ROOM = 1e12
"""KV-cache tokens that represent an absent bound in a ``ReplicaRoom``: infinite numbers have no sum."""
POOL_BUCKET_S = 1.0
"""The size of the pool's token bucket, in seconds of live capacity."""


class LeaseRequest(NamedTuple):
    """One sidecar's current use, usage totals and wanted lease of one entitlement. Never a change."""

    kv_in_use: float = 0.0
    concurrency_in_use: float = 0.0
    kv_bound: float = 0.0
    """The highest number of KV tokens that the sidecar may use before it receives the answer."""
    concurrency_bound: float = 0.0
    kv_wanted: float = 0.0
    """The wanted lease, including the current use."""
    concurrency_wanted: float = 0.0
    tokens_spent: float = 0.0
    """Throughput tokens charged less refunds, since this sidecar started. It may fall."""
    tokens_wanted: float = 0.0
    """Throughput tokens that the sidecar may spend before the next message."""
    is_urgent: bool = False
    """Whether a request waits. If so and the lease is too small, other sidecars are asked to return
    leases."""
    demand: Vector = _ZERO
    """The recent demand, shed requests included."""
    kv_seconds: float = 0.0
    """KV-token-seconds held, since this sidecar started."""
    concurrency_seconds: float = 0.0
    """Sequence-seconds held, since this sidecar started."""
    fresh: Vector = _ZERO
    """The recent demand without retries of shed requests."""
    floor: Vector = _ZERO
    """Throughput tokens of a typical request; KV tokens and sequences of the largest request."""
    is_last: bool = False
    """Whether the sidecar returns its whole lease and stops naming this entitlement. The store drops its
    row."""
    idle_limit: Limit = NO_LIMIT
    """The limit in force if none is published for this entitlement."""
    tokens_borrowed: float = 0.0
    """The part of ``tokens_spent`` that the pool's bucket pays, since this sidecar started."""


class Lease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The part of a limit that one sidecar holds, and the state of the rest."""

    kv_tokens: float = 0.0
    concurrency: float = 0.0
    tokens: float = 0.0
    limit: Limit = Limit()
    level: float = 0.0
    """The level of the bucket, less the tokens that all sidecars hold."""
    kv_elsewhere: float = 0.0
    """KV tokens in use at other sidecars, by their last messages."""
    concurrency_elsewhere: float = 0.0
    is_contended: bool = False
    """Whether a sidecar lacked capacity in the last ``CONTENDED_S``: sidecars should return unused leases."""
    kv_free: float = 0.0
    """The part of the limit that no sidecar holds. It may be negative."""
    concurrency_free: float = 0.0
    tokens_elsewhere: float = 0.0
    """The tokens that other sidecars hold."""


NO_LEASE = Lease()


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a sidecar to the lease store."""

    holder: str
    """The id of the sidecar."""
    number: int
    """A number that rises with every message of this sidecar."""
    lease_requests: Mapping[str, LeaseRequest]
    """The lease requests by entitlement."""
    is_complete: bool = True
    """Whether a lifetime begins. All leases that are neither in ``lease_requests`` nor in ``kept`` are
    returned."""
    report: bytes = b""
    """The report to the coordinator, which the store does not decode (``wire.SidecarReport``).

    Only in messages that begin or renew a lifetime.
    """
    kept: Sequence[str] = ()
    """In a complete message: further entitlements with a lease. The messages that follow at once state
    them."""
    renews: bool = False
    """Whether the lifetime starts again. This has no effect for a sidecar without a lifetime."""
    room: ReplicaRoom | None = None
    """The free room of this replica; ``None`` if it states none, because it stops."""

    @property
    def carries_report(self) -> bool:
        """Whether the sender adds the sidecar's report."""
        return self.is_complete or self.renews


@dataclass(frozen=True, slots=True)
class Answer:
    """The lease store's answer to a ``Message``."""

    leases: Mapping[str, Lease] = field(default_factory=dict)
    is_open: bool = False
    """Whether the lease store grants leases. It grants none in the first lifetime after a start or an
    outage."""
    sidecars: int = 0
    """The number of sidecars with a lifetime."""
    file_version: str = ""
    """The version of the published pool file."""
    limits_age_s: float = math.inf
    """The time since a coordinator last published limits."""
    terms: IdleTerms = IdleTerms()
    """The state of the pool in the last plan."""
    is_known: bool = False
    """Whether the sidecar has a lifetime. If not, the lease store accepts only a complete message."""
    rows: int = 0
    """The number of entitlements with a row of the sidecar. If it differs from the sidecar's own count, the
    sidecar sends a complete message."""
    free: Vector = _ZERO
    """The free capacity of the pool: the level of its token bucket, and the sums of the replicas' free KV
    tokens and sequences. Each may be negative."""
    peers: Sequence[PeerRoom] = ()
    """At most ``MOST_PEERS`` other replicas that accept handovers."""
    credentials: str = ""
    """The state of the feed of issued credentials (``FeedState``); empty if none was issued."""


class Push(NamedTuple):
    """A notification from the lease store to one sidecar, between its messages. It may be lost."""

    holder: str
    kind: str
    """``reclaim``: return unused leases. ``freed``: capacity is free, so send the lease request again.
    ``credentials``: an issued credential has changed."""
    entitlement: str
    """Empty if the notification concerns none."""


class EntitlementRecord(msgspec.Struct, frozen=True, gc=False):
    """One entitlement as the coordinator reads it: its limit, its bucket, and sums over all sidecars."""

    limit: Limit = Limit()
    level: float = 0.0
    """The level of the bucket, in tokens; negative after overuse."""
    held: Amount = NOTHING
    """KV tokens and sequences held. In the throughput dimension: tokens granted."""
    in_use: Amount = NOTHING
    demand: Amount = NOTHING
    served: Amount = NOTHING
    """Tokens spent, KV-token-seconds and sequence-seconds, since the record began. Its rate is the service.

    A sum of the sidecars' own rates is wrong, because those rates are of different times. Busy sidecars
    report late and less often, so large requests seemed a quarter smaller than they were.
    """
    fresh: Amount = NOTHING
    """The demand without retries of shed requests."""
    floor: Amount = NOTHING
    """Throughput tokens of a typical request; KV tokens and sequences of the largest request."""


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The whole content of the lease store at one moment."""

    records: Mapping[str, EntitlementRecord]
    """The records by entitlement."""
    reports: Mapping[str, bytes]
    """The last report of every sidecar with a lifetime."""
    epoch: int
    is_open: bool
    """Whether the lease store grants leases. It grants none while it is new, or after a lifetime without
    messages."""
    at: float = 0.0
    """Seconds by the clock of the lease store."""
    file_version: str = ""
    """The version of the published pool file."""


@dataclass(frozen=True, slots=True)
class StoredScaleHint:
    """The scale hint as the leader stored it. The store does not decode it (``wire.decode_hint``)."""

    content: bytes
    at: float
    """The time of storing, in seconds by the store's clock."""
    age_s: float
    """The age at the time of reading, by the same clock."""
