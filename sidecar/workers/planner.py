"""The lease store and the planner of a sidecar that has several workers and no ``--store``.

The supervisor has them, so no plan delays a request. The workers use the store over a Unix socket. It begins
empty and open: no worker runs before it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prometheus_client.core import Metric

from sidecar.configuration import Configuration
from sidecar.quota_metrics import spending
from sidecar.worker import store_path
from tokenpool.leases.messages import PoolSnapshot
from tokenpool.leases.tick import NO_MEMORY, Tick, tick
from tokenpool.planning.planner import PlannerSettings
from tokenpool.quotas.messages import QuotaState, parsed_key
from tokenpool.store.local import StoreServer
from tokenpool.store.memory import MemoryStore

log = logging.getLogger(__name__)

CANDIDATE = "supervisor"
QUOTAS_EVERY_S = 1.0


class PodPlanner:
    """Plans for the workers of one sidecar, once per ``interval_s``."""

    def __init__(
        self,
        configuration: Configuration,
        interval_s: float,
        lifetime_s: float,
        debt_gain: float,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """``clock`` has epoch seconds. By default it never steps: a step would end all leases."""
        began_at = time.time() - time.monotonic()
        clock = clock or (lambda: began_at + time.monotonic())
        self._interval_s = interval_s
        self._planner = PlannerSettings(debt_gain=debt_gain)
        self.store = MemoryStore(lifetime_s, clock, is_first=True)
        self._server = StoreServer(self.store)
        self._before: PoolSnapshot | None = None
        self._memory = NO_MEMORY
        self._epoch = self.store.rules.lead(CANDIDATE, float("inf"), clock())
        self.last: Tick | None = None
        """The last tick."""
        self._quotas: Sequence[QuotaState] = ()
        self._tasks: list[asyncio.Task[None]] = []
        self.follow(configuration)

    def follow(self, configuration: Configuration) -> None:
        """Use this pool file from the next tick on."""
        self._pool = configuration.pool
        file = configuration.file
        self._entitlements = {each.name: each for each in file.entitlements_of(self._pool.name)}
        self._groups = file.groups_of(self._pool.name)

    async def start(self, folder: Path) -> None:
        """Listen for the workers, and begin to plan."""
        await self._server.start(store_path(folder))
        await self.tick()
        loop = asyncio.get_running_loop()
        self._tasks += [loop.create_task(self._tick_forever()), loop.create_task(self._restore_forever())]

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.tick()
            except Exception:
                # A defect must not end the loop: the last limits stay in force until the next tick.
                log.critical("the tick of the planner failed", exc_info=True)

    async def tick(self) -> None:
        """Compute and publish all limits."""
        snapshot = await self.store.read()
        made = tick(snapshot, self._entitlements, self._before, self._planner, self._memory, self._groups)
        self._before, self._memory, self.last = snapshot, made.memory, made
        await self.store.publish(made.limits, made.plan.idle, self._epoch)

    async def _restore_forever(self) -> None:
        while True:
            await asyncio.sleep(QUOTAS_EVERY_S)
            await self.restore()

    async def restore(self) -> None:
        """Let the quotas grant portions. No usage store has earlier spending, as for a lone sidecar."""
        self._quotas = await self.store.quotas()
        for each in self._quotas:
            if not each.is_restored and each.may_restore:
                await self.store.restore_quota(each.key, each.start, 0.0)

    def metrics(self) -> Iterator[Metric]:
        """The spending of budgets, for Prometheus."""
        known = ((parsed_key(each.key), each) for each in self._quotas)
        return spending((budget, each.tokens, each.spent) for budget, each in known if budget is not None)

    async def stop(self) -> None:
        """End the plans, and the connections of the workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.stop()
