"""The usage records of a coordinator: one usage store, and a consumer for each pool with records."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from coordinator.leader import PoolLeader
from coordinator.usage.consumer import RESULTS, UsageConsumer
from coordinator.usage.store import UsageStore, UsageStoreDown
from tokenpool.store.redis import RedisStore
from tokenpool.store.usage_stream import UsageStream

log = logging.getLogger(__name__)

FORGET_EVERY_S = 3600.0
"""Seconds between two removals of old records."""
DAY_S = 86400.0


class UsageService:
    """Carries usage records to the usage store, and removes old ones. ``candidate`` names the coordinator."""

    def __init__(
        self,
        store: UsageStore,
        candidate: str,
        keep_days: int,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        """The usage store, for reports and quotas."""
        self._candidate = candidate
        self._keep_days = keep_days
        self._clock = clock
        self._wall_clock = wall_clock
        self.consumers: dict[str, UsageConsumer] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._forgetting: asyncio.Task[None] | None = None

    def follow(self, leaders: Mapping[str, PoolLeader]) -> None:
        """Consume the streams of the pools whose pool file has usage records on, and no others."""
        wanted = {
            name: leader.store
            for name, leader in leaders.items()
            if leader.pool.usage_records and isinstance(leader.store, RedisStore)
        }
        for name in [name for name in self.consumers if name not in wanted]:
            del self.consumers[name]
            if (task := self._tasks.pop(name, None)) is not None:
                task.cancel()
        for name, store in wanted.items():
            if name not in self.consumers:
                self.consumers[name] = UsageConsumer(
                    name, UsageStream(store), self.store, self._candidate, self._clock
                )

    def start(self) -> None:
        """Start what ``follow`` has added. Needs the event loop."""
        loop = asyncio.get_running_loop()
        for name, consumer in self.consumers.items():
            if name not in self._tasks:
                self._tasks[name] = loop.create_task(consumer.run())
        if self._forgetting is None and self._keep_days:
            self._forgetting = loop.create_task(self._forget_forever())

    async def _forget_forever(self) -> None:
        while True:
            if self.consumers:
                try:
                    await self.store.forget(self._wall_clock() - self._keep_days * DAY_S)
                except UsageStoreDown:
                    pass  # the consumers report it
                except Exception:
                    log.critical("old usage records could not be removed", exc_info=True)
            await asyncio.sleep(FORGET_EVERY_S)

    async def stop(self) -> None:
        """Stop, and close the usage store."""
        tasks = [*self._tasks.values(), *([self._forgetting] if self._forgetting is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.store.close()

    def degraded(self) -> list[str]:
        """The faults, for the status."""
        found = []
        for name, consumer in self.consumers.items():
            if consumer.error:
                found.append(f"pool {name}: usage records are not stored: {consumer.error}")
            elif consumer.other_store:
                found.append(
                    f"pool {name}: the usage store of another coordinator has the usage records; give all"
                    " coordinators one PostgreSQL with --usage-store"
                )
        return found

    def metrics(self) -> Iterator[Metric]:
        """The metrics of usage records, for Prometheus. There are none while no pool has them on."""
        if not self.consumers:
            return
        records = CounterMetricFamily(
            "tokenpool_usage_store_records",
            "Usage records from the sidecars: stored; duplicate, which change nothing; unreadable or refused"
            " by the database, which are lost.",
            labels=("pool", "result"),
        )
        up = GaugeMetricFamily(
            "tokenpool_usage_store_up", "Whether usage records are stored.", labels=("pool",)
        )
        other = GaugeMetricFamily(
            "tokenpool_usage_store_differs",
            "Whether another coordinator's usage store has the usage records of the pool.",
            labels=("pool",),
        )
        entries = GaugeMetricFamily(
            "tokenpool_usage_stream_batches",
            "Batches of usage records that wait in the stream.",
            labels=("pool",),
        )
        seconds = GaugeMetricFamily(
            "tokenpool_usage_store_seconds",
            "Duration of the last write to the usage store.",
            labels=("pool",),
        )
        for name, consumer in self.consumers.items():
            for result in RESULTS:
                records.add_metric((name, result), consumer.records[result])
            up.add_metric((name,), not consumer.error)
            other.add_metric((name,), bool(consumer.other_store))
            entries.add_metric((name,), consumer.entries)
            seconds.add_metric((name,), consumer.stored_s)
        yield from (records, up, other, entries, seconds)
