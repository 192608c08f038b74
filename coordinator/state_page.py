"""The page ``/debug/state`` of a coordinator, in pieces that each take well below a millisecond to make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from coordinator.entitlement_view import EntitlementView, view
from coordinator.leader import PoolLeader, PoolState
from tokenpool.leases.tick import Tick
from tokenpool.planning.planner import GroupPlan

PER_PIECE = 8
"""Entitlements in one piece: about 0.4 ms."""
Filter = Callable[[str, EntitlementView], bool]
"""Returns whether the page shows an entitlement."""


def pieces(
    leaders: Mapping[str, PoolLeader], now: float, wanted: Filter, *, config_is_current: bool
) -> Iterator[str]:
    """The JSON text of the page."""
    yield f'{{"config_is_current":{"true" if config_is_current else "false"},"pools":{{'
    before = ""
    for name, leader in leaders.items():
        summary = msgspec.json.encode(_pool(leader, now)).decode()
        yield f'{before}"{name}":{summary.removesuffix("}")}'
        if leader.state is not None:
            yield ',"entitlements":{'
            yield from _entitlements(leader, leader.state.tick, wanted)
            yield "}"
        yield "}"
        before = ","
    yield "}}"


def _pool(leader: PoolLeader, now: float) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "leads": bool(leader.epoch),
        "epoch": leader.epoch,
        "error": leader.error or None,
        "scale_hint": _hint(leader, now),
        "file_version": leader.file_version,
        "file_differs": leader.file_differs,
        "ticks": dict(leader.rounds),
    }
    if leader.state is None:
        return shown
    return shown | _planned(leader.state) | {"groups": _groups(leader, leader.state.tick)}


def _groups(leader: PoolLeader, made: Tick) -> dict[str, Any]:
    """The groups by name: their place, what they may use, and what their members get together."""
    shown = {}
    for group in leader.groups:
        planned, record = made.plan.groups.get(group.name, GroupPlan()), made.groups.get(group.name)
        shown[group.name] = {
            "parent": group.parent,
            "weight": group.weight,
            "guarantee": leader.promises.of(group).as_dict(),
            "ceiling": group.ceiling.as_dict(),
            "allocation": planned.allocation.as_dict(),
            "demand": planned.demand.as_dict(),
            "fair_share": planned.fair_share,
            "debt": planned.debt,
            "in_use": record.in_use.as_dict() if record is not None else None,
        }
    return shown


def _hint(leader: PoolLeader, now: float) -> dict[str, Any]:
    published = leader.hint()
    if published is None:
        return {"desired_replicas": None, "reason": leader.hints.problem(now)}
    return {
        "desired_replicas": published.hint.replicas,
        "reason": published.hint.reason,
        "computed_at": leader.hints.computed_at,
        "age_s": round(leader.hints.age_s(now), 3),
    }


def _planned(state: PoolState) -> dict[str, Any]:
    made = state.tick
    return {
        "capacity": made.plan.capacity.as_dict(),
        "replica": made.replica.as_dict(),
        "overpromised": [dimension.value for dimension in state.overpromised],
        "tick_s": state.took_s,
        "unreadable_reports": list(made.unreadable),
        "sidecars": {name: msgspec.to_builtins(report) for name, report in made.sidecars.items()},
    }


def _entitlements(leader: PoolLeader, made: Tick, wanted: Filter) -> Iterator[str]:
    """The rows, a few at a time."""
    before, rows = "", []
    for number, entitlement in enumerate(leader.entitlements, 1):
        shown = view(entitlement, made)
        if wanted(entitlement.name, shown):
            is_enforced = leader.pool.enforce and entitlement.enforce
            entry = _row(shown, entitlement.group) | {"enforce": is_enforced}
            row = msgspec.json.encode(entry).decode()
            rows.append(f'{before}"{entitlement.name}":{row}')
            before = ","
        if number % PER_PIECE == 0:
            yield "".join(rows)
            rows = []
    yield "".join(rows)


def _row(shown: EntitlementView, group: str | None) -> dict[str, Any]:
    is_known = shown.level is not None
    return {
        "group": group,
        "limit": shown.limit.as_dict(),
        "assured": shown.assured.as_dict(),
        "allocation": shown.allocation.as_dict(),
        "demand": shown.demand.as_dict(),
        "fair_share": shown.fair_share,
        "debt": shown.debt,
        "held": shown.held.as_dict() if is_known else None,
        "in_use": shown.in_use.as_dict() if is_known else None,
        "service": shown.service.as_dict(),
        "level": shown.level,
    }
