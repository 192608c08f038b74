"""The side that asks: every result of an ask, and every ending of a request that was handed over."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sidecar.app import Sidecar
from sidecar.handover.asking import KEEPALIVE, LATE_S, MOST_IDLE, Result
from sidecar.handover.frames import (
    KEEP,
    MAC_BYTES,
    NONCE_BYTES,
    REFUSED,
    VERSION,
    Kind,
    decode_ask,
    frame,
    numbered,
)
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Held, Received
from tests.integration.sidecar.handover.peers import (
    EngineDown,
    Peer,
    handover_of,
    known,
    replica,
    scripted_peer,
    shared_store,
    stated,
    until_known,
)
from tests.support.harness import (
    CHAT,
    STREAM,
    Response,
    admin,
    ask,
    connected,
    is_whole,
    request,
    until,
)
from tokenpool.store.memory import MemoryStore
from toolbox.ports import free_port

CHAT_PATH = "/v1/chat/completions"


@pytest_asyncio.fixture
async def store() -> MemoryStore:
    return await shared_store()


@pytest_asyncio.fixture
async def second() -> AsyncIterator[FakeEngine]:
    """The engine of another replica."""
    made = FakeEngine()
    await made.start()
    yield made
    await made.stop()


class Full:
    """A sidecar whose only slot is taken until ``free``."""

    def __init__(self, sidecar: Sidecar, engine: FakeEngine) -> None:
        self.sidecar = sidecar
        self.engine = engine
        self._held = Held()

    async def fill(self) -> None:
        """Take the slot."""
        before, self.engine.answer = self.engine.answer, self._held
        count = len(self.engine.received)
        self._running = asyncio.ensure_future(ask(self.sidecar, request(key="e-key")))
        await until(lambda: len(self.engine.received) > count)
        self.engine.answer = before

    async def free(self) -> None:
        """End the request in the slot."""
        self._held.go.set()
        assert (await self._running).status == 200

    def send(self, key: str = "e-key") -> asyncio.Future[Response]:
        """Send a request, which finds no room here."""
        return asyncio.ensure_future(ask(self.sidecar, request(key=key), seconds=10))


async def full(sidecar: Sidecar, engine: FakeEngine) -> Full:
    """Take the only slot of a sidecar that knows another replica."""
    made = Full(sidecar, engine)
    await made.fill()
    await until_known(sidecar)
    return made


def results(sidecar: Sidecar) -> dict[str, int]:
    """The asks of a sidecar by result."""
    return {result.value: count for result, count in handover_of(sidecar).links.results.items() if count}


def received(sidecar: Sidecar) -> dict[str, int]:
    """The requests that a sidecar ran for others, by ending."""
    return {ending: count for ending, count in handover_of(sidecar).port.received.items() if count}


async def test_a_request_without_room_here_runs_on_the_other_replica(
    engine: FakeEngine, second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async with (
        replica(engine.port, tmp_path, store) as here,
        replica(second.port, tmp_path, store) as there,
    ):
        filled = await full(here, engine)
        for _ in range(3):
            assert (await filled.send()).status == 200
        assert (len(engine.received), len(second.received)) == (1, 3)
        assert results(here) == {"taken": 3}
        await until(lambda: received(there) == {"finished": 3})
        # Its own sidecar has the usage and the outcome; the other one counted no request of a tenant.
        await filled.free()
        assert here.telemetry.outcomes("e") == {"finished": 4}
        assert there.telemetry.outcomes("e") == {}
        await until(lambda: is_whole(here) and is_whole(there))
        page = (await admin(here, "/metrics"))[1]
        assert 'tokenpool_handovers_total{pool="chat",result="taken"} 3.0' in page
        offers = re.search(r'tokenpool_handover_seconds_count{pool="chat"} (\d)', page)
        assert offers is not None
        assert 1 <= int(offers[1]) <= 3  # the others were sent together with their asks
        page = (await admin(there, "/metrics"))[1]
        assert 'tokenpool_handovers_received_total{ending="finished",pool="chat"} 3.0' in page
        assert 'tokenpool_guests{pool="chat"} 0.0' in page


async def test_a_request_is_passed_on_as_its_own_engine_would_get_it(
    engine: FakeEngine, second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    engine.answer = second.answer = fake.answer_stream
    async with replica(engine.port, tmp_path, store) as here, replica(second.port, tmp_path, store):
        same = {"x-request-id": "mine"}
        own = await ask(here, request(CHAT_PATH, STREAM, key="e-key", headers=same))
        filled = await full(here, engine)
        other = await ask(here, request(CHAT_PATH, STREAM, key="e-key", headers=same))
        assert (other.status, other.body) == (own.status, own.body)
        assert second.received[0].body == engine.received[0].body
        assert second.received[0].headers == engine.received[0].headers
        await filled.free()


async def test_a_request_that_is_sent_with_its_ask_and_refused_runs_once(
    engine: FakeEngine, second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    """The other replica stated room a moment ago, and has none now."""
    async with (
        replica(engine.port, tmp_path, store) as here,
        replica(second.port, tmp_path, store) as there,
    ):
        filled = await full(here, engine)
        assert (await filled.send()).status == 200  # its offer makes the other replica likely to have room
        await until_known(here)
        other = Full(there, second)
        await other.fill()
        (peer,) = known(here)

        def is_refused() -> bool:
            """A statement of its room from before arrives late, after each newer one."""
            here.control.peers_named([peer._replace(sequences=1.0)], here.telemetry.clock())
            return results(here).get("refused", 0) >= 1

        assert not is_refused()
        waiting = [filled.send() for _ in range(3)]
        await until(is_refused)
        assert not any(each.done() for each in waiting)
        await other.free()
        assert [(await each).status for each in waiting] == [200] * 3
        await filled.free()
        assert len(engine.received) + len(second.received) == 1 + 1 + 1 + 3
        assert here.telemetry.outcomes("e") == {"finished": 5}
        await until(lambda: is_whole(here) and is_whole(there))
        assert here.control.placement is not None
        assert here.control.placement.sent == 0


async def test_a_request_that_was_sent_with_its_ask_to_a_lost_peer_is_not_sent_again(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    requests = []

    async def lost(peer: Peer) -> None:
        await peer.welcome()
        await peer.offered()
        peer.send(Kind.DATA, fake.unary())
        await peer.expect(Kind.END)
        assert (await peer.asked()).brings_request
        requests.append(await peer.expect(Kind.DATA))
        peer.writer.transport.abort()

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, lost):
        filled = await full(here, engine)
        assert (await filled.send()).status == 200
        answer = await filled.send()
        assert (answer.status, answer.headers["x-tokenpool-reason"]) == (502, "upstream_error")
        assert len(requests) == 1  # its engine may have begun: no other replica gets it
        assert len(engine.received) == 1
        await filled.free()
        assert here.telemetry.outcomes("e") == {"finished": 2, "upstream_error": 1}
        await until(lambda: is_whole(here))


async def test_a_refused_ask_leaves_the_request_in_the_queue(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.welcome()
        while True:
            found = await peer.read()
            if found.kind is Kind.ASK:  # the last ask is cancelled, if it is on its way then
                peer.answer(Kind.REFUSE, decode_ask(found.payload))

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, refuse) as peers:
        filled = await full(here, engine)
        waiting = filled.send()
        await until(lambda: results(here).get("refused", 0) >= 2)  # asked again while the store states room
        assert not waiting.done()
        await filled.free()
        assert (await waiting).status == 200
        assert set(results(here)) <= {"refused", "cancelled"}
        assert len(peers) == 1  # the connection is kept for the next ask


async def test_an_ask_is_cancelled_when_room_is_free_here_and_its_late_offer_is_ignored(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    first: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def slow(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.asked()
        first.set_result(None)
        assert await peer.cancelled() == asked.number
        peer.answer(Kind.OFFER, asked)  # it crossed the cancellation
        await peer.offered()
        peer.send(Kind.DATA, fake.unary())
        assert await peer.expect(Kind.END) == KEEP

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, slow) as peers:
        filled = await full(here, engine)
        waiting = filled.send()
        await first
        await filled.free()
        assert (await waiting).status == 200
        assert results(here) == {"cancelled": 1}
        filled = await full(here, engine)
        assert (await filled.send()).status == 200
        assert results(here) == {"cancelled": 1, "taken": 1}
        assert len(peers) == 1
        await filled.free()


async def test_an_ask_is_cancelled_when_the_client_leaves(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    came, cancelled = asyncio.Event(), asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.welcome()
        asked = await peer.asked()
        came.set()
        assert await peer.cancelled() == asked.number
        cancelled.set()

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, silent):
        filled = await full(here, engine)
        async with connected(here) as (_, writer):
            writer.write(request(key="e-key"))
            await asyncio.wait_for(came.wait(), 2)
        await asyncio.wait_for(cancelled.wait(), 2)
        assert results(here) == {"cancelled": 1}
        assert len(here.control.queue) == 0
        await filled.free()


async def test_the_second_of_two_offers_is_returned(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    asked: list[int] = []
    cancelled: list[int] = []

    async def offer(peer: Peer) -> None:
        await peer.welcome()
        fields = await peer.asked()
        asked.append(fields.number)
        await until(lambda: len(asked) == 2)
        peer.answer(Kind.OFFER, fields)
        kind, payload = await peer.read()
        if kind is Kind.CANCEL:
            cancelled.append(int.from_bytes(payload))
            return
        assert kind is Kind.DATA
        await until(lambda: len(cancelled) == 1)
        peer.send(Kind.DATA, fake.unary())

    async with (
        replica(engine.port, tmp_path, store) as here,
        scripted_peer(store, offer),
        scripted_peer(store, offer),
    ):
        filled = Full(here, engine)
        await filled.fill()
        await until_known(here, 2)
        assert (await filled.send()).status == 200
        assert results(here) == {"taken": 1, "cancelled": 1}
        await filled.free()


async def _garbage(peer: Peer) -> None:
    peer.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def _no_key(peer: Peer) -> None:
    peer.send(Kind.HELLO, bytes([VERSION]) + b"p" * NONCE_BYTES)
    await peer.expect(Kind.PROOF)
    peer.send(Kind.WELCOME, b"x" * MAC_BYTES)


async def _echo(peer: Peer) -> None:
    """Send the proof of the asking side back as the peer's own."""
    peer.send(Kind.HELLO, bytes([VERSION]) + b"p" * NONCE_BYTES)
    peer.send(Kind.WELCOME, (await peer.expect(Kind.PROOF))[NONCE_BYTES:])


async def _wrong_key(peer: Peer) -> None:
    await peer.welcome(b"another key")


async def _later_version(peer: Peer) -> None:
    peer.send(Kind.HELLO, bytes([VERSION + 1]) + b"p" * NONCE_BYTES)
    assert not await peer.reader.read()  # the asking side closes, and sends no proof


async def _no_proof(peer: Peer) -> None:
    peer.send(Kind.WELCOME, b"")


async def _short_greeting(peer: Peer) -> None:
    peer.send(Kind.HELLO, b"\1")


async def _closes(peer: Peer) -> None:
    peer.writer.close()


async def _silent(peer: Peer) -> None:
    """It acts like a paused process: the kernel accepts its connections."""


async def _closes_after_ask(peer: Peer) -> None:
    await peer.welcome()
    await peer.asked()
    peer.writer.close()


async def _breaks_after_ask(peer: Peer) -> None:
    await peer.welcome()
    await peer.asked()
    peer.send(Kind.HELLO)


async def _long_frame(peer: Peer) -> None:
    await peer.welcome()
    await peer.asked()
    peer.writer.write(b"\x05\xff\xff\xff\xff")


@pytest.mark.parametrize(
    "script",
    [
        _garbage,
        _no_key,
        _echo,
        _wrong_key,
        _later_version,
        _no_proof,
        _short_greeting,
        _closes,
        _silent,
        _closes_after_ask,
        _breaks_after_ask,
        _long_frame,
    ],
    ids=lambda script: script.__name__,
)
async def test_a_peer_that_fails_gets_no_request_and_costs_none(
    script: object, engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    data: list[Kind] = []

    async def play(peer: Peer) -> None:
        await script(peer)  # type: ignore[operator]
        while True:
            data.append((await peer.read()).kind)

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, play):
        filled = await full(here, engine)
        waiting = filled.send()
        await until(lambda: results(here).get("failed", 0) >= 1)
        assert not waiting.done()
        await filled.free()
        assert (await waiting).status == 200
        assert set(results(here)) <= {"failed", "cancelled"}
        assert Kind.DATA not in data
        assert here.telemetry.outcomes("e") == {"finished": 2}
        assert 'tokenpool_handovers_total{pool="chat",result="failed"}' in (await admin(here, "/metrics"))[1]


async def test_after_a_failure_the_request_is_asked_for_at_the_next_replica(
    engine: FakeEngine, second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async with (
        replica(engine.port, tmp_path, store) as here,
        replica(second.port, tmp_path, store),
        stated(store, free_port()) as one,
        stated(store, free_port()) as other,
    ):
        filled = Full(here, engine)
        await filled.fill()
        await until_known(here, 3)
        assert {peer.name for peer in known(here)} > {one, other}
        for _ in range(4):
            assert (await filled.send()).status == 200
        assert len(second.received) == 4
        assert results(here)["taken"] == 4
        # A failed peer is not asked again for a second.
        assert results(here).get("failed", 0) <= 4
        await filled.free()


async def test_the_deadline_of_a_request_ends_its_ask(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async with (
        replica(engine.port, tmp_path, store, queue_timeout_elastic=0.3) as here,
        scripted_peer(store, Peer.welcome) as peers,
    ):
        filled = await full(here, engine)
        refused = await filled.send()
        assert (refused.status, refused.headers["x-tokenpool-reason"]) == (429, "engine_full")
        assert results(here) == {"cancelled": 1}
        assert len(peers) == 1
        await filled.free()


async def test_a_peer_that_is_silent_for_longer_than_an_ask_may_wait_counts_as_failed(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    asked = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.welcome()
        await peer.asked()
        asked.set()

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, silent) as peers:
        filled = await full(here, engine)
        waiting = filled.send()
        await asyncio.wait_for(asked.wait(), 2)
        (link,) = handover_of(here).links._open
        now, longest = here.telemetry.clock(), here.settings.queue_timeout_elastic
        link.check(now + longest)
        assert results(here) == {}
        link.check(now + longest + 2 * LATE_S)
        assert results(here)["failed"] == 1
        await until(peers[0].reader.at_eof)
        await filled.free()
        assert (await waiting).status == 200


async def test_both_sides_notice_that_the_host_of_the_other_one_is_gone(
    engine: FakeEngine, second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async with (
        replica(engine.port, tmp_path, store) as here,
        replica(second.port, tmp_path, store) as there,
    ):
        filled = await full(here, engine)
        assert (await filled.send()).status == 200
        (link,) = handover_of(here).links._open
        (session,) = handover_of(there).port.proven
        for end in (link, session):
            assert end._transport is not None
            sock = end._transport.get_extra_info("socket")
            assert [sock.getsockopt(*option) for option, _ in KEEPALIVE] == [value for _, value in KEEPALIVE]
        await filled.free()


async def test_without_the_key_nothing_is_asked(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async def script(peer: Peer) -> None:
        await peer.welcome()

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, script) as peers:
        handover_of(here).links.key = b""
        filled = await full(here, engine)
        waiting = filled.send()
        await until(lambda: results(here).get("failed", 0) >= 1)
        await filled.free()
        assert (await waiting).status == 200
        assert len(peers) >= 1


async def test_a_request_that_the_other_engine_cannot_have_begun_is_served_elsewhere(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    down = EngineDown()
    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, down):
        filled = await full(here, engine)
        waiting = filled.send()
        await until(lambda: len(down.requests) == 1)
        await until(lambda: len(here.control.queue) == 1)
        again = here.control.queue.first(here.controller.accounts["e"])
        assert again is not None
        # It keeps its deadline, and its demand is counted once.
        assert again.arrived_at < again.entered_at
        assert again.deadline == again.arrived_at + 5.0
        assert again.is_counted
        await filled.free()
        assert (await waiting).status == 200
        assert len(down.requests) == 1  # that replica is not asked again at once
        assert here.telemetry.outcomes("e") == {"finished": 2}  # the lost place has no outcome
        await until(lambda: is_whole(here))


async def test_a_request_that_comes_after_its_offer_has_expired_is_served_elsewhere(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    offers = 0

    async def expires(peer: Peer) -> None:
        nonlocal offers
        await peer.welcome()
        asked = await peer.asked()
        offers += 1
        peer.writer.write(numbered(Kind.OFFER, asked.number) + frame(Kind.LOST, REFUSED))  # one read has both
        peer.writer.close()

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, expires):
        filled = await full(here, engine)
        waiting = filled.send()
        await until(lambda: offers == 1)
        await until(lambda: len(here.control.queue) == 1 and results(here) == {"taken": 1})
        await filled.free()
        assert (await waiting).status == 200
        assert here.telemetry.outcomes("e") == {"finished": 2}
        await until(lambda: is_whole(here))


async def test_a_request_whose_place_is_lost_is_refused_without_room_elsewhere(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async with (
        replica(engine.port, tmp_path, store, queue_timeout_elastic=0.2) as here,
        scripted_peer(store, EngineDown()),
    ):
        filled = await full(here, engine)
        async with connected(here) as (reader, writer):
            writer.write(request(key="e-key"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 429 ")
            assert b"x-tokenpool-reason: engine_full" in head
            await filled.free()
            body = await reader.read(4096)
            assert b"engine" in body
            writer.write(request(key="e-key"))  # the connection can still be used
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert here.telemetry.outcomes("e") == {"finished": 2, "engine_full": 1}
        await until(lambda: is_whole(here))


async def test_a_request_whose_place_is_lost_and_whose_client_has_left_is_not_served(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    came, left = asyncio.Event(), asyncio.Event()

    async def engine_is_down(peer: Peer) -> None:
        await peer.welcome()
        await peer.offered()
        came.set()
        await left.wait()
        peer.send(Kind.LOST, REFUSED)

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, engine_is_down):
        filled = await full(here, engine)
        async with connected(here) as (_, writer):
            writer.write(request(key="e-key"))
            await came.wait()
        await until(lambda: here.telemetry.outcomes("e") == {"client_gone": 1})
        left.set()
        await filled.free()
        await until(lambda: is_whole(here))
        assert len(engine.received) == 1


@pytest.mark.parametrize("end", ["closed", "lost", "broken"])
async def test_a_peer_lost_before_the_first_byte_is_an_engine_that_failed(
    end: str, engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    requests = []

    async def lost(peer: Peer) -> None:
        await peer.welcome()
        requests.append(await peer.offered())
        if end == "closed":
            peer.writer.transport.abort()
        elif end == "lost":
            peer.send(Kind.LOST)
        else:
            peer.send(Kind.OFFER, b"")

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, lost):
        filled = await full(here, engine)
        answer = await filled.send()
        assert (answer.status, answer.headers["x-tokenpool-reason"]) == (502, "upstream_error")
        assert len(requests) == 1  # its engine may have begun: no other replica gets it
        assert len(engine.received) == 1
        await filled.free()
        assert here.telemetry.outcomes("e") == {"finished": 1, "upstream_error": 1}
        await until(lambda: is_whole(here))


async def test_a_peer_lost_in_mid_stream_cuts_the_stream(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async def lost(peer: Peer) -> None:
        await peer.welcome()
        await peer.offered()
        peer.send(Kind.DATA, fake.STREAM_HEAD + fake.chunk(fake.token_event()))
        await asyncio.sleep(0)
        await peer.writer.drain()
        peer.writer.close()

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, lost):
        filled = await full(here, engine)
        async with connected(here) as (reader, writer):
            writer.write(request(CHAT_PATH, STREAM, key="e-key"))
            read = await asyncio.wait_for(reader.read(), 5)
        assert read.startswith(b"HTTP/1.1 200 ")
        assert not read.endswith(b"0\r\n\r\n")
        await filled.free()
        assert here.telemetry.outcomes("e") == {"finished": 1, "upstream_error": 1}


async def test_an_answer_that_ends_with_its_connection_is_complete(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async def old_engine(peer: Peer) -> None:
        await peer.welcome()
        await peer.offered()
        peer.send(Kind.DATA, b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n")
        peer.send(Kind.DATA, fake.unary().partition(b"\r\n\r\n")[2])
        peer.send(Kind.LOST)

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, old_engine):
        filled = await full(here, engine)
        answer = await filled.send()
        assert answer.status == 200
        assert b"usage" in answer.body
        await filled.free()
        assert here.telemetry.outcomes("e") == {"finished": 2}


async def test_a_request_that_is_preempted_there_ends_as_one_that_is_preempted_here(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async def preempt(peer: Peer) -> None:
        await peer.welcome()
        await peer.offered()
        peer.send(Kind.PREEMPTED)

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, preempt):
        filled = await full(here, engine)
        answer = await filled.send("s-key")
        assert (answer.status, answer.headers["x-tokenpool-reason"]) == (429, "preempted")
        await filled.free()
        assert here.telemetry.outcomes("s") == {"preempted": 1}


async def test_the_other_engine_stops_when_the_client_leaves(
    engine: FakeEngine, second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    second.answer = Held()
    async with (
        replica(engine.port, tmp_path, store) as here,
        replica(second.port, tmp_path, store) as there,
    ):
        filled = await full(here, engine)
        async with connected(here) as (_, writer):
            writer.write(request(key="e-key"))
            await until(lambda: len(second.received) == 1)
        await asyncio.wait_for(second.aborted.wait(), 2)
        await until(lambda: received(there) == {"client_gone": 1})
        await until(lambda: there.control.peer_accounts.sequences == 0)
        await filled.free()


async def test_a_silent_peer_is_given_up_after_the_upstream_timeout(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    closed = asyncio.Event()

    async def silent(peer: Peer) -> None:
        await peer.welcome()
        await peer.offered()
        assert await peer.is_closed(5)
        closed.set()

    async with (
        replica(engine.port, tmp_path, store, upstream_timeout=0.3) as here,
        scripted_peer(store, silent),
    ):

        async def answer_late(given: Received, writer: asyncio.StreamWriter) -> None:
            await closed.wait()

        filled = Full(here, engine)
        engine.answer = answer_late
        first = filled.send()
        await until(lambda: len(engine.received) == 1)
        await until_known(here)
        answer = await filled.send()
        assert (answer.status, answer.headers["x-tokenpool-reason"]) == (504, "upstream_timeout")
        await asyncio.wait_for(closed.wait(), 2)
        assert (await first).status in (502, 504)


async def test_an_engine_that_refuses_priorities_gets_the_request_without_one(
    engine: FakeEngine, second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async def strict(given: Received, writer: asyncio.StreamWriter) -> None:
        if "priority" in given.json():
            error = {"message": "Got priority 10 but Priority scheduling is not enabled.", "code": 400}
            writer.write(fake.unary({"error": error}, status="400 Bad Request"))
        else:
            writer.write(fake.unary())

    second.answer = strict
    async with replica(engine.port, tmp_path, store) as here, replica(second.port, tmp_path, store):
        filled = await full(here, engine)
        waiting = asyncio.ensure_future(ask(here, request(CHAT_PATH, CHAT, key="e-key"), seconds=10))
        assert (await waiting).status == 200
        assert [("priority" in given.json()) for given in second.received] == [True, False]
        assert here.engine.takes_priority is None  # nothing is known about the engine here
        assert here.control.placement is not None
        assert not any(each.avoid_until for each in here.control.placement._peers.values())
        await filled.free()
        assert here.telemetry.outcomes("e") == {"finished": 2}


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["whole", "stream"])
async def test_a_priority_that_another_engine_accepts_shows_nothing_about_the_engine_here(
    body: dict[str, object], engine: FakeEngine, second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    second.answer = fake.answer_stream if body is STREAM else fake.answer_unary
    async with replica(engine.port, tmp_path, store) as here, replica(second.port, tmp_path, store):
        filled = await full(here, engine)
        assert (await ask(here, request(CHAT_PATH, body, key="e-key"), seconds=10)).status == 200
        assert ["priority" in given.json() for given in second.received] == [True]
        assert here.engine.takes_priority is None
        await filled.free()


async def test_connections_are_reused_and_their_number_is_bounded(
    engine: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    go = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.welcome()
        while True:
            await peer.offered()
            await go.wait()
            peer.send(Kind.DATA, fake.unary())
            await peer.expect(Kind.END)

    async with replica(engine.port, tmp_path, store) as here, scripted_peer(store, serve) as peers:
        filled = await full(here, engine)
        many = [filled.send() for _ in range(2 * MOST_IDLE)]
        await until(lambda: results(here).get("taken", 0) == 2 * MOST_IDLE, 10)
        go.set()
        assert {(await each).status for each in many} == {200}
        opened = len(peers)
        assert opened == 2 * MOST_IDLE
        await until(lambda: len(handover_of(here).links._open) == MOST_IDLE)
        assert (await filled.send()).status == 200
        assert len(peers) == opened
        await filled.free()
        assert results(here) == {Result.TAKEN.value: 2 * MOST_IDLE + 1}


# --- the engine here is down ---


async def test_requests_run_on_the_other_replica_while_the_engine_here_is_down(
    engine: FakeEngine, second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async with (
        # No health check finds that it is down before the requests do. Spot waits, too: the last statement of
        # the other replica may be of the time at which it ran the request before.
        replica(engine.port, tmp_path, store, poll_interval=60.0, queue_timeout_spot=5.0) as here,
        replica(second.port, tmp_path, store),
    ):
        await until_known(here)
        await engine.stop()
        # The engine refuses the connection for the first request, so it cannot have begun with it.
        for key in ("e-key", "g-key", "s-key"):
            assert (await ask(here, request(key=key))).status == 200
            assert not here.engine.is_up
        assert (len(engine.received), len(second.received)) == (0, 3)
        assert [here.telemetry.outcomes(name) for name in "egs"] == [{"finished": 1}] * 3
        refused = [
            await ask(here, request("/v1/models", method="GET", key="e-key")),
            await ask(
                here, request(key="e-key", body={"model": "tiny", "prompt": [1], "n": 99, "best_of": 99})
            ),
        ]
        assert [response.headers["x-tokenpool-reason"] for response in refused] == [
            "engine_down",
            "never_fits",
        ]
        await until(lambda: is_whole(here))


async def test_a_request_is_refused_if_the_engine_here_is_down_and_no_replica_has_room(
    engine: FakeEngine, second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async with (
        replica(engine.port, tmp_path, store, poll_interval=60.0, queue_timeout_elastic=0.2) as here,
        replica(second.port, tmp_path, store) as there,
    ):
        await until_known(here)
        filled = Full(there, second)
        await filled.fill()
        await engine.stop()
        response = await ask(here, request(key="e-key"))
        assert (response.status, response.headers["x-tokenpool-reason"]) == (503, "engine_down")
        waiting = filled.send()
        await filled.free()
        assert (await waiting).status == 200
        await until(lambda: is_whole(here) and is_whole(there))


async def test_a_sidecar_whose_engine_was_never_up_hands_requests_over(
    second: FakeEngine, store: MemoryStore, tmp_path: Path
) -> None:
    async with (
        replica(free_port(), tmp_path, store, ready=False) as here,
        replica(second.port, tmp_path, store),
    ):
        await until_known(here)
        assert (await ask(here, request(key="e-key"))).status == 200
        assert len(second.received) == 1
