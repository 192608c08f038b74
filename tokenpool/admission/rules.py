"""Admission: may this request run on this engine now?

One pure decision over the account, the ledger's totals and the engine's room. The answer is a value.
Identity, pricing and everything that touches bytes come before; booking the ticket is the ledger's.

The order of sacrifice under pressure follows from two rules: limits give to spot last (the planner), and
only what lies within ``assured`` may queue at a full engine (here). Spot has nothing assured, so it is
refused first; then elastic above its share, then bursts above a guarantee; a guarantee never is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from tokenpool.accounting.account import Account
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Ticket
from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.capacity.room import EngineRoom
from tokenpool.outcomes import Reason
from tokenpool.pricing.cost import Ask, Cost

SHORTEST_WAIT_S = 0.05
"""No shed asks its client back sooner: less than a decode step or two changes nothing."""
LONGEST_WAIT_S = 600.0


class Admit(NamedTuple):
    """The request may run; its ticket must be settled exactly once."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Shed:
    """The request may not run now, or (``NEVER_FITS``) not at all."""

    reason: Reason
    dimension: Dimension
    limit: float
    in_use: float
    """For ``tokens_per_second`` the tokens spent ahead of the refill: how far the bucket is below zero."""
    cost: float
    retry_after_s: float
    """When a retry is worth it, without jitter; 0 where it never is."""
    expected_s: float = math.inf
    """The expected time until the next request would fit, unbounded: what the admission queue judges by."""


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
) -> Admit | Shed:
    """Decide, and book the ticket where the answer is yes. The offer counts as demand either way.

    The account must be active: its limits are those of the last plan.
    ``is_retry`` says that the same request was shed a moment ago: it does not ask for more replicas.
    ``is_counted`` says that the offer was counted already, when this request was decided before.
    """
    refusal = never_fits(account.entitlement.ceiling, cost, room)
    if refusal is not None:
        return refusal
    if not is_counted:
        account.meter.offer(cost, is_retry=is_retry)
    limit = account.limit
    if account.bucket.refill(now) <= 0:
        return _over_throughput(account, cost) if account.level <= 0 else _not_in_time(account, cost)
    if account.kv_in_use + cost.kv_tokens > limit.kv_tokens:
        return _over_gauge(account, cost, Dimension.KV_TOKENS)
    if account.concurrency_in_use + cost.sequences > limit.concurrency:
        return _over_gauge(account, cost, Dimension.CONCURRENCY)
    refusal = engine_full(ledger, account, cost, room)
    if refusal is not None:
        return refusal
    return Admit(ledger.reserve(account, ask, cost, now))


def never_fits(ceiling: Amount, cost: Cost, room: EngineRoom) -> Shed | None:
    """The refusal of a cost that no wait could make fit, or ``None``."""
    kv_tokens, sequences = cost.kv_tokens, cost.sequences
    if kv_tokens > ceiling.kv_tokens or kv_tokens > room.kv_tokens:
        return _never(Dimension.KV_TOKENS, min(ceiling.kv_tokens, room.kv_tokens), kv_tokens)
    if sequences > ceiling.concurrency or sequences > room.slots:
        return _never(Dimension.CONCURRENCY, min(ceiling.concurrency, room.slots), sequences)
    if ceiling.tokens_per_second <= 0:
        return _never(Dimension.TOKENS_PER_SECOND, ceiling.tokens_per_second, cost.throughput)
    return None


def hopeless(
    ledger: Ledger, account: Account, cost: Cost, room: EngineRoom, *, is_retry: bool = False
) -> Shed | None:
    """The refusal of a request that no larger lease could get in here; ``None`` where one might."""
    refusal = never_fits(account.entitlement.ceiling, cost, room)
    if refusal is not None:
        return refusal
    is_unknown = not account.is_spot and account.assured == NOTHING  # before the lease store has answered
    if account.entitlement.guarantee != NOTHING or is_unknown:
        return None
    refusal = engine_full(ledger, account, cost, room)
    if refusal is not None:
        account.meter.offer(cost, is_retry=is_retry)
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
    )


def _not_in_time(account: Account, cost: Cost) -> Shed:
    """Nothing of the bucket came here in time, though it is not empty: name what the pool is short of."""
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
    )


def engine_full(ledger: Ledger, account: Account, cost: Cost, room: EngineRoom) -> Shed | None:
    """Beyond what is assured, the engine itself must have room, in each dimension by itself.

    What is assured may queue at a full engine. Where the pool has other engines, only a guarantee may queue
    behind anything but preemptible requests, which can be ended: shares may meet at one engine, and what
    another could run at once is better not held here; it would count as service, and be none.
    """
    assured, kv_tokens, sequences = account.assured, cost.kv_tokens, cost.sequences
    running = ledger.concurrency_in_use + room.foreign_sequences
    own = account.concurrency_in_use + sequences
    is_assured = own <= assured.concurrency and (
        not account.has_peers
        or own <= account.entitlement.guarantee.concurrency
        or running - ledger.preemptible_in_use + sequences <= room.slots
    )
    queue = max(room.queue, room.preemptible_queue) if account.is_preemptible else room.queue
    open_slots = room.slots + queue - room.reserved_slots
    if not is_assured and running + sequences > open_slots:
        return _full(Dimension.CONCURRENCY, open_slots, running, sequences, ledger)
    resident = ledger.kv_in_use + room.foreign_kv_tokens
    is_assured = account.kv_in_use + kv_tokens <= assured.kv_tokens
    if resident + kv_tokens > room.kv_tokens and not is_assured:
        return _full(Dimension.KV_TOKENS, room.kv_tokens, resident, kv_tokens, ledger)
    return None


def _full(dimension: Dimension, limit: float, in_use: float, cost: float, ledger: Ledger) -> Shed:
    wait = _until_one_ends(ledger.residence.value, ledger.concurrency_in_use)
    return Shed(Reason.ENGINE_FULL, dimension, limit, in_use, cost, _bounded(wait), wait)


def _until_one_ends(residence_s: float, running: float) -> float:
    """Expected wait for the next of ``running`` requests to end: they end at this rate (Little's law)."""
    return residence_s / max(running, 1.0)


def _bounded(seconds: float) -> float:
    return min(max(seconds, SHORTEST_WAIT_S), LONGEST_WAIT_S)
