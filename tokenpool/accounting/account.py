"""The account: the limits, the bucket, the gauges and the learned costs of one entitlement on one sidecar.

Any module may read an account. Only the methods of this module change it. The ledger moves the gauges, and
the source of the limits sets the limits. ``now`` is in seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from tokenpool.accounting.bucket import TokenBucket, bucket_depth
from tokenpool.accounting.meter import Meter
from tokenpool.accounting.report import Report
from tokenpool.accounting.retries import Retries
from tokenpool.accounting.shadow import Shadow
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.pricing.cost import Cost, Pricer
from tokenpool.quotas.budget import Budget


class PoolView(NamedTuple):
    """The state of one entitlement in the whole pool, as last known to this sidecar."""

    limit: Amount
    """The limit for all sidecars together."""
    depth: float
    """The size of the whole bucket, in tokens."""
    debt: float = 0.0
    """Debt in seconds of service."""
    level_elsewhere: float = 0.0
    """Tokens in the bucket in addition to this sidecar's part."""
    kv_elsewhere: float = 0.0
    """KV tokens in use at other sidecars."""
    concurrency_elsewhere: float = 0.0
    """Sequences in use at other sidecars."""
    has_peers: bool = False
    """Whether the pool has other engines, on which a request may run if this one is full."""


class Missing(NamedTuple):
    """The part of a cost that the sidecar does not hold; 0 in a dimension in which it holds all."""

    tokens: float
    kv_tokens: float
    sequences: float


_SPOT: Final = Tier.SPOT


class Account:
    """One entitlement on this sidecar.

    Limits come from one of three sources, with one method for each:

    - ``set_limits``: the planner of a lone sidecar. The sidecar may use the whole limit.
    - ``set_lease``: the lease store. The sidecar may use its lease.
    - ``set_share``: the sidecar itself, while the lease store does not answer. It may use its share of a
      limit.
    """

    __slots__ = (
        "_assured",
        "_entitlement",
        "_limit",
        "_pool_limit",
        "assured_kv",
        "assured_sequences",
        "away",
        "bucket",
        "budgets",
        "ceiling_kv",
        "ceiling_rate",
        "ceiling_sequences",
        "concurrency_elsewhere",
        "concurrency_in_use",
        "debt",
        "depth",
        "free_tokens_used",
        "free_used",
        "groups",
        "guarantee_kv",
        "guarantee_sequences",
        "has_peers",
        "is_active",
        "is_group",
        "is_of_peers",
        "is_plain",
        "is_preemptible",
        "is_spot",
        "kv_elsewhere",
        "kv_in_use",
        "level_elsewhere",
        "limit_kv",
        "limit_sequences",
        "meter",
        "models",
        "name",
        "plan",
        "planned_at",
        "pool_rate",
        "pool_sequences",
        "pricer",
        "retries",
        "shadow",
        "uses_free_capacity",
    )

    def __init__(self, entitlement: Entitlement, pricing: Pricing, now: float) -> None:
        self.entitlement = entitlement
        self.is_spot = entitlement.tier is Tier.SPOT
        self.is_preemptible = entitlement.is_preemptible
        """The value that the ledger counts with; see ``Ledger.reconfigure``."""
        self.is_plain = entitlement.is_plain
        """Whether its requests need no rule but limits: a request costs one comparison then."""
        self.is_active = False
        """Whether the account is in ``ActiveAccounts``. Only ``ActiveAccounts`` changes this."""
        self.plan = 0
        """The number of the plan that set the limits, as ``ActiveAccounts`` counts plans."""
        self.planned_at = now
        """The time of that plan. The debt of an idle account is its debt at that time."""
        self.has_peers = False
        """See ``PoolView``, also for the other fields of the same names."""
        self.budgets: tuple[Budget, ...] = ()
        """The budgets of its requests: those of its own quotas, and of its groups'."""
        self.pricer = Pricer(entitlement, pricing)
        self.bucket = TokenBucket(now)
        self.meter = Meter(now)
        self.retries = Retries()
        self.shadow = None if entitlement.enforce else Shadow()
        """The decisions and the surplus of an entitlement that is not enforced; ``None`` otherwise."""
        self.limit = self.assured = self.pool_limit = NOTHING
        self.depth = 0.0
        self.level_elsewhere = self.kv_elsewhere = self.concurrency_elsewhere = 0.0
        self.debt = 0.0
        self.kv_in_use = 0
        self.concurrency_in_use = 0
        self.uses_free_capacity = False
        """Whether the request that is decided now uses free capacity of the pool, beyond the limit."""
        self.free_tokens_used = 0.0
        """The tokens that this request uses of the pool's free capacity."""
        self.free_used = NOTHING
        """The part of ``limit`` that was added from the pool's free capacity since it was set."""
        self.groups: tuple[Account, ...] = ()
        """The accounts of its groups with a ceiling, from the bottom. Their limits bind it, too."""
        self.is_group = False
        """Whether this is the account of a group (``group_accounts``)."""
        self.is_of_peers = False
        """Whether it counts requests of other sidecars (``PeerAccounts``)."""
        self.away = 0
        """The part of ``concurrency_in_use`` on other replicas, by handover. Only the ledger changes it."""

    # --- the entitlement and the amounts ---
    # The request path reads single numbers. Reading one through the objects would take 0.1 µs.

    @property
    def entitlement(self) -> Entitlement:
        """The entitlement in force."""
        return self._entitlement

    @entitlement.setter
    def entitlement(self, entitlement: Entitlement) -> None:
        self._entitlement = entitlement
        guarantee, ceiling = entitlement.guarantee, entitlement.ceiling
        self.name, self.models = entitlement.name, entitlement.models
        self.guarantee_kv, self.guarantee_sequences = guarantee.kv_tokens, guarantee.concurrency
        self.ceiling_rate = ceiling.tokens_per_second
        self.ceiling_kv, self.ceiling_sequences = ceiling.kv_tokens, ceiling.concurrency

    @property
    def limit(self) -> Amount:
        """The amount that may be used here.

        Its rate is pool-wide: the bucket holds this sidecar's part of it.
        """
        return self._limit

    @limit.setter
    def limit(self, limit: Amount) -> None:
        self._limit = limit
        self.limit_kv, self.limit_sequences = limit.kv_tokens, limit.concurrency

    @property
    def assured(self) -> Amount:
        """The part of ``limit`` that may queue at a full engine."""
        return self._assured

    @assured.setter
    def assured(self, assured: Amount) -> None:
        self._assured = assured
        self.assured_kv, self.assured_sequences = assured.kv_tokens, assured.concurrency

    @property
    def pool_limit(self) -> Amount:
        """The limit for all sidecars together; equal to ``limit`` for a lone sidecar."""
        return self._pool_limit

    @pool_limit.setter
    def pool_limit(self, limit: Amount) -> None:
        self._pool_limit = limit
        self.pool_rate, self.pool_sequences = limit.tokens_per_second, limit.concurrency

    # --- limits ---

    def set_limits(
        self, limit: Amount, assured: Amount, debt: float, now: float, *, is_full: bool = False
    ) -> None:
        """Set the limits from the planner of a lone sidecar. With ``is_full``, fill the bucket."""
        self.set_pool(PoolView(limit, self._depth(limit), debt, has_peers=self.has_peers))
        self.limit, self.assured, self.free_used = limit, assured, NOTHING
        self.bucket.resize(limit.tokens_per_second, self.depth, now)
        if is_full:
            self.bucket.fill()

    def set_pool(self, view: PoolView) -> None:
        """Set the pool-wide state. This does not change the amount that this sidecar may use."""
        self.pool_limit = view.limit
        self.depth = view.depth
        self.debt = view.debt
        self.level_elsewhere = view.level_elsewhere
        self.kv_elsewhere = view.kv_elsewhere
        self.concurrency_elsewhere = view.concurrency_elsewhere
        self.has_peers = view.has_peers

    def set_lease(self, limit: Amount, assured: Amount, tokens: float) -> None:
        """Use exactly the granted lease: the KV tokens and sequences of ``limit``, and ``tokens``.

        ``tokens`` may be negative, if more was spent than the lease held.
        """
        self.limit, self.assured, self.free_used = limit, assured, NOTHING
        self.bucket.hold(tokens)

    def set_share(self, limit: Amount, assured: Amount, tokens: float, now: float) -> None:
        """Use a share of a limit without the lease store. The bucket refills at the rate of ``limit``.

        If the bucket held a lease, its level becomes at least ``tokens``. A new bucket starts full.
        """
        self.limit, self.assured, self.free_used = limit, assured, NOTHING
        if self.bucket.holds_lease:
            self.bucket.level = max(self.bucket.level, tokens)
        self.bucket.resize(limit.tokens_per_second, self._depth(limit), now)

    def hold_nothing(self) -> None:
        """Give up the whole lease. A bucket level below zero stays."""
        self.limit = Amount(self.pool_limit.tokens_per_second, 0.0, 0.0)
        self.assured = self.free_used = NOTHING
        self.bucket.hold(min(self.bucket.level, 0.0))

    def forget_bucket(self) -> None:
        """Reset the bucket. The next limits fill it."""
        self.bucket.forget()

    def give_up_beyond(self, kv_tokens: float, sequences: float, tokens: float) -> None:
        """Reduce the lease to at most these KV tokens, sequences and throughput tokens."""
        limit = self.limit
        self.limit = Amount(
            limit.tokens_per_second, min(limit.kv_tokens, kv_tokens), min(limit.concurrency, sequences)
        )
        self.bucket.level = min(self.bucket.level, tokens)

    def missing(self, cost: Cost) -> Missing:
        """The part of a cost that exceeds the free part of the lease."""
        return Missing(
            max(cost.throughput - self.bucket.level, 0.0),
            max(self.kv_in_use + cost.kv_tokens - self.limit.kv_tokens, 0.0),
            max(self.concurrency_in_use + cost.sequences - self.limit.concurrency, 0.0),
        )

    def take_ahead(self, missing: Missing) -> None:
        """Hold more before the report. The tokens come from the bucket's part elsewhere."""
        limit = self.limit
        self.limit = Amount(
            limit.tokens_per_second,
            limit.kv_tokens + missing.kv_tokens,
            limit.concurrency + missing.sequences,
        )
        self.bucket.level += missing.tokens
        self.level_elsewhere -= missing.tokens

    def hold_enough(self, cost: Cost) -> float:
        """Hold enough for one more request of this cost. Returns the tokens added to the bucket."""
        kv_tokens, sequences = self.kv_in_use + cost.kv_tokens, self.concurrency_in_use + cost.sequences
        self.limit = self.limit.at_least(Amount(0.0, float(kv_tokens), float(sequences)))
        tokens = max(cost.throughput - self.bucket.level, 0.0)
        self.bucket.level += tokens
        return tokens

    def use_free_capacity(self, cost: Cost) -> None:
        """Hold enough for one more request of this cost, from the free capacity of the pool."""
        before, tokens = self.limit, self.hold_enough(cost)
        self.meter.free_tokens += tokens
        self.free_tokens_used += tokens
        self.free_used += Amount(
            0.0,
            self.limit.kv_tokens - before.kv_tokens,
            self.limit.concurrency - before.concurrency,
        )
        self.uses_free_capacity = True

    def give_back(self) -> None:
        """Return the part of ``limit`` that was added from free capacity and that no request uses.

        So a later request does not use the free capacity that an earlier one took. After a limit has fallen,
        more than the lease may be in use. The added part then covers that use, too. It is returned with the
        requests that end first.
        """
        free_used, limit = self.free_used, self.limit
        if free_used is NOTHING:
            return
        if free_used.kv_tokens or free_used.concurrency:
            back = Amount(
                0.0,
                min(free_used.kv_tokens, max(limit.kv_tokens - self.kv_in_use, 0.0)),
                min(free_used.concurrency, max(limit.concurrency - self.concurrency_in_use, 0.0)),
            )
            self.free_used = free_used - back
            self.limit = limit - back

    def take_free_use(self) -> bool:
        """Whether the request that is decided now uses free capacity. Clears this for the next request."""
        uses = self.uses_free_capacity
        self.uses_free_capacity, self.free_tokens_used = False, 0.0
        return uses

    def return_free_capacity(self) -> None:
        """The request that is decided now does not run: return the free capacity that it took.

        Otherwise the next request would use that capacity, at the expense of other entitlements.
        """
        tokens = self.free_tokens_used
        if self.take_free_use():
            self.bucket.level -= tokens
            self.meter.free_tokens -= tokens
            self.give_back()

    def is_below_ceiling(self, cost: Cost, sidecars: int = 1) -> bool:
        """Whether one more request of this cost stays within the ceiling, beyond the limit.

        Leases bound the use up to the limit exactly. The gap between the limit and a ceiling is divided among
        the sidecars, because several may use free capacity before they know of each other.
        """
        ceiling, limit, free_used = self.entitlement.ceiling, self.pool_limit, self.free_used
        missing = self.missing(cost)
        own = (
            max(self.concurrency_in_use - free_used.concurrency, 0.0),
            max(self.kv_in_use - free_used.kv_tokens, 0.0),
        )
        return _is_in_gap(
            ceiling.concurrency,
            max(limit.concurrency, own[0] + self.concurrency_elsewhere),
            min(missing.sequences, cost.sequences) + free_used.concurrency,
            sidecars,
        ) and _is_in_gap(
            ceiling.kv_tokens,
            max(limit.kv_tokens, own[1] + self.kv_elsewhere),
            min(missing.kv_tokens, cost.kv_tokens) + free_used.kv_tokens,
            sidecars,
        )

    def _depth(self, limit: Amount) -> float:
        return bucket_depth(limit.tokens_per_second, self.meter.typical_tokens.value)

    # --- use ---

    @property
    def level(self) -> float:
        """The level of the whole bucket in tokens, as last known here."""
        return self.bucket.level + self.level_elsewhere

    def is_inside_guarantee(
        self, sequences: int = 0, kv_tokens: int = 0, *, counts_elsewhere: bool = True
    ) -> bool:
        """Whether the current use plus ``sequences`` and ``kv_tokens`` lies inside the guarantee.

        The last known use at other sidecars counts. Without ``counts_elsewhere`` the answer assumes that they
        use nothing. A guarantee without KV tokens does not bound KV tokens. Spot has no guarantee.
        """
        if self._entitlement.tier is _SPOT:
            return False
        sequences += self.concurrency_in_use
        kv_tokens += self.kv_in_use
        others = (self.concurrency_elsewhere, self.kv_elsewhere) if counts_elsewhere else (0.0, 0.0)
        return sequences + others[0] <= self.guarantee_sequences and (
            kv_tokens + others[1] <= self.guarantee_kv or not self.guarantee_kv
        )

    def report(self, now: float, waiting: Amount = NOTHING) -> Report:
        """The demand and the service since the last report, for the planner.

        ``waiting`` is the size of the requests that wait. Inside the guarantee they are demand at once,
        because an average shows the return of its owner too late.
        """
        held = Amount(0.0, self.kv_in_use, self.concurrency_in_use)
        guarantee = self.entitlement.guarantee
        if NOTHING not in (waiting, guarantee):
            held = held.at_least((held + waiting).at_most(guarantee))
        return self.meter.report(self.kv_in_use, self.concurrency_in_use, now, held)

    def take_peaks(self) -> tuple[int, int]:
        """The highest KV tokens and sequences in use since the last call."""
        return self.meter.take_peaks(self.kv_in_use, self.concurrency_in_use)

    # --- for the ledger ---

    def hold(self, kv_tokens: int, sequences: int, now: float) -> None:
        """Add to both gauges; negative amounts release. Only the ledger calls this."""
        meter = self.meter
        meter.integrate(self.kv_in_use, self.concurrency_in_use, now)
        self.kv_in_use += kv_tokens
        self.concurrency_in_use += sequences
        meter.note_peaks(self.kv_in_use, self.concurrency_in_use)

    def charge(self, tokens: float) -> None:
        """Charge throughput tokens; a negative number refunds. Only the ledger calls this."""
        self.bucket.add(-tokens)
        self.meter.spent += tokens


def _is_in_gap(ceiling: float, used: float, free_used: float, sidecars: int) -> bool:
    """Whether ``free_used`` is at most one sidecar's part of the gap between ``used`` and a ceiling."""
    return not free_used or ceiling == math.inf or free_used <= (ceiling - used) / sidecars
