"""Claims and shares: the input and the result of an allocation, for one entitlement."""

from __future__ import annotations

import msgspec

from tokenpool.amounts import Amount
from tokenpool.entitlements import Tier


class Claim(msgspec.Struct, frozen=True, gc=False):
    """The input of an allocation for one entitlement."""

    name: str
    tier: Tier
    weight: float
    """A number above 0, with the factors for SLO and debt."""
    guarantee: Amount
    ceiling: Amount
    demand: Amount
    """Offered load, shed requests included."""
    floor: Amount = Amount()
    """The largest recent request. The limit never excludes a request within the ceiling."""
    priority: float = 0.0
    """The claim with the highest priority gets a sequence that rounding leaves. The planner passes debt."""
    group: str | None = None
    """The group that has the claim as a member."""


class GroupClaim(msgspec.Struct, frozen=True, gc=False):
    """The input of an allocation for one group."""

    name: str
    parent: str | None
    weight: float
    """A number above 0, with the factor for debt."""
    guarantee: Amount
    """The capacity for all members together; zero if the group has none of its own."""
    ceiling: Amount


class Share(msgspec.Struct, frozen=True, gc=False):
    """The result of an allocation for one entitlement."""

    allocation: Amount
    """The grant of stages 1 to 3. The concurrency of an unsatisfied claim is a whole number."""
    assured: Amount
    """The part of the limit that may queue at a full engine; zero for spot."""
    limit: Amount
    """The amount that it may use now."""


class FairShare(msgspec.Struct, frozen=True, gc=False):
    """The part of capacity that one entitlement gets by its weight alone."""

    dominant_share: float
    """The largest share of live capacity in any dimension, 0 to 1."""
    is_satisfied: bool
    """Whether this part covers the whole demand."""
    bound_by: str | None = None
    """The group whose ceiling keeps it from more; ``None`` if none does."""
