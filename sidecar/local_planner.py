"""The planner loop of a lone sidecar (``--store memory``). It measures demand, plans, and sets the limits.

It plans only for active accounts (``tokenpool.planning.active_accounts``). With a plan for all accounts, a
tick of 2,000 entitlements of which one is active took 80 ms, four times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from sidecar.controller.controller import Controller
from sidecar.telemetry import Telemetry
from tokenpool.accounting.report import Report
from tokenpool.capacity.model import CapacityModel
from tokenpool.planning.planner import Plan, PlanInput, PlannerSettings, plan_steps
from tokenpool.planning.profiles import Profile, after_idle_time

log = logging.getLogger(__name__)

PER_STEP = 20
"""Accounts whose reports one step makes: about 0.2 ms."""


class LocalPlanner:
    """Recomputes the limits of every entitlement of one sidecar without a lease store."""

    def __init__(
        self, controller: Controller, telemetry: Telemetry, capacity: CapacityModel, settings: PlannerSettings
    ) -> None:
        self._controller = controller
        self._telemetry = telemetry
        self._capacity = capacity
        self._settings = settings
        self._started_at = self._ticked_at = telemetry.clock()
        self._profiles: dict[str, tuple[Profile, float]] = {}
        """The profile of each entitlement that was active, and the time of its last plan."""
        self._group_debts: dict[str, float] = {}
        self._under_way: Iterator[None] = iter(())
        """The remaining steps of a tick that has begun."""
        self._is_due = asyncio.Event()
        self.plan: Plan | None = None
        """The plan in force."""

    def problems(self) -> list[str]:
        """The reasons why the sidecar is not ready: no limits are computed from a known capacity yet."""
        is_planned = self.plan is not None and self.plan.capacity.kv_tokens > 0
        return [] if is_planned else ["limits are not computed yet"]

    def degraded(self) -> list[str]:
        """No faults: a lone sidecar uses no lease store."""
        return []

    def tick(self, now: float) -> None:
        """Run one tick at once. ``now`` is seconds by the telemetry's clock."""
        self.finish()
        for _ in self.tick_steps(lambda: now):
            pass

    def finish(self) -> None:
        """Complete a tick that has begun: before accounts change, and before another tick."""
        for _ in self._under_way:
            pass

    def tick_soon(self) -> None:
        """Begin the next tick now, in steps: the accounts have changed."""
        self.finish()
        self._is_due.set()

    def tick_steps(self, clock: Callable[[], float]) -> Iterator[None]:
        """Run one tick in steps. The event loop decides requests between them.

        All new limits take effect together, in the last step.
        """
        active, reported_at = self._controller.control.active, clock()
        accounts = {account.entitlement.name: account for account in active}
        before, self._ticked_at = self._ticked_at, reported_at
        reports: dict[str, Report] = {}
        profiles: dict[str, Profile] = {}
        new = Profile(), self._started_at  # an entitlement that was never active was idle
        for number, (name, account) in enumerate(accounts.items(), 1):
            reports[name] = account.report(clock())
            profile, at = self._profiles.get(name, new)
            profiles[name] = after_idle_time(profile, before - at)
            if number % PER_STEP == 0:
                yield
        made = yield from plan_steps(
            PlanInput(
                self._capacity.amount(),
                [account.entitlement for account in accounts.values()],
                reports,
                {name: account.debt for name, account in accounts.items()},
                max(reported_at - before, 0.0),
                self._settings,
                profiles,
                self._controller.pool_accounts.groups,
                self._group_debts,
            )
        )
        self._group_debts = {name: group.debt for name, group in made.groups.items()}
        self.plan, now = made, clock()
        active.planned(made.idle, reported_at, self._settings.debt_decay_s)
        for name, part in made.entitlements.items():
            account = accounts[name]
            account.set_limits(part.limit, part.assured, part.debt, now)
            self._profiles[name] = made.profiles[name], reported_at
            if active.may_retire(account, now):
                active.retire(account)
        if len(self._profiles) > 2 * len(self._controller.accounts):
            self._profiles = {n: each for n, each in self._profiles.items() if n in self._controller.accounts}
        self._controller.control.free_capacity.set_throughput(made.capacity.tokens_per_second, now)
        self._telemetry.limits_computed += 1
        self._controller.driver.serve()

    async def run(self, interval: float) -> None:
        """Tick until cancelled, with ``interval`` seconds between two ticks."""
        while True:
            self._is_due.clear()
            self._under_way = self.tick_steps(self._telemetry.clock)
            try:
                for _ in self._under_way:
                    await asyncio.sleep(0)
            except Exception:
                # A defect must not end the loop: the next interval tries again.
                log.critical("the tick of the planner failed", exc_info=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._is_due.wait()
