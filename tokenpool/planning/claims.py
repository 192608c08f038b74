"""Claims and shares: what one entitlement brings to an allocation, and what it gets."""

from __future__ import annotations

import msgspec

from tokenpool.amounts import Amount
from tokenpool.entitlements import Tier


class Claim(msgspec.Struct, frozen=True, gc=False):
    """What one entitlement brings to a tick."""

    name: str
    tier: Tier
    weight: float
    """Above 0, with SLO factor and debt already in it."""
    guarantee: Amount
    ceiling: Amount
    demand: Amount
    """Offered load, shed requests included."""
    floor: Amount = Amount()
    """Its largest recent request: the limit never excludes a request that fits the ceiling."""
    priority: float = 0.0
    """The highest one gets the sequence that rounding leaves over. The planner passes debt."""


class Share(msgspec.Struct, frozen=True, gc=False):
    """What one entitlement gets of a tick."""

    allocation: Amount
    """Granted in stages 1 to 3. The concurrency of an unsatisfied claim is a whole number."""
    assured: Amount
    """The part that needs no room on an engine at admission: nothing for spot."""
    limit: Amount
    """The most that it may use now."""


class FairShare(msgspec.Struct, frozen=True, gc=False):
    """The part of capacity that one entitlement would get by its weight alone."""

    dominant_share: float
    """Of live capacity."""
    is_satisfied: bool
