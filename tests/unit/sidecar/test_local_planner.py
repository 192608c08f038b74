"""A lone sidecar's tick goes in steps; requests are decided between them."""

from __future__ import annotations

import asyncio
import contextlib

from sidecar.controller.controller import Controller
from sidecar.local_planner import LocalPlanner
from sidecar.telemetry import Telemetry
from tests.support.sidecar_builders import controller
from tokenpool.amounts import Amount
from tokenpool.capacity.model import CapacityModel
from tokenpool.entitlements import ReplicaCapacity
from tokenpool.planning.planner import PlannerSettings


def planner() -> tuple[Controller, LocalPlanner]:
    telemetry = Telemetry(10)
    made = controller(telemetry=telemetry)
    for account in made.accounts.values():
        made.control.active.touch(account, 0.0)
    capacity = CapacityModel(ReplicaCapacity(1000.0, 10_000.0, 8.0))
    return made, LocalPlanner(made, telemetry, capacity, PlannerSettings())


def limits(controller: Controller) -> dict[str, Amount]:
    return {name: account.limit for name, account in controller.accounts.items()}


def test_a_tick_in_steps_changes_nothing_before_its_end() -> None:
    (whole, at_once), (stepped, slowly) = planner(), planner()
    before = limits(stepped)
    at_once.tick(1e6)
    steps = 0
    for _ in slowly.tick_steps(lambda: 1e6):
        assert limits(stepped) == before
        steps += 1
    assert steps > 5
    assert limits(stepped) == limits(whole) != before


async def test_a_running_tick_is_finished_before_another_begins() -> None:
    controlled, made = planner()
    running = asyncio.ensure_future(made.run(60.0))
    await asyncio.sleep(0)  # the first step
    assert made.plan is None
    made.finish()
    first = made.plan
    assert first is not None
    assert controlled.accounts["g"].limit != Amount(0.0, 0.0, 0.0)
    await asyncio.sleep(0)
    assert made.plan is first
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
