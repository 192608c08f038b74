"""Lending: a lone sidecar lends room of its engine to requests beyond their limits. Pure.

Without a lease store, the sidecar itself knows what no other request needs. With one, the store lends
(``tokenpool.leases``). Throughput is lent from a bucket of the engine's whole throughput, like that of a pool
in the lease store.
"""

from __future__ import annotations

import math

from tokenpool.accounting.account import Account
from tokenpool.accounting.bucket import TokenBucket
from tokenpool.accounting.group_accounts import has_room
from tokenpool.accounting.ledger import Ledger
from tokenpool.admission.queue import AdmissionQueue
from tokenpool.admission.rules import has_room_here
from tokenpool.capacity.room import EngineRoom
from tokenpool.leases.messages import POOL_BUCKET_S
from tokenpool.pricing.cost import Cost


class Lending:
    """The lending of one lone sidecar. Its limits bind only while the engine's throughput is used."""

    def __init__(self, ledger: Ledger, queue: AdmissionQueue, now: float) -> None:
        self._ledger = ledger
        self._queue = queue
        self._bucket = TokenBucket(now)
        self._spent_seen = 0.0
        """The part of ``ledger.spent`` that the bucket has paid."""

    def borrow(self, account: Account, cost: Cost, room: EngineRoom, now: float) -> bool:
        """Take room of the engine for one request beyond the limit of its account, while no request waits.

        Its ceiling and the limits of its groups must leave room for it. Returns whether the request may be
        decided again.
        """
        if self._queue.needs_engine or not account.is_below_ceiling(cost):
            return False
        if not has_room_here(self._ledger, cost, room):
            return False
        if not all(has_room(group, cost) for group in account.groups):
            return False
        if account.bucket.level <= 0 and (
            account.entitlement.ceiling.tokens_per_second < math.inf
            or account.missing(cost).tokens > self._free_tokens(now)
        ):
            return False
        account.borrow(cost)
        return True

    def set_throughput(self, tokens_per_second: float, now: float) -> None:
        """Set the engine's throughput. Its unused part is lent beyond limits.

        Call it at each tick: a bucket that is charged late for a longer time would seem empty.
        """
        self._free_tokens(now)
        self._bucket.resize(tokens_per_second, tokens_per_second * POOL_BUCKET_S, now)

    def _free_tokens(self, now: float) -> float:
        """The level of the bucket of the engine's whole throughput, in tokens."""
        bucket, spent = self._bucket, self._ledger.spent
        bucket.refill(now)  # first, so that never more than the bucket is lent
        bucket.add(self._spent_seen - spent)
        self._spent_seen = spent
        return bucket.level
