"""Fallback shares: one sidecar's part of each limit while the lease store does not answer. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from tokenpool.accounting.account import Account, PoolView
from tokenpool.accounting.bucket import bucket_depth
from tokenpool.amounts import NOTHING, Amount
from tokenpool.leases.messages import Limit

UNEVEN = 3.0
"""Standard deviations of a random spread of requests over sidecars, for which a guarantee's share has
room."""
MOST_RATE = 1e12
"""Tokens/s that represent an absent bound: an infinite rate would make a bucket's level undefined."""


class FallbackShare(NamedTuple):
    """One sidecar's part of a limit, and the assured part of it."""

    limit: Amount
    assured: Amount


def share_of_guarantee(account: Account, sidecars: int) -> Amount:
    """The part of a guarantee that one sidecar may use by itself, with room for uneven spread.

    With ``m`` sequences per sidecar on average, the part is ``m + 3 sqrt(m)``. With random placement, one
    sidecar receives more only once in hundreds of times. Tokens and KV tokens are in proportion.
    """
    if account.is_spot:
        return NOTHING
    guarantee, part = account.entitlement.guarantee, 1.0 / sidecars
    sequences = 0
    if guarantee.concurrency:
        mean = guarantee.concurrency * part
        sequences = math.ceil(min(mean + UNEVEN * math.sqrt(mean), guarantee.concurrency))
        part = sequences / guarantee.concurrency
    return Amount(guarantee.tokens_per_second * part, guarantee.kv_tokens * part, sequences)


def fallback_share(account: Account, known: Limit | None, sidecars: int) -> FallbackShare:
    """This sidecar's share. ``known`` is the last known limit; ``None`` before the first.

    The share is the limit divided by the number of sidecars, and at least one request. A guarantee has a
    larger share (``share_of_guarantee``). A spot entitlement has a share of its ceiling, because the engine's
    free room bounds it.
    """
    entitlement, part = account.entitlement, 1.0 / sidecars
    is_spot, share = account.is_spot, share_of_guarantee(account, sidecars)
    whole = entitlement.ceiling if known is None or is_spot else known.amount
    rate = min(max(whole.tokens_per_second * part, share.tokens_per_second), MOST_RATE)
    sequences = max(math.ceil(min(whole.concurrency * part, MOST_RATE)), 1)
    floor = account.meter.floor
    limit = Amount(
        rate,
        max(whole.kv_tokens * part, share.kv_tokens, floor.kv_tokens),
        max(sequences, share.concurrency, floor.concurrency),
    )
    if is_spot:
        return FallbackShare(limit, NOTHING)
    assured = known.assured if known is not None else NOTHING
    return FallbackShare(
        limit,
        Amount(
            0.0,
            max(share.kv_tokens, assured.kv_tokens * part, floor.kv_tokens),
            max(share.concurrency, math.ceil(assured.concurrency * part)),
        ),
    )


def use_share(account: Account, known: Limit | None, sidecars: int, now: float) -> None:
    """Set an account to this sidecar's share; ``known`` is as in ``fallback_share``.

    The use of other sidecars is not known then. A bucket that held a lease gets this sidecar's part of the
    tokens that no sidecar held.
    """
    share = fallback_share(account, known, sidecars)
    has_peers, unheld = sidecars > 1, 0.0
    if known is None:
        account.forget_bucket()
        depth = bucket_depth(share.limit.tokens_per_second, 0.0)
        account.set_pool(PoolView(share.limit, depth, account.debt, has_peers=has_peers))
    else:
        unheld = known.depth / sidecars
        account.set_pool(PoolView(known.amount, known.depth, known.debt, has_peers=has_peers))
    account.set_share(share.limit, share.assured, unheld, now)
