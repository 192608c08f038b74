"""A hostile client without the key at the peer port: no byte reaches the engine, and tenants are served."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sidecar.app import Sidecar
from sidecar.handover.frames import (
    MAC_BYTES,
    MOST_CONTROL_BYTES,
    NONCE_BYTES,
    AskFields,
    Kind,
    encode_ask,
    frame,
    header,
)
from sidecar.handover.peer_port import MOST_UNPROVEN, PROVE_S, PeerPort
from tests.fakes.scripted_engine import FakeEngine
from tests.integration.sidecar.handover.peers import (
    ASK,
    KEY,
    Peer,
    handover_of,
    peer_of,
    replica,
    shared_store,
)
from tests.support.harness import admin, ask, request, until


@pytest_asyncio.fixture
async def sidecar(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Sidecar]:
    async with replica(engine.port, tmp_path, await shared_store()) as made:
        yield made


def port_of(sidecar: Sidecar) -> PeerPort:
    """The peer port of a sidecar."""
    return handover_of(sidecar).port


async def nothing_happened(sidecar: Sidecar, engine: FakeEngine, rejected: int) -> None:
    """No byte reached the engine, nothing is kept, the metric counts it, and a tenant is served."""
    port = port_of(sidecar)
    await until(lambda: not port.unproven and not port.proven)
    assert engine.received == engine.heard == []
    assert sidecar.control.peer_accounts.sequences == 0
    assert port.rejected == rejected
    page = (await admin(sidecar, "/metrics"))[1]
    assert f'tokenpool_peer_connections_rejected_total{{pool="chat"}} {rejected}.0' in page
    assert 'tokenpool_guests{pool="chat"} 0.0' in page
    assert (await ask(sidecar, request())).status == 200


FORGED = frame(Kind.PROOF, bytes(NONCE_BYTES + MAC_BYTES))
GREETINGS = {
    "an HTTP request": request(),
    "garbage": bytes(range(255, 0, -1)) * 20,
    "zeros": bytes(4096),
    "a TLS greeting": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "an ask without a proof": encode_ask(ASK),
    "a request without a proof": frame(Kind.DATA, request()),
    "a proof of another key": FORGED,
    "a proof of no length": frame(Kind.PROOF),
    "a proof without a code": frame(Kind.PROOF, bytes(NONCE_BYTES)),
    "a long control frame": header(Kind.PROOF, MOST_CONTROL_BYTES + 1),
    "the longest control frame": header(Kind.ASK, 0xFFFFFFFF),
    "a long request": header(Kind.DATA, 0xFFFFFFFF),
    "its own greeting": frame(Kind.HELLO, bytes(1 + NONCE_BYTES)),
    "a welcome": frame(Kind.WELCOME, bytes(MAC_BYTES)),
    "a proof, an ask and a request at once": FORGED + encode_ask(ASK) + frame(Kind.DATA, request()),
}


@pytest.mark.parametrize("sent", GREETINGS.values(), ids=GREETINGS)
async def test_a_client_without_the_key_is_closed(sent: bytes, sidecar: Sidecar, engine: FakeEngine) -> None:
    async with peer_of(sidecar) as peer:
        await peer.expect(Kind.HELLO)
        peer.writer.write(sent)
        assert await peer.is_closed()
    await nothing_happened(sidecar, engine, 1)


@pytest.mark.parametrize("sent", GREETINGS.values(), ids=GREETINGS)
async def test_bytes_one_by_one_are_judged_as_the_whole(
    sent: bytes, sidecar: Sidecar, engine: FakeEngine
) -> None:
    async with peer_of(sidecar) as peer:
        await peer.expect(Kind.HELLO)
        with contextlib.suppress(ConnectionError, RuntimeError):  # it may be closed before the last byte
            for each in sent[:64]:
                peer.writer.write(bytes((each,)))
                await asyncio.sleep(0)
                await peer.writer.drain()
            peer.writer.write_eof()
        assert await peer.is_closed()
    port = port_of(sidecar)
    await until(lambda: not port.unproven)
    assert port.rejected <= 1
    await nothing_happened(sidecar, engine, port.rejected)


async def test_a_recorded_proof_opens_no_other_connection(sidecar: Sidecar, engine: FakeEngine) -> None:
    async with peer_of(sidecar) as peer:
        recorded = await peer.prove(KEY)
        await peer.expect(Kind.WELCOME)
    async with peer_of(sidecar) as peer:
        await peer.expect(Kind.HELLO)
        peer.send(Kind.PROOF, recorded)
        assert await peer.is_closed()
    await nothing_happened(sidecar, engine, 1)


async def test_the_peers_own_proof_is_none_of_the_asking_side(sidecar: Sidecar, engine: FakeEngine) -> None:
    """A client that makes the sidecar compute a code cannot use that code on another connection."""
    async with peer_of(sidecar) as peer:
        await peer.prove(KEY)
        code = await peer.expect(Kind.WELCOME)
    async with peer_of(sidecar) as peer:
        await peer.expect(Kind.HELLO)
        peer.send(Kind.PROOF, bytes(NONCE_BYTES) + code)
        assert await peer.is_closed()
    await nothing_happened(sidecar, engine, 1)


async def test_a_sidecar_without_a_key_serves_no_peer(engine: FakeEngine, tmp_path: Path) -> None:
    async with replica(engine.port, tmp_path, await shared_store()) as sidecar:
        port_of(sidecar).keys.clear()
        async with peer_of(sidecar) as peer:
            await peer.prove(b"")
            assert await peer.is_closed()
        await nothing_happened(sidecar, engine, 1)


async def test_the_key_before_the_current_one_is_accepted_and_no_older_one(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    handover = handover_of(sidecar)
    handover._use_key(b"new")
    for key in (KEY, b"new"):
        async with peer_of(sidecar) as peer:
            await peer.join(key)
    handover._use_key(b"newer")
    async with peer_of(sidecar) as peer:
        await peer.prove(KEY)
        assert await peer.is_closed()
    await nothing_happened(sidecar, engine, 1)


async def test_half_open_connections_are_closed_in_time(sidecar: Sidecar, engine: FakeEngine) -> None:
    port = port_of(sidecar)
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(peer_of(sidecar)) for _ in range(10)]
        for peer, cut in zip(peers, itertools.count()):
            peer.writer.write(FORGED[:cut])
        await until(lambda: len(port.unproven) == 10)
        for seconds, left in ((PROVE_S - 1, 10), (PROVE_S + 1, 0)):
            port.sweep(port.clock() + seconds)
            assert len(port.unproven) == left
        assert all(await asyncio.gather(*(peer.is_closed() for peer in peers)))
    await nothing_happened(sidecar, engine, 10)


async def test_a_flood_is_bounded_and_keeps_no_sidecar_and_no_tenant_out(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    port, most = port_of(sidecar), 2000
    async with peer_of(sidecar) as before, contextlib.AsyncExitStack() as stack:
        await before.join()
        seen = 0
        for number in range(most):
            await stack.enter_async_context(peer_of(sidecar))
            seen = max(seen, len(port.unproven))
            if number % 500 == 0:
                async with peer_of(sidecar) as other:  # another sidecar, during the flood
                    await other.join()
                assert (await ask(sidecar, request())).status == 200
        assert seen == MOST_UNPROVEN
        assert len(port.unproven) <= MOST_UNPROVEN
        assert port.rejected >= most - MOST_UNPROVEN
        # A sidecar that was connected before is served.
        before.ask()
        await before.expect(Kind.OFFER)
        before.send(Kind.DATA, request())
        assert (await before.expect(Kind.DATA)).startswith(b"HTTP/1.1 200 ")
        before.send(Kind.END)
    await until(lambda: not port.unproven and not port.proven)
    assert len(engine.received) == 5
    assert port.rejected == most - MOST_UNPROVEN
    assert (await ask(sidecar, request())).status == 200


async def _proven(sidecar: Sidecar, stack: contextlib.AsyncExitStack) -> Peer:
    peer = await stack.enter_async_context(peer_of(sidecar))
    await peer.join()
    return peer


BREACHES = {
    "a request that is too long": encode_ask(ASK) + header(Kind.DATA, 0xFFFFFFFF),
    "a tier that is none": encode_ask(AskFields(1, "gold", False, 1, 100, 0)),
    "no sequences": encode_ask(AskFields(1, "spot", False, 0, 100, 0)),
    "negative tokens": encode_ask(AskFields(1, "spot", False, 1, -1, 0)),
    "a negative wait": encode_ask(AskFields(1, "spot", False, 1, 1, -1)),
    "an ask that cannot be read": frame(Kind.ASK, b"\xc1"),
    "two asks": encode_ask(ASK) + encode_ask(ASK),
    "a cancellation of nothing": frame(Kind.CANCEL, b"\0"),
    "a second proof": FORGED,
    "an offer": frame(Kind.OFFER, bytes(4)),
    "an unknown frame": b"\xfe\0\0\0\0",
}


@pytest.mark.parametrize("sent", BREACHES.values(), ids=BREACHES)
async def test_a_sidecar_that_breaks_the_protocol_is_closed(
    sent: bytes, sidecar: Sidecar, engine: FakeEngine
) -> None:
    async with peer_of(sidecar) as peer:
        await peer.join()
        peer.writer.write(sent)
        assert await peer.is_closed()
    await nothing_happened(sidecar, engine, 1)


async def test_a_request_before_its_offer_does_not_reach_the_engine(
    sidecar: Sidecar, engine: FakeEngine
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first, second = [await _proven(sidecar, stack) for _ in range(2)]
        first.ask()
        await first.expect(Kind.OFFER)
        second.ask(AskFields(2, "elastic", False, 1, 100, 2000))  # it waits: the only slot is kept
        second.send(Kind.DATA, request())
        assert await second.is_closed()
        assert len(sidecar.control.queue) == 0
    await nothing_happened(sidecar, engine, 1)
