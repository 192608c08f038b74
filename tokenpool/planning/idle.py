"""Idle entitlements: their share follows from a few terms of a plan, so a plan can omit them."""

from __future__ import annotations

import msgspec

from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement, Tier
from tokenpool.planning.claims import Share
from tokenpool.planning.vectors import Vector, larger, smaller

ONE_SEQUENCE = Amount(0.0, 0.0, 1.0)
"""The smallest request."""


class IdleTerms(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The terms for the share of every claim without demand. Positional on the wire: append new fields.

    A claim without demand changes no other claim's share. So a division needs only the claims with demand.
    The cost of a tick depends on the number of active tenants, not on all that exist.
    """

    headroom: Vector = (0.0, 0.0, 0.0)
    """Capacity that no claim was granted: tokens per second, KV tokens, sequences."""
    capacity: Vector = (0.0, 0.0, 0.0)
    """Live capacity, in whole sequences."""
    others_want: bool = False
    """Whether a claim other than spot wants more than it was granted."""

    def share(
        self, tier: Tier, guarantee: Amount, ceiling: Amount, floor: Amount, *, is_bounded: bool = False
    ) -> Share:
        """The share of one claim without demand. ``floor`` is as in ``Claim``.

        ``is_bounded`` states that a group of the claim has a ceiling. Such a claim has no headroom: the terms
        do not state the room of each group.
        """
        bound = ceiling.values()
        limit: Vector = (0.0, 0.0, 0.0) if is_bounded else smaller(self.headroom, self.capacity)
        whole: Vector = (0.0, 0.0, 0.0)
        if tier is Tier.SPOT:
            if not self.others_want:
                whole = smaller(floor.values(), bound)
            return Share(NOTHING, NOTHING, Amount(*smaller(larger(limit, whole), bound)))
        at_least = larger(smaller(floor.values(), bound), guarantee.values())
        limit = smaller(larger(limit, at_least), bound)
        return Share(NOTHING, Amount(*smaller(at_least, limit)), Amount(*limit))


def idle_share(
    entitlement: Entitlement, terms: IdleTerms, floor: Amount, *, is_bounded: bool = False
) -> Share:
    """The share of an entitlement without demand: exactly the share that a full plan would give.

    ``floor`` is its largest request, and at least one sequence. ``is_bounded`` is as in ``IdleTerms.share``.
    """
    guarantee = NOTHING if entitlement.tier is Tier.SPOT else entitlement.guarantee
    return terms.share(entitlement.tier, guarantee, entitlement.ceiling, floor, is_bounded=is_bounded)
