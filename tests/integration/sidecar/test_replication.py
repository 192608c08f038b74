"""The exchange with the lease store: it survives failures and defects, and its end leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import Sidecar
from sidecar.replication import STOP_WAIT_S
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.build import from_source
from tests.support.harness import (
    STREAM,
    admin,
    ask,
    connected,
    is_whole,
    read_response,
    request,
    sidecar_for,
    until,
)
from tokenpool.leases.leases import Leases
from tokenpool.leases.messages import Answer, Limit, Message, Push
from tokenpool.leases.settings import Mode
from tokenpool.leases.wire import encode_file
from tokenpool.planning.idle import IdleTerms
from tokenpool.poolfile.reading import parse
from tokenpool.store import StoreDown
from tokenpool.store.memory import MemoryStore

LIFETIME_S = 0.3
PLENTY = Limit(1e6, 1e6, 64, depth=1e6)
TERMS = IdleTerms((1e6, 1e6, 64.0), (1e6, 1e6, 64.0))
ONE_SLOT = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 1}
entitlements:
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
  - {name: s, pool: chat, tier: spot, api_keys: [s-key]}
"""


class Scripted(MemoryStore):
    """A lease store that fails, has defects and delays its answers as the test says."""

    def __init__(self) -> None:
        super().__init__(LIFETIME_S, time.monotonic)
        self.defects: Counter[str] = Counter()
        """How many of the next calls fail by a defect, by method."""
        self.is_down = False
        self.go = asyncio.Event()
        self.go.set()
        self.lost: set[int] = set()
        """The numbers of messages that get no answer."""
        self.heard: list[Message] = []
        self.unanswered: set[int] = set()
        self.is_closed = False

    def _fail(self, method: str) -> None:
        if self.is_down:
            raise StoreDown("the store is stopped")
        if self.defects[method]:
            self.defects[method] -= 1
            raise ZeroDivisionError(method)

    async def connect(self, count: int) -> None:
        self._fail("connect")

    async def exchange(self, message: Message) -> Answer:
        self.heard.append(message)
        self.unanswered.add(message.number)
        await self.go.wait()
        self.unanswered.discard(message.number)
        self._fail("exchange")
        if message.number in self.lost:
            raise StoreDown("no answer came")
        return await super().exchange(message)

    async def listen(self, holder: str) -> AsyncIterator[Push]:
        self._fail("listen")
        async for push in super().listen(holder):
            yield push

    async def limits(self) -> tuple[Mapping[str, Limit], IdleTerms]:
        self._fail("limits")
        return await super().limits()

    async def file(self) -> tuple[str, bytes] | None:
        self._fail("file")
        return await super().file()

    async def close(self) -> None:
        self.is_closed = True


@pytest.fixture
async def store() -> Scripted:
    """A lease store with large published limits for all entitlements."""
    made = Scripted()
    await made.publish({"e": PLENTY, "s": PLENTY, "g": PLENTY}, TERMS, 1)
    return made


def leases_of(sidecar: Sidecar) -> Leases:
    leases = sidecar.control.leases
    assert leases is not None
    return leases


@asynccontextmanager
async def sharing(port: int, folder: Path, store: Scripted, **options: Any) -> AsyncIterator[Sidecar]:
    async with sidecar_for(port, folder, store=store, lease_lifetime=LIFETIME_S, **options) as sidecar:
        await until(lambda: leases_of(sidecar).mode is Mode.JOINED)
        yield sidecar


@pytest.mark.parametrize("method", ["connect", "limits", "listen", "file", "exchange"])
async def test_no_defect_ends_the_exchange_with_the_lease_store(
    engine: FakeEngine, tmp_path: Path, store: Scripted, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    version, content = encode_file(parse(ONE_SLOT).file)
    await store.publish_file(version, content, 1)
    store.defects[method] = 2
    async with sharing(engine.port, tmp_path, store) as sidecar:
        replication = sidecar.replication
        assert replication is not None
        await until(lambda: store.defects[method] == 0 and leases_of(sidecar).has_limits)
        await until(lambda: replication.published.version == version)
        await until(lambda: bool(store._listeners))
        assert (await ask(sidecar, request(key="e-key"))).status == 200
        assert not sidecar._tasks[0].done()
    if method != "exchange":  # a message that fails by a defect is one that is not answered
        assert any(record.levelno == logging.CRITICAL for record in caplog.records)


async def test_a_store_that_fails_is_told_and_survived(
    engine: FakeEngine, tmp_path: Path, store: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sidecar.replication")
    async with sharing(engine.port, tmp_path, store) as sidecar:
        leases = leases_of(sidecar)
        assert (await ask(sidecar, request(key="e-key"))).status == 200
        store.is_down = True
        await until(lambda: leases.mode is Mode.CUT_OFF)
        ready, page = await admin(sidecar, "/readyz")
        assert ready == 200
        assert any("the store is stopped" in notice for notice in json.loads(page)["degraded"])
        assert (await ask(sidecar, request(key="e-key"))).status == 200  # from shares
        store.is_down = False
        await until(lambda: leases.mode is Mode.JOINED)
        metrics = (await admin(sidecar, "/metrics"))[1]
    told = [record.getMessage() for record in caplog.records if record.name == "sidecar.replication"]
    assert told == [
        "the lease store does not answer; current leases stay in use",
        "the lease store answers again",
    ]
    assert 'tokenpool_store_up{pool="chat"} 1.0' in metrics
    assert 'tokenpool_store_calls_total{pool="chat",result="failed"} 0.0' not in metrics


@from_source
async def test_no_defect_in_a_decision_ends_a_loop_of_a_lone_sidecar(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the loops, limits and room would freeze, and requests would wait beyond their deadlines."""
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        room, queue = sidecar.control.room, sidecar.control.queue
        sidecar.control.queue = None  # type: ignore[assignment]
        sidecar._ports.wake_at(sidecar.telemetry.clock())
        await until(lambda: "could not be decided in time" in caplog.text)
        await until(lambda: "an observation of the engine could not be used" in caplog.text)
        await until(lambda: "the tick of the planner failed" in caplog.text)
        sidecar.control.queue = queue
        engine.running = 3
        await until(lambda: sidecar.control.room is not room)
        assert not any(task.done() for task in sidecar._tasks)


# --- the end ---


async def endless(received: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event()))
    await asyncio.Event().wait()


def left_behind(before: set[asyncio.Task[Any]]) -> list[str]:
    """The sidecar's tasks that are not done, but for those from before."""
    tasks = asyncio.all_tasks() - before
    return [text for text in map(repr, tasks) if "/tests/" not in text]


@pytest.mark.parametrize("is_silent", [False, True], ids=["the store answers", "the store is silent"])
async def test_a_stop_leaves_nothing_behind(
    engine: FakeEngine, tmp_path: Path, store: Scripted, is_silent: bool
) -> None:
    engine.answer = endless
    before = asyncio.all_tasks()
    options = {"pool": ONE_SLOT, "queue_timeout_elastic": 30.0, "drain_timeout": 0.1}
    async with (
        sharing(engine.port, tmp_path, store, **options) as sidecar,
        connected(sidecar) as (spot, spot_writer),
        connected(sidecar) as (waiting, waiting_writer),
    ):
        spot_writer.write(request("/v1/chat/completions", STREAM, key="s-key"))
        await spot.readuntil(b"\n\n")
        waiting_writer.write(request(key="e-key"))
        await until(lambda: sidecar.control.queue.waiting_for_room == 1)
        if is_silent:
            store.go.clear()
            await until(lambda: bool(store.unanswered))
        began = time.monotonic()

        await sidecar.stop()

        took = time.monotonic() - began
        refused = await read_response(waiting)
        assert (refused.status, refused.headers["x-tokenpool-reason"]) == (503, "draining")
        assert b"[DONE]" not in await spot.read()  # cut
        assert took < STOP_WAIT_S + 1.0
        assert (took >= STOP_WAIT_S) == is_silent
        assert is_whole(sidecar)
        control, driver = sidecar.control, sidecar.driver
        assert (len(control.queue), control.has_effects, control.has_waiting) == (0, False, False)
        assert (driver._waiters, driver._runners, driver._ended_early) == ({}, {}, set())
        assert sidecar._ports._calls == set()
        assert sidecar._ports._timer is None
        assert store.is_closed
        await until(lambda: left_behind(before) == [])
        if not is_silent:
            holder = sidecar.driver.sync.holder  # type: ignore[union-attr]
            at = (await store.read()).records
            assert [(at[name].held.concurrency, at[name].in_use.concurrency) for name in "es"] == [(0, 0)] * 2
            assert store.heard[-1].holder == holder
    assert sidecar.telemetry.outcomes("s") == {"drained": 1}


async def test_the_last_message_states_the_usage_that_a_lost_one_stated(
    engine: FakeEngine, tmp_path: Path, store: Scripted
) -> None:
    async with sharing(engine.port, tmp_path, store) as sidecar:
        meter = sidecar.controller.accounts["e"].meter
        assert (await ask(sidecar, request(key="e-key"))).status == 200
        store.go.clear()
        assert (await ask(sidecar, request(key="e-key"))).status == 200
        assert meter.spent == 30
        await until(lambda: any(_states(store, number, meter.spent) for number in store.unanswered))
        store.lost = set(store.unanswered)

        stopping = asyncio.ensure_future(sidecar.stop())
        await until(lambda: sidecar.driver._is_stopped)
        store.go.set()
        await stopping

        assert store.heard[-1].number not in store.lost
        assert store.heard[-1].lease_requests["e"].tokens_spent == 30


def _states(store: Scripted, number: int, spent: float) -> bool:
    said = next(each for each in store.heard if each.number == number).lease_requests.get("e")
    return said is not None and said.tokens_spent == spent and not said.concurrency_in_use


async def test_a_defect_in_the_last_message_does_not_stop_the_stop(
    engine: FakeEngine, tmp_path: Path, store: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    async with sharing(engine.port, tmp_path, store) as sidecar:
        stopping = asyncio.ensure_future(sidecar.stop())
        await until(lambda: sidecar.lifecycle.is_draining)
        store.defects["exchange"] = 1000
        await stopping
        assert store.is_closed
    assert "the last message could not be sent" in caplog.text
