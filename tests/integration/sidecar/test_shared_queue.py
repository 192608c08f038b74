"""The queue of a sidecar that shares its limits: requests wait for the engine, and for larger leases."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sidecar.app import Sidecar
from sidecar.configuration import load
from sidecar.replication import Replication
from tests.fakes.engine import FakeEngine, Held
from tests.support.harness import ask, request, sidecar_for, until
from tokenpool.leases.leases import Mode
from tokenpool.leases.reference_store import Limit
from tokenpool.planning.allocation import IdleTerms
from tokenpool.pricing.cost import Ask
from tokenpool.store.memory import MemoryStore

LIFETIME_S = 0.3
PLENTY = Limit(1e6, 1e6, 64, depth=1e6)
_ASK = Ask(text_bytes=20, output_bound=5)
TERMS = IdleTerms((1e6, 1e6, 64.0), (1e6, 1e6, 64.0))


@asynccontextmanager
async def sharing(port: int, folder: Path, **options: Any) -> AsyncIterator[tuple[Sidecar, MemoryStore]]:
    """A sidecar that is joined to books in memory, in which e may have a lot."""
    store = MemoryStore(LIFETIME_S, time.monotonic)
    await store.publish({"e": PLENTY}, TERMS, 1)
    async with sidecar_for(port, folder, lease_lifetime=LIFETIME_S, **options) as sidecar:
        replication = Replication(
            sidecar.settings,
            sidecar.controller,
            sidecar.telemetry,
            sidecar.watcher,
            store,
            load(sidecar.settings),
            lambda file: iter(()),
            lambda file: None,
        )
        task = asyncio.create_task(replication.run())
        try:
            await until(lambda: replication.leases.mode is Mode.JOINED)
            yield sidecar, store
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            sidecar.controller.leases = None


async def test_a_request_that_waits_for_the_engine_asks_for_its_lease_when_its_turn_comes(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = Held()
    async with sharing(engine.port, tmp_path, queue_timeout_elastic=5.0) as (sidecar, _):
        running = [asyncio.ensure_future(ask(sidecar, request(key="e-key"))) for _ in range(8)]
        await until(lambda: len(engine.received) == 8)
        waiting = [asyncio.ensure_future(ask(sidecar, request(key="e-key"))) for _ in range(3)]
        await until(lambda: len(sidecar.controller.queue) == 3)
        await asyncio.sleep(4 * sidecar.settings.tick)  # answers of the lease store come, and change nothing
        assert not any(each.done() for each in waiting)
        held.go.set()
        assert [(await each).status for each in [*running, *waiting]] == [200] * 11


async def test_a_request_that_waits_is_told_at_once_that_the_sidecar_stops(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = Held()
    async with sharing(engine.port, tmp_path, queue_timeout_elastic=30.0) as (sidecar, _):
        running = [asyncio.ensure_future(ask(sidecar, request(key="e-key"))) for _ in range(8)]
        await until(lambda: len(engine.received) == 8)
        waiting = asyncio.ensure_future(ask(sidecar, request(key="e-key")))
        await until(lambda: len(sidecar.controller.queue) == 1)
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
        other = load(sidecar.settings)
        controller.configure(other.file, other.pool, other.keys)
        assert controller.leases is not None
        controller.leases.covers(
            removed, removed.pricer.price(_ASK, controller.engine.shape), controller._clock()
        )
        answered = controller.leases.answered_at
        await until(lambda: (controller.leases.answered_at or 0) > (answered or 0) + LIFETIME_S)  # type: ignore[union-attr]
        assert controller.leases.mode is Mode.JOINED
