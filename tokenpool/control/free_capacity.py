"""Free capacity of a lone sidecar: requests beyond their limits may use it. Pure.

Without a lease store, the sidecar itself knows the capacity that no other request needs. With one, the
store's answers state it (``tokenpool.leases``). Free throughput is the level of a bucket that fills at the
engine's whole throughput. The lease store has such a bucket for a pool.
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


class FreeCapacity:
    """The free capacity of one lone sidecar. Limits bind only while the engine has none."""

    def __init__(self, ledger: Ledger, queue: AdmissionQueue, now: float) -> None:
        self._ledger = ledger
        self._queue = queue
        self._bucket = TokenBucket(now)
        self._spent_seen = 0.0
        """The part of ``ledger.spent`` that the bucket has paid."""

    def use_free_capacity(self, account: Account, cost: Cost, room: EngineRoom, now: float) -> bool:
        """Use free room of the engine for one request beyond the limit of its account.

        No request may wait for the engine. The ceiling of its entitlement and the limits of its groups must
        leave room for it. Returns whether the request may be decided again.
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
        account.use_free_capacity(cost)
        return True

    def set_throughput(self, tokens_per_second: float, now: float) -> None:
        """Set the engine's throughput, in tokens per second. Its unused part is free.

        Call it at each tick. After a longer interval, the bucket would be charged late and seem empty.
        """
        self._free_tokens(now)
        self._bucket.resize(tokens_per_second, tokens_per_second * POOL_BUCKET_S, now)

    def _free_tokens(self, now: float) -> float:
        """The level of the bucket of the engine's whole throughput, in tokens."""
        bucket, spent = self._bucket, self._ledger.spent
        bucket.refill(now)  # first, so that never more than the bucket holds is used
        bucket.add(self._spent_seen - spent)
        self._spent_seen = spent
        return bucket.level
