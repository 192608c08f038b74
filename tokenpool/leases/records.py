"""One entitlement's record as a lease store keeps it, and its state at a later time.

A write brings a record up to date. A reader computes the changes since that write here. Both lease stores use
this module for reading.
"""

from __future__ import annotations

import math

import msgspec

from tokenpool.amounts import Amount
from tokenpool.leases.messages import REQUEST_SIZE_MEMORY_S, EntitlementRecord, Limit
from tokenpool.leases.row_layout import HolderRow


class StoredRecord(msgspec.Struct):
    """The part of a stored record that the coordinator reads. Other fields are ignored when it is decoded."""

    at: float
    """The time of the last update, in seconds by the clock of the lease store."""
    depth: float = 0.0
    """The bucket's size in tokens at the last update; 0 before the first limit."""
    level: float = 0.0
    """The bucket's level in tokens at the last update."""
    floor: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Throughput tokens of a typical request; KV tokens and sequences of the largest request."""
    sums: HolderRow = HolderRow()
    """Sums over the rows of all sidecars."""
    served: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Tokens spent, KV-token-seconds and sequence-seconds, since the record began."""

    def as_of(self, now: float, limit: Limit, is_open: bool) -> EntitlementRecord:
        """The record at ``now``, with the published limit. Changes no state."""
        sums, elapsed = self.sums, max(now - self.at, 0.0)
        kept, (tokens, kv_tokens, sequences) = math.exp(-elapsed / REQUEST_SIZE_MEMORY_S), self.floor
        return EntitlementRecord(
            limit,
            bucket_level(self.level, self.depth, limit, elapsed, is_open),
            Amount(sums.tokens, sums.kv_tokens, sums.concurrency),
            Amount(0.0, sums.kv_in_use, sums.concurrency_in_use),
            sums.demand,
            Amount(*self.served),
            sums.fresh,
            Amount(tokens * kept, kv_tokens * kept, sequences * kept),
        )


def bucket_level(level: float, depth: float, limit: Limit, elapsed_s: float, is_open: bool) -> float:
    """The level of a bucket in tokens, ``elapsed_s`` after it was ``level``, with the limit in force now.

    ``depth`` is the bucket's size under the previous limit. A new bucket starts full. While the lease store
    is closed, the level has no upper bound. The usage of an outage is charged after it, and the refill of
    that time compensates it.
    """
    if depth == 0 or limit.depth == 0:
        return limit.depth
    level += limit.tokens_per_second * elapsed_s
    return min(level, limit.depth) if is_open else level
