"""The client's side: one connection of a tenant, request parsing, and every limit on how it may be used.

A connection parses ahead by a few pipelined requests and answers them in order. Anything that could be
read in two ways is refused here, before it can reach the engine, and the connection is closed, since what
follows on it cannot be trusted.
"""

from __future__ import annotations

import asyncio
import enum
import re
from collections import deque
from typing import NamedTuple, cast

import httptools

from sidecar.dialects.bodies import MOST_UNPRICED
from sidecar.gate import Passage, Refusal, Suspense
from sidecar.http.answers import CONTINUE, refusal_bytes
from sidecar.http.bounds import LARGE_BODY, REQUEST_BYTES, Holder
from sidecar.http.doorman import Doorman
from sidecar.http.exchange import Exchange
from sidecar.http.heads import RequestHead, nominated
from sidecar.http.known import KnownHead
from sidecar.http.waiting import Waiting
from sidecar.routes import Route
from tokenpool.ledger import Account
from tokenpool.outcomes import Reason

MOST_PIPELINED = 8
"""Requests parsed ahead on one connection; reading pauses beyond."""
PIECE_BYTES = 2048
"""How much of what is pipelined is read at a time: 256 kB may be a thousand requests, which took 170 ms."""
MOST_HEADERS = 128
"""In one head: parsed, a header takes far more memory than its bytes."""
CHUNKED_BYTES = 64 * 1024
"""Reserved at first for a body that does not say its length."""
NEVER = float("inf")
LINGER_S = 2.0
"""How long a refused client's remaining bytes are read and dropped, so that it gets to see the answer."""
LINGER_BYTES = 4 << 20

_AUTHORITY = rb"(?:\[[0-9A-Za-z:.]+\]|(?:[\w.~!$&'()*+,;=-]|%%[0-9A-Fa-f]{2})%b)(?::[0-9]*)?"
_HOST = re.compile(_AUTHORITY % b"*")
"""RFC 3986 section 3.2 without user information. It may be empty (RFC 9110 section 7.2)."""
_ABSOLUTE = re.compile(rb"https?://%b(/[^?]*)?(\?.*)?" % (_AUTHORITY % b"+"), re.IGNORECASE)


class _Phase(enum.Enum):
    """What the connection is reading."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    LINGERING = enum.auto()


class _Request:
    """One parsed request that waits for its turn."""

    __slots__ = ("account", "body", "closes", "head", "held", "refusal", "route")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.body = b""
        self.held = 0
        """Bytes that it counts for."""
        self.route: Route | None = None
        self.account: Account | None = None
        self.refusal: Refusal | None = None
        self.closes = False
        """Whether what follows on the connection is not to be read."""


class _KnownRequest(NamedTuple):
    """What was found out about a request head, in one epoch of the gate."""

    wire: KnownHead
    head: RequestHead
    route: Route
    account: Account | None
    holder: Holder
    epoch: int


class Downstream(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_length",
        "_body_most",
        "_body_room",
        "_completed",
        "_deadline",
        "_door",
        "_exchange",
        "_had_body",
        "_head",
        "_head_bytes",
        "_idle_since",
        "_is_first",
        "_is_paid",
        "_is_paused",
        "_kept",
        "_known",
        "_line_bytes",
        "_lingered",
        "_parser",
        "_passed",
        "_pending",
        "_phase",
        "_reads",
        "_request",
        "_rests",
        "_serving",
        "_transport",
        "_unread",
        "_upgrades",
        "_write_deadline",
        "buffered",
        "holder",
    )

    def __init__(self, door: Doorman) -> None:
        self._door = door
        self._transport: asyncio.Transport | None = None
        self._pending: deque[_Request] = deque()
        self._exchange: Exchange | Waiting | None = None
        self._known: _KnownRequest | None = None
        self._phase = _Phase.IDLE
        self._reads = True
        self._completed = 0
        """Requests completed since the last piece was taken up."""
        self._kept = b""
        """What was received, and waits to be parsed."""
        self._is_paused = False
        self._is_first = False
        self._is_paid = False
        """Whether the request that is being served has a price."""
        self._rests = False
        """Whether no request is served, or read, for a while."""
        self._lingered = 0
        self._write_deadline = NEVER
        self.holder = door.bounds.nobody
        self.buffered = 0
        self._serving = 0
        """Of ``buffered``: the request that is being served."""
        self._unread = 0
        """Of ``buffered``: answers that the client leaves unread."""
        self._start_parser()

    def _start_parser(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._upgrades = False
        self._begin_request()

    def _begin_request(self) -> None:
        self._head = RequestHead()
        self._request: _Request | None = None
        self._passed: _Request | None = None
        self._body: list[bytes] = []
        self._body_bytes = self._body_length = self._body_room = self._body_most = 0
        self._head_bytes = 0
        self._line_bytes = 0
        self._had_body = False

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client connected."""
        self._transport = cast(asyncio.Transport, transport)
        door = self._door
        now = door.telemetry.clock()
        self._idle_since = now
        self._deadline = now + door.settings.head_timeout
        if door.enter(self):
            return
        if door.is_flooded:
            self.abort()
        else:
            self._answer_and_linger(
                Refusal(
                    Reason.TOO_MANY_CONNECTIONS,
                    "this proxy holds as many connections as it may; close idle ones",
                    retry_after_s=1.0,
                )
            )

    def data_received(self, data: bytes) -> None:
        """asyncio: the client sent something."""
        if not self._reads:
            self._drop(len(data))
        elif self._kept:
            self._keep(self._take_kept() + data)
        else:
            self._read(data)

    def _read(self, data: bytes) -> None:
        if self._phase is _Phase.IDLE:
            if self._exchange is None and not self._pending and not self._rests:
                known = self._known
                if known is not None and self._serve_known(known, data):
                    return
                self._is_first = True
            self._enter(_Phase.HEAD, self._door.settings.head_timeout)
        try:
            self._feed(data)
            if self._is_first:
                self._is_first = False
                self._learn(data)
        except httptools.HttpParserError as error:
            if self._reads:
                self._malformed(f"the request is not valid HTTP/1.1: {error}")

    def _feed(self, data: bytes) -> None:
        """Parse what was received. Of several requests, as a rule, one piece now: others come in between."""
        start, end = 0, len(data)
        self._completed = 0
        while start < end and self._reads:
            if self._completed or len(self._pending) >= MOST_PIPELINED or self._rests:
                self._keep(data[start:])
                return
            left = self._body_length - self._body_bytes
            size = left if self._phase is _Phase.BODY and left > PIECE_BYTES else PIECE_BYTES
            piece = data if size >= end and not start else data[start : start + size]
            start += size
            self._feed_piece(piece)
            if self._reads and self._phase is not _Phase.IDLE:
                self._bound_line(piece)

    def _feed_piece(self, piece: bytes | memoryview) -> None:
        """Parse, and decline every upgrade that is offered on the way."""
        while True:
            try:
                self._parser.feed_data(piece)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self._reads:
                    return
                self._is_first = False
                piece = memoryview(piece)[upgrade.args[0] :]
                head = self._head_without_offer()
                self._start_parser()
                self._parser.feed_data(head)

    def _keep(self, data: bytes) -> None:
        """Leave the rest for later, and receive no more meanwhile."""
        self._pause_reading()
        if not self.holder.take(len(data)):
            self.holder.cut += 1
            self.abort()
            return
        self.buffered += len(data)
        self._kept = data
        self._read_kept_soon()

    def _take_kept(self) -> bytes:
        data, self._kept = self._kept, b""
        self._give(len(data))
        return data

    def _read_kept_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._read_kept)

    def _read_kept(self) -> None:
        if not self._kept or not self._reads or self._rests or len(self._pending) >= MOST_PIPELINED:
            return  # nothing, or not yet
        self._deadline = max(self._deadline, self._door.telemetry.clock() + self._door.settings.head_timeout)
        self._read(self._take_kept())
        if not self._kept:
            self._resume_reading()

    def _learn(self, data: bytes) -> None:
        """Remember the head of the request that ``data`` is, if it is exactly one that passed."""
        passed = self._passed
        if passed is None or passed.route is None or not passed.head.keeps_alive:
            return
        # While answers are unread, requests wait, which the short way does not know.
        wire = KnownHead.of(data) if self._write_deadline == NEVER else None
        if wire is not None:
            epoch = self._door.gate.epoch
            self._known = _KnownRequest(wire, passed.head, passed.route, passed.account, self.holder, epoch)

    def _serve_known(self, known: _KnownRequest, data: bytes) -> bool:
        """Serve ``data`` without parsing its head, if it is one that is known; whether it was."""
        door = self._door
        wire, head, route, account, holder, epoch = known
        if epoch != door.gate.epoch or door.gate.is_draining or holder is not self.holder:
            return False
        body = wire.body_of(data)
        if body is None or len(body) > door.settings.max_body_bytes:
            return False
        size = len(body) + REQUEST_BYTES
        if not holder.take(size):
            return False  # to be refused in the long way
        self.buffered += size
        self._serving = size
        refusal = self._pass(head, route, account, body)
        if refusal is not None:
            self._release()
            self._answer(refusal, _Request(head))
        return True

    def eof_received(self) -> bool:
        """asyncio: the client will send no more. As with the engine's own server, that means it is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._transport = None
        self._reads = False
        del self._parser  # a circle, which only the garbage collector would undo
        self._door.leave(self)
        self._serving = self._unread = 0
        self._kept = b""  # it was in ``buffered``, which has left: the end of a rest must not give it again
        self._pending.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        """asyncio: the client does not keep up. What it leaves unread counts, and may be too much."""
        self._write_deadline = self._door.telemetry.clock() + self._door.settings.write_timeout
        self._known = None
        if self._exchange is not None:
            self._exchange.pause()
        transport = self._transport
        if transport is None:
            return
        unread = transport.get_write_buffer_size()
        if self.holder.take(unread):
            self.buffered += unread
            self._unread = unread
        else:
            self.holder.cut += 1
            transport.abort()

    def resume_writing(self) -> None:
        """asyncio: the client keeps up again."""
        self._write_deadline = NEVER
        unread, self._unread = self._unread, 0
        self._give(unread)
        if self._exchange is not None:
            self._exchange.resume()
        elif self._pending:
            self._next()

    # --- httptools' callbacks ---

    def on_message_begin(self) -> None:
        """httptools: the first byte of a request."""
        if self._reads:
            self._begin_request()
            self._enter(_Phase.HEAD, self._door.settings.head_timeout)

    def on_url(self, url: bytes) -> None:
        """httptools: (a part of) the request target."""
        if not self._reads:
            return
        head = self._head
        head.method = self._parser.get_method()
        head.target += url
        self._head_bytes += len(url)
        most = self._door.settings.max_head_bytes
        if len(head.target) > most:
            self._stop_reading(
                Refusal(Reason.TARGET_TOO_LONG, f"the request target is longer than {most} bytes")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header, or one trailer: that goes no further, lest it pass for a header."""
        if not self._reads:
            return
        self._head_bytes += len(name) + len(value) + 4
        headers = self._head.headers
        if self._head_bytes > self._door.settings.max_head_bytes or len(headers) == MOST_HEADERS:
            self._refuse_head()
        elif self._phase is _Phase.HEAD:
            headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """httptools: the end of the head. What the head alone decides is decided here."""
        if not self._reads:
            return
        parser, head = self._parser, self._head
        version = parser.get_http_version()
        head.is_http10 = version == "1.0"
        head.keeps_alive = _keeps_alive_10(head) if head.is_http10 else parser.should_keep_alive()
        if version not in ("1.0", "1.1"):
            self._malformed(f"HTTP/{version} is not spoken here; HTTP/1.1 is")
            return
        flaw = _framing_flaw(head)
        if flaw is not None:
            self._malformed(flaw)
            return
        self._upgrades = parser.should_upgrade()
        if self._upgrades:
            return  # taken up again by _feed, without the offer
        self._screen(_Request(head))

    def on_body(self, body: bytes) -> None:
        """httptools: a part of the body."""
        if not self._reads:
            return
        self._had_body = True
        self._body_bytes += len(body)
        if self._body_bytes > self._body_room and not self._grow():
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        """httptools: the end of a request."""
        if not self._reads or self._upgrades:
            return
        request = self._request
        if request is None:
            return
        self._completed += 1
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._request = None
        self._phase = _Phase.IDLE
        if not request.head.keeps_alive:
            self._reads = False
            request.closes = True
        self._pending.append(request)
        if self._exchange is None:
            self._next()
        if len(self._pending) >= MOST_PIPELINED:
            self._pause_reading()

    # --- reading ---

    def _enter(self, phase: _Phase, seconds: float) -> None:
        self._phase = phase
        self._deadline = self._door.telemetry.clock() + seconds

    def _screen(self, request: _Request) -> None:
        """Decide what the head decides; go on to the body where there is reason to."""
        settings, head = self._door.settings, request.head
        self._request = request
        length, is_chunked = _content_length(head), bool(head.all(b"transfer-encoding"))
        screened = self._door.gate.screen(head)
        if isinstance(screened, Refusal):
            request.refusal = screened
            if length or is_chunked:
                self._stop_reading(screened)  # whoever may not pass does not make us read, either
                return
        else:
            request.route, request.account = screened
            if not self._belongs_to(request.account):
                return
        most = settings.max_body_bytes
        if request.route is None or request.route.parse is None:
            most = min(most, MOST_UNPRICED)
        self._body_most = most
        self._body_length = length
        if length > most:
            self._refuse_body()
            return
        room = min(CHUNKED_BYTES, most) if is_chunked else length
        if room >= LARGE_BODY and not self._may_send(request, room):
            return
        if not self._take(request, REQUEST_BYTES + room):
            return
        self._body_room = room
        self._enter(_Phase.BODY, settings.body_timeout)
        self._passed = request
        expectations = head.all(b"expect")
        if not expectations or head.is_http10:
            return
        self._passed = None
        if any(expectation.lower() != b"100-continue" for expectation in expectations):
            request.refusal = Refusal(
                Reason.UNSUPPORTED_EXPECTATION, "the only expectation served is 100-continue"
            )
        if request.refusal is not None:
            self._stop_reading(request.refusal)
        elif self._exchange is None and not self._pending:
            self.write(CONTINUE)

    def _head_without_offer(self) -> bytes:
        """The head that was read, as if no upgrade had been offered: RFC 9110 section 7.8 allows it.

        The parser would have no body follow, so the request is parsed anew. Other connection options stay:
        they say which headers go no further.
        """
        head = self._head
        options = nominated(head.headers) - {b"upgrade", b"http2-settings"}
        lines = [b"%b %b HTTP/1.%d\r\n" % (head.method, head.target, not head.is_http10)]
        lines += [
            b"%b: %b\r\n" % (name, value)
            for name, value in head.headers
            if name not in (b"connection", b"upgrade", b"http2-settings")
        ]
        return b"".join(lines) + b"connection: %b\r\n\r\n" % b", ".join(sorted(options))

    def _refuse_head(self) -> None:
        most = self._door.settings.max_head_bytes
        self._stop_reading(
            Refusal(
                Reason.HEAD_TOO_LARGE,
                f"the request head is larger than {most} bytes or {MOST_HEADERS} headers; send fewer or"
                " shorter ones",
            )
        )

    def _bound_line(self, data: bytes) -> None:
        """Refuse a line without an end, of a head, of chunks or of trailers: the parser collects it."""
        if self._had_body:
            self._had_body, self._line_bytes = False, 0
            return
        start = data.rfind(b"\n") + 1
        self._line_bytes = len(data) - start + (0 if start else self._line_bytes)
        most = self._door.settings.max_head_bytes
        if self._line_bytes > most:
            self._stop_reading(
                Refusal(Reason.HEAD_TOO_LARGE, f"a line of the request is longer than {most} bytes")
            )

    def _refuse_body(self) -> None:
        message = f"the request body is larger than {self._body_most} bytes"
        if self._body_most < self._door.settings.max_body_bytes:
            message += ", the most on a route that costs no tokens"
        self._stop_reading(Refusal(Reason.BODY_TOO_LARGE, message))

    def _malformed(self, message: str) -> None:
        self._stop_reading(Refusal(Reason.MALFORMED, message))

    def _stop_reading(self, refusal: Refusal) -> None:
        """Refuse the request that is being read, in its turn, and nothing after it."""
        if not self._reads:
            return
        self._reads = False
        self._body = []
        request = self._request or _Request(self._head)
        self._request = None
        request.refusal = refusal
        request.closes = True
        self._pending.append(request)
        if self._exchange is None:
            self._next()

    def _pause_reading(self) -> None:
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._kept:
            if self._reads:
                self._read_kept_soon()
                return
            self._take_kept()
        if self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()

    # --- what it counts for ---

    def _belongs_to(self, account: Account | None) -> bool:
        """The connection is this caller's from now; whether it may be."""
        if account is None:
            return True
        holder = self._door.bounds.of(account)
        if holder is self.holder or self._door.hand_over(self, holder):
            return True
        self._stop_reading(
            Refusal(
                Reason.TOO_MANY_CONNECTIONS,
                f"entitlement {holder.name!r} has as many connections to this proxy as it may"
                f" ({holder.most_connections}); close idle ones",
                retry_after_s=1.0,
                account=account,
            )
        )
        return False

    def _take(self, request: _Request, size: int) -> bool:
        """Count so many bytes for a request, or refuse it; whether it may go on."""
        holder = self.holder
        if holder.take(size):
            self.buffered += size
            request.held += size
            return True
        whose = "callers without a key" if request.account is None else f"entitlement {holder.name!r}"
        self._stop_reading(
            Refusal(
                Reason.SIDECAR_FULL,
                f"requests and unread answers of {whose} take {holder.buffered} bytes of this proxy's"
                f" memory, of {holder.most_bytes} that they may, and this request needs {size} more; send"
                " fewer at once, and read answers as they come",
                retry_after_s=1.0,
                account=request.account,
            )
        )
        return False

    def _may_send(self, request: _Request, size: int) -> bool:
        """Count so many bytes of a large body, or refuse it; whether it may come."""
        wait_s = self.holder.large_body_wait_s(size, self._door.telemetry.clock())
        if not wait_s:
            return True
        rate = self._door.settings.large_body_rate
        self._stop_reading(
            Refusal(
                Reason.SIDECAR_FULL,
                f"bodies of {LARGE_BODY} bytes or more come faster than this proxy takes them from one"
                f" caller, {rate} bytes a second; come back in {wait_s:.2f} s, or send smaller ones",
                retry_after_s=wait_s,
                account=request.account,
            )
        )
        return False

    def _grow(self) -> bool:
        """A body that did not say its length has outgrown what was reserved: double that; whether it may."""
        most, request = self._body_most, self._request
        if self._body_bytes > most:
            self._refuse_body()
            return False
        room = min(max(2 * self._body_room, self._body_bytes), most)
        more = room - self._body_room
        if request is None or (room >= LARGE_BODY and not self._may_send(request, more)):
            return False
        if not self._take(request, more):
            return False
        self._body_room = room
        return True

    def _give(self, size: int) -> None:
        self.buffered -= size
        self.holder.give(size)

    def _release(self) -> None:
        """The request that was served counts no longer."""
        size, self._serving = self._serving, 0
        self._give(size)

    # --- answering, in order ---

    def _next(self) -> None:
        """Answer requests until one has to wait for the engine, or for the client to read its answers."""
        while (
            self._pending
            and self._exchange is None
            and not self._rests
            and self._write_deadline == NEVER
            and self._transport is not None
        ):
            self._serve(self._pending.popleft())
        if len(self._pending) < MOST_PIPELINED and not self._rests:
            self._resume_reading()

    def _rest_if_due(self) -> None:
        """An answer that nobody pays for was given, and the connection stays: it may have to rest."""
        seconds = self.holder.rest_s(self._door.telemetry.clock())
        if seconds:
            self._rests = True
            self._pause_reading()
            asyncio.get_running_loop().call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._rests = False
        self._next()

    def _serve(self, request: _Request) -> None:
        if request.refusal is not None:
            self._answer(request.refusal, request)
            return
        assert request.route is not None
        refusal = self._pass(request.head, request.route, request.account, request.body)
        if refusal is not None:
            self._answer(refusal, request)
        else:
            self._serving = request.held

    def _pass(self, head: RequestHead, route: Route, account: Account | None, body: bytes) -> Refusal | None:
        """Bring a request through the gate and on its way to the engine, or say why not."""
        door = self._door
        passage = door.gate.open(route, account, body)
        if isinstance(passage, Refusal):
            return passage
        if isinstance(passage, Suspense):
            self._exchange = Waiting(self, door.gate, passage, head)
            return None
        self._send(head, passage)
        return None

    def on_decided(self, head: RequestHead, decided: Passage | Refusal) -> None:
        """A request that waited at the door may pass, or may not."""
        self._exchange = None
        if isinstance(decided, Passage):
            self._send(head, decided)
            return
        self._release()
        self._answer(decided, _Request(head))
        if self._pending and self._reads:
            self._next()

    def _send(self, head: RequestHead, passage: Passage) -> None:
        door = self._door
        head_bytes = door.framer.frame(head, len(passage.body))
        exchange = Exchange(self, door.gate, door.telemetry, door.pool, head, passage, head_bytes)
        self._exchange = exchange
        self._is_paid = passage.ticket is not None
        exchange.start()
        if self._is_paid:
            door.telemetry.overhead(door.telemetry.clock() - passage.started_at)

    def _answer(self, refusal: Refusal, request: _Request) -> None:
        self._door.gate.refused(refusal)
        self._give(request.held)
        closes = request.closes or not request.head.keeps_alive
        self.write(refusal_bytes(refusal, request.head, closes=closes))
        if closes:
            self._linger()
        else:
            self._wait_for_request()
            self._rest_if_due()

    def _wait_for_request(self) -> None:
        if self._phase is _Phase.IDLE:
            self._idle_since = now = self._door.telemetry.clock()
            self._deadline = now + self._door.settings.idle_timeout

    def _answer_and_linger(self, refusal: Refusal) -> None:
        self._reads = False
        self._door.gate.refused(refusal)
        self.write(refusal_bytes(refusal, self._head, closes=True))
        self._linger()

    # --- what the exchange asks for ---

    def write(self, data: bytes) -> None:
        """Send bytes of the response."""
        if self._transport is not None:
            self._transport.write(data)

    def on_relayed(self, *, keeps_alive: bool) -> None:
        """The response is complete: serve the next request, or close."""
        self._exchange = None
        self._release()
        if keeps_alive and not self._door.gate.is_draining:
            self._wait_for_request()
            if not self._is_paid:
                self._rest_if_due()
            if self._pending:
                self._next()
        else:
            self._close()

    def on_cut(self) -> None:
        """The response cannot be completed."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def refuse(self, refusal: Refusal, head: RequestHead) -> None:
        """Nothing of a response was sent: answer with a refusal, and close."""
        self._exchange = None
        self.write(refusal_bytes(refusal, head, closes=True))
        self._close()

    # --- closing ---

    def _close(self, within: float | None = None) -> None:
        """Close in good order: what is written leaves first, and over TLS both sides say goodbye."""
        self._reads = False
        self._pending.clear()
        if self._transport is not None:
            self._transport.close()
            self._enter(_Phase.LINGERING, within or self._door.settings.write_timeout)

    def _linger(self) -> None:
        """Close for writing, and read on for a while, lest a reset destroy the answer on its way."""
        self._reads = False
        self._pending.clear()
        self._enter(_Phase.LINGERING, LINGER_S)
        transport = self._transport
        if transport is None:
            return
        self._resume_reading()
        if not transport.can_write_eof():
            transport.close()  # TLS has no half-closed state: it says goodbye, and reads on by itself
        elif not transport.is_closing():
            transport.write_eof()

    def _drop(self, count: int) -> None:
        self._lingered += count
        if self._lingered > LINGER_BYTES and self._transport is not None:
            self._transport.abort()

    @property
    def idle_since(self) -> float | None:
        """Since when it could make way. Until a request was accepted, a part of one protects nobody."""
        if self._exchange is not None or self._pending:
            return None
        is_idle = self.holder is self._door.bounds.nobody or (self._phase is _Phase.IDLE and not self._kept)
        return self._idle_since if is_idle else None

    @property
    def is_busy(self) -> bool:
        """Whether an exchange is under way."""
        return self._exchange is not None

    def close_if_idle(self) -> None:
        """Close unless a request is being read or served."""
        if self._exchange is None and self._phase is _Phase.IDLE and not self._pending:
            self._close(within=LINGER_S)

    def abort(self) -> None:
        """Close without waiting for anything."""
        if self._transport is not None:
            self._transport.abort()

    def drain(self) -> None:
        """End the exchange now."""
        if self._exchange is not None:
            self._exchange.drain()
        else:
            self._close()

    def sweep(self, now: float) -> None:
        """End what has taken too long."""
        transport, exchange = self._transport, self._exchange
        if transport is None:
            return
        if now > self._write_deadline:
            transport.abort()
        elif exchange is not None:
            if now - exchange.last_progress > self._door.settings.upstream_timeout:
                exchange.time_out()
        elif now > self._deadline:
            self._expire(transport)

    def _expire(self, transport: asyncio.Transport) -> None:
        if self._phase is _Phase.LINGERING:
            transport.abort()
        elif self._phase is _Phase.IDLE or not self._reads:
            self._close(within=LINGER_S)
        else:
            what = "head" if self._phase is _Phase.HEAD else "body"
            self._stop_reading(Refusal(Reason.REQUEST_TIMEOUT, f"the request {what} took too long to arrive"))


def _framing_flaw(head: RequestHead) -> str | None:
    """What makes the framing of a request ambiguous, or ``None``. RFC 9112 sections 3 and 6."""
    lengths, codings, hosts = (
        head.all(b"content-length"),
        head.all(b"transfer-encoding"),
        head.all(b"host"),
    )
    if head.method == b"CONNECT":
        return "CONNECT is not served here"
    if len(hosts) > 1 or (not hosts and not head.is_http10):
        return "there must be exactly one Host header"
    if hosts and not _HOST.fullmatch(hosts[0]):
        return "the Host header must be a name or an address, and perhaps a port"
    if codings and lengths:
        return "Content-Length and Transfer-Encoding exclude each other"
    if codings and (head.is_http10 or [c.strip().lower() for c in codings] != [b"chunked"]):
        return "the only Transfer-Encoding is chunked, once, in HTTP/1.1"
    if len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
        return "there must be one Content-Length, a whole number"
    return _target_flaw(head)


def _target_flaw(head: RequestHead) -> str | None:
    """What makes a request target invalid, or ``None`` and the path. RFC 9112 section 3.2."""
    if b"#" in head.target:
        return "the request target must have no fragment: leave out '#' and what follows"
    if not head.target.startswith(b"/") and head.target != b"*":
        absolute = _ABSOLUTE.fullmatch(head.target)
        if absolute is None:
            return "the request target must be a path, or an http URI with a host and no user"
        head.target = (absolute[1] or b"/") + (absolute[2] or b"")
    head.path = head.target.partition(b"?")[0]
    return None


def _keeps_alive_10(head: RequestHead) -> bool:
    """Whether an HTTP/1.0 client asks for its connection to be kept. RFC 9112 section 9.3."""
    options = nominated(head.headers)
    return b"keep-alive" in options and b"close" not in options


def _content_length(head: RequestHead) -> int:
    lengths = head.all(b"content-length")
    return int(lengths[0].lstrip(b"0") or b"0") if lengths else 0
