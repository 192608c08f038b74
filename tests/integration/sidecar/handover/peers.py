"""A pool for handover: sidecars in this process, and peer connections whose frames a test chooses."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from sidecar.app import Sidecar
from sidecar.handover.ask_fields import AskFields
from sidecar.handover.frames import (
    ASKER,
    NONCE_BYTES,
    PEER,
    REFUSED,
    VERSION,
    Frame,
    Kind,
    decode_ask,
    encode_ask,
    frame,
    number_of,
    proof,
    proves,
)
from sidecar.handover.handover import Handover
from sidecar.pool_secret import PEER_PORT, derived_key
from tests.support.harness import sidecar_for, until
from tokenpool.admission.placement import KnownPeer
from tokenpool.leases.messages import Limit, Message, ReplicaRoom
from tokenpool.leases.settings import Mode
from tokenpool.planning.idle import IdleTerms
from tokenpool.store.memory import MemoryStore

POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 1}
entitlements:
  - name: g
    pool: chat
    tier: guaranteed
    guarantee: {tokens_per_second: 10000, kv_tokens: 10000, concurrency: 1}
    api_keys: [g-key]
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
  - {name: s, pool: chat, tier: spot, api_keys: [s-key]}
"""
LIFETIME_S = 3.0
PLENTY = Limit(1e6, 1e6, 64, depth=1e6)
TERMS = IdleTerms((1e6, 1e6, 64.0), (1e6, 1e6, 64.0))
SECRET = b"s" * 32
KEY = derived_key(SECRET, PEER_PORT)
ASK = AskFields(1, "elastic", False, 1, 100, 0)
_numbers = itertools.count(1)


async def shared_store() -> MemoryStore:
    """A lease store in which every entitlement has large limits."""
    ahead = 0.0
    store = MemoryStore(LIFETIME_S, lambda: time.monotonic() + ahead)
    await store.publish(dict.fromkeys("ges", PLENTY), TERMS, 1)
    await store.secret(SECRET)
    # It grants leases once it has been in use for a lifetime.
    ahead = 0.9 * LIFETIME_S
    await store.exchange(Message("first", 0, {}))
    ahead = 1.1 * LIFETIME_S
    return store


@contextlib.asynccontextmanager
async def replica(port: int, folder: Path, store: MemoryStore, **options: Any) -> AsyncIterator[Sidecar]:
    """A sidecar with one slot, which has stated its peer port in the lease store."""
    given: dict[str, Any] = {"queue_timeout_elastic": 5.0, "lease_lifetime": LIFETIME_S, "pool": POOL}
    async with sidecar_for(port, folder, store=store, **given | options) as sidecar:
        leases = sidecar.control.leases
        assert leases is not None
        await until(lambda: leases.mode is Mode.JOINED and bool(handover_of(sidecar).links.key))
        yield sidecar


def handover_of(sidecar: Sidecar) -> Handover:
    """The handover of a sidecar."""
    assert sidecar.handover is not None
    return sidecar.handover


def known(sidecar: Sidecar) -> list[KnownPeer]:
    """The replicas that a sidecar knows."""
    assert sidecar.control.placement is not None
    return sidecar.control.placement.known


async def until_known(sidecar: Sidecar, count: int = 1) -> None:
    """Wait until the sidecar knows this number of replicas with room."""
    await until(lambda: sum(peer.sequences >= 1 for peer in known(sidecar)) == count)


class Peer:
    """One end of a connection between two sidecars."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read(self) -> Frame:
        """The next frame. Raises ``IncompleteReadError`` at the end of the connection."""
        async with asyncio.timeout(5):
            kind, length = struct.unpack("!BI", await self.reader.readexactly(5))
            return Frame(Kind(kind), await self.reader.readexactly(length))

    async def expect(self, kind: Kind) -> bytes:
        """The payload of the next frame, which must be of this kind."""
        found = await self.read()
        assert found.kind is kind, found
        return found.payload

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send a frame."""
        self.writer.write(frame(kind, payload))

    async def is_closed(self, seconds: float = 2.0) -> bool:
        """Whether the other end closes the connection within a time limit."""
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(seconds):
                while await self.reader.read(65536):
                    pass
                return True
        return self.reader.at_eof() or self.reader.exception() is not None

    # --- the asking side ---

    async def prove(self, key: bytes = KEY) -> bytes:
        """Answer the greeting with a proof of this key. Returns the payload that proves it."""
        nonce = b"n" * NONCE_BYTES
        greeting = await self.expect(Kind.HELLO)
        made = nonce + proof(key, ASKER, greeting[1:], nonce)
        self.send(Kind.PROOF, made)
        return made

    async def join(self, key: bytes = KEY) -> None:
        """Prove the key, and read the proof of the other side."""
        await self.prove(key)
        await self.expect(Kind.WELCOME)

    def ask(self, fields: AskFields = ASK) -> None:
        """Ask for room."""
        self.writer.write(encode_ask(fields))

    # --- the side of the peer port ---

    async def welcome(self, key: bytes = KEY) -> None:
        """Greet, check the proof of the other side, and prove this key."""
        nonce = b"p" * NONCE_BYTES
        self.send(Kind.HELLO, bytes([VERSION]) + nonce)
        given = await self.expect(Kind.PROOF)
        theirs, mac = given[:NONCE_BYTES], given[NONCE_BYTES:]
        assert proves(mac, KEY, ASKER, nonce, theirs)
        self.send(Kind.WELCOME, proof(key, PEER, nonce, theirs))

    async def asked(self) -> AskFields:
        """The next ask."""
        return decode_ask(await self.expect(Kind.ASK))

    def answer(self, kind: Kind, ask: AskFields) -> None:
        """Answer an ask: ``OFFER`` or ``REFUSE``."""
        self.send(kind, struct.pack("!I", ask.number))

    async def offered(self) -> bytes:
        """Offer room for the next ask, and return the request that follows."""
        self.answer(Kind.OFFER, await self.asked())
        return await self.expect(Kind.DATA)

    async def cancelled(self) -> int:
        """The number of the ask that the next frame cancels."""
        return number_of(await self.expect(Kind.CANCEL))


@contextlib.asynccontextmanager
async def peer_of(sidecar: Sidecar) -> AsyncIterator[Peer]:
    """A connection to the peer port of a sidecar."""
    host, _, port = sidecar.control.peer_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class EngineDown:
    """The script of a replica that offers room, and whose engine then accepts no connection."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        """The requests that it has received."""

    async def __call__(self, peer: Peer) -> None:
        await peer.welcome()
        self.requests.append(await peer.offered())
        peer.send(Kind.LOST, REFUSED)


@contextlib.asynccontextmanager
async def scripted_peer(store: MemoryStore, script: Script) -> AsyncIterator[list[Peer]]:
    """A replica in the lease store whose peer port is a script. Yields its connections so far."""
    peers: list[Peer] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        peers.append(peer)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            await script(peer)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with stated(store, server.sockets[0].getsockname()[1]):
            yield peers
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def stated(store: MemoryStore, port: int) -> AsyncIterator[str]:
    """A replica with room in the lease store, whose peer port is this port. Yields its name."""
    name = f"scripted{next(_numbers)}"
    room = ReplicaRoom(1e6, 8.0, 0.0, f"127.0.0.1:{port}")

    async def renew() -> None:
        for number in itertools.count():
            await store.exchange(Message(name, number, {}, room=room))
            await asyncio.sleep(LIFETIME_S / 10)

    renewing = asyncio.ensure_future(renew())
    try:
        yield name
    finally:
        renewing.cancel()
