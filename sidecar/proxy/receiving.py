"""The receiving half of a client connection: bytes from the transport through the parser, and backpressure.

It owns the transport and its end. It drives the parser, acts on its events, and stops reading from the
transport where requests arrive faster than they are served. Bytes that wait count against the caller.
``connection.ClientConnection`` is the other half: it serves the requests in their order.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque

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
from sidecar.proxy.head_policy import Request, decide_head, extend_body, take
from sidecar.proxy.request_parser import NEVER, TURN_BYTES, RequestParser

LINGER_S = 2.0
"""How long a refused client's remaining bytes are read and dropped, so that it receives the answer."""
LINGER_BYTES = 4 << 20
"""How many of them, at most."""
_LEAVES = getattr(select, "POLLRDHUP", 0)
"""The event of a peer that has closed; errors are reported in any case."""
MAX_PIPELINED = 8
"""Requests that are parsed ahead on one connection; reading pauses beyond."""


class ReceivingConnection(asyncio.Protocol):
    """What a client connection does with what it receives."""

    __slots__ = (
        "_closes_at",
        "_is_paused",
        "_kept",
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
        "buffered",
        "holder",
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
        """The last request whose head was accepted, if the same bytes always mean the same."""
        self._owes_continue = False
        """Whether a ``100 Continue`` is due for it, after the answers that come first."""
        self._is_paused = False
        """Whether the transport is told to read nothing."""
        self.holder = manager.bounds.unidentified
        self.buffered = 0
        """The bytes that the connection counts for."""
        self._kept = 0
        """Of ``buffered``: received bytes that wait to be parsed."""
        self._closes_at = NEVER
        """When it is closed, unless a request is being read or served; later, when it must be closed."""
        self._lingered = 0
        """Bytes that were dropped so far."""

    # --- what the serving half does ---

    def on_request(self, request: Request) -> None:
        """A request is complete, or refused: answer it in its turn."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send bytes to the client."""
        if self._transport is not None:
            self._transport.write(data)

    # --- bytes ---

    def take(self, size: int) -> bool:
        """Count for so many bytes more, if that is within the bound; whether it was."""
        return take(self, size)

    def give(self, size: int) -> None:
        """Count for so many bytes less."""
        self.buffered -= size
        self.holder.give(size)

    def _give_kept(self) -> None:
        kept, self._kept = self._kept, 0
        self.give(kept)

    # --- reading ---

    @property
    def has_enough(self) -> bool:
        """Whether no further request is to be read for now."""
        return len(self._pending) >= MAX_PIPELINED

    def _receive(self, data: bytes) -> None:
        """Parse what was received, now or later."""
        self._parser.receive(data, self._manager.telemetry.clock())
        if self._kept:
            self._keep()
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
            self._keep()

    def _act(self, event: Event) -> None:
        """Act on an event that most requests do not have."""
        if isinstance(event, BodyOutgrew):
            self._on_outgrown(event.size)
        elif isinstance(event, ContinueExpected):
            self._on_expectation()
        elif isinstance(event, BadRequest):
            self._on_bad_request(event)

    def _on_head(self, event: HeadReceived) -> None:
        self._request = request = Request(event.head)
        self._owes_continue = False
        refusal = decide_head(event, request, self, self._manager)
        if refusal is not None:
            self._refuse(refusal)
            return
        self._passed = request if event.is_as_sent else None
        if event.is_chunked:
            self._parser.allow_body(request.room)

    def _on_outgrown(self, size: int) -> None:
        request = self._request
        if request is None or size <= request.room:
            return
        refusal = extend_body(size, request, self, self._manager)
        if refusal is not None:
            self._refuse(refusal)
        else:
            self._parser.allow_body(request.room)

    def _on_expectation(self) -> None:
        """The client sends a body once it is told to go on: a request that is refused is answered instead."""
        request = self._request
        if request is not None and request.refusal is not None:
            self._refuse(request.refusal)
        elif self._serving is Serving.NOTHING and not self._pending:
            self._tell_to_continue()
        else:
            self._owes_continue = True

    def _continue(self) -> None:
        """Send a ``100 Continue`` that is due, unless answers still come first or the body came by itself."""
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
        """Refuse the request that is being read, in its turn, and read nothing after it."""
        parser = self._parser
        if parser.has_ended and self._request is None:
            return
        request, self._request = self._request, None
        if request is None:
            request = Request(parser.head)
        parser.end()
        self._give_kept()
        request.refusal = refusal
        request.closes = True
        self.on_request(request)

    # --- backpressure ---

    def _keep(self) -> None:
        """Leave the rest for later: count it, and receive nothing meanwhile."""
        parser, holder = self._parser, self.holder
        self._give_kept()
        size = parser.unread
        # Unidentified callers have no others to consider; where they are many, each may have little.
        is_crowded = (
            holder is self._manager.bounds.unidentified
            and parser.has_completed
            and size > TURN_BYTES
            and 2 * holder.buffered > holder.max_bytes
        )
        if is_crowded or not self.take(size):
            account = self._request.account if self._request is not None else None
            self._refuse(holder.memory_refusal(size, account))
            return
        self._kept = size
        parser.forget_parsed()
        self._pause()
        self._read_on_soon()

    def _read_on_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._read_on)

    def _read_on(self) -> None:
        """Take up what was kept, in a turn of its own."""
        if not self._kept or self.has_enough:
            return  # nothing, or not yet
        self._give_kept()
        self._parser.begin_turn(self._manager.telemetry.clock())
        self._read()
        if not self._kept and not self.has_enough:
            self._resume()

    def _pause(self) -> None:
        """Receive no more for now."""
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        """Take up what was kept, and then receive more."""
        transport = self._transport
        if self._is_paused and self._life is Life.OPEN:
            self._parser.resumed(self._manager.telemetry.clock())
        if self._kept:
            self._read_on_soon()
        elif self._is_paused and transport is not None and not transport.is_closing():
            self._is_paused = False
            transport.resume_reading()

    # --- the end ---

    def _become(self, life: Life) -> None:
        if life not in self._life.following:
            raise IllegalTransition(f"the connection: {self._life} to {life}")
        self._life = life

    def _forget(self) -> None:
        """Read nothing more. No bytes are given here: the manager gives all bytes of a lost connection."""
        self._parser.end()
        self._kept = 0

    def _close(self, within: float | None = None) -> None:
        """Close in good order: written bytes leave first, and over TLS both sides send a close_notify."""
        if self._life is not Life.CLOSING:
            self._become(Life.CLOSING)
        self._read_nothing_for(within or self._manager.settings.write_timeout)
        if self._transport is not None:
            self._transport.close()

    def _linger(self) -> None:
        """Close for writing, and read on for a while: a reset would destroy the answer on its way."""
        self._become(Life.LINGERING)
        self._read_nothing_for(LINGER_S)
        transport = self._transport
        if transport is None:
            return
        self._resume()
        if not transport.can_write_eof():
            transport.close()  # TLS has no half-closed state: this sends a close_notify, and reads on
        elif not transport.is_closing():
            transport.write_eof()

    def _read_nothing_for(self, seconds: float) -> None:
        """Drop what the client still sends, and end the connection by then."""
        self._pending.clear()
        self._parser.end()
        self._give_kept()
        self._closes_at = self._manager.telemetry.clock() + seconds

    def _drop(self, count: int) -> None:
        """Bytes arrived that are not read."""
        self._lingered += count
        if self._lingered > LINGER_BYTES and self._transport is not None:
            self._transport.abort()


def has_left(transport: asyncio.Transport) -> bool:
    """Whether the client is gone: asyncio does not report it while reading is paused."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False  # it is being closed: over TLS the socket goes a moment before connection_lost
    poll = select.poll()
    poll.register(sock.fileno(), _LEAVES)
    return bool(poll.poll(0))
