"""Preemption, the admission queue and reserved slots over the wire. Priorities: ``test_engine_priority``."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from runtime.options import SettingsError
from sidecar.app import Sidecar
from sidecar.proxy.waiting import Waiting
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import (
    CHAT,
    STREAM,
    admin,
    ask,
    connected,
    is_whole,
    request,
    settings_of,
    sidecar_for,
    until,
)
from tokenpool.admission.pending import PendingRequest, WaitsFor
from tokenpool.admission.preemption import GUARANTEED_START_S
from tokenpool.pricing.cost import Ask

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
    """A stream that ends only with its client; other requests are answered."""
    if not request.json().get("stream"):
        await fake.answer_unary(request, writer)
        return
    writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event()))
    await asyncio.Event().wait()


async def test_the_youngest_spot_stream_ends_with_an_error_of_its_own(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = endless
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS) as sidecar:
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
            assert sidecar.controller.accounts["s"].concurrency_in_use == 1  # the older one goes on
            wrote_younger.write(request("/v1/models", method="GET", key="s-key"))
            assert b"200 OK" in await younger.readuntil(b"\r\n")  # the connection is still of use
        await until(lambda: is_whole(sidecar))
        page = (await admin(sidecar, "/metrics"))[1]
        assert (
            'tokenpool_requests_total{entitlement="s",pool="chat",outcome="preempted",tier="spot"} 1.0'
            in page
        )


async def test_a_spot_request_without_an_answer_yet_is_refused(engine: FakeEngine, tmp_path: Path) -> None:
    async def silent(request: Received, writer: asyncio.StreamWriter) -> None:
        if request.json().get("prompt") == "urgent":
            await fake.answer_unary(request, writer)
            return
        await asyncio.Event().wait()

    engine.answer = silent
    urgent = {"model": "tiny", "prompt": "urgent", "max_tokens": 5}
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS) as sidecar:
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


KEEPS = TWO_SLOTS.replace("tier: spot,", "tier: spot, preemptible: false,")


async def test_spot_that_is_not_preemptible_is_never_ended(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = endless
    async with (
        sidecar_for(engine.port, tmp_path, pool=KEEPS) as sidecar,
        connected(sidecar) as (one, first),
        connected(sidecar) as (two, second),
    ):
        for reader, writer in ((one, first), (two, second)):
            writer.write(request("/v1/chat/completions", STREAM, key="s-key"))
            await reader.readuntil(b"\n\n")
        assert (await ask(sidecar, request(key="g-key"))).status == 200
        assert sidecar.controller.accounts["s"].concurrency_in_use == 2


async def test_a_changed_file_decides_about_what_runs_already(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = endless
    async with (
        sidecar_for(engine.port, tmp_path, pool=KEEPS) as sidecar,
        connected(sidecar) as (one, first),
        connected(sidecar) as (two, second),
    ):
        for reader, writer in ((one, first), (two, second)):
            writer.write(request("/v1/chat/completions", STREAM, key="s-key"))
            await reader.readuntil(b"\n\n")
        (tmp_path / "pool.yaml").write_text(TWO_SLOTS)
        sidecar.reload()
        await until(lambda: sidecar.controller.accounts["s"].is_preemptible)
        assert (await ask(sidecar, request(key="g-key"))).status == 200
        assert sidecar.controller.accounts["s"].concurrency_in_use == 1


async def test_a_burst_preempts_no_request(engine: FakeEngine, tmp_path: Path) -> None:
    async def hold(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event()))
        await asyncio.Event().wait()

    engine.answer = hold
    pool = TWO_SLOTS.replace("concurrency: 2}\n    slo", "concurrency: 1}\n    slo").replace(
        "auto, concurrency: 2", "auto, concurrency: 3"
    )
    async with (
        sidecar_for(engine.port, tmp_path, pool=pool) as sidecar,
        connected(sidecar) as (r1, w1),
        connected(sidecar) as (r2, w2),
        connected(sidecar) as (r3, w3),
    ):
        for reader, writer, key in ((r1, w1, "s-key"), (r2, w2, "s-key"), (r3, w3, "g-key")):
            writer.write(request("/v1/chat/completions", STREAM, key=key))
            await reader.readuntil(b"\n\n")
        shed = await ask(sidecar, request(key="g-key"))
        # A tick in between lowers its limit to the guarantee.
        assert (shed.status, shed.headers["x-tokenpool-reason"] in ("engine_full", "concurrency")) == (
            429,
            True,
        )
        assert sidecar.controller.accounts["s"].concurrency_in_use == 2


UNKNOWN_SLOTS = TWO_SLOTS.replace("kv_tokens: auto, concurrency: 2", "kv_tokens: auto, concurrency: auto")


async def test_spot_ends_where_the_engine_runs_less_than_was_believed_while_a_guarantee_waits(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """A silent engine is taken for a large one until it says what it runs: that came 30 s late."""

    async def silent(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine.answer = silent
    async with sidecar_for(engine.port, tmp_path, pool=UNKNOWN_SLOTS) as sidecar:
        keys = ["s-key"] * 6 + ["g-key"] * 3
        sent = []
        for number, key in enumerate(keys):
            data = request("/v1/chat/completions", STREAM, key=key)
            sent.append(asyncio.ensure_future(ask(sidecar, data)))
            await until(lambda number=number: len(engine.received) > number)  # type: ignore[misc]
        engine.running, engine.waiting = 2, 7
        await until(lambda: sidecar.controller.engine.room.slots == 2)
        await until(lambda: sidecar.controller.accounts["s"].concurrency_in_use == 0)
        assert sidecar.controller.accounts["g"].concurrency_in_use == 3
        ended = [(await task).headers["x-tokenpool-reason"] for task in sent[:6]]
        assert ended == ["preempted"] * 6
        for task in sent[6:]:
            task.cancel()
        await asyncio.gather(*sent, return_exceptions=True)


ONE_ELASTIC = KEEPS.replace("tier: elastic,", "tier: elastic, ceiling: {concurrency: 1},")


@pytest.mark.parametrize(
    ("key", "wait", "status"), [("e-key", 2.0, 200), ("e-key", 0.0, 429), ("s-key", 2.0, 200)]
)
async def test_a_request_without_room_waits_in_the_queue(
    engine: FakeEngine, tmp_path: Path, key: str, wait: float, status: int
) -> None:
    engine.answer = held = fake.Held()
    options = {"queue_timeout_elastic": wait, "queue_timeout_spot": wait}
    async with sidecar_for(engine.port, tmp_path, pool=ONE_ELASTIC, **options) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key=key))) for key in ("s-key", "e-key")]
        await until(lambda: len(engine.received) == 2)
        waiting = asyncio.ensure_future(ask(sidecar, request(key=key)))
        await until(lambda: waiting.done() or len(sidecar.controller.control.queue) == 1)
        held.go.set()
        assert (await waiting).status == status
        await asyncio.gather(*running)
        assert is_whole(sidecar)
        assert len(sidecar.controller.control.queue) == 0


async def test_by_default_elastic_requests_wait_and_spot_does_not(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = held = fake.Held()
    async with sidecar_for(engine.port, tmp_path, pool=ONE_ELASTIC) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key=key))) for key in ("s-key", "e-key")]
        await until(lambda: len(engine.received) == 2)
        assert (await ask(sidecar, request(key="s-key"))).status == 429
        waiting = asyncio.ensure_future(ask(sidecar, request("/v1/chat/completions", STREAM, key="e-key")))
        await until(lambda: len(sidecar.controller.control.queue) == 1)
        assert json.loads((await admin(sidecar, "/debug/state"))[1])["queued"] == 1
        engine.answer = fake.answer_stream
        await asyncio.sleep(0.15)
        held.go.set()
        assert (await waiting).status == 200
        await asyncio.gather(*running)
        page = (await admin(sidecar, "/metrics"))[1]
        first = "tokenpool_time_to_first_token_seconds"
        line = next(each for each in page.splitlines() if each.startswith(f'{first}_sum{{entitlement="e"'))
        assert float(line.split()[-1]) > 0.15  # the wait counts


async def test_a_wait_in_the_queue_ends_in_time_and_a_client_may_leave(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def hold(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine.answer = hold
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS, queue_timeout_elastic=0.6) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key=key))) for key in ("e-key", "e-key")]
        await until(lambda: len(engine.received) == 2)
        shed = await ask(sidecar, request(key="e-key"))
        assert shed.status == 429
        assert shed.headers["x-llm-d-request-dropped-reason"] == "rejected-ttl-expired"
        async with connected(sidecar) as (_, writer):
            writer.write(request(key="e-key"))
            await until(lambda: len(sidecar.controller.control.queue) == 1)
            page = (await admin(sidecar, "/metrics"))[1]
            assert 'tokenpool_queue_length{pool="chat",tier="elastic",waits_for="room"} 1.0' in page
            assert 'tokenpool_queue_length{pool="chat",tier="guaranteed",waits_for="room"} 0.0' in page
            waiting = json.loads((await admin(sidecar, "/debug/state"))[1])["waiting"]
            assert waiting["elastic"] == {"room": 1, "lease": 0}
        await until(lambda: len(sidecar.controller.control.queue) == 0)
        page = (await admin(sidecar, "/metrics"))[1]
        assert 'tokenpool_queue_length{pool="chat",tier="elastic",waits_for="room"} 0.0' in page
        assert 'tokenpool_queue_waits_total{pool="chat",tier="elastic"} 2.0' in page
        assert 'tokenpool_queue_waits_total{pool="chat",tier="guaranteed"} 0.0' in page
        waited = 'tokenpool_queue_wait_seconds_total{pool="chat",tier="elastic"} '
        total = next(
            float(line.removeprefix(waited)) for line in page.splitlines() if line.startswith(waited)
        )
        assert 0.6 <= total < 1.2  # the second wait ended when its client left
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_request_waits_no_longer_than_its_promised_ttft(engine: FakeEngine, tmp_path: Path) -> None:
    async def hold(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine.answer = hold
    pool = TWO_SLOTS.replace("tier: elastic,", "tier: elastic, slo: {ttft_ms: 700},")
    async with sidecar_for(engine.port, tmp_path, pool=pool, queue_timeout_elastic=60.0) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key="e-key"))) for _ in range(2)]
        await until(lambda: len(engine.received) == 2)
        began = sidecar.telemetry.clock()
        shed = await ask(sidecar, request(key="e-key"))
        assert shed.status == 429
        assert 0.6 < sidecar.telemetry.clock() - began < 3
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_wait_in_the_queue_does_not_count_as_silence_of_the_engine(
    engine: FakeEngine, tmp_path: Path
) -> None:
    go_on, last = asyncio.Event(), asyncio.Event()

    async def hold(request: Received, writer: asyncio.StreamWriter) -> None:
        await (go_on if len(engine.received) <= 2 else last).wait()
        await fake.answer_unary(request, writer)

    engine.answer = hold
    options = {"queue_timeout_elastic": 60.0, "upstream_timeout": 50.0}
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS, **options) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key="e-key"))) for _ in range(2)]
        await until(lambda: len(engine.received) == 2)
        waits = asyncio.ensure_future(ask(sidecar, request(key="e-key")))
        await until(lambda: len(sidecar.control.queue) == 1)
        (waiting,) = [each for each in sidecar.manager.connections if isinstance(each._exchange, Waiting)]
        now = sidecar.telemetry.clock()
        waiting.sweep(now + 55.0)  # its deadline comes after that
        assert not waits.done()
        assert len(sidecar.control.queue) == 1
        go_on.set()
        assert [answer.status for answer in await asyncio.gather(*running)] == [200, 200]
        await until(lambda: len(engine.received) == 3)
        waiting.sweep(now + 50.0)  # the engine has had the request for less
        last.set()
        assert (await waits).status == 200
        assert is_whole(sidecar)


def waiting_for_engine(sidecar: Sidecar, name: str) -> PendingRequest:
    """A request of an entitlement that waits for the engine's room."""
    account, now = sidecar.controller.accounts[name], sidecar.telemetry.clock()
    ask_, queue = Ask(text_bytes=20, output_bound=5), sidecar.control.queue
    cost = account.pricer.price(ask_, sidecar.engine.shape)
    pending = PendingRequest(account, ask_, cost, now, longest_wait_s=queue.settings.longest_wait_s(account))
    queue.enter(pending, now, WaitsFor.ENGINE)
    return pending


async def test_spot_does_not_overtake_requests_that_wait_for_the_engine(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def hold(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine.answer = hold
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS) as sidecar:
        controller = sidecar.controller
        await until(lambda: controller.engine.room.preemptible_queue == 1.0)
        tasks = [asyncio.ensure_future(ask(sidecar, request(key=key))) for key in ("g-key", "s-key")]
        await until(lambda: len(engine.received) == 2)
        control, clock = sidecar.control, sidecar.telemetry.clock
        await until(lambda: not control._is_engine_queue_closed(clock()))
        waits = waiting_for_engine(sidecar, "e")
        refused = await ask(sidecar, request(key="s-key"))
        assert (refused.status, refused.headers["x-tokenpool-reason"]) == (429, "engine_full")
        control.queue.leave(waits, clock())
        tasks.append(asyncio.ensure_future(ask(sidecar, request(key="s-key"))))
        await until(lambda: len(engine.received) == 3)  # it waits in the engine, ready for the next slot
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_spot_does_not_overtake_a_guarantee_on_its_way_to_the_engine(
    engine: FakeEngine, tmp_path: Path
) -> None:
    go = asyncio.Event()

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        if received.json().get("stream"):
            writer.write(fake.STREAM_HEAD)
            await go.wait()
            writer.write(fake.chunk(fake.token_event()))
        await asyncio.Event().wait()

    engine.answer = answer
    async with (
        sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS) as sidecar,
        connected(sidecar) as (reader, writer),
    ):
        await until(lambda: sidecar.controller.engine.room.preemptible_queue == 1.0)
        tasks = [asyncio.ensure_future(ask(sidecar, request(key="s-key")))]
        await until(lambda: len(engine.received) == 1)
        writer.write(request("/v1/chat/completions", STREAM, key="g-key"))
        await until(lambda: len(engine.received) == 2)
        control, spot = sidecar.control, sidecar.controller.accounts["s"]
        guaranteed = control.preemption.last_guaranteed
        assert guaranteed is not None
        at = guaranteed.admitted_at
        assert control._is_engine_queue_closed(at + 0.9 * GUARANTEED_START_S)
        go.set()
        await reader.readuntil(b"data: ")
        assert not control._is_engine_queue_closed(at + 0.9 * GUARANTEED_START_S)
        tasks.append(asyncio.ensure_future(ask(sidecar, request(key="s-key"))))
        await until(lambda: spot.concurrency_in_use == 2)
        # What does not stream tells nothing of its beginning.
        tasks.append(asyncio.ensure_future(ask(sidecar, request(key="g-key"))))
        await until(lambda: control.preemption.last_guaranteed not in (None, guaranteed))
        guaranteed = control.preemption.last_guaranteed
        assert guaranteed is not None
        at = guaranteed.admitted_at
        assert control._is_engine_queue_closed(at + 0.9 * GUARANTEED_START_S)
        assert not control._is_engine_queue_closed(at + 1.1 * GUARANTEED_START_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_late_first_tokens_of_a_guarantee_keep_room_back_from_spot(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS) as sidecar:
        slo_controller = sidecar.controller.control.slo
        for _ in range(3):
            slo_controller.observe(1.0, 0.05)
        await until(lambda: sidecar.controller.engine.room.reserved_slots == 0.5)
        state = json.loads((await admin(sidecar, "/debug/state"))[1])
        assert state["engine"]["reserved_slots"] == 0.5
    engine.answer = fake.answer_stream
    async with sidecar_for(engine.port, tmp_path, pool=TWO_SLOTS, slo_feedback=False) as sidecar:
        for _ in range(3):
            await ask(sidecar, request("/v1/chat/completions", STREAM))
        assert sidecar.controller.control.slo.judge(2, sidecar.telemetry.clock() + 60) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--engine-priority maybe", "'maybe' is not one of auto, on, off"),
        ("--queue-timeout-guaranteed -1", "--queue-timeout-guaranteed: '-1' is not a number of at least 0"),
        ("--slo-feedback perhaps", "'perhaps' is neither true nor false"),
    ],
)
def test_a_wrong_option_is_named(arguments: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        settings_of(f"--upstream http://h:1 {arguments}")
