"""Limits of single credentials: each ending of a request gives back what it counted."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sidecar.app import Sidecar
from sidecar.controller.credential_limits import CredentialLimits
from sidecar.identity import Credential
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import CHAT, STREAM, ask, connected, is_whole, request, sidecar_for, until

PATH = "/v1/chat/completions"
POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: SLOTS}
entitlements:
  - name: g
    pool: chat
    tier: guaranteed
    guarantee: {tokens_per_second: 10000, kv_tokens: 10000, concurrency: 1}
    api_keys: [g-key]
  - name: e
    pool: chat
    tier: elastic
    api_keys: [e-key, {file: FOLDER/limited, id: limited, concurrency: 2}]
  - name: s
    pool: chat
    tier: spot
    api_keys: [{file: FOLDER/spot, id: spot, concurrency: 2}]
"""


def pool(folder: Path, slots: int = 8) -> str:
    for name in ("limited", "spot"):
        (folder / name).write_text(f"{name}-key")
    return POOL.replace("FOLDER", str(folder)).replace("SLOTS", str(slots))


def waiting(engine: FakeEngine, folder: Path, **options: float) -> AbstractAsyncContextManager[Sidecar]:
    """A sidecar with one slot and no guarantee, where elastic requests wait long."""
    text = pool(folder, slots=1).replace("tier: guaranteed", "tier: elastic")
    text = text.replace("    guarantee: {tokens_per_second: 10000, kv_tokens: 10000, concurrency: 1}\n", "")
    return sidecar_for(engine.port, folder, pool=text, queue_timeout_elastic=30.0, **options)


async def endless(received: Received, writer: asyncio.StreamWriter) -> None:
    """A stream that ends only with its client; other requests are answered."""
    if not received.json().get("stream"):
        await fake.answer_unary(received, writer)
        return
    writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event()))
    await asyncio.Event().wait()


async def test_a_key_beyond_its_limit_is_shed_while_others_of_its_tenant_are_served(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = endless
    async with sidecar_for(engine.port, tmp_path, pool=pool(tmp_path)) as sidecar:
        async with connected(sidecar) as (one, first), connected(sidecar) as (two, second):
            for reader, writer in ((one, first), (two, second)):
                writer.write(request(PATH, STREAM, key="limited-key"))
                await reader.readuntil(b"\n\n")
            refused = await ask(sidecar, request(PATH, CHAT, key="limited-key"))
            other = await ask(sidecar, request(PATH, CHAT, key="e-key"))
        assert (refused.status, refused.headers["x-tokenpool-reason"]) == (429, "concurrency")
        assert refused.error()["message"].startswith("credential 'limited' shed on concurrency: limit 2,")
        assert int(refused.headers["retry-after-ms"]) > 0
        assert other.status == 200
        await until(lambda: is_whole(sidecar))  # the clients have left
        assert (await ask(sidecar, request(PATH, CHAT, key="limited-key"))).status == 200
        assert is_whole(sidecar)


async def test_a_request_larger_than_the_limit_can_never_fit(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=pool(tmp_path)) as sidecar:
        refused = await ask(sidecar, request(PATH, CHAT | {"n": 3}, key="limited-key"))
        served = await ask(sidecar, request(PATH, CHAT | {"n": 2}, key="limited-key"))
    assert (refused.status, refused.headers["x-tokenpool-reason"]) == (400, "never_fits")
    assert "needs 3 sequences, but can never have more than 2" in refused.error()["message"]
    assert served.status == 200


async def test_waiting_and_shed_requests_give_back_what_they_counted(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = fake.Held()
    async with waiting(engine, tmp_path) as sidecar:
        limits, queue = sidecar.controller.limits, sidecar.control.queue
        running = [asyncio.ensure_future(ask(sidecar, request(key=key))) for key in ("spot-key", "e-key")]
        await until(lambda: len(engine.received) == 2)
        shed = await ask(sidecar, request(key="spot-key"))  # the engine and its queue are full
        assert shed.error()["message"].startswith("entitlement 's' shed")
        assert limits.in_use("spot") == 1
        async with connected(sidecar) as (_, writer):
            writer.write(request(key="limited-key"))
            await until(lambda: len(queue) == 1)
            assert limits.in_use("limited") == 1
        await until(lambda: limits.in_use("limited") == 0)  # it left while it waited
        later = asyncio.ensure_future(ask(sidecar, request(key="limited-key")))
        await until(lambda: len(queue) == 1)
        held.go.set()
        assert (await later).status == 200
        await asyncio.gather(*running)
        assert is_whole(sidecar)


async def test_a_request_that_waits_at_a_stop_gives_back_what_it_counted(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = fake.Held()
    async with waiting(engine, tmp_path, drain_timeout=0.1) as sidecar:
        running = [asyncio.ensure_future(ask(sidecar, request(key=key))) for key in ("spot-key", "e-key")]
        await until(lambda: len(engine.received) == 2)
        later = asyncio.ensure_future(ask(sidecar, request(key="limited-key")))
        await until(lambda: len(sidecar.control.queue) == 1)
        await sidecar.stop()
        assert (await later).status == 503
        await asyncio.gather(*running)
        assert is_whole(sidecar)


async def test_a_preempted_request_gives_back_what_it_counted(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = endless
    async with (
        sidecar_for(engine.port, tmp_path, pool=pool(tmp_path, slots=1)) as sidecar,
        connected(sidecar) as (spot, spot_writer),
    ):
        spot_writer.write(request(PATH, STREAM, key="spot-key"))
        await spot.readuntil(b"\n\n")
        assert (await ask(sidecar, request(PATH, CHAT, key="g-key"))).status == 200
        assert b"preempted" in await asyncio.wait_for(spot.readuntil(b"0\r\n\r\n"), 2)
        assert is_whole(sidecar)


async def test_a_request_whose_engine_refuses_is_counted_no_more(engine: FakeEngine, tmp_path: Path) -> None:
    async def closing(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.close()

    engine.answer = closing
    async with sidecar_for(engine.port, tmp_path, pool=pool(tmp_path)) as sidecar:
        assert (await ask(sidecar, request(PATH, CHAT, key="limited-key"))).status == 502
        assert is_whole(sidecar)


def test_a_sidecar_enforces_its_part_and_at_least_one_request() -> None:
    credential = Credential("e", "k", concurrency=5)
    parts = [CredentialLimits.part(credential, sidecars) for sidecars in (0, 1, 2, 5, 9)]
    assert parts == [5, 5, 2, 1, 1]


@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.lists(st.one_of(st.integers(1, 8), st.just(0)), max_size=40),
)
def test_no_part_is_exceeded_and_what_was_counted_comes_back(
    limit: int, sidecars: int, events: list[int]
) -> None:
    """An event is a request with so many sequences, or the end of the oldest one (0)."""
    limits, credential, running = CredentialLimits(), Credential("e", "k", concurrency=limit), []
    part = CredentialLimits.part(credential, sidecars)
    for sequences in events:
        if sequences == 0 and running:
            limits.give_back("k", running.pop(0))
        elif sequences and limits.take(credential, sequences, sidecars):
            running.append(sequences)
            assert sum(running) <= part or len(running) == 1
            assert sum(running) <= limit
        assert limits.in_use("k") == sum(running)
    for sequences in running:
        limits.give_back("k", sequences)
    assert limits.is_empty
    limits.give_back("", 3)
