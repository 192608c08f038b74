"""The tenants of a contended pool: a few guaranteed, a few greedy, many light ones.

The simulation and the experiment with real processes (``experiments.distance``) use the same tenants, so
that their results can be compared.
"""

from __future__ import annotations

from typing import NamedTuple

GUARANTEED, GREEDY = 10, 5
"""Numbers of tenants; all others are light."""
GUARANTEED_PART = 0.05
"""The guaranteed tenants' part of all arrivals."""
GREEDY_PART = 0.75
"""The greedy tenants' part of all other arrivals."""
GUARANTEED_SEQUENCES = 3
"""The guarantee of each guaranteed tenant."""


class TenantClass(NamedTuple):
    """Tenants of one kind."""

    kind: str
    tenants: int
    sequences: int
    """The guarantee of each tenant; 0 makes it elastic."""
    arrivals: float
    """The share of each tenant in all arrivals."""


def classes(tenants: int) -> tuple[TenantClass, ...]:
    """The classes of a pool with so many tenants in total, at least 16."""
    others, light = 1 - GUARANTEED_PART, tenants - GUARANTEED - GREEDY
    return (
        TenantClass("guaranteed", GUARANTEED, GUARANTEED_SEQUENCES, GUARANTEED_PART / GUARANTEED),
        TenantClass("greedy", GREEDY, 0, others * GREEDY_PART / GREEDY),
        TenantClass("light", light, 0, others * (1 - GREEDY_PART) / light),
    )
