"""Builders of snapshots for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dashboard.snapshot import Replicas, ShownEntitlement, ShownPool, Snapshot, Tally

CAPACITY = (1000.0, 10_000.0, 8.0)


def entitlement(name: str = "a", **values: Any) -> ShownEntitlement:
    return ShownEntitlement(name, **{"tier": "elastic", "limit": (500.0, 5000.0, 4.0), **values})


def pool(*entitlements: ShownEntitlement, name: str = "chat", **values: Any) -> ShownPool:
    defaults = {"capacity": CAPACITY, "replicas": Replicas(1, 1)}
    return ShownPool(name, entitlements=entitlements or (entitlement(),), **{**defaults, **values})


def snapshot(*pools: ShownPool) -> Snapshot:
    return Snapshot("coordinator", "c0", pools)


def counted(**outcomes: Mapping[str, int]) -> dict[str, Tally]:
    """The counts of one sidecar by entitlement."""
    return {"s0": Tally(outcomes)}
