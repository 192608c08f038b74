"""One entitlement after a tick, for metrics and pages, whether or not the plan includes it."""

from __future__ import annotations

from typing import NamedTuple

from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement
from tokenpool.leases.tick import Tick
from tokenpool.planning.idle import idle_share
from tokenpool.planning.planner import EntitlementPlan

_ONE_SEQUENCE = Amount(0.0, 0.0, 1.0)


class EntitlementView(NamedTuple):
    """One entitlement after a tick."""

    limit: Amount
    assured: Amount
    allocation: Amount
    demand: Amount
    fair_share: float
    debt: float
    service: Amount
    held: Amount
    in_use: Amount
    level: float | None


def view(entitlement: Entitlement, made: Tick) -> EntitlementView:
    """An entitlement after a tick. The limit of an idle one follows from the unused capacity."""
    name = entitlement.name
    plan, page = made.plan.entitlements.get(name), made.records.get(name)
    if plan is None:
        is_bounded = entitlement.group in made.plan.bounded
        share = idle_share(entitlement, made.plan.idle, _ONE_SEQUENCE, is_bounded=is_bounded)
        plan = EntitlementPlan(share.limit, share.assured, share.allocation, NOTHING, 0.0, 0.0)
    return EntitlementView(
        plan.limit,
        plan.assured,
        plan.allocation,
        plan.demand,
        plan.fair_share,
        plan.debt,
        made.service.get(name, NOTHING),
        page.held if page is not None else NOTHING,
        page.in_use if page is not None else NOTHING,
        page.level if page is not None else None,
    )
