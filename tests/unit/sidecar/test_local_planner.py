"""A lone sidecar: its tick goes in steps, and free throughput is used between two ticks."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sidecar.controller.controller import Controller
from sidecar.local_planner import LocalPlanner
from sidecar.telemetry import Telemetry
from tests.support.domain_builders import ASK, cost
from tests.support.sidecar_builders import controller
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.amounts import Amount
from tokenpool.capacity.model import CapacityModel
from tokenpool.capacity.room import EngineRoom
from tokenpool.entitlements import ReplicaCapacity
from tokenpool.outcomes import Ending
from tokenpool.planning.planner import PlannerSettings
from tokenpool.pricing.cost import Usage


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


POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000, kv_tokens: 1000000, concurrency: 1000}
entitlements:
  - {name: whole, pool: chat, tier: elastic, api_keys: [w-key]}
  - {name: capped, pool: chat, tier: elastic, ceiling: {tokens_per_second: 600}, api_keys: [c-key]}
  - {name: other, pool: chat, tier: elastic, api_keys: [o-key]}
"""
TOKENS = 50
"""The throughput tokens of one request."""


class Lone:
    """A lone sidecar whose engine computes 1,000 tokens per second."""

    def __init__(self) -> None:
        self.now = 0.0
        telemetry = Telemetry(10)
        telemetry.clock = lambda: self.now
        self.controller = controller(POOL, telemetry=telemetry)
        self.control = self.controller.control
        self.control.engine_changed(EngineRoom(1000.0, 1e6, proven_slots=1000.0), 0.0)
        capacity = CapacityModel(ReplicaCapacity(1000.0, 1e6, 1000.0))
        self.planner = LocalPlanner(self.controller, telemetry, capacity, PlannerSettings())

    def run(self, seconds: float, *names: str, every: int = 1) -> dict[str, float]:
        """The tokens per second of tenants that offer 2,000 each in 40 steps, or less in each ``every``-th.

        There are ten steps between two ticks.
        """
        served = dict.fromkeys(names, 0)
        for step in range(round(seconds * 40)):
            if step % 10 == 0:
                self.planner.tick(self.now)
            if step % every == 0:
                for name in names:
                    served[name] += self.offer(name)
            self.now += 0.025
        return {name: tokens / seconds for name, tokens in served.items()}

    def offer(self, name: str) -> int:
        """Offer a request of ``TOKENS`` tokens. Returns the tokens that it gets."""
        made = self.control.offer(self.controller.accounts[name], ASK, cost(tokens=TOKENS), self.now)
        if isinstance(made, PendingRequest):
            assert self.control.withdraw(made, self.now) is None
        if not isinstance(made, Ticket):
            return 0
        self.control.settle(made, Usage(TOKENS // 2, TOKENS // 2), Ending.FINISHED, self.now)
        return TOKENS


def test_a_tenant_uses_the_throughput_that_others_leave_up_to_its_ceiling() -> None:
    assert Lone().run(10, "whole")["whole"] == pytest.approx(1000, rel=0.12)  # with the first full bucket
    assert Lone().run(10, "capped")["capped"] == pytest.approx(600, rel=0.12)


def test_throughput_that_no_tenant_uses_is_free_between_two_ticks() -> None:
    made = Lone()
    made.run(10, "whole", "other", every=5)  # 400 tokens per second each
    whole = made.controller.accounts["whole"]
    level = whole.bucket.level
    made.now += 0.2
    tokens = sum(made.offer("whole") for _ in range(100))
    assert level + 0.2 * whole.limit.tokens_per_second + TOKENS < tokens
    # At most the engine's throughput of one second is free, less what was spent since the last tick.
    assert 1000 - 200 <= tokens <= 1000
    assert whole.meter.free_tokens > 0


def test_without_a_tick_no_throughput_is_free() -> None:
    made = Lone()
    made.control.active.touch(made.controller.accounts["whole"], 0.0)
    assert made.offer("whole") == 0


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
