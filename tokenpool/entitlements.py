"""Entitlements and pools: the content of a valid pool file, as frozen records.

``poolfile`` reads and validates the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tokenpool.amounts import NOTHING, UNBOUNDED, Amount


class Tier(StrEnum):
    """The class of service, from the last one to lose service under pressure to the first."""

    GUARANTEED = "guaranteed"
    ELASTIC = "elastic"
    SPOT = "spot"


class KeySource(StrEnum):
    """The source of an API key's text."""

    SHA256 = "sha256"
    ENV = "env"
    FILE = "file"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class KeyRef:
    """One API key as the pool file names it: a hex digest, a variable, a path, or the key itself.

    The sidecar reads the variable or the file.
    """

    source: KeySource
    value: str = field(repr=False)
    line: int = 0
    """The line in the pool file, from 1; 0 if unknown."""


@dataclass(frozen=True, slots=True)
class Slo:
    """The promised latencies of a tenant in milliseconds; ``None`` without a promise."""

    ttft_ms: float | None = None
    """Time to first token."""
    tpot_ms: float | None = None
    """Time per further output token."""


@dataclass(frozen=True, slots=True)
class OutputEstimate:
    """The output tokens to reserve: a quantile of past outputs, or the request's whole bound (``None``)."""

    quantile: float | None = 0.9


@dataclass(frozen=True, slots=True)
class Entitlement:
    """One tenant's or workload's rights in a pool.

    A dimension that the guarantee does not name is 0. A dimension that the ceiling does not name is infinite.
    """

    name: str
    pool: str
    tier: Tier
    weight: float = 1.0
    guarantee: Amount = NOTHING
    ceiling: Amount = UNBOUNDED
    slo: Slo = Slo()
    output_estimate: OutputEstimate = OutputEstimate()
    api_keys: tuple[KeyRef, ...] = ()
    preemptible: bool = True
    """Whether a guarantee may end running spot requests. Requests of other tiers are never preempted."""
    enforce: bool = True
    """Whether decisions about its requests are enforced. Otherwise they are only counted and shown."""
    models: tuple[str, ...] = ()
    """The models and LoRA adapters that it may use; empty for all models of the pool."""
    flex: str | None = None
    """The spot entitlement that serves its requests with ``service_tier: flex``; ``None``: it does itself."""

    @property
    def is_preemptible(self) -> bool:
        """Whether a guarantee may end the running requests."""
        return self.preemptible and self.tier is Tier.SPOT and self.enforce

    @property
    def is_plain(self) -> bool:
        """Whether it has none of ``enforce: false``, ``models`` and ``flex``, as most entitlements."""
        return self.enforce and not self.models and self.flex is None

    def may_use(self, model: str | None) -> bool:
        """Whether a request for this model is in its scope. With a scope, a request must name its model."""
        return not self.models or model in self.models

    def may_share_key(self, other: Entitlement) -> bool:
        """Whether both may have the same key: they are in one pool, and no model is in both scopes."""
        is_disjoint = self.models and other.models and not set(self.models) & set(other.models)
        return bool(is_disjoint) and self.pool == other.pool


@dataclass(frozen=True, slots=True)
class ReplicaCapacity:
    """The capacity of one engine per dimension; ``None`` means ``auto``: learned or read from the engine."""

    tokens_per_second: float | None = None
    kv_tokens: float | None = None
    concurrency: float | None = None
    start: Amount = NOTHING
    """The starting values of learning (``auto: NUMBER``); 0 in a dimension without one."""


@dataclass(frozen=True, slots=True)
class Pricing:
    """The prices of a pool. Weights are weighted tokens per token. The others are input tokens per item."""

    input_weight: float = 1.0
    output_weight: float = 1.0
    image_tokens: int = 1024
    audio_tokens: int = 1024
    tool_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """One model behind one service: the capacity of all its replicas together."""

    name: str
    models: tuple[str, ...] = ("*",)
    replica: ReplicaCapacity = ReplicaCapacity()
    min_replicas: int = 1
    max_replicas: int = 1
    pricing: Pricing = Pricing()
    enforce: bool = True
    """Whether decisions are enforced. ``False`` counts for all entitlements of the pool."""

    def serves(self, model: str) -> bool:
        """Whether requests for this model belong to the pool."""
        return "*" in self.models or model in self.models


@dataclass(frozen=True, slots=True)
class PoolFile:
    """A valid pool file."""

    pools: tuple[Pool, ...]
    entitlements: tuple[Entitlement, ...]
    anonymous: str | None = None
    """The entitlement of callers without a key; ``None`` rejects them."""
    administrator_keys: tuple[KeyRef, ...] = ()
    """The keys that may load and unload LoRA adapters. They belong to no entitlement."""

    def pool(self, name: str) -> Pool:
        """The pool of that name. Raises ``KeyError`` if there is none."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)

    def entitlements_of(self, pool: str) -> tuple[Entitlement, ...]:
        """The entitlements of one pool, in the order of the file."""
        return tuple(e for e in self.entitlements if e.pool == pool)
