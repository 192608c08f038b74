"""The peer port: the answers to asks, and every ending of a request that runs here for another replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sidecar.app import Sidecar
from sidecar.handover.ask_fields import AskFields
from sidecar.handover.frames import KEEP, REFUSED, Kind, header
from sidecar.handover.peer_port import HOLD_S
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Held, Received
from tests.integration.sidecar.handover.peers import ASK, Peer, handover_of, peer_of, replica, shared_store
from tests.support.harness import admin, ask, is_whole, request, until
from tokenpool.store.memory import MemoryStore

WAITS = AskFields(2, "elastic", False, 1, 100, 3000)
SPOT = AskFields(3, "spot", True, 1, 100, 0)
BODY = request()


@pytest_asyncio.fixture
async def store() -> MemoryStore:
    return await shared_store()


@pytest_asyncio.fixture
async def sidecar(engine: FakeEngine, store: MemoryStore, tmp_path: Path) -> AsyncIterator[Sidecar]:
    async with replica(engine.port, tmp_path, store) as made:
        yield made


def received(sidecar: Sidecar) -> dict[str, int]:
    """The requests that ran here for others, by ending."""
    return {ending: count for ending, count in handover_of(sidecar).port.received.items() if count}


async def run(peer: Peer, fields: AskFields = ASK) -> None:
    """Ask, and send a request once there is an offer."""
    peer.ask(fields)
    assert await peer.expect(Kind.OFFER) == fields.number.to_bytes(4)
    peer.send(Kind.DATA, BODY)


async def test_a_request_runs_and_its_connections_serve_the_next_one(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    async with peer_of(sidecar) as peer:
        await peer.join()
        for number in range(1, 4):
            await run(peer, AskFields(number, "elastic", False, 1, 100, 0))
            assert (await peer.expect(Kind.DATA)) == fake.unary()
            peer.send(Kind.END, KEEP)
        await until(lambda: received(sidecar) == {"finished": 3})
        assert len(engine.received) == 3
        assert {number for number, _ in engine.heard} == {engine.heard[0][0]}  # one connection to the engine
        assert engine.received[0].raw_head == BODY.partition(b"\r\n\r\n")[0]
    await until(lambda: is_whole(sidecar))


async def test_without_keep_the_connection_to_the_engine_is_closed(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    async with peer_of(sidecar) as peer:
        await peer.join()
        for _ in range(2):
            await run(peer)
            await peer.expect(Kind.DATA)
            peer.send(Kind.END)
        await until(lambda: received(sidecar) == {"finished": 2})
        assert len({number for number, _ in engine.heard}) == 2


async def test_an_ask_without_room_is_refused_at_once_or_waits(sidecar: Sidecar, engine: FakeEngine) -> None:
    async with peer_of(sidecar) as first, peer_of(sidecar) as second:
        await first.join()
        await second.join()
        await run(first)
        await first.expect(Kind.DATA)
        second.ask()
        assert await second.expect(Kind.REFUSE) == (1).to_bytes(4)
        assert (
            'tokenpool_handover_asks_refused_total{pool="chat"} 1.0' in (await admin(sidecar, "/metrics"))[1]
        )
        second.ask(WAITS)
        await until(lambda: len(sidecar.control.queue) == 1)
        first.send(Kind.END, KEEP)
        assert await second.expect(Kind.OFFER) == (2).to_bytes(4)
        second.send(Kind.DATA, BODY)
        await second.expect(Kind.DATA)


async def test_an_ask_waits_for_its_time_and_no_longer(sidecar: Sidecar, engine: FakeEngine) -> None:
    async with peer_of(sidecar) as first, peer_of(sidecar) as second:
        await first.join()
        await second.join()
        await run(first)
        await first.expect(Kind.DATA)
        second.ask(AskFields(7, "elastic", False, 1, 100, 50))
        assert await second.expect(Kind.REFUSE) == (7).to_bytes(4)
        assert len(sidecar.control.queue) == 0


async def test_an_ask_that_never_fits_is_refused(sidecar: Sidecar, engine: FakeEngine) -> None:
    async with peer_of(sidecar) as peer:
        await peer.join()
        for fields in (
            AskFields(1, "elastic", False, 2, 100, 1000),
            AskFields(2, "guaranteed", False, 1, 10**9, 1000),
        ):
            peer.ask(fields)
            assert await peer.expect(Kind.REFUSE) == fields.number.to_bytes(4)
    assert engine.received == []


async def test_a_cancelled_ask_leaves_the_queue_or_returns_its_room(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    async with peer_of(sidecar) as first, peer_of(sidecar) as second:
        await first.join()
        await second.join()
        first.ask()
        await first.expect(Kind.OFFER)
        second.ask(WAITS)
        await until(lambda: len(sidecar.control.queue) == 1)
        second.send(Kind.CANCEL, WAITS.number.to_bytes(4))
        await until(lambda: len(sidecar.control.queue) == 0)
        second.ask(WAITS)
        first.send(Kind.CANCEL, (99).to_bytes(4))  # of an earlier ask
        first.send(Kind.CANCEL, ASK.number.to_bytes(4))
        await second.expect(Kind.OFFER)
    await until(lambda: sidecar.control.peer_accounts.sequences == 0)
    assert engine.received == []


async def test_room_is_kept_for_a_bounded_time(sidecar: Sidecar, engine: FakeEngine) -> None:
    port = handover_of(sidecar).port
    async with peer_of(sidecar) as peer:
        await peer.join()
        peer.ask()
        await peer.expect(Kind.OFFER)
        assert sidecar.control.peer_accounts.sequences == 1
        port.sweep(port.clock() + HOLD_S / 2)
        assert sidecar.control.peer_accounts.sequences == 1
        port.sweep(port.clock() + HOLD_S + 0.1)
        assert sidecar.control.peer_accounts.sequences == 0
        assert port.unused == 1
        peer.send(Kind.DATA, BODY)  # it was on its way
        assert await peer.expect(Kind.LOST) == REFUSED  # so its sidecar finds another place for it
        assert await peer.is_closed()
    assert engine.received == []


BRINGS = AskFields(4, "elastic", False, 1, 100, 0, brings_request=True)


def send(peer: Peer, fields: AskFields = BRINGS) -> None:
    """Send an ask together with its request."""
    peer.ask(fields)
    peer.send(Kind.DATA, BODY)


async def test_a_request_that_comes_with_its_ask_needs_no_offer(sidecar: Sidecar, engine: FakeEngine) -> None:
    async with peer_of(sidecar) as peer:
        await peer.join()
        for count in (1, 2):
            send(peer)
            assert (await peer.expect(Kind.DATA)) == fake.unary()
            peer.send(Kind.END, KEEP)
            await until(lambda count=count: received(sidecar) == {"finished": count})  # type: ignore[misc]
        assert engine.received[0].raw_head == BODY.partition(b"\r\n\r\n")[0]
    await until(lambda: is_whole(sidecar))


async def test_a_request_that_comes_with_its_ask_is_refused_without_room(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    async with peer_of(sidecar) as first, peer_of(sidecar) as second:
        await first.join()
        await second.join()
        await run(first)
        await first.expect(Kind.DATA)
        # It never waits, whatever the ask states.
        send(second, AskFields(5, "elastic", False, 1, 100, 5000, brings_request=True))
        assert await second.expect(Kind.REFUSE) == (5).to_bytes(4)
        first.send(Kind.END, KEEP)
        await until(lambda: sidecar.control.peer_accounts.sequences == 0)
        send(second)  # the connection can still be used
        assert await second.expect(Kind.DATA) == fake.unary()
        second.send(Kind.END, KEEP)
        await until(lambda: received(sidecar) == {"finished": 2})
        assert len(engine.received) == 2
    await until(lambda: is_whole(sidecar))


async def test_a_long_request_that_is_refused_is_ignored_to_its_end(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    async with peer_of(sidecar) as first, peer_of(sidecar) as second:
        await first.join()
        await second.join()
        await run(first)
        await first.expect(Kind.DATA)
        second.ask(BRINGS)
        second.writer.write(header(Kind.DATA, len(BODY)) + BODY[:10])
        assert await second.expect(Kind.REFUSE) == BRINGS.number.to_bytes(4)
        first.send(Kind.END, KEEP)
        await until(lambda: sidecar.control.peer_accounts.sequences == 0)
        second.writer.write(BODY[10:])
        send(second)
        assert await second.expect(Kind.DATA) == fake.unary()
        assert len(engine.received) == 2


async def test_an_offer_follows_if_the_engine_takes_long(sidecar: Sidecar, engine: FakeEngine) -> None:
    port = handover_of(sidecar).port
    engine.answer = held = Held()
    async with peer_of(sidecar) as peer:
        await peer.join()
        send(peer)
        await until(lambda: len(engine.received) == 1)
        port.sweep(port.clock())
        assert await peer.expect(Kind.OFFER) == BRINGS.number.to_bytes(4)
        port.sweep(port.clock())
        held.go.set()
        await peer.expect(Kind.DATA)  # one offer is enough
        peer.send(Kind.END, KEEP)
        await until(lambda: received(sidecar) == {"finished": 1})


async def test_the_room_of_a_request_that_does_not_follow_its_ask_is_kept_for_a_bounded_time(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    port = handover_of(sidecar).port
    async with peer_of(sidecar) as peer:
        await peer.join()
        peer.ask(BRINGS)
        await until(lambda: sidecar.control.peer_accounts.sequences == 1)
        port.sweep(port.clock() + HOLD_S + 0.1)
        assert sidecar.control.peer_accounts.sequences == 0
        found = await peer.read()
        while found.kind is Kind.OFFER:
            found = await peer.read()
        assert found == (Kind.LOST, REFUSED)
        assert await peer.is_closed()
    assert engine.received == []


async def test_the_engine_stops_when_the_other_sidecar_is_gone(sidecar: Sidecar, engine: FakeEngine) -> None:
    engine.answer = Held()
    async with peer_of(sidecar) as peer:
        await peer.join()
        await run(peer)
        await until(lambda: len(engine.received) == 1)
    await asyncio.wait_for(engine.aborted.wait(), 2)
    await until(lambda: received(sidecar) == {"client_gone": 1})
    assert sidecar.control.peer_accounts.sequences == 0


async def test_an_engine_without_a_connection_cannot_have_begun(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async with replica(engine.port, tmp_path, store, poll_interval=60.0) as sidecar:
        async with peer_of(sidecar) as peer:
            await peer.join()
            peer.ask()
            await peer.expect(Kind.OFFER)
            await engine.stop()
            peer.send(Kind.DATA, BODY)
            assert await peer.expect(Kind.LOST) == REFUSED
            assert await peer.is_closed()
        assert received(sidecar) == {"upstream_error": 1}
        assert sidecar.control.peer_accounts.sequences == 0
        assert not sidecar.engine.is_up
        sidecar.controller.engine_changed()  # its metrics page may be read before its health
        async with peer_of(sidecar) as peer:  # no other request comes before the next health check
            await peer.join()
            peer.ask()
            await peer.expect(Kind.REFUSE)
            sidecar.engine.health_answered()
            sidecar.controller.engine_changed()
            peer.ask()
            await peer.expect(Kind.OFFER)


@pytest.mark.parametrize("returns", [True, False])
async def test_an_engine_that_closes_an_idle_connection_gets_the_request_again(
    returns: bool, sidecar: Sidecar, engine: FakeEngine
) -> None:
    async def closes(given: Received, writer: asyncio.StreamWriter) -> None:
        if len(engine.received) == 2:
            if not returns:
                await engine.stop()
            writer.transport.abort()
        else:
            writer.write(fake.unary())

    engine.answer = closes
    async with peer_of(sidecar) as peer:
        await peer.join()
        await run(peer)
        await peer.expect(Kind.DATA)
        peer.send(Kind.END, KEEP)
        await run(peer)
        if returns:
            assert await peer.expect(Kind.DATA) == fake.unary()
            assert len(engine.received) == 3
        else:  # it may have begun with the request on the connection that it closed
            assert await peer.expect(Kind.LOST) == b""


async def test_an_engine_that_fails_before_or_in_its_answer_may_have_begun(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    async def fails(given: Received, writer: asyncio.StreamWriter) -> None:
        if len(engine.received) == 2:
            writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event()))
            await writer.drain()
        writer.transport.abort()

    engine.answer = fails
    for count in (1, 2):
        async with peer_of(sidecar) as peer:
            await peer.join()
            await run(peer)
            found = await peer.read()
            while found.kind is Kind.DATA:
                found = await peer.read()
            assert found == (Kind.LOST, b"")
            assert await peer.is_closed()
        assert received(sidecar) == {"upstream_error": count}


async def test_a_request_without_progress_ends(sidecar: Sidecar, engine: FakeEngine) -> None:
    port, limit = handover_of(sidecar).port, sidecar.settings.upstream_timeout
    async with peer_of(sidecar) as peer:
        await peer.join()
        await run(peer)
        await peer.expect(Kind.DATA)
        port.sweep(port.clock() + limit - 5)
        assert sidecar.control.peer_accounts.sequences == 1
        port.sweep(port.clock() + limit + 5)  # the other sidecar is paused, and does not end it
        assert sidecar.control.peer_accounts.sequences == 0
        assert await peer.is_closed()


async def test_a_guarantee_preempts_a_request_of_another_replica(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    engine.answer = held = Held()
    async with peer_of(sidecar) as peer:
        await peer.join()
        await run(peer, SPOT)
        await until(lambda: len(engine.received) == 1)
        own = asyncio.ensure_future(ask(sidecar, request()))
        await peer.expect(Kind.PREEMPTED)
        assert await peer.is_closed()
        held.go.set()
        assert (await own).status == 200
        assert received(sidecar) == {"preempted": 1}
        page = (await admin(sidecar, "/metrics"))[1]
        assert 'tokenpool_handovers_received_total{ending="preempted",pool="chat"} 1.0' in page


async def test_a_sidecar_that_drains_refuses_asks_and_finishes_what_runs(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    engine.answer = held = Held()
    async with (
        replica(engine.port, tmp_path, store, drain_timeout=3.0) as sidecar,
        peer_of(sidecar) as first,
        peer_of(sidecar) as second,
    ):
        await first.join()
        await second.join()
        await run(first)
        await until(lambda: len(engine.received) == 1)
        stopping = asyncio.ensure_future(sidecar.stop())
        await until(lambda: not sidecar.control.is_serving)
        second.ask(WAITS)
        await second.expect(Kind.REFUSE)
        assert not stopping.done()
        held.go.set()
        await first.expect(Kind.DATA)
        first.send(Kind.END, KEEP)
        await asyncio.wait_for(stopping, 2)
        assert received(sidecar) == {"finished": 1}


async def test_a_slow_reader_slows_the_engine_down(sidecar: Sidecar, engine: FakeEngine) -> None:
    sent, size = 0, 1 << 20

    async def answers(given: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(fake.STREAM_HEAD)
        for _ in range(64):
            writer.write(fake.chunk(bytes(size)))
            await writer.drain()
            sent += size

    engine.answer = answers
    async with peer_of(sidecar) as peer:
        await peer.join()
        await run(peer)
        before = -1
        while sent != before:  # until the engine makes no progress
            before = sent
            await asyncio.sleep(0.1)
        assert 0 < sent < 32 * size
        while sent < 64 * size:
            await peer.read()
        peer.send(Kind.END)
        await until(lambda: received(sidecar) == {"finished": 1})
