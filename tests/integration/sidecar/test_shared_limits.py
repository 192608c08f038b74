"""A sidecar that shares its limits: its requests wait for the engine, and for larger leases."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sidecar.app import Sidecar
from sidecar.configuration import load
from tests.fakes.scripted_engine import FakeEngine, Held
from tests.support.harness import ask, request, sidecar_for, until
from tokenpool.leases.messages import Limit
from tokenpool.leases.settings import Mode
from tokenpool.planning.idle import IdleTerms
from tokenpool.pricing.cost import Ask
from tokenpool.store.memory import MemoryStore

LIFETIME_S = 0.3
PLENTY = Limit(1e6, 1e6, 64, depth=1e6)
_ASK = Ask(text_bytes=20, output_bound=5)
TERMS = IdleTerms((1e6, 1e6, 64.0), (1e6, 1e6, 64.0))


@asynccontextmanager
async def sharing(port: int, folder: Path, **options: Any) -> AsyncIterator[tuple[Sidecar, MemoryStore]]:
    """A sidecar that has joined a lease store in memory, in which e may have a lot."""
    store = MemoryStore(LIFETIME_S, time.monotonic)
    await store.publish({"e": PLENTY}, TERMS, 1)
    async with sidecar_for(port, folder, store=store, lease_lifetime=LIFETIME_S, **options) as sidecar:
        leases = sidecar.control.leases
        assert leases is not None
        await until(lambda: leases.mode is Mode.JOINED)
        yield sidecar, store


async def test_a_request_that_waits_for_the_engine_asks_for_its_lease_when_its_turn_comes(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = Held()
    async with sharing(engine.port, tmp_path, queue_timeout_elastic=5.0) as (sidecar, _):
        running = [asyncio.ensure_future(ask(sidecar, request(key="e-key"))) for _ in range(8)]
        await until(lambda: len(engine.received) == 8)
        waiting = [asyncio.ensure_future(ask(sidecar, request(key="e-key"))) for _ in range(3)]
        await until(lambda: len(sidecar.controller.control.queue) == 3)
        await asyncio.sleep(4 * sidecar.settings.tick)  # answers of the lease store come, and change nothing
        assert not any(each.done() for each in waiting)
        held.go.set()
        assert [(await each).status for each in [*running, *waiting]] == [200] * 11


async def test_a_waiting_request_is_refused_at_once_when_the_sidecar_stops(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = Held()
    async with sharing(engine.port, tmp_path, queue_timeout_elastic=30.0) as (sidecar, _):
        running = [asyncio.ensure_future(ask(sidecar, request(key="e-key"))) for _ in range(8)]
        await until(lambda: len(engine.received) == 8)
        waiting = asyncio.ensure_future(ask(sidecar, request(key="e-key")))
        await until(lambda: len(sidecar.controller.control.queue) == 1)
        stopping = asyncio.ensure_future(sidecar.stop())
        answer = await asyncio.wait_for(waiting, 0.9)  # draining may take a second
        assert (answer.status, answer.headers["x-tokenpool-reason"]) == (503, "draining")
        held.go.set()
        assert [(await each).status for each in running] == [200] * 8
        await stopping


async def test_a_burst_of_an_idle_tenant_waits_for_one_answer(engine: FakeEngine, tmp_path: Path) -> None:
    async with sharing(engine.port, tmp_path, queue_timeout_elastic=5.0) as (sidecar, _):
        burst = [ask(sidecar, request(key="e-key")) for _ in range(100)]
        assert [answer.status for answer in await asyncio.gather(*burst)] == [200] * 100


async def test_an_entitlement_that_is_removed_does_not_end_the_exchange_with_the_lease_store(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sharing(engine.port, tmp_path) as (sidecar, _):
        controller = sidecar.controller
        removed = controller.accounts["e"]
        text = sidecar.settings.config.read_text()
        sidecar.settings.config.write_text(
            "\n".join(row for row in text.splitlines() if "name: e," not in row)
        )
        sidecar.enforce(load(sidecar.settings))
        leases, sync = controller.control.leases, sidecar.driver.sync
        assert leases is not None
        assert sync is not None
        cost = removed.pricer.price(_ASK, controller.engine.shape)
        leases.covers(removed, cost, sidecar.telemetry.clock())
        answered_at = sync.answered_at or 0.0
        await until(lambda: (sync.answered_at or 0.0) > answered_at + LIFETIME_S)
        assert leases.mode is Mode.JOINED


async def test_a_group_with_a_ceiling_has_a_lease_of_its_own(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = held = Held()
    async with sharing(engine.port, tmp_path, queue_timeout_elastic=5.0) as (sidecar, store):
        text = sidecar.settings.config.read_text().replace("name: e,", "name: e, group: org,")
        groups = "groups: [{name: org, pool: chat, ceiling: {concurrency: 2}}]\n"
        sidecar.settings.config.write_text(text + groups)
        sidecar.enforce(load(sidecar.settings))
        asked = [asyncio.ensure_future(ask(sidecar, request(key="e-key"))) for _ in range(5)]
        await until(lambda: len(engine.received) == 2)
        await asyncio.sleep(4 * sidecar.settings.tick)
        record = (await store.read()).records["group:org"]
        assert len(engine.received) == 2  # the engine has eight slots, and the limit of e is 64
        assert (record.in_use.concurrency, record.held.concurrency) == (2, 2)
        shown = json.loads("".join(sidecar.admin.state_pieces([])))["groups"]["org"]
        assert (shown["ceiling"]["concurrency"], shown["in_use"]["concurrency"]) == (2, 2)
        held.go.set()
        assert [(await each).status for each in asked] == [200] * 5
