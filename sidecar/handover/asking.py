"""The asking side: connections to the peer ports of other sidecars, and the requests that are handed over.

A connection serves one ask at a time. When the other sidecar offers room, the request is sent on the same
connection. So closing the connection always frees the room. For the exchange it is like a connection to the
engine. A ticket whose place has ``sent`` needs no offer: its ask and its request are sent together.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import secrets
import socket
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Protocol, cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from sidecar.handover.ask_fields import AskFields
from sidecar.handover.frames import (
    ASKER,
    KEEP,
    NONCE_BYTES,
    PEER,
    REFUSED,
    VERSION,
    FrameReader,
    Kind,
    ProtocolError,
    encode_ask,
    frame,
    header,
    number_of,
    numbered,
    proof,
    proves,
)
from sidecar.proxy.upstream import NO_ROOM, Connection, Connections, Waiter
from tokenpool.accounting.ticket import Place, SentAsk, Ticket
from tokenpool.admission.placement import PeerAsk

log = logging.getLogger(__name__)

CONNECT_S = 1.0
"""The most seconds until a connection to a peer is open, with its proofs."""
LATE_S = 1.0
"""Seconds after the end of an ask's longest wait at which a silent peer counts as lost."""
IDLE_S = 30.0
"""Seconds after which an unused connection to a peer is closed."""
MOST_IDLE = 16
"""The most unused connections to one peer."""
KEEPALIVE = (
    ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 5),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 2),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPCNT), 3),
)
"""Socket options: the other side counts as lost 11 s after its host is gone. The request ends then."""
LONGEST_DATA = 4 << 20
"""The longest ``DATA`` frame from a peer, in bytes: much longer than one read from its engine."""
BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the histogram of seconds from an ask to its offer."""

UNIX = "unix:"
"""The beginning of the address of a socket of this host: another worker of the same sidecar."""

_NUMBERED = (Kind.OFFER, Kind.REFUSE)
"""The answers that name their ask."""


def _is_of_earlier_ask(number: int, place: Place) -> bool:
    """Whether an answer belongs to an ask from before this one. Raises ``ProtocolError`` for a later one."""
    behind = (place.number - number) & 0xFFFFFFFF
    if behind >= 1 << 31:
        raise ProtocolError("another ask than the one of the request was answered")
    return behind > 0


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Let the kernel end a connection between two sidecars when the host of the other one is gone."""
    sock = transport.get_extra_info("socket")
    if sock.family == socket.AF_UNIX:
        return  # the kernel knows when a process of this host ends
    for option, value in KEEPALIVE:
        sock.setsockopt(*option, value)


class Result(StrEnum):
    """The result of an ask."""

    TAKEN = "taken"
    """The other replica had room first, and runs the request."""
    REFUSED = "refused"
    """The other replica had no room in time."""
    CANCELLED = "cancelled"
    """The request found room elsewhere, or its client left."""
    FAILED = "failed"
    """The other replica could not be reached, or closed the connection."""


class Asker(Protocol):
    """The part of the driver that this module calls."""

    def peer_offered(self, ask: PeerAsk) -> bool:
        """Another replica keeps room. Returns whether the request takes it."""

    def peer_refused(self, ask: PeerAsk, *, has_failed: bool = False) -> None:
        """Another replica has no room, or failed."""

    def place_answered(self, place: Place, *, has_room: bool) -> None:
        """Another replica has answered a request that it got together with the ask."""


class _State(enum.Enum):
    CONNECTING = "connecting"
    IDLE = "idle"
    ASKING = "asking"
    RUNNING = "running"
    CLOSED = "closed"


class PeerLinks:
    """All connections to other sidecars, by address."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.key = b""
        """The pool's key; empty until the lease store was read."""
        self.results: Counter[Result] = Counter()
        self.late = [0] * (len(BOUNDS_S) + 1)
        """Taken offers, by the upper bound of the seconds since their ask. The last number has no bound.
        Requests that are sent together with their asks wait for no offer, and do not count."""
        self.waited_s = 0.0
        """The sum of the seconds from an ask to its taken offer."""
        self._asker: Asker | None = None
        self._idle: dict[str, deque[PeerLink]] = {}
        self._open: set[PeerLink] = set()
        self._asking: dict[int, PeerLink] = {}
        """The connection of each ask, by number, until the request is sent or the ask ends."""
        self._connecting: set[asyncio.Task[None]] = set()

    def connect_to(self, asker: Asker) -> None:
        """Deliver offers to this driver."""
        self._asker = asker

    # --- the driver's ports ---

    def ask(self, ask: PeerAsk) -> None:
        """Ask another sidecar for room."""
        idle = self.idle_link(ask.place.address)
        if idle is not None:
            self._asking[ask.number] = idle
            idle.ask(ask)
            return
        link = PeerLink(self, ask.place.address)
        self._asking[ask.number] = link
        task = asyncio.get_running_loop().create_task(self._connect(link, ask))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, link: PeerLink, ask: PeerAsk) -> None:
        address, loop = ask.place.address, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                if address.startswith(UNIX):
                    await loop.create_unix_connection(lambda: link, address.removeprefix(UNIX))
                else:
                    host, _, port = address.rpartition(":")
                    await loop.create_connection(lambda: link, host.strip("[]"), int(port))
                await link.ready
        except (OSError, ValueError, ProtocolError) as error:
            link.close()
            if self._asking.pop(ask.number, None) is not None:
                log.info("a peer cannot be asked", extra={"peer": ask.peer, "error": str(error)})
                self.end(ask, Result.FAILED)
            return
        if self._asking.get(ask.number) is link:
            link.ask(ask)
        else:
            self.release(link)  # the ask was cancelled meanwhile

    def cancel(self, ask: PeerAsk) -> None:
        """The request of an ask needs no room any more."""
        link = self._asking.pop(ask.number, None)
        if link is not None:
            self.results[Result.CANCELLED] += 1
            link.cancel()

    # --- calls of the links ---

    def opened(self, link: PeerLink) -> None:
        """A connection is open."""
        self._open.add(link)

    def closed(self, link: PeerLink) -> None:
        """A connection is closed."""
        self._open.discard(link)
        idle = self._idle.get(link.address)
        if idle is not None and link in idle:
            idle.remove(link)

    def release(self, link: PeerLink) -> None:
        """A connection is free for the next ask."""
        idle = self._idle.setdefault(link.address, deque())
        link.idle_since = self.clock()
        if len(idle) < MOST_IDLE:
            idle.append(link)
        else:
            link.close()

    def offered(self, link: PeerLink, ask: PeerAsk) -> None:
        """A peer keeps room. The request is sent if it takes it, and nothing fails."""
        assert self._asker is not None
        takes = self._asker.peer_offered(ask)
        self._asking.pop(ask.number, None)
        if not takes:
            self.results[Result.CANCELLED] += 1
            return
        seconds = self.clock() - link.asked_at
        self.waited_s += seconds
        self.late[bisect_left(BOUNDS_S, seconds)] += 1
        self.results[Result.TAKEN] += 1

    def end(self, ask: PeerAsk, result: Result) -> None:
        """An ask has ended without an offer that was taken."""
        self._asking.pop(ask.number, None)
        self.results[result] += 1
        if self._asker is not None:
            self._asker.peer_refused(ask, has_failed=result is Result.FAILED)

    # --- the proxy's side ---

    def connection_of(self, ticket: Ticket, place: Place) -> Connections:
        """The source of connections for the exchange of a request that is handed over."""
        if place.sent is not None:
            return SentConnections(self, ticket, place, place.sent)
        return PeerConnections(self._asking.get(place.number))

    def idle_link(self, address: str) -> PeerLink | None:
        """An unused connection to a peer. The caller uses it at once."""
        links = self._idle.get(address)
        return links.pop() if links else None

    def answered(self, place: Place, *, has_room: bool) -> None:
        """A peer has answered a request that it got together with the ask."""
        self.results[Result.TAKEN if has_room else Result.REFUSED] += 1
        if self._asker is not None:
            self._asker.place_answered(place, has_room=has_room)

    @property
    def running(self) -> int:
        """The requests of this sidecar that run on other replicas now."""
        return sum(link.is_running for link in self._open)

    # --- upkeep ---

    def close_idle(self) -> None:
        """Close connections that have been unused for long, and asks whose peer is silent."""
        now = self.clock()
        for address, links in list(self._idle.items()):
            while links and now - links[0].idle_since > IDLE_S:
                links.popleft().close()
            if not links:
                del self._idle[address]
        for link in list(self._open):
            link.check(now)

    def close(self) -> None:
        """Close every connection."""
        for task in self._connecting:
            task.cancel()
        for link in list(self._open):
            link.close()

    def metrics(self) -> Iterator[Metric]:
        """The asks by result, and the time to an offer, for Prometheus."""
        counts = CounterMetricFamily(
            "tokenpool_handovers", "Asks for room at other replicas, by result.", labels=("result",)
        )
        for result in Result:
            counts.add_metric((result.value,), self.results[result])
        yield counts
        total, buckets = 0, []
        for bound, count in zip(BOUNDS_S, self.late, strict=False):
            total += count
            buckets.append((f"{bound:g}", float(total)))
        buckets.append(("+Inf", float(total + self.late[-1])))
        yield HistogramMetricFamily(
            "tokenpool_handover_seconds",
            "Seconds from an ask to the offer that was taken.",
            buckets=buckets,
            sum_value=self.waited_s,
        )
        yield GaugeMetricFamily(
            "tokenpool_handovers_running",
            "Requests of this replica that run on others now.",
            value=self.running,
        )


class PeerLink(asyncio.Protocol):
    """One connection to the peer port of another sidecar."""

    def __init__(self, links: PeerLinks, address: str) -> None:
        self.address = address
        self.idle_since = 0.0
        self.asked_at = 0.0
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when both sides have proved the key. Otherwise it has the error."""
        self._links = links
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(LONGEST_DATA)
        self._state = _State.CONNECTING
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._peer_nonce = b""
        self._ask: PeerAsk | None = None
        self._sent: Place | None = None
        """The place of the request that was sent together with its ask, until the peer answers."""
        self._sent_ask = b""
        """The frame of that ask, until the request is sent."""
        self._http: Connection | None = None
        """The connection of the request that runs, for its exchange."""
        self._kept: Connection | None = None
        """The same object after the end of the request. It knows the head of the last response."""
        self._end: bytes | None = None
        """The payload of the ``END`` that is sent after the exchange has relayed the response."""

    @property
    def is_running(self) -> bool:
        """Whether a request runs over this connection."""
        return self._state is _State.RUNNING

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is open. The peer speaks first."""
        self._transport = cast(asyncio.Transport, transport)
        keep_alive(transport)
        self._links.opened(self)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes of the peer."""
        try:
            for kind, payload in self._reader.receive(data):
                self._on_frame(kind, payload)
                if self._state is _State.CLOSED:
                    return
        except ProtocolError as error:
            if not self.ready.done():
                self.ready.set_exception(error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed."""
        self._transport = None
        if not self.ready.done():
            self.ready.set_exception(ConnectionResetError("the peer closed the connection"))
            self.ready.exception()
        self._ended(Result.FAILED)

    def pause_writing(self) -> None:
        """asyncio: the peer reads slowly. A request body is bounded, so it is kept in memory."""

    # --- frames ---

    def _on_frame(self, kind: Kind, payload: bytes) -> None:
        sent = self._sent
        if sent is not None:
            if kind in _NUMBERED and _is_of_earlier_ask(number_of(payload), sent):
                return  # that ask was cancelled, and the answer crossed the cancellation
            self._on_first_answer(sent, kind)
            if kind is Kind.REFUSE:
                return
        if kind is Kind.DATA and self._http is not None:
            self._on_data(self._http, payload)
        elif self._state is _State.CONNECTING:
            self._prove(kind, payload)
        elif kind is Kind.OFFER:
            self._on_offer(number_of(payload))
        elif kind is Kind.REFUSE:
            self._on_refuse(number_of(payload))
        elif kind is Kind.PREEMPTED and self._http is not None:
            self._http.preempted()
        elif kind is Kind.LOST and self._http is not None:
            if payload == REFUSED:
                self._http.refused(ConnectionRefusedError("the engine of the other replica is down"))
            else:
                self._http.eof_received()  # this is how a response without a length ends
            self.close()
        elif kind is not Kind.DATA:
            raise ProtocolError(f"{kind.name} is not expected now")

    def _on_first_answer(self, place: Place, kind: Kind) -> None:
        """The peer answers a request that it got together with the ask: it has begun, or has no room."""
        if kind is not Kind.REFUSE:
            self._sent = None
            self._links.answered(place, has_room=True)
            return
        self._sent = None
        http, self._http = self._http, None
        self._kept, self._state = http, _State.IDLE
        self._links.answered(place, has_room=False)
        if http is not None:
            http.refused(OSError(NO_ROOM, "the other replica has no room"))
        self._links.release(self)  # after the exchange has left: without space for it, the link is closed

    def _on_data(self, http: Connection, payload: bytes) -> None:
        """Relay bytes of the response. The client gets the last ones before the peer gets the ``END``.

        The other order would make the client wait for this write, and for the peer if it shares a core.
        """
        try:
            http.data_received(payload)
        finally:
            end, self._end = self._end, None
            if end is not None and self._state is _State.RUNNING:
                self._state = _State.IDLE
                self._write(frame(Kind.END, end))
                self.resume()  # the client may have paused it in the read that completed the response
                self._links.release(self)

    def _prove(self, kind: Kind, payload: bytes) -> None:
        links = self._links
        if kind is Kind.HELLO and payload and payload[0] != VERSION:
            raise ProtocolError(f"the peer's frames have version {payload[0]}, and this sidecar's {VERSION}")
        if kind is Kind.HELLO and not self._peer_nonce and len(payload) == 1 + NONCE_BYTES:
            self._peer_nonce = payload[1:]
            if not links.key:
                raise ProtocolError("the pool's key is not known yet")
            mac = proof(links.key, ASKER, self._peer_nonce, self._nonce)
            self._write(frame(Kind.PROOF, self._nonce + mac))
        elif kind is Kind.WELCOME and self._peer_nonce:
            if not proves(payload, links.key, PEER, self._peer_nonce, self._nonce):
                raise ProtocolError("the peer does not know the pool's key")
            self._state = _State.IDLE
            if not self.ready.done():
                self.ready.set_result(None)
        else:
            raise ProtocolError("the peer did not prove that it knows the pool's key")

    def _on_offer(self, number: int) -> None:
        ask = self._ask
        if ask is None or ask.number & 0xFFFFFFFF != number:
            return  # the ask was cancelled before the offer came; the peer has the cancel by now
        self._links.offered(self, ask)
        if self._ask is ask:
            self.cancel()  # the request does not take the room, or took it and did not start

    def _on_refuse(self, number: int) -> None:
        ask = self._ask
        if ask is None or ask.number & 0xFFFFFFFF != number:
            return
        self._ask = None
        self._state = _State.IDLE
        self._links.release(self)
        self._links.end(ask, Result.REFUSED)

    # --- asks ---

    def ask(self, ask: PeerAsk) -> None:
        """Ask for room."""
        self._ask, self._state, self.asked_at = ask, _State.ASKING, self._links.clock()
        self._write(
            encode_ask(
                AskFields(
                    ask.number & 0xFFFFFFFF,
                    ask.tier.value,
                    ask.pending.account.is_preemptible,
                    ask.sequences,
                    ask.kv_tokens,
                    max(round(ask.longest_wait_s * 1000), 0),
                    ask.standing.value,
                    ask.prompt,
                )
            )
        )

    def cancel(self) -> None:
        """The ask needs no room any more."""
        ask, self._ask = self._ask, None
        if ask is not None and self._state is _State.ASKING:
            self._state = _State.IDLE
            self._write(numbered(Kind.CANCEL, ask.number))
            self._links.release(self)

    def check(self, now: float) -> None:
        """Close the connection if its peer is silent for longer than the ask may wait."""
        ask = self._ask
        if ask is not None and now - self.asked_at > ask.longest_wait_s + LATE_S:
            self.close()

    # --- the request ---

    def http(self) -> Connection | None:
        """The connection on which the exchange sends its request; ``None`` if it is lost."""
        if self._transport is None or self._ask is None:
            return None
        self._ask = None
        return self._run()

    def _run(self) -> Connection:
        self._state = _State.RUNNING
        connection, self._kept = self._kept, None
        if connection is None:
            connection = Connection(_Released(self))
            connection.connection_made(cast(asyncio.Transport, _FramedTransport(self)))
        self._http = connection
        return connection

    def http_with_ask(self, ticket: Ticket, place: Place, sent: SentAsk) -> Connection | None:
        """The connection for a request that is sent together with its ask; ``None`` if it is lost."""
        if self._transport is None or self._state is not _State.IDLE:
            return None
        account, cost = ticket.account, ticket.cost
        self._sent = place
        self._sent_ask = encode_ask(
            AskFields(
                place.number & 0xFFFFFFFF,
                account.entitlement.tier.value,
                account.is_preemptible,
                cost.sequences,
                cost.kv_tokens,
                0,
                sent.standing,
                sent.prompt,
                True,
            )
        )
        return self._run()

    def send(self, parts: tuple[bytes, ...]) -> None:
        """Send bytes of a request."""
        ask, self._sent_ask = self._sent_ask, b""
        if self._transport is not None:
            data = header(Kind.DATA, sum([len(part) for part in parts]))
            self._transport.writelines((ask + data, *parts))

    def finish(self, *, keeps_alive: bool) -> None:
        """The response is complete."""
        http, self._http = self._http, None
        self._end = KEEP if keeps_alive else b""
        if keeps_alive:
            self._kept = http
        elif http is not None:
            http.connection_lost(None)  # its parser has no state for a next response

    def pause(self) -> None:
        """Stop reading, because the client reads too slowly."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Continue to read."""
        if self._transport is not None:
            self._transport.resume_reading()

    # --- the end ---

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """The request ends now: its client left, or a time limit has passed."""
        if self._sent is not None:
            self._sent = None
            self._links.results[Result.CANCELLED] += 1
        self.close()

    def close(self) -> None:
        """Close the connection, so that the peer frees the room."""
        if self._transport is not None:
            self._transport.abort()
        self._ended(Result.FAILED)

    def _ended(self, result: Result) -> None:
        self._state = _State.CLOSED
        self._links.closed(self)
        ask, self._ask = self._ask, None
        sent, self._sent = self._sent, None
        http, self._http = self._http, None
        kept, self._kept = self._kept, None
        if ask is not None:
            self._links.end(ask, result)
        if sent is not None:
            self._links.results[result] += 1  # the end of its ticket ends the ask
        for each in (http, kept):
            if each is not None:
                each.connection_lost(None)


class _Released:
    """The pool of a ``Connection`` that belongs to a link."""

    def __init__(self, link: PeerLink) -> None:
        self._link = link

    def release(self, connection: Connection) -> None:
        """The response is complete, and the engine keeps its connection open."""
        self._link.finish(keeps_alive=True)

    def forget(self, connection: Connection) -> None:
        """The connection is closed."""


class _FramedTransport:
    """Writes the bytes of requests as frames. For a ``Connection`` it is a transport of asyncio."""

    def __init__(self, link: PeerLink) -> None:
        self._link = link
        self._is_closing = False

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._link.send((data,))

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        """Send bytes in parts."""
        self._link.send(parts)

    def is_closing(self) -> bool:
        """Whether the exchange has closed it."""
        return self._is_closing

    def close(self) -> None:
        """The response is complete, and the engine closes its connection."""
        if not self._is_closing:
            self._is_closing = True
            self._link.finish(keeps_alive=False)

    def abort(self) -> None:
        """The request must end now."""
        if not self._is_closing:
            self._is_closing = True
            self._link.abort()

    def pause_reading(self) -> None:
        """Stop reading."""
        self._link.pause()

    def resume_reading(self) -> None:
        """Continue to read."""
        self._link.resume()


class SentConnections:
    """The one connection of a request that is sent together with its ask."""

    def __init__(self, links: PeerLinks, ticket: Ticket, place: Place, sent: SentAsk) -> None:
        self._links = links
        self._ticket = ticket
        self._place = place
        self._sent = sent

    def take(self) -> Connection | None:
        """The connection; ``None`` without an unused connection to the peer."""
        link = self._links.idle_link(self._place.address)
        return link.http_with_ask(self._ticket, self._place, self._sent) if link is not None else None

    def connect(self, waiter: Waiter) -> None:
        """There is no unused connection: the request asks first, at several replicas at once."""
        error = OSError(NO_ROOM, "there is no open connection to the other replica")
        asyncio.get_running_loop().call_soon(waiter.on_refused, error)

    def release(self, connection: Connection) -> None:
        """The request was ended before it was sent: free the room."""
        connection.abort()


class PeerConnections:
    """The one connection of a request that is handed over, as ``Connections`` of the proxy."""

    def __init__(self, link: PeerLink | None) -> None:
        self._link = link

    def take(self) -> Connection | None:
        """The connection at the first call, then ``None``."""
        link, self._link = self._link, None
        return link.http() if link is not None else None

    def connect(self, waiter: Waiter) -> None:
        """The connection was lost before the request was sent."""
        error = ConnectionResetError("the connection to the other replica was lost")
        asyncio.get_running_loop().call_soon(waiter.on_refused, error)

    def release(self, connection: Connection) -> None:
        """The request was ended before it was sent: free the room."""
        connection.abort()
