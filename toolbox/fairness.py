"""Measures of fairness of the weighted service of tenants."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

from loadgen.statistics import jain

_Tenant = TypeVar("_Tenant", bound=Hashable)


def by_weight(served: Mapping[_Tenant, float], weights: Mapping[_Tenant, float]) -> dict[_Tenant, float]:
    """Service per unit of weight."""
    return {tenant: served[tenant] / weight for tenant, weight in weights.items()}


def jain_by_weight(served: Mapping[_Tenant, float], weights: Mapping[_Tenant, float]) -> float:
    """Jain's index of weighted service: 1 if each tenant has its share, 1/n if one tenant has all service."""
    return jain(by_weight(served, weights).values())


def deviation(served: Mapping[_Tenant, float], weights: Mapping[_Tenant, float]) -> float:
    """The largest relative deviation from a fair share. The total service must not be zero."""
    total, whole = sum(served.values()), sum(weights.values())
    return max(abs(served[tenant] / total * whole / weight - 1) for tenant, weight in weights.items())
