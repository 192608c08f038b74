"""The report of one tick: the demand and the service of one entitlement, for the planner."""

from __future__ import annotations

import msgspec

from tokenpool.amounts import NOTHING, Amount


class Report(msgspec.Struct, frozen=True, gc=False):
    """The demand and the service of one entitlement since the last tick, over all sidecars."""

    demand: Amount = NOTHING
    """Offered load, shed requests included."""
    service: Amount = NOTHING
    """Tokens per second spent, and the average KV tokens and sequences held."""
    floor: Amount = NOTHING
    """The largest recent request; at least one sequence for an entitlement on a sidecar."""
