"""The service: consumers for the pools with usage records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from coordinator.leader import PoolLeader
from coordinator.settings import Settings
from coordinator.usage.database import database
from coordinator.usage.service import UsageService
from coordinator.usage.sql import SqlUsageStore
from tokenpool.poolfile.reading import parse
from tokenpool.store.address import open_store
from tokenpool.store.memory import MemoryStore
from tokenpool.usage.record import UsageRecord

POOL = """
pools:
  - {name: chat, models: [tiny], usage_records: USAGE}
  - {name: other, models: [large]}
entitlements:
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
  - {name: o, pool: other, tier: elastic, api_keys: [o-key]}
"""
DAY_S = 86400.0
NOW = 1_790_000_000.0
NOBODY = "redis://127.0.0.1:1"


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[UsageService]:
    store = SqlUsageStore(database(str(tmp_path / "usage.db")))
    made = UsageService(store, "c1", 30, lambda: 0.0, lambda: NOW)
    yield made
    await made.stop()


def leaders(usage: str = "true", *, is_shared: bool = True) -> dict[str, PoolLeader]:
    file = parse(POOL.replace("USAGE", usage)).file
    settings = Settings(config=Path("pool.yaml"), store=NOBODY)
    made = {}
    for pool in file.pools:
        store = open_store(NOBODY, pool.name, 1.5, 0.1) if is_shared else MemoryStore(1.5)
        made[pool.name] = PoolLeader(settings, store, file, pool, "c1", lambda: 0.0)
    return made


def values(service: UsageService) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("result", "")): sample.value
        for metric in service.metrics()
        for sample in metric.samples
    }


async def test_only_pools_with_usage_records_are_consumed(service: UsageService) -> None:
    service.follow(leaders())

    assert list(service.consumers) == ["chat"]


async def test_a_store_in_memory_has_no_stream(service: UsageService) -> None:
    service.follow(leaders(is_shared=False))

    assert service.consumers == {}
    assert list(service.metrics()) == []


async def test_a_changed_pool_file_ends_a_consumer(service: UsageService) -> None:
    service.follow(leaders())
    service.start()
    first = service.consumers["chat"]
    service.follow(leaders())
    assert service.consumers["chat"] is first
    service.follow(leaders("false"))

    assert service.consumers == {}


async def test_a_redis_that_is_away_is_stated(service: UsageService) -> None:
    service.follow(leaders())
    service.start()
    consumer = service.consumers["chat"]
    async with asyncio.timeout(5):
        while not consumer.error:
            await asyncio.sleep(0.001)

    assert service.degraded()[0].startswith("pool chat: usage records are not stored: Redis:")
    assert values(service)["tokenpool_usage_store_up", ""] == 0
    assert values(service)["tokenpool_usage_store_records_total", "stored"] == 0


async def test_another_usage_store_is_stated(service: UsageService) -> None:
    service.follow(leaders())
    service.consumers["chat"].other_store = "other"

    assert "give all coordinators one PostgreSQL" in service.degraded()[0]
    assert values(service)["tokenpool_usage_store_differs", ""] == 1


async def test_old_records_are_forgotten(service: UsageService) -> None:
    await service.store.add(
        [UsageRecord("a", NOW - 31 * DAY_S, "chat", "e"), UsageRecord("b", NOW - 29 * DAY_S, "chat", "e")]
    )
    service.follow(leaders())
    service.start()
    async with asyncio.timeout(5):
        while len(await service.store.records(0, NOW)) == 2:
            await asyncio.sleep(0.001)

    assert [record.id for _, record in await service.store.records(0, NOW)] == ["b"]
