"""Entitlements and pools: the content of a valid pool file, as frozen records.

``poolfile`` reads and validates the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import NamedTuple

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
    line: int = field(default=0, compare=False)
    """The line in the pool file, from 1; 0 if unknown. A key on another line is the same key."""
    id: str = ""
    """The name of the key in logs and usage records; empty for the first 8 hex digits of its digest."""
    expires_at: float | None = None
    """The time from which the key is refused, in seconds of Unix time; ``None`` if it never expires."""
    concurrency: int | None = None
    """The most sequences that run at the same time with this key; ``None`` without a limit of its own."""
    quotas: tuple[Quota, ...] = ()
    """The budgets of the requests with this key, in addition to those of the entitlement."""


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


class Window(StrEnum):
    """A calendar window of a quota. A week begins on Monday."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Quota:
    """A budget over each calendar window, as opposed to a rate."""

    tokens: float
    """Weighted tokens per window: the throughput costs of its requests, with the weights of the pool."""
    per: Window
    timezone: str = "UTC"
    """The IANA time zone in which the windows begin."""


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
    quotas: tuple[Quota, ...] = ()
    """The budgets of its requests. All of them apply."""
    group: str | None = None
    """The name of its group; ``None`` for an entitlement in no group."""
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

    def differs_in_keys_only(self, other: Entitlement) -> bool:
        """Whether both are equal except for their keys. A published pool file has digests instead of keys."""
        return all(getattr(self, name) == getattr(other, name) for name in _BESIDE_KEYS)

    def may_use(self, model: str | None) -> bool:
        """Whether a request for this model is in its scope. With a scope, a request must name its model."""
        return not self.models or model in self.models

    def may_share_key(self, other: Entitlement) -> bool:
        """Whether both may have the same key: they are in one pool, and no model is in both scopes."""
        is_disjoint = self.models and other.models and not set(self.models) & set(other.models)
        return bool(is_disjoint) and self.pool == other.pool


_BESIDE_KEYS = tuple(each.name for each in fields(Entitlement) if each.name != "api_keys")

MOST_GROUP_LEVELS = 4
"""The most groups above one entitlement, such as organization, department, team and project."""


@dataclass(frozen=True, slots=True)
class Group:
    """Entitlements and groups of one pool that share a guarantee, a ceiling and a weight.

    The members of a group are the entitlements and the groups that name it. A dimension that the guarantee
    does not name is 0. A dimension that the ceiling does not name is infinite.
    """

    name: str
    pool: str
    parent: str | None = None
    """The name of the group above it; ``None`` at the top."""
    guarantee: Amount = NOTHING
    """The capacity for all members together. Without a guarantee the group promises what its members
    promise."""
    ceiling: Amount = UNBOUNDED
    weight: float = 1.0
    quotas: tuple[Quota, ...] = ()
    """The budgets of the requests of all members together. All of them apply."""


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


MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of a pool in money, per million tokens. Reports use them; no decision depends on them."""

    currency: str
    """The code of ISO 4217, such as ``EUR``."""
    input: float = 0.0
    """Uncached input tokens."""
    cached_input: float = 0.0
    """Input tokens from the prefix cache."""
    output: float = 0.0

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """The price of some usage. ``input_tokens`` include those from the cache."""
        weighted = (
            self.input * (input_tokens - cached_tokens)
            + self.cached_input * cached_tokens
            + self.output * output_tokens
        )
        return weighted / MILLION


@dataclass(frozen=True, slots=True)
class Pool:
    """One model behind one service: the capacity of all its replicas together."""

    name: str
    models: tuple[str, ...] = ("*",)
    replica: ReplicaCapacity = ReplicaCapacity()
    min_replicas: int = 1
    max_replicas: int = 1
    pricing: Pricing = Pricing()
    prices: Prices | None = None
    """``None`` if reports state no costs."""
    usage_records: bool = False
    """Whether each settled request becomes a record in the usage store."""
    enforce: bool = True
    """Whether decisions are enforced. ``False`` counts for all entitlements of the pool."""

    def serves(self, model: str) -> bool:
        """Whether requests for this model belong to the pool."""
        return "*" in self.models or model in self.models


@dataclass(frozen=True, slots=True)
class ClaimRule:
    """One rule from the claims of a JWT to an entitlement. The first rule that matches decides.

    - Without ``claim`` it matches every JWT.
    - With ``value`` the claim must be this text, or a list that contains it.
    - Without ``entitlement`` the text in the claim is the name of the entitlement.
    """

    claim: tuple[str, ...] = ()
    """The name of the claim. Several names are a path through nested objects."""
    value: str | None = None
    entitlement: str | None = None
    line: int = 0
    """The line in the pool file, from 1; 0 if unknown."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """An identity provider whose JWTs identify callers."""

    name: str
    issuer: str
    """The claim ``iss`` of its JWTs, compared as a whole."""
    audiences: tuple[str, ...]
    """A JWT is accepted if its claim ``aud`` is or contains one of these."""
    rules: tuple[ClaimRule, ...]
    jwks_url: str | None = None
    """The URL of its keys. Without URL and file, its discovery document names the URL."""
    jwks_file: str | None = None
    """The file with its keys, read by the sidecar."""
    ca_file: str | None = None
    """The PEM file of the authorities to trust for its URLs; ``None`` for the system's."""
    token_file: str | None = None
    """The file with a token that the sidecar sends to its URLs, as the API server of Kubernetes needs."""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    """The accepted signature algorithms. A symmetric one is never accepted."""
    clock_skew_s: float = 30.0
    """The seconds by which its clock and this machine's may differ."""
    subject: tuple[str, ...] = ("sub",)
    """The claim with the caller's id, for credential ids; several names are a path."""
    group: tuple[str, ...] = ()
    """The claim that must name the group of the entitlement, or a group above it; empty: no check."""


@dataclass(frozen=True, slots=True)
class PoolFile:
    """A valid pool file."""

    pools: tuple[Pool, ...]
    entitlements: tuple[Entitlement, ...]
    anonymous: str | None = None
    """The entitlement of callers without a key; ``None`` rejects them."""
    administrator_keys: tuple[KeyRef, ...] = ()
    """The keys that may load and unload LoRA adapters. They belong to no entitlement."""
    issuers: tuple[Issuer, ...] = ()
    """The identity providers whose JWTs identify callers."""
    groups: tuple[Group, ...] = ()
    """The groups of all pools. The chain of ``parent`` has no cycle, and stays within one pool."""

    def pool(self, name: str) -> Pool:
        """The pool of that name. Raises ``KeyError`` if there is none."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)

    def entitlements_of(self, pool: str) -> tuple[Entitlement, ...]:
        """The entitlements of one pool, in the order of the file."""
        return tuple(e for e in self.entitlements if e.pool == pool)

    def groups_of(self, pool: str) -> tuple[Group, ...]:
        """The groups of one pool, in the order of the file."""
        return tuple(g for g in self.groups if g.pool == pool)


class Promises(NamedTuple):
    """The guarantees of one pool, summed up through its groups."""

    total: Amount
    """The guarantees of the pool: those of the top groups, and of entitlements in no group."""
    members: dict[str, Amount]
    """By group: the sum of its members' guarantees."""

    def of(self, group: Group) -> Amount:
        """The guarantee of a group. Without one of its own, the group promises what its members promise."""
        return group.guarantee if group.guarantee != NOTHING else self.members[group.name]


def promises(entitlements: Iterable[Entitlement], groups: Sequence[Group] = ()) -> Promises:
    """Sum up guarantees. Spot entitlements have none. A group that is not in ``groups`` does not count.

    The parents of the groups must have no cycle.
    """
    members: dict[str | None, Amount] = {None: NOTHING} | {group.name: NOTHING for group in groups}
    for entitlement in entitlements:
        if entitlement.tier is not Tier.SPOT and entitlement.guarantee != NOTHING:
            place = entitlement.group if entitlement.group in members else None
            members[place] = members[place] + entitlement.guarantee
    for group in from_the_bottom(groups):
        own = group.guarantee if group.guarantee != NOTHING else members[group.name]
        parent = group.parent if group.parent in members else None
        members[parent] = members[parent] + own
    total = members.pop(None)
    return Promises(total, {name: amount for name, amount in members.items() if name is not None})


def from_the_bottom(groups: Sequence[Group]) -> list[Group]:
    """The groups in an order in which each comes before its parent. The parents must have no cycle."""
    by_name = {group.name: group for group in groups}
    return sorted(groups, key=lambda group: -len(chain(group.name, by_name)))


def chain(name: str | None, groups: Mapping[str, Group]) -> list[Group]:
    """A group and the groups above it, from the bottom. It ends at a name that is unknown or was seen."""
    found: dict[str, Group] = {}
    while name is not None and name not in found and (group := groups.get(name)) is not None:
        found[name] = group
        name = group.parent
    return list(found.values())
