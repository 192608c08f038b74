"""The allocation loop of a lone sidecar (``--store memory``): reports in, the pure planner, limits out.

Only active accounts are planned for (``tokenpool.ledger.ActiveAccounts``). While all were, a tick of 2,000
entitlements of which one is active took 80 ms, four times a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from sidecar.controller.controller import Controller
from sidecar.telemetry import Telemetry
from tokenpool.capacity.model import CapacityModel
from tokenpool.planning.planner import Plan, PlannerSettings, Profile, plan_steps, rested


class Allocator:
    """Recomputes every entitlement's limits."""

    def __init__(
        self, controller: Controller, telemetry: Telemetry, capacity: CapacityModel, settings: PlannerSettings
    ) -> None:
        self._controller = controller
        self._telemetry = telemetry
        self._capacity = capacity
        self._settings = settings
        self._ticked_at = telemetry.clock()
        self._profiles: dict[str, tuple[Profile, float]] = {}
        """Of every entitlement that was active, and as of when: one that comes back goes on with its own."""
        self._under_way: Iterator[None] = iter(())
        """The steps of a round that has begun."""
        self.plan: Plan | None = None
        """The plan in force."""

    def problems(self) -> list[str]:
        """Why limits are not to be relied on yet: they were not computed from a capacity that is known."""
        is_planned = self.plan is not None and self.plan.capacity.kv_tokens > 0
        return [] if is_planned else ["limits are not computed yet"]

    def degraded(self) -> list[str]:
        """A lone sidecar has nothing to lose."""
        return []

    def tick(self, now: float) -> None:
        """One round. ``now`` is seconds by the telemetry's clock."""
        self.finish()
        for _ in self.tick_steps(lambda: now):
            pass

    def finish(self) -> None:
        """Bring a round that is under way to its end: before accounts change, and before another round."""
        for _ in self._under_way:
            pass

    def tick_steps(self, clock: Callable[[], float]) -> Iterator[None]:
        """One round in steps, between which the event loop decides requests.

        All new limits take effect together, in the last step.
        """
        active, reported_at = self._controller.ledger.active, clock()
        accounts = {account.entitlement.name: account for account in active}
        before, self._ticked_at = self._ticked_at, reported_at
        made = yield from plan_steps(
            self._capacity.amount(),
            [account.entitlement for account in accounts.values()],
            {name: account.report(reported_at) for name, account in accounts.items()},
            {name: account.debt for name, account in accounts.items()},
            max(reported_at - before, 0.0),
            self._settings,
            {name: rested(profile, before - at) for name, (profile, at) in self._known_profiles(accounts)},
        )
        self.plan, now = made, clock()
        active.planned(made.idle, reported_at, self._settings.debt_decay_s)
        for name, share in made.entitlements.items():
            account = accounts[name]
            account.apply(share.limit, share.assured, share.debt, now)
            self._profiles[name] = made.profiles[name], reported_at
            if active.can_rest(account, now):
                active.retire(account)
        if len(self._profiles) > 2 * len(self._controller.accounts):
            self._profiles = {n: each for n, each in self._profiles.items() if n in self._controller.accounts}
        self._telemetry.limits_computed += 1
        self._controller.serve_queue()

    def _known_profiles(self, names: Iterable[str]) -> list[tuple[str, tuple[Profile, float]]]:
        return [(name, self._profiles[name]) for name in names if name in self._profiles]

    async def run(self, interval: float) -> None:
        """Tick until cancelled."""
        while True:
            self._under_way = self.tick_steps(self._telemetry.clock)
            for _ in self._under_way:
                await asyncio.sleep(0)
            await asyncio.sleep(interval)
