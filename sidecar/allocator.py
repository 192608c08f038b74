"""The allocation loop of a lone sidecar (``--store memory``): reports in, the pure planner, limits out."""

from __future__ import annotations

import asyncio

from sidecar.gate import Gate
from sidecar.telemetry import Telemetry
from tokenpool.capacity import CapacityModel
from tokenpool.planner import Plan, PlannerSettings, plan


class Allocator:
    """Recomputes every entitlement's limits."""

    def __init__(
        self, gate: Gate, telemetry: Telemetry, capacity: CapacityModel, settings: PlannerSettings
    ) -> None:
        self._gate = gate
        self._telemetry = telemetry
        self._capacity = capacity
        self._settings = settings
        self._ticked_at = telemetry.clock()
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
        accounts = self._gate.accounts
        elapsed = max(now - self._ticked_at, 0.0)
        self._ticked_at = now
        self.plan = plan(
            self._capacity.amount(),
            [account.entitlement for account in accounts.values()],
            {name: account.report(now) for name, account in accounts.items()},
            {name: account.debt for name, account in accounts.items()},
            elapsed,
            self._settings,
            self.plan.profiles if self.plan is not None else {},
        )
        for name, share in self.plan.entitlements.items():
            accounts[name].apply(share.limit, share.assured, share.debt, now)
        self._telemetry.limits_computed += 1
        self._gate.serve_door()

    async def run(self, interval: float) -> None:
        """Tick until cancelled."""
        while True:
            self.tick(self._telemetry.clock())
            await asyncio.sleep(interval)
