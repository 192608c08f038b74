"""The peer port: other sidecars ask here for room, and send the requests for which room was offered.

Only sidecars that know the pool's key are served. The bytes of a request are passed on to the engine
unchanged: the sidecar that received the request has authorized, priced and framed it. Here the request only
counts as running.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sidecar.engine.address import EngineAddress
from sidecar.handover.asking import keep_alive
from sidecar.handover.frames import (
    ASKER,
    KEEP,
    MAC_BYTES,
    NONCE_BYTES,
    PEER,
    REFUSED,
    VERSION,
    Frame,
    FrameReader,
    Kind,
    ProtocolError,
    decode_ask,
    frame,
    number_of,
    numbered,
    proof,
    proves,
)
from sidecar.proxy.exchange import OUR_OWN
from tokenpool.admission.affinity import Cached
from tokenpool.admission.pending import Standing
from tokenpool.control.driver import Driver
from tokenpool.control.peer_request import PeerRequest
from tokenpool.entitlements import Tier
from tokenpool.outcomes import Ending

log = logging.getLogger(__name__)

PROVE_S = 5.0
"""The seconds within which a connection must prove the key."""
MOST_UNPROVEN = 256
"""The most connections that have not proved the key. For each further one, the oldest is closed. So
connections that stay open without a proof do not keep other sidecars out."""
MOST_PROVEN = 4096
"""The most connections of other sidecars."""
HOLD_S = 1.0
"""Seconds for which offered room is kept until the request arrives."""
ENGINE_IDLE_S = 4.0
"""vLLM's server closes a connection that was idle for 5 s. One second is left for bytes in transit."""
MOST_ENGINE_IDLE = 64
SWEEP_EVERY_S = 0.25
_TIERS = {tier.value: tier for tier in Tier}
_STANDINGS = {standing.value: standing for standing in Standing}


class PeerPort:
    """The sessions of all other sidecars, and their connections to the engine."""

    def __init__(
        self,
        driver: Driver,
        engine: EngineAddress,
        clock: Callable[[], float],
        *,
        connection_refused: Callable[[], None],
        longest_request: int,
        connect_timeout: float,
        upstream_timeout: float,
    ) -> None:
        self.driver = driver
        self.clock = clock
        self.connection_refused = connection_refused
        """Called when the engine refuses a connection: no ask gets an offer until it is up again."""
        self.longest_request = longest_request
        self.connect_timeout = connect_timeout
        self.upstream_timeout = upstream_timeout
        self.keys: list[bytes] = []
        """The pool's key, and the previous one."""
        self.received: Counter[str] = Counter()
        """Requests of other sidecars, by ending."""
        self.refused = 0
        """Asks for which there was no room."""
        self.unused = 0
        """Offers whose request found room elsewhere first, or whose client left."""
        self.rejected = 0
        """Connections that did not prove the key, or broke the protocol."""
        self.unproven: dict[PeerSession, None] = {}
        """Connections that have not proved the key, the oldest first."""
        self.proven: set[PeerSession] = set()
        self.engine = EngineLinks(engine, clock)

    def session(self) -> PeerSession:
        """A new connection, for asyncio."""
        return PeerSession(self)

    @property
    def waiting(self) -> dict[str, int]:
        """The requests of other sidecars that wait for room here now, by tier."""
        waits = self.driver.control.queue.peer_waits
        return {tier.value: waits[tier].under_way for tier in Tier}

    @property
    def is_busy(self) -> bool:
        """Whether a request of another sidecar runs here."""
        return any(session.has_request for session in self.proven)

    async def sweep_forever(self) -> None:
        """Apply the time limits until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self.sweep(self.clock())
            self.engine.close_idle()

    def sweep(self, now: float) -> None:
        """Close the connections whose time is up."""
        for session in [*self.unproven, *self.proven]:
            session.sweep(now)

    def close(self) -> None:
        """Close every connection."""
        for session in [*self.unproven, *self.proven]:
            session.close()
        self.engine.close()

    def metrics(self) -> Iterator[Metric]:
        """The requests of other sidecars, for Prometheus."""
        received = CounterMetricFamily(
            "tokenpool_handovers_received",
            "Requests of other replicas that ran here, by ending.",
            labels=("ending",),
        )
        for ending in Ending:
            received.add_metric((ending.value,), self.received[ending.value])
        yield received
        yield CounterMetricFamily(
            "tokenpool_handover_asks_refused",
            "Asks of other replicas for which there was no room here.",
            value=self.refused,
        )
        yield CounterMetricFamily(
            "tokenpool_handover_offers_unused",
            "Offers of room here whose request never came: it found room elsewhere, or its client left.",
            value=self.unused,
        )
        yield CounterMetricFamily(
            "tokenpool_peer_connections_rejected",
            "Connections to the peer port that did not prove the pool's key, or broke the protocol.",
            value=self.rejected,
        )
        yield GaugeMetricFamily(
            "tokenpool_guests",
            "Sequences of other replicas that run here.",
            value=self.driver.control.peer_accounts.sequences,
        )
        waiting = GaugeMetricFamily(
            "tokenpool_guests_waiting",
            "Requests of other replicas that wait here for room now. They wait at their own replica, too.",
            labels=("tier",),
        )
        for tier, number in self.waiting.items():
            waiting.add_metric((tier,), number)
        yield waiting


class PeerSession(asyncio.Protocol):
    """One connection of another sidecar. It asks for one request at a time (``AskingPeer``)."""

    def __init__(self, port: PeerPort) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(port.longest_request)
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._is_proven = False
        self._since = port.clock()
        self._number = 0
        self._brings_request = False
        """Whether the request comes with its ask, and the other sidecar has no answer yet."""
        self._peer_request: PeerRequest | None = None
        self._offered_at: float | None = None
        """The time of an offer whose request has not arrived."""
        self._sent_at = 0.0
        """The time of the request's first byte."""
        self._heard_at = math.inf
        """The time of the request's first byte, or of its response's last; infinite while no request runs."""
        self._engine: EngineLink | None = None
        self._request: list[bytes] | None = None
        """The request as far as it has come, until the first byte of its response."""
        self._connecting: asyncio.Task[None] | None = None

    @property
    def has_request(self) -> bool:
        """Whether its request has room here."""
        return self._peer_request is not None and self._peer_request.has_room

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: another sidecar connected, or an unknown client."""
        self._transport = cast(asyncio.Transport, transport)
        keep_alive(transport)
        port = self._port
        if len(port.unproven) >= MOST_UNPROVEN:
            port.rejected += 1
            next(iter(port.unproven)).close()
        port.unproven[self] = None
        self._write(frame(Kind.HELLO, bytes([VERSION]) + self._nonce))

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of the other sidecar."""
        try:
            for each in self._reader.receive(data):
                if self._transport is None:
                    return
                self._on_frame(each)
        except ProtocolError as error:
            self._port.rejected += 1
            # The metric counts it. A line for each would let a hostile client fill the log.
            log.debug("a connection to the peer port is closed", extra={"error": str(error)})
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed, so the request needs no room any more."""
        self._transport = None
        self._forget()
        self._end(Ending.CLIENT_GONE)

    def pause_writing(self) -> None:
        """asyncio: the other sidecar reads slowly, as its client does."""
        if self._engine is not None:
            self._engine.pause()

    def resume_writing(self) -> None:
        """asyncio: the other sidecar reads fast enough again."""
        if self._engine is not None:
            self._engine.resume()

    # --- frames ---

    def _on_frame(self, given: Frame) -> None:
        kind, payload = given
        if not self._is_proven:
            self._check_proof(kind, payload)
        elif kind is Kind.DATA:
            self._on_data(payload)
        elif kind is Kind.ASK:
            self._on_ask(payload)
        elif kind is Kind.CANCEL:
            if number_of(payload) == self._number:
                self._end(Ending.CLIENT_GONE)
        elif kind is Kind.END:
            self._on_end(keeps_alive=payload == KEEP)
        else:
            raise ProtocolError(f"{kind.name} is not expected here")

    def _check_proof(self, kind: Kind, payload: bytes) -> None:
        nonce, mac = payload[:NONCE_BYTES], payload[NONCE_BYTES:]
        if kind is not Kind.PROOF or len(mac) != MAC_BYTES:
            raise ProtocolError("the pool's key was not proved")
        port = self._port
        for key in port.keys:
            if proves(mac, key, ASKER, self._nonce, nonce):
                break
        else:
            raise ProtocolError("the other side does not know the pool's key")
        if len(port.proven) >= MOST_PROVEN:
            raise ProtocolError("too many connections of other sidecars")
        self._is_proven = True
        del port.unproven[self]
        port.proven.add(self)
        self._write(frame(Kind.WELCOME, proof(key, PEER, self._nonce, nonce)))

    def _on_ask(self, payload: bytes) -> None:
        if self._peer_request is not None:
            raise ProtocolError("an ask came before the end of the one before it")
        fields = decode_ask(payload)
        tier, standing = _TIERS.get(fields.tier), _STANDINGS.get(fields.standing)
        if tier is None or standing is None:
            raise ProtocolError(f"an ask has an unknown tier or standing: {fields.tier}, {fields.standing}")
        self._number, self._brings_request = fields.number, fields.brings_request
        self._peer_request = peer_request = PeerRequest(self._port.driver, self)
        peer_request.ask(
            tier,
            fields.sequences,
            fields.kv_tokens,
            0.0 if fields.brings_request else fields.longest_wait_ms / 1000,
            self._port.clock(),
            is_preemptible=fields.is_preemptible,
            standing=standing,
            prompt=[Cached(*each) for each in fields.prompt],
        )

    def _on_data(self, data: bytes) -> None:
        if self._peer_request is None:
            return  # the request was preempted while it was being sent
        if not self._peer_request.has_room:
            raise ProtocolError("a request came without an offer")
        if self._engine is None and self._connecting is None:
            self._send_first(data)
            return
        if self._request is not None:
            self._request.append(data)
        if self._engine is not None:
            self._engine.write(data)

    def _send_first(self, data: bytes) -> None:
        self._offered_at, self._sent_at = None, self._port.clock()
        self._heard_at = self._sent_at
        self._request = [data]
        idle = self._port.engine.take()
        if idle is not None:
            self._send_on(idle, self._request)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(REFUSED))

    async def _connect(self, if_refused: bytes) -> None:
        """Send the request on a new connection. If there is none, ``LOST`` has the payload ``if_refused``."""
        try:
            async with asyncio.timeout(self._port.connect_timeout):
                link = await self._port.engine.open()
        except OSError as error:
            self._connecting = None
            if error.errno not in OUR_OWN:
                self._port.connection_refused()
            self._lose(if_refused)
            return
        self._connecting = None
        if self._request is None:
            link.close()
        else:
            self._send_on(link, self._request)

    def _send_on(self, link: EngineLink, parts: list[bytes]) -> None:
        self._engine = link
        link.begin(self)
        for part in parts:
            link.write(part)

    def _on_end(self, *, keeps_alive: bool) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.end(keeps_alive=keeps_alive)
        self._end(Ending.FINISHED)

    # --- the engine's side ---

    def on_answer(self, data: bytes, *, is_first: bool) -> None:
        """The engine sent bytes of the response."""
        self._heard_at = self._port.clock()
        if is_first:
            self._request, self._brings_request = None, False
            if self._peer_request is not None:
                self._peer_request.begun(self._heard_at - self._sent_at)
        self._write(frame(Kind.DATA, data))

    def on_engine_lost(self) -> None:
        """The engine closed its connection. A response without a length also ends like this."""
        engine, self._engine = self._engine, None
        if engine is not None and engine.was_used and self._request is not None:
            # As the proxy does: an engine may close an idle connection at the moment of its next request.
            self._connecting = asyncio.get_running_loop().create_task(self._connect(b""))
            return
        self._lose(b"")

    def _lose(self, why: bytes) -> None:
        self._write(frame(Kind.LOST, why))
        if self._transport is not None:
            self._transport.close()
        self._end(Ending.UPSTREAM_ERROR)

    # --- the asking peer ---

    def offer(self) -> None:
        """See ``AskingPeer``."""
        self._offered_at = self._port.clock()
        if not self._brings_request:
            self._write(numbered(Kind.OFFER, self._number))

    def refuse(self) -> None:
        """See ``AskingPeer``."""
        self._peer_request = None
        self._port.refused += 1
        self._write(numbered(Kind.REFUSE, self._number))

    def preempt(self) -> None:
        """See ``AskingPeer``. The connection ends with the request."""
        self._count(Ending.PREEMPTED)
        self._peer_request, self._offered_at = None, None
        self._drop_engine()
        self._write(frame(Kind.PREEMPTED))
        if self._transport is not None:
            self._transport.close()

    # --- the end ---

    def sweep(self, now: float) -> None:
        """Apply the time limits."""
        if not self._is_proven and now - self._since > PROVE_S:
            self._port.rejected += 1
            self.close()
        elif self._offered_at is not None and now - self._offered_at > HOLD_S:
            self._lose(REFUSED)  # the engine cannot have begun, so a late request is placed again
        elif now - self._heard_at > self._port.upstream_timeout:
            # The other sidecar has the same time limit, so it is paused, or its host is gone.
            self.close()
        elif self._brings_request and self.has_request:
            # The engine takes long. The other sidecar may send further requests with their asks.
            self._brings_request = False
            self._write(numbered(Kind.OFFER, self._number))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection, and abort its request."""
        if self._transport is not None:
            self._transport.abort()
        self._forget()
        self._end(Ending.CLIENT_GONE)

    def _forget(self) -> None:
        self._port.unproven.pop(self, None)
        self._port.proven.discard(self)

    def _drop_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.abort()
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._request = None

    def _end(self, ending: Ending) -> None:
        peer_request, self._peer_request = self._peer_request, None
        self._heard_at = math.inf
        self._drop_engine()
        if peer_request is not None:
            if peer_request.has_room:
                self._count(ending)
            peer_request.end(ending)
        self._offered_at = None

    def _count(self, ending: Ending) -> None:
        """Count the end of a request that had room, or an offer whose request never arrived."""
        if self._offered_at is None:
            self._port.received[ending.value] += 1
        else:
            self._port.unused += 1


class EngineLinks:
    """Connections to the engine for requests of other sidecars. Unused ones are kept for a while."""

    def __init__(self, engine: EngineAddress, clock: Callable[[], float]) -> None:
        self._address = engine
        self._clock = clock
        self._idle: deque[EngineLink] = deque()
        self._open: set[EngineLink] = set()

    def take(self) -> EngineLink | None:
        """An unused connection that the engine cannot have closed yet."""
        now = self._clock()
        while self._idle:
            link = self._idle.pop()
            if now - link.idle_since < ENGINE_IDLE_S:
                return link
            link.close()
        return None

    async def open(self) -> EngineLink:
        """A new connection. Raises ``OSError``."""
        loop, engine = asyncio.get_running_loop(), self._address
        host, port, _ = engine.origin
        link = EngineLink(self)
        await loop.create_connection(
            lambda: link,
            host,
            port,
            ssl=engine.context,
            server_hostname=engine.name if engine.context else None,
        )
        if not link.is_open:
            raise ConnectionResetError("the engine closed the connection at once")
        return link

    def opened(self, link: EngineLink) -> None:
        """A connection is open."""
        self._open.add(link)

    def closed(self, link: EngineLink) -> None:
        """A connection is closed."""
        self._open.discard(link)
        if link in self._idle:
            self._idle.remove(link)

    def release(self, link: EngineLink) -> None:
        """A connection is free for the next request."""
        link.idle_since = self._clock()
        if len(self._idle) < MOST_ENGINE_IDLE:
            self._idle.append(link)
        else:
            link.close()

    def close_idle(self) -> None:
        """Close the connections that the engine would close soon."""
        now = self._clock()
        while self._idle and now - self._idle[0].idle_since >= ENGINE_IDLE_S:
            self._idle.popleft().close()

    def close(self) -> None:
        """Close every connection."""
        for link in list(self._open):
            link.abort()


class EngineLink(asyncio.Protocol):
    """One connection to the engine, for one request at a time."""

    def __init__(self, links: EngineLinks) -> None:
        self.idle_since = 0.0
        self.was_used = False
        """Whether it has served a request before."""
        self._links = links
        self._transport: asyncio.Transport | None = None
        self._session: PeerSession | None = None
        self._is_first = True

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return self._transport is not None

    def begin(self, session: PeerSession) -> None:
        """Pass the next response on to this session."""
        self._session, self._is_first = session, True

    def write(self, data: bytes) -> None:
        """Send bytes of the request."""
        if self._transport is not None:
            self._transport.write(data)

    def end(self, *, keeps_alive: bool) -> None:
        """The response is complete."""
        self._session = None
        if keeps_alive and self._transport is not None:
            self.resume()
            self.was_used = True
            self._links.release(self)
        else:
            self.close()

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Continue to read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close gracefully."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now, so that the engine aborts the request."""
        self._session = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is open."""
        self._transport = cast(asyncio.Transport, transport)
        self._links.opened(self)

    def data_received(self, data: bytes) -> None:
        """asyncio: the engine sent bytes."""
        session = self._session
        if session is None:
            self.close()  # no request is open on this connection
            return
        is_first, self._is_first = self._is_first, False
        session.on_answer(data, is_first=is_first)

    def eof_received(self) -> bool:
        """asyncio: the engine sends no more."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed."""
        self._transport = None
        self._links.closed(self)
        session, self._session = self._session, None
        if session is not None:
            session.on_engine_lost()
