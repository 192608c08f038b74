"""The request parser: bytes and a time in, events out, within limits that are given at construction.

The rules of this file:

1. It knows no socket, no event loop, no clock, no caller and no admission. It has no callbacks: the
   connection asks for the next event. 2. Bytes that could be read in two ways end the parser with a
   ``BadRequest``, before they can reach the engine. What follows them is not parsed, because it cannot be
   trusted. 3. Bytes are parsed in small pieces. The next piece is parsed after the events of the last one
   were taken. So the connection decides about a head before more than a piece of its body is collected.

httptools reads the syntax (its callbacks are the ``on_*`` methods); ``framing`` judges complete heads.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import httptools

from sidecar.proxy.connection_state import IllegalTransition, Phase
from sidecar.proxy.events import (
    CONTINUE_EXPECTED,
    NEED_DATA,
    PAUSED,
    BadRequest,
    BodyOutgrew,
    Event,
    HeadReceived,
    RequestReceived,
)
from sidecar.proxy.framing import Framing, framing_flaw, keeps_alive_10, without_offer
from sidecar.proxy.heads import RequestHead
from tokenpool.outcomes import Reason

PIECE_BYTES: Final = 512
"""Bytes of one piece. 256 kB may be a thousand requests, which took 170 ms in one piece."""
TURN_BYTES: Final = 16 * 1024
"""Bytes that are parsed in one turn, except of one body. A chunk may be as short as two bytes."""
MAX_HEADERS: Final = 128
"""Headers of one head. A parsed header takes far more memory than its bytes."""
NEVER: Final = float("inf")

_IDLE: Final = Phase.IDLE
_HEAD: Final = Phase.HEAD
_BODY: Final = Phase.BODY
_ENDED: Final = Phase.ENDED


class ParserLimits(NamedTuple):
    """The limits of one request. Times are in seconds."""

    max_head_bytes: int
    """The limit of the target, of all headers and trailers together, and of any one line."""
    head_timeout: float
    """The time from the first byte of a request to the end of its head."""
    body_timeout: float
    """The time from the end of the head to the end of the body."""
    max_headers: int = MAX_HEADERS
    piece_bytes: int = PIECE_BYTES
    turn_bytes: int = TURN_BYTES


class RequestParser:
    """Parses the requests of one client connection."""

    __deletable__ = ("_parser",)  # close() deletes it; mypyc requires this declaration
    __slots__ = (
        "_at",
        "_body",
        "_body_left",
        "_body_room",
        "_body_size",
        "_data",
        "_events",
        "_had_body",
        "_head_bytes",
        "_is_rewritten",
        "_limits",
        "_line_bytes",
        "_max_head_bytes",
        "_max_headers",
        "_now",
        "_parsed_in_turn",
        "_parser",
        "_piece_bytes",
        "_upgrades",
        "deadline",
        "expects_continue",
        "has_completed",
        "has_ended",
        "head",
        "phase",
    )

    def __init__(self, limits: ParserLimits) -> None:
        self._limits = limits
        self._max_head_bytes = limits.max_head_bytes
        self._max_headers = limits.max_headers
        self._piece_bytes = limits.piece_bytes
        self._now = 0.0
        self._data = b""
        """The received bytes that are still in memory; the bytes before ``_at`` are parsed."""
        self._at = 0
        self._parsed_in_turn = 0
        self._events: list[Event] = []
        self.phase = _IDLE
        self.deadline = NEVER
        """The deadline of the head or the body that is being read."""
        self.has_ended = False
        """Whether the parser reads nothing more."""
        self.has_completed = False
        """Whether a request was completed in this turn."""
        self.head = RequestHead()
        """The head of the request that began last."""
        self.expects_continue = False
        """Whether the client waits for a ``100 Continue``."""
        self._is_rewritten = False
        """Whether the head is parsed again, without its offer of an upgrade."""
        self._start_parser()

    def _start_parser(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._upgrades = False
        self._begin_request()

    def _begin_request(self) -> None:
        self.head = RequestHead()
        self._body: bytes | bytearray = b""
        self._body_size = self._body_room = self._body_left = 0
        self._head_bytes = 0
        self._line_bytes = 0
        self._had_body = False
        self.expects_continue = False

    # --- bytes in ---

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes that arrived at ``now``. A new turn begins if no earlier bytes are left."""
        if self.has_ended:
            return
        if self._at < len(self._data):
            self._data = self._data[self._at :] + data
            self._at = 0
            return
        self._data = data
        self._at = self._parsed_in_turn = 0
        self._now = now
        self.has_completed = False
        if self.phase is _IDLE:
            self._await_head()

    def begin_turn(self, now: float) -> None:
        """Begin a turn for the bytes that are left."""
        self._now = now
        self.has_completed = False
        self._parsed_in_turn = 0
        if self.phase is _IDLE:
            self._await_head()

    def _await_head(self) -> None:
        """Set the deadline of a head. The first bytes may be empty lines before a request."""
        self._enter(_HEAD)
        self.deadline = self._now + self._limits.head_timeout

    @property
    def unread(self) -> int:
        """The number of received bytes that wait to be parsed."""
        return len(self._data) - self._at

    def forget_parsed(self) -> None:
        """Release the memory of parsed bytes, because the rest has to wait."""
        if self._at:
            self._data = self._data[self._at :]
            self._at = 0

    # --- events out ---

    @property
    def has_events(self) -> bool:
        """Whether there are events that need no further parsing."""
        return bool(self._events)

    def next_event(self) -> Event:
        """The next event. ``NEED_DATA`` and ``PAUSED`` are returned until there is another."""
        events = self._events
        while not events:
            if self._at >= len(self._data):
                self._data = b""
                self._at = 0
                return NEED_DATA
            if self.has_completed or self._parsed_in_turn >= self._limits.turn_bytes:
                return PAUSED
            self._parse_piece()
        return events.pop(0)

    # --- calls of the connection ---

    def allow_body(self, size: int) -> None:
        """Allow the parser to collect ``size`` bytes of the chunked body that is being read.

        The body belongs to the request of the last ``HeadReceived``. If that body is complete already,
        the call does nothing.
        """
        for event in self._events:
            if isinstance(event, HeadReceived | RequestReceived):
                return
        self._body_room = size

    def sent_continue(self, now: float) -> None:
        """A ``100 Continue`` was sent: the time limit of the body begins now."""
        self.expects_continue = False
        self.deadline = now + self._limits.body_timeout

    def resumed(self, now: float) -> None:
        """Reading was paused until now, so the client gets at least the time limit of a head again."""
        self.deadline = max(self.deadline, now + self._limits.head_timeout)

    def time_out(self) -> BadRequest:
        """The error of a request whose deadline has passed. The parser reads nothing more."""
        what = "head" if self.phase is _HEAD else "body"
        self.end()
        return BadRequest(self.head, Reason.REQUEST_TIMEOUT, f"the request {what} took too long to arrive")

    def end(self) -> None:
        """Read nothing more: drop all bytes and events."""
        self._events.clear()
        self._stop()

    def close(self) -> None:
        """The connection is closed. This removes the reference cycle with httptools' parser."""
        self.end()
        del self._parser

    def _stop(self) -> None:
        """Ignore further callbacks. Events that exist are still returned."""
        if not self.has_ended:
            self._enter(_ENDED)
            self.has_ended = True
        self.expects_continue = False
        self._body = self._data = b""
        self._at = 0

    def _enter(self, phase: Phase) -> None:
        if phase not in self.phase.following:
            raise IllegalTransition(f"the parser: {self.phase} to {phase}")
        self.phase = phase

    # --- piece by piece ---

    def _parse_piece(self) -> None:
        """Parse the next piece: the rest of a body, or a little of anything else."""
        data, at, size = self._data, self._at, self._piece_bytes
        if self._body_left > size:
            size = self._body_left
        piece = data if not at and size >= len(data) else data[at : at + size]
        self._at = at + len(piece)
        self._parsed_in_turn += len(piece)
        try:
            self._feed(piece)
        except httptools.HttpParserError as error:
            if not self.has_ended:
                self._malformed(f"the request is not valid HTTP/1.1: {error}")
        else:
            if not self.has_ended and self.phase is not _IDLE:
                self._bound_line(piece)

    def _feed(self, piece: bytes | memoryview) -> None:
        """Parse a piece, and decline every offer of an upgrade in it."""
        while True:
            try:
                self._parser.feed_data(piece)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self.has_ended:
                    return
                piece = memoryview(piece)[upgrade.args[0] :]
                head = without_offer(self.head)
                self._start_parser()
                self._is_rewritten = True
                self._parser.feed_data(head)
                self._is_rewritten = False

    def _bound_line(self, data: bytes) -> None:
        """Refuse a line that is too long, because httptools collects it in memory."""
        if self._had_body:
            self._had_body, self._line_bytes = False, 0
            return
        start = data.rfind(b"\n") + 1
        self._line_bytes = len(data) - start + (0 if start else self._line_bytes)
        most = self._max_head_bytes
        if self._line_bytes > most:
            self._refuse(Reason.HEAD_TOO_LARGE, f"a line of the request is longer than {most} bytes")

    # --- httptools' callbacks ---

    def on_message_begin(self) -> None:
        """httptools: the first byte of a request."""
        if self.has_ended:
            return
        self._begin_request()
        if self.phase is not _HEAD:
            self._enter(_HEAD)
        self.deadline = self._now + self._limits.head_timeout

    def on_url(self, url: bytes) -> None:
        """httptools: (a part of) the request target."""
        if self.has_ended:
            return
        head = self.head
        head.method = self._parser.get_method()
        head.target += url
        self._head_bytes += len(url)
        most = self._max_head_bytes
        if len(head.target) > most:
            self._refuse(Reason.TARGET_TOO_LONG, f"the request target is longer than {most} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header or trailer. Trailers are dropped, because they could be read as headers."""
        if self.has_ended:
            return
        self._head_bytes += len(name) + len(value) + 4
        headers = self.head.headers
        if self._head_bytes > self._max_head_bytes or len(headers) == self._max_headers:
            self._refuse(
                Reason.HEAD_TOO_LARGE,
                f"the request head is larger than {self._max_head_bytes} bytes or {self._max_headers}"
                " headers; send fewer or shorter ones",
            )
        elif self.phase is _HEAD:
            headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """httptools: the end of the head. All flaws of the head are found here."""
        if self.has_ended:
            return
        parser, head = self._parser, self.head
        framing = Framing(head.headers)
        origins = framing.origins
        head.origin = origins[0] if len(origins) == 1 else None
        version = parser.get_http_version()
        head.is_http10 = version == "1.0"
        head.keeps_alive = keeps_alive_10(head) if head.is_http10 else parser.should_keep_alive()
        if version not in ("1.0", "1.1"):
            self._malformed(f"HTTP/{version} is not served here; use HTTP/1.1")
            return
        flaw = framing_flaw(head, framing)
        if flaw is not None:
            self._malformed(flaw)
            return
        self._upgrades = parser.should_upgrade()
        if not self._upgrades:  # otherwise _feed parses the head again, without the offer
            self._complete_head(head, framing)

    def _complete_head(self, head: RequestHead, framing: Framing) -> None:
        length = self._body_left = self._body_room = framing.content_length
        is_chunked = bool(framing.codings)
        self._enter(_BODY)
        self.deadline = self._now + self._limits.body_timeout
        expectations = [] if head.is_http10 else framing.expectations
        is_as_sent = not self._is_rewritten and not expectations
        self._events.append(HeadReceived(head, length, is_chunked, self._head_bytes, is_as_sent))
        if not expectations:
            return
        if all(expectation.lower() == b"100-continue" for expectation in expectations):
            self.expects_continue = True
            self._events.append(CONTINUE_EXPECTED)
        else:
            self._refuse(Reason.UNSUPPORTED_EXPECTATION, "the only expectation served is 100-continue")

    def on_body(self, body: bytes) -> None:
        """httptools: a part of the body."""
        if self.has_ended:
            return
        self._had_body = True
        self.expects_continue = False
        size = len(body)
        self._body_left -= size
        self._body_size += size
        if self._body_size > self._body_room:
            self._events.append(BodyOutgrew(self._body_size))
        held = self._body
        if not held:
            self._body = body
        elif isinstance(held, bytearray):
            held += body
        else:
            self._body = bytearray(held) + body

    def on_message_complete(self) -> None:
        """httptools: the end of a request."""
        if self.has_ended or self._upgrades:
            return
        self.has_completed = True
        self.expects_continue = False
        body, closes = bytes(self._body), not self.head.keeps_alive
        self._body = b""
        self._body_left = 0
        self._enter(_IDLE)
        self._events.append(RequestReceived(body, closes))
        if closes:
            self._stop()

    # --- errors ---

    def _malformed(self, message: str) -> None:
        self._refuse(Reason.MALFORMED, message)

    def _refuse(self, reason: Reason, message: str) -> None:
        self._events.append(BadRequest(self.head, reason, message))
        self._stop()
