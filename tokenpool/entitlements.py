"""Entitlements and pools: what the operator promised, as frozen records.

The records of the pool file live here, already valid; reading and validating the file is ``poolfile``'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tokenpool.amounts import NOTHING, UNBOUNDED, Amount


class Tier(StrEnum):
    """The class of service, in the order in which service is kept under pressure."""

    GUARANTEED = "guaranteed"
    ELASTIC = "elastic"
    SPOT = "spot"


class KeySource(StrEnum):
    """Where the text of an API key comes from."""

    SHA256 = "sha256"
    ENV = "env"
    FILE = "file"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class KeyRef:
    """One API key as the pool file names it: a hex digest, a variable, a path, or the key itself.

    Resolving a variable or a path is I/O and so is left to the sidecar.
    """

    source: KeySource
    value: str = field(repr=False)
    line: int = 0


@dataclass(frozen=True, slots=True)
class Slo:
    """The latency that a tenant was promised; ``None`` where nothing was. Milliseconds."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None


@dataclass(frozen=True, slots=True)
class OutputEstimate:
    """How many output tokens to reserve: a quantile of what was produced, or the request's whole bound."""

    quantile: float | None = 0.9

    @property
    def reserves_the_whole_bound(self) -> bool:
        """Whether the pool file says ``output_estimate: max``."""
        return self.quantile is None


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What one tenant or workload may use of a pool.

    A dimension that the guarantee does not name is 0; one that the ceiling does not name is infinite.
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
    """Whether running requests of spot may be ended for a guarantee. Other tiers never yield."""

    @property
    def is_preemptible(self) -> bool:
        """Whether running requests may be ended to make room for a guarantee."""
        return self.preemptible and self.tier is Tier.SPOT


@dataclass(frozen=True, slots=True)
class ReplicaCapacity:
    """What one engine sustains, per dimension; ``None`` means ``auto``: learned or read from the engine."""

    tokens_per_second: float | None = None
    kv_tokens: float | None = None
    concurrency: float | None = None
    start: Amount = NOTHING
    """What learning begins with (``auto: NUMBER``), where it is above 0."""


@dataclass(frozen=True, slots=True)
class Pricing:
    """The prices of a pool. Weights are per token; the others are input tokens per item."""

    input_weight: float = 1.0
    output_weight: float = 1.0
    image_tokens: int = 1024
    audio_tokens: int = 1024
    tool_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """One model behind one service."""

    name: str
    models: tuple[str, ...] = ("*",)
    replica: ReplicaCapacity = ReplicaCapacity()
    min_replicas: int = 1
    max_replicas: int = 1
    pricing: Pricing = Pricing()

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

    def pool(self, name: str) -> Pool:
        """The pool of that name. Raises ``KeyError`` where there is none."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)

    def entitlements_of(self, pool: str) -> tuple[Entitlement, ...]:
        """The entitlements of one pool, in the order of the file."""
        return tuple(e for e in self.entitlements if e.pool == pool)
