"""The report of one tick: the demand and the service of one entitlement, as the planner reads them."""

from __future__ import annotations

import msgspec

from tokenpool.amounts import NOTHING, Amount


class Report(msgspec.Struct, frozen=True, gc=False):
    """What one entitlement asked for and got since the last tick, over all sidecars."""

    demand: Amount = NOTHING
    """Offered load, shed requests included."""
    service: Amount = NOTHING
    """Tokens per second spent, and the average KV tokens and sequences held."""
    floor: Amount = NOTHING
    """The largest recent request, at least one sequence where the entitlement is on a sidecar."""
