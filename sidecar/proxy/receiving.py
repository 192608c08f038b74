"""The receiving half of a client connection: bytes from the transport through the parser, and backpressure.

It owns the transport, and closes it. It drives the parser and acts on its events. It stops reading from the
transport while requests arrive faster than they are served. Unparsed bytes count against the caller's bound.
``connection.ClientConnection`` is the serving half.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from typing import Final

from sidecar.decisions import Refusal
from sidecar.proxy.answers import CONTINUE
from sidecar.proxy.connection_manager import ConnectionManager
from sidecar.proxy.connection_state import IllegalTransition, Life, Serving
from sidecar.proxy.events import (
    NEED_DATA,
    PAUSED,
    BadRequest,
    BodyOutgrew,
    ContinueExpected,
    Event,
    HeadReceived,
    RequestReceived,
)
from sidecar.proxy.head_policy import Request, decide_head, extend_body, reserve_for
from sidecar.proxy.request_parser import NEVER, TURN_BYTES, RequestParser
from sidecar.proxy.write_batch import BatchedConnection

LINGER_S: Final = 2.0
"""Seconds for which a refused client's remaining bytes are dropped, so that it receives the answer."""
LINGER_BYTES: Final = 4 << 20
"""The most bytes that are dropped so."""
_LEAVES: Final = getattr(select, "POLLRDHUP", 0)
"""The poll event of a peer that has closed. Errors are reported without a flag."""
MOST_UNSENT: Final = 4096
"""The most bytes that wait for the end of a turn. Several events of the engine in one read have fewer."""
MAX_PIPELINED: Final = 8
"""Requests that one connection parses ahead. Reading pauses beyond this number."""


class ReceivingConnection(asyncio.Protocol, BatchedConnection):
    """The part of a client connection that receives requests."""

    __slots__ = (
        "_closes_at",
        "_is_paused",
        "_life",
        "_lingered",
        "_manager",
        "_owes_continue",
        "_parser",
        "_passed",
        "_pending",
        "_request",
        "_serving",
        "_transport",
        "_unparsed",
        "_unsent",
        "buffered",
        "caller",
    )

    def __init__(self, manager: ConnectionManager) -> None:
        self._manager = manager
        self._transport: asyncio.Transport | None = None
        self._parser = RequestParser(manager.parser_limits)
        self._life = Life.OPEN
        self._serving = Serving.NOTHING
        self._pending: deque[Request] = deque()
        """Requests that wait to be served, in their order."""
        self._request: Request | None = None
        """The request whose head was accepted, and whose body is being read."""
        self._passed: Request | None = None
        """The last request with an accepted head, if that head can be cached."""
        self._owes_continue = False
        """Whether ``_request`` still needs a ``100 Continue``, after the answers before it."""
        self._is_paused = False
        """Whether reading from the transport is paused."""
        self.caller = manager.bounds.unidentified
        self.buffered = 0
        """The bytes of memory that the connection counts for."""
        self._unparsed = 0
        """The part of ``buffered`` for received bytes that wait to be parsed."""
        self._unsent = b""
        """Bytes for the client that wait in the manager's ``batch``."""
        self._closes_at = NEVER
        """The time at which an idle connection is closed, or the deadline of a close that has begun."""
        self._lingered = 0
        """The number of dropped bytes."""

    # --- methods of the serving half ---

    def on_request(self, request: Request) -> None:
        """A request is complete, or refused: answer it after the requests before it."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send bytes to the client."""
        batch = self._manager.batch
        if not batch.is_empty:
            data = self._unsent + data
            self._unsent = b""
            batch.write()
        if self._transport is not None:
            self._transport.write(data)

    def write_soon(self, data: bytes) -> None:
        """Send bytes to the client at the end of this turn of the event loop, before any others."""
        if self._unsent or len(data) > MOST_UNSENT:
            self.write(data)
        elif data:
            self._unsent = data
            self._manager.batch.add(self)

    def write_unsent(self) -> None:
        """The batch: send the bytes of ``write_soon`` now."""
        data, self._unsent = self._unsent, b""
        if data and self._transport is not None:
            self._transport.write(data)

    # --- bytes ---

    def reserve_bytes(self, size: int) -> bool:
        """Reserve ``size`` bytes if the bounds allow it. Returns whether they did."""
        return reserve_for(self, size)

    def release_bytes(self, size: int) -> None:
        """Release ``size`` bytes."""
        self.buffered -= size
        self.caller.release_bytes(size)

    def _release_unparsed(self) -> None:
        kept, self._unparsed = self._unparsed, 0
        self.release_bytes(kept)

    # --- reading ---

    @property
    def has_enough(self) -> bool:
        """Whether enough requests wait, so that no further one is read."""
        return len(self._pending) >= MAX_PIPELINED

    def _receive(self, data: bytes) -> None:
        """Parse the received bytes, now or in a later turn."""
        self._parser.receive(data, self._manager.telemetry.clock())
        if self._unparsed:
            self._defer_rest()
        else:
            self._read()

    def _read(self) -> None:
        """Act on events until all bytes are parsed, the turn is over, or enough requests wait."""
        parser, pending = self._parser, self._pending
        while len(pending) < MAX_PIPELINED or parser.has_events:
            event = parser.next_event()
            if event is NEED_DATA:
                return
            if event is PAUSED:
                break
            if isinstance(event, HeadReceived):
                self._on_head(event)
            elif isinstance(event, RequestReceived):
                self._on_complete(event)
            else:
                self._act(event)
        if parser.unread:
            self._defer_rest()

    def _act(self, event: Event) -> None:
        """Act on a rare event."""
        if isinstance(event, BodyOutgrew):
            self._on_outgrown(event.size)
        elif isinstance(event, ContinueExpected):
            self._on_expectation()
        elif isinstance(event, BadRequest):
            self._on_bad_request(event)

    def _on_head(self, event: HeadReceived) -> None:
        self._request = request = Request(event.head)
        self._owes_continue = False
        manager, head = self._manager, event.head
        if manager.tracer is not None:
            head.trace = manager.tracer.begin(head)
        refusal = decide_head(event, request, self, manager)
        if head.trace is not None:
            head.trace.authenticated(head.route)
        if refusal is not None:
            self._refuse(refusal)
            return
        self._passed = request if event.is_as_sent else None
        if event.is_chunked:
            self._parser.allow_body(request.body_bytes)

    def _on_outgrown(self, size: int) -> None:
        request = self._request
        if request is None or size <= request.body_bytes:
            return
        refusal = extend_body(size, request, self, self._manager)
        if refusal is not None:
            self._refuse(refusal)
        else:
            self._parser.allow_body(request.body_bytes)

    def _on_expectation(self) -> None:
        """The client waits for a ``100 Continue``. A refused request is answered instead."""
        request = self._request
        if request is not None and request.refusal is not None:
            self._refuse(request.refusal)
        elif self._serving is Serving.NOTHING and not self._pending:
            self._tell_to_continue()
        else:
            self._owes_continue = True

    def _continue(self) -> None:
        """Send a ``100 Continue`` that is due, unless earlier answers are pending or the body has arrived."""
        if self._serving is Serving.NOTHING and not self._pending:
            self._owes_continue = False
            if self._parser.expects_continue:
                self._tell_to_continue()

    def _tell_to_continue(self) -> None:
        self._parser.sent_continue(self._manager.telemetry.clock())
        self.write(CONTINUE)

    def _on_complete(self, event: RequestReceived) -> None:
        request, self._request = self._request, None
        self._owes_continue = False
        assert request is not None  # its head was accepted
        request.body = event.body
        request.closes = event.closes
        self.on_request(request)
        if self.has_enough:
            self._pause()

    def _on_bad_request(self, event: BadRequest) -> None:
        request, self._request = self._request, None
        if request is None:
            request = Request(event.head)
        request.refusal = Refusal(event.reason, event.message)
        request.closes = True
        self.on_request(request)

    def _refuse(self, refusal: Refusal) -> None:
        """Refuse the request that is being read, and read nothing after it."""
        parser = self._parser
        if parser.has_ended and self._request is None:
            return
        request, self._request = self._request, None
        if request is None:
            request = Request(parser.head)
        parser.end()
        self._release_unparsed()
        request.refusal = refusal
        request.closes = True
        self.on_request(request)

    # --- backpressure ---

    def _defer_rest(self) -> None:
        """Defer the unparsed bytes to a later turn: reserve memory for them, and pause reading."""
        parser, caller = self._parser, self.caller
        self._release_unparsed()
        size = parser.unread
        # All unidentified connections share one bound. Near that bound, each may defer one turn of bytes.
        is_nearly_full = (
            caller is self._manager.bounds.unidentified
            and parser.has_completed
            and size > TURN_BYTES
            and 2 * caller.buffered > caller.max_bytes
        )
        if is_nearly_full or not self.reserve_bytes(size):
            account = self._request.account if self._request is not None else None
            self._refuse(caller.memory_refusal(size, account))
            return
        self._unparsed = size
        parser.forget_parsed()
        self._pause()
        self._read_on_soon()

    def _read_on_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        """Parse the deferred bytes, in a turn of their own."""
        if not self._unparsed or self.has_enough:
            return  # no bytes are left, or enough requests wait
        self._release_unparsed()
        self._parser.begin_turn(self._manager.telemetry.clock())
        self._read()
        if not self._unparsed and not self.has_enough:
            self._resume()

    def _pause(self) -> None:
        """Pause reading from the transport."""
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        """Parse the deferred bytes, or else resume reading from the transport."""
        transport = self._transport
        if self._is_paused and self._life is Life.OPEN:
            self._parser.resumed(self._manager.telemetry.clock())
        if self._unparsed:
            self._read_on_soon()
        elif self._is_paused and transport is not None and not transport.is_closing():
            self._is_paused = False
            transport.resume_reading()

    # --- the end ---

    def _become(self, life: Life) -> None:
        if life not in self._life.following:
            raise IllegalTransition(f"the connection: {self._life} to {life}")
        self._life = life

    def _drop_requests(self) -> None:
        """Drop the requests that are not served yet. Nothing answers them."""
        if self._manager.tracer is not None:
            for each in (*self._pending, self._request):
                if each is not None and each.head.trace is not None:
                    each.head.trace.left()
        self._pending.clear()

    def _forget(self) -> None:
        """Read nothing more. The manager releases all bytes of a connection that closes."""
        self._parser.end()
        self._unparsed = 0

    def _close(self, within: float | None = None) -> None:
        """Close gracefully: written bytes are sent first, and over TLS both sides send a close_notify."""
        if self._life is not Life.CLOSING:
            self._become(Life.CLOSING)
        self.write_unsent()
        self._stop_reading(within or self._manager.settings.write_timeout)
        if self._transport is not None:
            self._transport.close()

    def _linger(self) -> None:
        """Close for writing, and read on for ``LINGER_S``. A reset could destroy the answer in transit."""
        self._become(Life.LINGERING)
        self.write_unsent()
        self._stop_reading(LINGER_S)
        transport = self._transport
        if transport is None:
            return
        self._resume()
        if not transport.can_write_eof():
            transport.close()  # TLS has no half-closed state: this sends a close_notify, and reads on
        elif not transport.is_closing():
            transport.write_eof()

    def _stop_reading(self, seconds: float) -> None:
        """Drop all further bytes of the client, and close the connection within ``seconds``."""
        self._drop_requests()
        self._parser.end()
        self._release_unparsed()
        self._closes_at = self._manager.telemetry.clock() + seconds

    def _drop(self, count: int) -> None:
        """Count dropped bytes, and close after too many."""
        self._lingered += count
        if self._lingered > LINGER_BYTES and self._transport is not None:
            self._transport.abort()


def has_left(transport: asyncio.Transport) -> bool:
    """Whether the client has disconnected. asyncio does not report it while reading is paused."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False  # it is being closed: over TLS the socket closes just before connection_lost
    poll = select.poll()
    poll.register(sock.fileno(), _LEAVES)
    return bool(poll.poll(0))
