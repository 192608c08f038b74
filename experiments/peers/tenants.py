"""The tenants that every system serves, with one configuration for all loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SLOTS = 16
"""Sequences that the engine runs at once."""
GUARANTEED_SLOTS = 8
"""The sequences that the guaranteed tenant may always run."""
GUARANTEED_SHARE = GUARANTEED_SLOTS / SLOTS
GUARANTEED, ELASTIC, SPOT = "guaranteed", "elastic", "spot"


@dataclass(frozen=True)
class Tenant:
    """One tenant."""

    name: str
    tier: str
    weight: float = 0.0
    """The weight of an elastic tenant, or 0."""

    @property
    def key(self) -> str:
        """The key of its requests."""
        return f"{self.name}-key"


TENANTS = (
    Tenant(GUARANTEED, GUARANTEED),
    Tenant("small", ELASTIC, 1),
    Tenant("large", ELASTIC, 2),
    Tenant("middle", ELASTIC, 1),
    Tenant("long", ELASTIC, 2),
    Tenant(SPOT, SPOT),
)
WEIGHTS: Mapping[str, float] = {tenant.name: tenant.weight for tenant in TENANTS if tenant.weight}


def elastic_share(tenant: Tenant) -> float:
    """The part of all elastic service that is due to an elastic tenant, 0 to 1."""
    return tenant.weight / sum(WEIGHTS.values())
