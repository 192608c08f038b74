"""Admission rules: they decide whether a request may run on this engine now.

A pure decision from the account, the ledger's totals and the engine's room. The result is a value.
Authentication and pricing happen before. The ledger makes the reservation.

Two rules give the order in which requests are refused under pressure. The planner gives capacity to spot
last. Only requests within ``assured`` may queue at a full engine. Spot has no assured part, so it is refused
first. Elastic requests above their share are next, then bursts above a guarantee. A request inside a
guarantee is never refused.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final

from tokenpool.accounting.account import Account
from tokenpool.accounting.group_accounts import group_name, has_room
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Place, Ticket
from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.capacity.room import EngineRoom
from tokenpool.outcomes import Reason
from tokenpool.pricing.cost import Ask, Cost
from tokenpool.quotas.budget import Exhausted

SHORTEST_WAIT_S: Final = 0.05
"""The shortest time in seconds that a refusal asks its client to wait: about two decode steps."""
LONGEST_WAIT_S: Final = 600.0
"""The longest time in seconds that a refusal asks its client to wait."""

QUOTA_RETRY_S: Final = 1.0
"""The time in seconds after which a request is sent again that the rest of a quota would cover, if running
requests did not hold it. They end after seconds."""


class EngineQueue(enum.Enum):
    """The part of a full engine's queue that a request may join."""

    NONE = "none"
    """The request joins no queue: it looks for room on other replicas first."""
    BEHIND_PREEMPTIBLE = "behind preemptible"
    """An assured request may wait behind preemptible requests, which can be ended for it."""
    ANY = "any"
    """A request inside its guarantee may also wait behind other requests."""


_NONE: Final = EngineQueue.NONE
_ANY: Final = EngineQueue.ANY


@dataclass(frozen=True, slots=True)
class Shed:
    """The request may not run now, or never (``NEVER_FITS``)."""

    reason: Reason
    dimension: Dimension
    limit: float
    in_use: float
    """The use of the dimension. For ``tokens_per_second``: the tokens by which the bucket is below zero."""
    cost: float
    retry_after_s: float
    """The seconds after which a retry makes sense, without jitter; 0 if it never does."""
    expected_s: float = math.inf
    """The expected seconds until the next request fits, without a bound. The admission queue uses this
    number."""
    quota: Exhausted | None = None
    """The quota that does not cover the request, if that is the reason."""
    group: str = ""
    """The group whose ceiling is the limit; empty for the entitlement's own limit."""


def admit(
    ledger: Ledger,
    account: Account,
    ask: Ask,
    cost: Cost,
    room: EngineRoom,
    now: float,
    *,
    is_retry: bool = False,
    is_counted: bool = False,
    place: Place | None = None,
    may_queue: EngineQueue = EngineQueue.ANY,
) -> Ticket | Shed:
    """Decide about a request, and reserve its cost if it may run. The offer counts as demand in both cases.

    A ticket must be settled exactly once.

    The account must be active, so that its limits are those of the last plan. ``is_retry`` states that the
    same request was shed recently, so it does not raise the scale hint. ``is_counted`` states that an earlier
    decision about this request counted its offer. ``place`` is another replica that keeps room for it, so the
    room here does not count.
    """
    refusal = account_never_fits(account, cost, room)
    if refusal is not None:
        return refusal
    if not is_counted:
        count_offer(account, cost, is_retry=is_retry)
    refusal = over_limit(account, cost, now)
    if refusal is not None:
        return refusal
    if place is None:
        refusal = engine_full(ledger, account, cost, room, may_queue=may_queue)
        if refusal is not None:
            return refusal
    return ledger.reserve(account, ask, cost, now, place)


def count_offer(account: Account, cost: Cost, *, is_retry: bool = False) -> None:
    """Count a request as demand of its entitlement, and of its groups."""
    account.meter.offer(cost, is_retry=is_retry)
    for group in account.groups:
        group.meter.offer(cost, is_retry=is_retry)


def _over_group(group: Account, cost: Cost, now: float) -> Shed | None:
    """The refusal of a request for which a group has no room below its ceiling; ``None`` if it has room."""
    level = group.bucket.refill(now)
    if has_room(group, cost):
        return None
    if level <= 0 and group.entitlement.ceiling.tokens_per_second < math.inf:
        return _over_throughput(group, cost) if group.level <= 0 else _not_in_time(group, cost)
    is_cache = group.kv_in_use + cost.kv_tokens > group.limit.kv_tokens
    return _over_gauge(group, cost, Dimension.KV_TOKENS if is_cache else Dimension.CONCURRENCY)


def account_never_fits(account: Account, cost: Cost, room: EngineRoom) -> Shed | None:
    """The refusal of a cost that never fits, by the ceiling of the entitlement or of a group."""
    if _is_too_large(account, cost, room):
        return never_fits(account.entitlement.ceiling, cost, room)
    for group in account.groups:
        if _is_too_large(group, cost, room):
            return never_fits(group.entitlement.ceiling, cost, room)
    return None


def _is_too_large(account: Account, cost: Cost, room: EngineRoom) -> bool:
    """Whether ``never_fits`` refuses a cost. It reads single numbers only."""
    kv_tokens, sequences = cost.kv_tokens, cost.sequences
    return (
        kv_tokens > account.ceiling_kv
        or kv_tokens > room.kv_tokens
        or sequences > account.ceiling_sequences
        or sequences > room.slots
        or account.ceiling_rate <= 0
    )


def never_fits(ceiling: Amount, cost: Cost, room: EngineRoom) -> Shed | None:
    """The refusal of a cost that never fits; ``None`` if it may fit."""
    kv_tokens, sequences = cost.kv_tokens, cost.sequences
    if kv_tokens > ceiling.kv_tokens or kv_tokens > room.kv_tokens:
        return _never(Dimension.KV_TOKENS, min(ceiling.kv_tokens, room.kv_tokens), kv_tokens)
    if sequences > ceiling.concurrency or sequences > room.slots:
        return _never(Dimension.CONCURRENCY, min(ceiling.concurrency, room.slots), sequences)
    if ceiling.tokens_per_second <= 0:
        return _never(Dimension.TOKENS_PER_SECOND, ceiling.tokens_per_second, cost.throughput)
    return None


def over_quota(quota: Exhausted) -> Shed:
    """The refusal of a request that a quota does not cover.

    If running requests hold the rest of the quota, the time is that of a short wait. Otherwise it is the time
    until the window ends.
    """
    reason = Reason.INSUFFICIENT_QUOTA if quota.is_final else Reason.QUOTA_IN_USE
    wait = quota.resets_in_s if quota.is_final else min(quota.resets_in_s, QUOTA_RETRY_S)
    return Shed(reason, Dimension.TOKENS_PER_SECOND, quota.tokens, quota.spent, quota.cost, wait, quota=quota)


def over_limit(account: Account, cost: Cost, now: float) -> Shed | None:
    """The refusal of a request beyond the amount that the account may use here; ``None`` if it is within."""
    for group in account.groups:
        refusal = _over_group(group, cost, now)
        if refusal is not None:
            return refusal  # a full group also lowers the limits of its members, so it is the cause
    if account.bucket.refill(now) <= 0:
        return _over_throughput(account, cost) if account.level <= 0 else _not_in_time(account, cost)
    if account.kv_in_use + cost.kv_tokens > account.limit_kv:
        return _over_gauge(account, cost, Dimension.KV_TOKENS)
    if account.concurrency_in_use + cost.sequences > account.limit_sequences:
        return _over_gauge(account, cost, Dimension.CONCURRENCY)
    return None


def over_pool_limit(account: Account, cost: Cost) -> Shed | None:
    """The refusal of a request beyond a pool-wide limit, as last known here; ``None`` if it is within all.

    A request within that limit would get a lease soon.
    """
    for each in (account, *account.groups):
        limit = each.pool_limit
        if each.level <= 0:
            return _over_throughput(each, cost)
        if each.kv_in_use + each.kv_elsewhere + cost.kv_tokens > limit.kv_tokens:
            return _over_gauge(each, cost, Dimension.KV_TOKENS)
        if each.concurrency_in_use + each.concurrency_elsewhere + cost.sequences > limit.concurrency:
            return _over_gauge(each, cost, Dimension.CONCURRENCY)
    return None


def refused_with_any_lease(
    ledger: Ledger,
    account: Account,
    cost: Cost,
    room: EngineRoom,
    *,
    is_retry: bool = False,
    is_counted: bool = False,
) -> Shed | None:
    """The refusal of a request that no lease would admit here; ``None`` if a larger lease might help."""
    refusal = account_never_fits(account, cost, room)
    if refusal is not None:
        return refusal
    # Before the first answer of the lease store, the assured part is not known.
    is_unknown = not account.is_spot and account.assured == NOTHING
    if account.entitlement.guarantee != NOTHING or is_unknown:
        return None
    refusal = engine_full(ledger, account, cost, room)
    if refusal is not None and not is_counted:
        count_offer(account, cost, is_retry=is_retry)
    return refusal


def _never(dimension: Dimension, limit: float, cost: float) -> Shed:
    return Shed(Reason.NEVER_FITS, dimension, limit, 0.0, cost, 0.0)


def _over_throughput(account: Account, cost: Cost) -> Shed:
    level, rate = account.level, account.pool_limit.tokens_per_second
    wait = 0.0 if level > 0 else -level / rate if rate > 0 else math.inf
    return Shed(
        Reason.TOKENS_PER_SECOND,
        Dimension.TOKENS_PER_SECOND,
        rate,
        max(-level, 0.0),
        cost.throughput,
        _bounded(wait),
        wait,
        group=group_name(account),
    )


def _not_in_time(account: Account, cost: Cost) -> Shed:
    """The refusal of a request that got no tokens in time, although the pool-wide bucket is not empty.

    It names the dimension in which the pool is short.
    """
    kv_in_use = account.kv_in_use + account.kv_elsewhere
    is_cache = kv_in_use + cost.kv_tokens > account.pool_limit.kv_tokens
    return _over_gauge(account, cost, Dimension.KV_TOKENS if is_cache else Dimension.CONCURRENCY)


def _over_gauge(account: Account, cost: Cost, dimension: Dimension) -> Shed:
    is_cache = dimension is Dimension.KV_TOKENS
    running = account.concurrency_in_use + account.concurrency_elsewhere
    wait = _until_one_ends(account.meter.residence.value, running)
    return Shed(
        Reason.KV_TOKENS if is_cache else Reason.CONCURRENCY,
        dimension,
        account.pool_limit.get(dimension),
        account.kv_in_use + account.kv_elsewhere
        if is_cache
        else account.concurrency_in_use + account.concurrency_elsewhere,
        cost.kv_tokens if is_cache else cost.sequences,
        _bounded(wait),
        wait,
        group=group_name(account),
    )


def has_room_here(ledger: Ledger, cost: Cost, room: EngineRoom) -> bool:
    """Whether the engine here has room for a request that is beyond its assured share."""
    sequences = ledger.concurrency_in_use + room.foreign_sequences + cost.sequences
    kv_tokens = ledger.kv_in_use + room.foreign_kv_tokens + cost.kv_tokens
    slots = 0.0 if room.is_down else room.slots - room.reserved_slots
    return sequences <= slots and kv_tokens <= room.kv_tokens


def engine_full(
    ledger: Ledger,
    account: Account,
    cost: Cost,
    room: EngineRoom,
    *,
    may_queue: EngineQueue = EngineQueue.ANY,
) -> Shed | None:
    """The refusal of a request for which the engine has no room; ``None`` if it has room.

    Each dimension is decided separately. A request within ``assured`` may queue at a full engine. If the pool
    has other engines, such a queue may only be behind preemptible requests, unless the request is inside a
    guarantee. Otherwise a request could wait here while another engine has room, and its wait would count as
    service. An engine that is down has no room for any request.
    """
    if room.is_down:
        # Slots become free on the other replicas only. Each is assumed to have as many as the engine here.
        return _full(Dimension.CONCURRENCY, 0.0, 0.0, cost.sequences, ledger, room.slots)
    kv_tokens, sequences, may_join = cost.kv_tokens, cost.sequences, may_queue is not _NONE
    running = ledger.concurrency_in_use + room.foreign_sequences
    own = account.concurrency_in_use + sequences
    is_assured = (
        may_join
        and own <= account.assured_sequences
        and (
            not account.has_peers
            or (may_queue is _ANY and own <= account.guarantee_sequences)
            or running - ledger.preemptible_in_use + sequences <= room.slots
        )
    )
    queue = max(room.queue, room.preemptible_queue) if account.is_preemptible else room.queue
    open_slots = room.slots + (queue if may_join else 0.0) - room.reserved_slots
    if not is_assured and running + sequences > open_slots:
        return _full(Dimension.CONCURRENCY, open_slots, running, sequences, ledger, ledger.concurrency_in_use)
    resident = ledger.kv_in_use + room.foreign_kv_tokens
    is_assured = may_join and account.kv_in_use + kv_tokens <= account.assured_kv
    if resident + kv_tokens > room.kv_tokens and not is_assured:
        return _full(
            Dimension.KV_TOKENS, room.kv_tokens, resident, kv_tokens, ledger, ledger.concurrency_in_use
        )
    return None


def _full(
    dimension: Dimension, limit: float, in_use: float, cost: float, ledger: Ledger, running: float
) -> Shed:
    wait = _until_one_ends(ledger.residence.value, running)
    return Shed(Reason.ENGINE_FULL, dimension, limit, in_use, cost, _bounded(wait), wait)


def _until_one_ends(residence_s: float, running: float) -> float:
    """The expected seconds until the next of ``running`` requests ends, by Little's law."""
    return residence_s / max(running, 1.0)


def _bounded(seconds: float) -> float:
    return min(max(seconds, SHORTEST_WAIT_S), LONGEST_WAIT_S)
