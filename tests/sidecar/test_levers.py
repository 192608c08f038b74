"""Levers over the wire: spot streams ended for a guarantee, waits at the door, priorities, room kept back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.fakes import engine as fake
from tests.fakes.engine import FakeEngine, Received
from tests.sidecar.harness import CHAT, STREAM, admin, ask, connected, is_whole, request, sidecar_for, until

TWO_SLOTS = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 2}
entitlements:
  - name: g
    pool: chat
    tier: guaranteed
    guarantee: {tokens_per_second: 10000, kv_tokens: 10000, concurrency: 2}
    slo: {ttft_ms: 50}
    api_keys: [g-key]
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
  - {name: s, pool: chat, tier: spot, api_keys: [s-key]}
"""


async def endless(request: Received, writer: asyncio.StreamWriter) -> None:
    """A stream begins, and ends only with its client; whoever does not stream is answered."""
    if not request.json().get("stream"):
        await fake.answer_unary(request, writer)
        return
    writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event()))
    await asyncio.Event().wait()


async def test_the_youngest_spot_stream_ends_with_an_error_of_its_own(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = endless
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS, preempt=True) as sidecar:
        path = "/v1/chat/completions"
        async with connected(sidecar) as (older, wrote_older), connected(sidecar) as (younger, wrote_younger):
            wrote_older.write(request(path, STREAM, key="s-key"))
            await older.readuntil(b"\n\n")
            wrote_younger.write(request(path, STREAM, key="s-key"))
            await younger.readuntil(b"\n\n")
            served = await ask(sidecar, request(path, CHAT, key="g-key"))
            rest = await asyncio.wait_for(younger.readuntil(b"0\r\n\r\n"), 2)
            assert served.status == 200
            events = [line for line in rest.split(b"\n") if line.startswith(b"data: ")]
            error = json.loads(events[0][6:])["error"]
            assert (error["code"], error["type"]) == ("preempted", "rate_limit_error")
            assert "guarantee" in error["message"]
            assert events[-1] == b"data: [DONE]"
            await asyncio.wait_for(engine.aborted.wait(), 2)
            assert sidecar.gate.accounts["s"].concurrency_in_use == 1  # the older one goes on
            wrote_younger.write(request("/v1/models", method="GET", key="s-key"))
            assert b"200 OK" in await younger.readuntil(b"\r\n")  # the connection is still of use
        await until(lambda: is_whole(sidecar))
        page = (await admin(sidecar, "/metrics"))[1]
        assert 'tokenpool_requests_total{entitlement="s",outcome="preempted",tier="spot"} 1.0' in page


async def test_a_spot_request_without_an_answer_yet_is_refused(engine: FakeEngine, tmp_path: Path) -> None:
    async def silent(request: Received, writer: asyncio.StreamWriter) -> None:
        if request.json().get("prompt") == "urgent":
            await fake.answer_unary(request, writer)
            return
        await asyncio.Event().wait()

    engine.answer = silent
    urgent = {"model": "tiny", "prompt": "urgent", "max_tokens": 5}
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS, preempt=True) as sidecar:
        spot = [asyncio.ensure_future(ask(sidecar, request(key="s-key"))) for _ in range(2)]
        await until(lambda: len(engine.received) == 2)
        served = await ask(sidecar, request(body=urgent, key="g-key"))
        await until(lambda: any(task.done() for task in spot))
        refused = next(task.result() for task in spot if task.done())
        assert served.status == 200
        assert (refused.status, refused.headers["x-tokenpool-reason"]) == (429, "preempted")
        assert int(refused.headers["retry-after-ms"]) == 1000
        assert sum(task.done() for task in spot) == 1
        for task in spot:
            task.cancel()
        await asyncio.gather(*spot, return_exceptions=True)


async def test_without_the_switch_nothing_is_ended(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = endless
    async with (
        sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS) as sidecar,
        connected(sidecar) as (one, first),
        connected(sidecar) as (two, second),
    ):
        for reader, writer in ((one, first), (two, second)):
            writer.write(request("/v1/chat/completions", STREAM, key="s-key"))
            await reader.readuntil(b"\n\n")
        assert (await ask(sidecar, request(key="g-key"))).status == 200
        assert sidecar.gate.accounts["s"].concurrency_in_use == 2


async def test_a_burst_ends_nobody(engine: FakeEngine, tmp_path: Path) -> None:
    async def hold(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event()))
        await asyncio.Event().wait()

    engine.answer = hold
    pool = TWO_SLOTS.replace("concurrency: 2}\n    slo", "concurrency: 1}\n    slo").replace(
        "auto, concurrency: 2", "auto, concurrency: 3"
    )
    async with (
        sidecar_for(engine.port, tmp_path, pool=pool, preempt=True) as sidecar,
        connected(sidecar) as (r1, w1),
        connected(sidecar) as (r2, w2),
        connected(sidecar) as (r3, w3),
    ):
        for reader, writer, key in ((r1, w1, "s-key"), (r2, w2, "s-key"), (r3, w3, "g-key")):
            writer.write(request("/v1/chat/completions", STREAM, key=key))
            await reader.readuntil(b"\n\n")
        shed = await ask(sidecar, request(key="g-key"))
        assert shed.status == 429
        assert sidecar.gate.accounts["s"].concurrency_in_use == 2


@pytest.mark.parametrize(
    ("key", "wait", "status"), [("e-key", 2.0, 200), ("e-key", 0.0, 429), ("s-key", 2.0, 429)]
)
async def test_what_fits_in_a_moment_waits_at_the_door(
    engine: FakeEngine, tmp_path: Path, key: str, wait: float, status: int
) -> None:
    gate = asyncio.Event()

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await fake.answer_unary(request, writer)

    engine.answer = answer
    options = {"door_wait_elastic": wait, "door_wait_guaranteed": wait}
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS, **options) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key=key))) for key in ("s-key", "e-key")]
        await until(lambda: len(engine.received) == 2)
        waiting = asyncio.ensure_future(ask(sidecar, request(key=key)))
        await until(lambda: waiting.done() or len(sidecar.gate.door) == 1)
        gate.set()
        assert (await waiting).status == status
        await asyncio.gather(*running)
        assert is_whole(sidecar)
        assert len(sidecar.gate.door) == 0


async def test_a_wait_at_the_door_ends_in_time_and_a_client_may_leave(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def hold(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine.answer = hold
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS, door_wait_elastic=0.6) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key=key))) for key in ("e-key", "e-key")]
        await until(lambda: len(engine.received) == 2)
        shed = await ask(sidecar, request(key="e-key"))
        assert shed.status == 429
        async with connected(sidecar) as (_, writer):
            writer.write(request(key="e-key"))
            await until(lambda: len(sidecar.gate.door) == 1)
        await until(lambda: len(sidecar.gate.door) == 0)
        page = (await admin(sidecar, "/metrics"))[1]
        assert "tokenpool_door_waits_total 2.0" in page
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize(("key", "priority"), [("g-key", 0), ("e-key", 10), ("s-key", 20)])
async def test_the_engine_is_told_how_soon_and_not_by_the_client(
    engine: FakeEngine, tmp_path: Path, key: str, priority: int
) -> None:
    async with sidecar_for(engine.port, tmp_path, engine_priority=True) as sidecar:
        for body in (CHAT, CHAT | {"priority": -99}):
            await ask(sidecar, request("/v1/chat/completions", body, key=key))
            assert engine.received[-1].json() == CHAT | {"priority": priority}
            assert engine.received[-1].body.count(b"priority") == 1
        page = (await admin(sidecar, "/metrics"))[1]
        assert f'tokenpool_engine_priority_total{{priority="{priority}"}} 2.0' in page


async def test_without_the_switch_a_clients_priority_is_the_engines_business(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await ask(sidecar, request("/v1/chat/completions", CHAT | {"priority": 3}))
        assert engine.received[-1].json()["priority"] == 3


async def test_late_first_tokens_of_a_guarantee_keep_room_back_from_spot(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS) as sidecar:
        feedback = sidecar.gate.feedback
        for _ in range(3):
            feedback.observe(1.0, 0.05)
        await until(lambda: sidecar.gate.engine.room.kept_back == 0.5)
        state = json.loads((await admin(sidecar, "/debug/state"))[1])
        assert state["engine"]["kept_back"] == 0.5
    engine.answer = fake.answer_stream
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS, heed_slo=False) as sidecar:
        for _ in range(3):
            await ask(sidecar, request("/v1/chat/completions", STREAM))
        assert sidecar.gate.feedback.judge(2, sidecar.telemetry.clock() + 60) == 0
