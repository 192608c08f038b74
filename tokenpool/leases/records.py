"""One entitlement's record as a lease store keeps it, and the same record as of a later moment.

A record is brought up to date when it is written, so a reader of an old record computes the rest here. Both
lease stores use this module for reading.
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
    """The bucket's depth at the last update; 0 where it had none."""
    level: float = 0.0
    """The bucket's level at the last update."""
    floor: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """A typical request's tokens, the largest request's KV tokens and sequences."""
    sums: HolderRow = HolderRow()
    """Over the rows of all holders."""
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
    """The level of a bucket ``elapsed_s`` after it was ``level``, by the limit in force now.

    ``depth`` is the depth by the previous limit. A new bucket starts full. While the lease store is closed,
    nothing caps the level: the usage of the outage is not charged yet, and the refill of that time pays it.
    """
    if depth == 0 or limit.depth == 0:
        return limit.depth
    level += limit.tokens_per_second * elapsed_s
    return min(level, limit.depth) if is_open else level
