"""Metrics of groups: the limit and the use of each group, as Prometheus text in pieces.

A group's use is the sum over its members, with those of the groups below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice

from coordinator.leader import PoolLeader
from runtime.exposition import Family, number
from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.entitlements import from_the_bottom
from tokenpool.leases.tick import Tick
from tokenpool.planning.planner import GroupPlan

_BY_DIMENSION = ("pool", "group", "dimension")
_LIMIT, _ALLOCATION, _DEMAND, _SERVICE, _IN_USE = (
    Family(name, "gauge", text, _BY_DIMENSION)
    for name, text in (
        (
            "tokenpool_group_limit",
            "Ceiling of the group in the whole pool; absent for a dimension without one.",
        ),
        ("tokenpool_group_allocation", "Capacity that the members of the group are allocated together now."),
        ("tokenpool_group_demand", "Demand of the group's members, shed requests included."),
        ("tokenpool_group_service", "Service of the group's members since the last tick, per second."),
        ("tokenpool_group_in_use", "KV tokens and sequences that requests of the group's members hold now."),
    )
)
_DEBT = Family("tokenpool_group_debt", "gauge", "Service owed to the group, in seconds.", _BY_DIMENSION[:2])
FAMILIES = (_LIMIT, _ALLOCATION, _DEMAND, _SERVICE, _IN_USE, _DEBT)
"""The metrics with a series for each group."""
PER_PIECE = 20
"""Groups in one piece of the page."""
RECORDS_PER_PIECE = 200
"""Active entitlements that are added up in one piece: about 0.3 ms."""
_HELD = (Dimension.KV_TOKENS, Dimension.CONCURRENCY)


def pieces(leaders: Mapping[str, PoolLeader], most: int) -> Iterator[str]:
    """The part of the page about groups. The first ``most`` groups of each pool have series.

    It is empty while no pool has groups.
    """
    if not any(leader.groups for leader in leaders.values()):
        return
    parts: list[list[str]] = [[family.head()] for family in FAMILIES]
    for pool, leader in leaders.items():
        if leader.groups and leader.state is not None:
            yield from _of_pool(pool, leader, leader.state.tick, most, parts)
    for part in parts:
        yield "".join(part)


def _of_pool(pool: str, leader: PoolLeader, made: Tick, most: int, parts: list[list[str]]) -> Iterator[str]:
    groups = leader.groups
    in_use = {group.name: NOTHING for group in groups}
    service = dict(in_use)
    of_entitlement = {each.name: each.group for each in leader.entitlements}
    records = iter(made.records.items())
    while some := list(islice(records, RECORDS_PER_PIECE)):
        for name, record in some:
            own = of_entitlement.get(name)
            if own in in_use:
                in_use[own] += record.in_use
                service[own] += made.service.get(name, NOTHING)
        yield ""
    for each in from_the_bottom(groups):
        if each.parent in in_use:
            in_use[each.parent] += in_use[each.name]
            service[each.parent] += service[each.name]
    shown = iter(groups[:most])
    while page := list(islice(shown, PER_PIECE)):
        for group in page:
            planned, name = made.plan.groups.get(group.name, GroupPlan()), group.name
            finite = [each for each in Dimension if group.ceiling.get(each) != math.inf]
            for part, family, amount, dimensions in (
                (parts[0], _LIMIT, group.ceiling, finite),
                (parts[1], _ALLOCATION, planned.allocation, Dimension),
                (parts[2], _DEMAND, planned.demand, Dimension),
                (parts[3], _SERVICE, service[name], Dimension),
                (parts[4], _IN_USE, in_use[name], _HELD),
            ):
                part += [_line(family, pool, name, amount, each) for each in dimensions]
            parts[5].append(f'{_DEBT.name}{{group="{name}",pool="{pool}"}} {number(planned.debt)}\n')
        yield ""


def _line(family: Family, pool: str, group: str, amount: Amount, dimension: Dimension) -> str:
    return (
        f'{family.name}{{dimension="{dimension.value}",group="{group}",pool="{pool}"}}'
        f" {number(amount.get(dimension))}\n"
    )
