"""What a client sends: bytes in, requests out, and every limit on how they may come.

One ``RequestReader`` reads one connection, a few pipelined requests ahead. Anything that could be read in two
ways is refused here, before it can reach the engine, and nothing after it is read, since what follows cannot
be trusted. When and how a request is answered is not known here.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Protocol

import httptools

from sidecar.decisions import Refusal
from sidecar.dialects.routes import Route
from sidecar.proxy.bounds import LARGE_BODY, REQUEST_BYTES
from sidecar.proxy.connection_manager import ConnectionManager, Guest
from sidecar.proxy.framing import content_length, framing_flaw, keeps_alive_10, without_offer
from sidecar.proxy.heads import RequestHead
from tokenpool.accounting.account import Account
from tokenpool.outcomes import Reason

PIECE_BYTES = 512
"""How much of what is pipelined is read at a time: 256 kB may be a thousand requests, which took 170 ms."""
TURN_BYTES = 16 * 1024
"""How much is read in pieces before others are: two bytes may be a chunk."""
MOST_HEADERS = 128
"""In one head: parsed, a header takes far more memory than its bytes."""
KEYLESS_BYTES = 64 * 1024
"""The largest body of a caller who showed no key, on the few routes that ask for none."""
CHUNKED_BYTES = 16 * 1024
"""Reserved at first for a body that does not say its length."""


class Phase(enum.Enum):
    """What the connection is reading."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    LINGERING = enum.auto()


class Request:
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


class Client(Guest, Protocol):
    """What reading asks of the client's connection."""

    @property
    def has_enough(self) -> bool:
        """Whether no further request is to be read for now."""

    def data_received(self, data: bytes) -> None:
        """What was kept for later is taken up, as if it came now."""

    def on_request(self, request: Request) -> None:
        """A request is complete, or refused: answer it in its turn."""

    def on_expectation(self) -> None:
        """The client sends a body once it is told to go on."""

    def take(self, size: int) -> bool:
        """Count for so many bytes more, if that is within the bound; whether it was."""

    def give(self, size: int) -> None:
        """Count for so many bytes less."""


class RequestReader:
    """Reads one client connection."""

    __deletable__ = ("_client", "_parser")  # by close(); compiled, a class has to say so
    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_length",
        "_body_most",
        "_body_room",
        "_client",
        "_completed",
        "_had_body",
        "_head",
        "_head_bytes",
        "_line_bytes",
        "_manager",
        "_parser",
        "_request",
        "_transport",
        "_upgrades",
        "deadline",
        "expects",
        "is_paused",
        "kept",
        "passed",
        "phase",
        "reads",
    )

    def __init__(self, client: Client, manager: ConnectionManager, transport: asyncio.Transport) -> None:
        self._client = client
        self._manager = manager
        self._transport: asyncio.Transport | None = transport
        self.phase = Phase.IDLE
        self.deadline = manager.telemetry.clock() + manager.settings.head_timeout
        """When the phase must be over."""
        self.reads = True
        """Whether what comes is read, and not dropped."""
        self.kept = b""
        """What was received, and waits to be parsed."""
        self._completed = 0
        """Requests completed since the last piece was taken up."""
        self.is_paused = False
        """Whether nothing is received for now."""
        self.expects = False
        """Whether the client waits to be told to send its body."""
        self._start_parser()

    def _start_parser(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._upgrades = False
        self._begin_request()

    def _begin_request(self) -> None:
        self._head = RequestHead()
        self._request: Request | None = None
        self.passed: Request | None = None
        """The request that was begun last, if its head passed, and just as it came."""
        self._body: bytes | bytearray = b""
        self._body_bytes = self._body_length = self._body_room = self._body_most = 0
        self._head_bytes = 0
        self._line_bytes = 0
        self._had_body = False
        self.expects = False

    # --- what the connection asks for ---

    def read(self, data: bytes) -> None:
        """Parse what was received, now or later."""
        if self.kept:
            self._keep(self._take_kept() + data)
            return
        if self.phase is Phase.IDLE:
            self._enter(Phase.HEAD, self._manager.settings.head_timeout)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if self.reads:
                self._malformed(f"the request is not valid HTTP/1.1: {error}")

    def pause(self) -> None:
        """Receive no more for now."""
        if not self.is_paused and self._transport is not None:
            self.is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Take up what was kept, and then receive more; or, where no more is read, drop it."""
        if self.is_paused and self.phase is not Phase.LINGERING:
            # The client was kept from sending, so its time begins anew.
            now = self._manager.telemetry.clock()
            self.deadline = max(self.deadline, now + self._manager.settings.head_timeout)
        if self.kept:
            if self.reads:
                self._read_kept_soon()
                return
            self._take_kept()
        if self.is_paused and self._transport is not None and not self._transport.is_closing():
            self.is_paused = False
            self._transport.resume_reading()

    def linger(self, seconds: float) -> None:
        """The connection is to end by then: what still comes is not read."""
        self.reads = False
        self._enter(Phase.LINGERING, seconds)

    def time_out(self) -> None:
        """The request that is being read took too long."""
        what = "head" if self.phase is Phase.HEAD else "body"
        self._refuse(Refusal(Reason.REQUEST_TIMEOUT, f"the request {what} took too long to arrive"))

    def forget(self) -> None:
        """The connection ends, and with it all that it counts for: what was kept must not be given twice."""
        self.reads = False
        self.kept = b""

    def close(self) -> None:
        """The connection is gone."""
        self.forget()
        self._transport = None
        del self._parser, self._client  # circles, which only the garbage collector would undo

    # --- piece by piece ---

    def _feed(self, data: bytes) -> None:
        """Parse what was received. Of several requests, as a rule, one piece now: others come in between."""
        start, end = 0, len(data)
        self._completed = 0
        while start < end and self.reads:
            if self._completed or start >= TURN_BYTES or self._client.has_enough:
                self._keep(data[start:])
                return
            left = self._body_length - self._body_bytes
            size = left if self.phase is Phase.BODY and left > PIECE_BYTES else PIECE_BYTES
            piece = data if size >= end and not start else data[start : start + size]
            start += size
            self._feed_piece(piece)
            if self.reads and self.phase is not Phase.IDLE:
                self._bound_line(piece)

    def _feed_piece(self, piece: bytes | memoryview) -> None:
        """Parse, and decline every upgrade that is offered on the way."""
        while True:
            try:
                self._parser.feed_data(piece)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self.reads:
                    return
                piece = memoryview(piece)[upgrade.args[0] :]
                head = without_offer(self._head)
                self._start_parser()
                self._parser.feed_data(head)
                self.passed = None  # what passed is not the head that came

    def _keep(self, data: bytes) -> None:
        """Leave the rest for later, and receive no more meanwhile."""
        client = self._client
        holder = client.holder
        # Strangers have no others to consider; where they are many, each may have little.
        is_crowded = (
            holder is self._manager.bounds.nobody
            and self._completed > 0
            and len(data) > TURN_BYTES
            and 2 * holder.buffered > holder.most_bytes
        )
        if is_crowded or not client.take(len(data)):
            account = self._request.account if self._request is not None else None
            self._refuse(holder.full(len(data), account))
            return
        self.pause()
        self.kept = data
        self._read_kept_soon()

    def _take_kept(self) -> bytes:
        data, self.kept = self.kept, b""
        self._client.give(len(data))
        return data

    def _read_kept_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._read_kept)

    def _read_kept(self) -> None:
        if not self.kept or not self.reads or self._client.has_enough:
            return  # nothing, or not yet
        self._client.data_received(self._take_kept())
        if not self.kept and self._transport is not None and not self._client.has_enough:
            self.resume()

    def _enter(self, phase: Phase, seconds: float) -> None:
        self.phase = phase
        self.deadline = self._manager.telemetry.clock() + seconds

    # --- httptools' callbacks ---

    def on_message_begin(self) -> None:
        """httptools: the first byte of a request."""
        if self.reads:
            self._begin_request()
            self._enter(Phase.HEAD, self._manager.settings.head_timeout)

    def on_url(self, url: bytes) -> None:
        """httptools: (a part of) the request target."""
        if not self.reads:
            return
        head = self._head
        head.method = self._parser.get_method()
        head.target += url
        self._head_bytes += len(url)
        most = self._manager.settings.max_head_bytes
        if len(head.target) > most:
            self._refuse(Refusal(Reason.TARGET_TOO_LONG, f"the request target is longer than {most} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header, or one trailer: that goes no further, lest it pass for a header."""
        if not self.reads:
            return
        self._head_bytes += len(name) + len(value) + 4
        headers = self._head.headers
        if self._head_bytes > self._manager.settings.max_head_bytes or len(headers) == MOST_HEADERS:
            self._refuse_head()
        elif self.phase is Phase.HEAD:
            headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """httptools: the end of the head. What the head alone decides is decided here."""
        if not self.reads:
            return
        parser, head = self._parser, self._head
        origins = head.all(b"origin")
        head.origin = origins[0] if len(origins) == 1 else None
        version = parser.get_http_version()
        head.is_http10 = version == "1.0"
        head.keeps_alive = keeps_alive_10(head) if head.is_http10 else parser.should_keep_alive()
        if version not in ("1.0", "1.1"):
            self._malformed(f"HTTP/{version} is not spoken here; HTTP/1.1 is")
            return
        flaw = framing_flaw(head)
        if flaw is not None:
            self._malformed(flaw)
            return
        self._upgrades = parser.should_upgrade()
        if self._upgrades:
            return  # taken up again by _feed_piece, without the offer
        self._authorize(Request(head))

    def on_body(self, body: bytes) -> None:
        """httptools: a part of the body."""
        if not self.reads:
            return
        self._had_body = True
        self.expects = False
        self._body_bytes += len(body)
        if self._body_bytes > self._body_room and not self._grow():
            return
        held = self._body
        if not held:
            self._body = body
        elif isinstance(held, bytearray):
            held += body
        else:
            self._body = bytearray(held) + body

    def on_message_complete(self) -> None:
        """httptools: the end of a request."""
        if not self.reads or self._upgrades:
            return
        request = self._request
        if request is None:
            return
        self._completed += 1
        self.expects = False
        request.body = bytes(self._body)
        self._body = b""
        self._request = None
        self.phase = Phase.IDLE
        if not request.head.keeps_alive:
            self.reads = False
            request.closes = True
        self._client.on_request(request)
        if self._client.has_enough:
            self.pause()

    # --- heads ---

    def _authorize(self, request: Request) -> None:
        """Decide what the head decides; go on to the body where there is reason to."""
        settings, head = self._manager.settings, request.head
        self._request = request
        length, is_chunked = content_length(head), bool(head.all(b"transfer-encoding"))
        authorized = self._manager.controller.authorize(head)
        if isinstance(authorized, Refusal):
            request.refusal = authorized
            if length or is_chunked:
                self._refuse(authorized)  # whoever may not pass does not make us read, either
                return
        else:
            request.route, request.account = authorized
            if not self._belongs_to(request.account):
                return
        if not self._has_room(request, length, is_chunked):
            return
        self._enter(Phase.BODY, settings.body_timeout)
        self.passed = request
        expectations = head.all(b"expect")
        if not expectations or head.is_http10:
            return
        self.passed = None
        self.expects = True
        if any(expectation.lower() != b"100-continue" for expectation in expectations):
            request.refusal = Refusal(
                Reason.UNSUPPORTED_EXPECTATION, "the only expectation served is 100-continue"
            )
        if request.refusal is not None:
            self._refuse(request.refusal)
        else:
            self._client.on_expectation()

    def _refuse_head(self) -> None:
        most = self._manager.settings.max_head_bytes
        self._refuse(
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
        most = self._manager.settings.max_head_bytes
        if self._line_bytes > most:
            self._refuse(Refusal(Reason.HEAD_TOO_LARGE, f"a line of the request is longer than {most} bytes"))

    # --- what a request may take ---

    def _belongs_to(self, account: Account | None) -> bool:
        """The connection is this caller's from now; whether it may be."""
        if account is None:
            return True
        client, holder = self._client, self._manager.bounds.of(account)
        if holder is client.holder or self._manager.hand_over(client, holder):
            return True
        self._refuse(holder.crowded(account))
        return False

    def _has_room(self, request: Request, length: int, is_chunked: bool) -> bool:
        """Count for a body before it comes, or refuse it; whether it may come."""
        most = self._manager.settings.max_body_bytes
        if request.account is None:
            most = min(most, KEYLESS_BYTES)
        elif request.route is None or request.route.parse is None:
            most //= 4
        self._body_most = most
        self._body_length = length
        if length > most:
            self._refuse_body()
            return False
        room = min(CHUNKED_BYTES, most) if is_chunked else length
        is_large = room > LARGE_BODY
        if is_large and not self._may_send(request):
            return False
        if not self._take(request, REQUEST_BYTES + self._head_bytes + room):
            return False
        if is_large:
            self._client.holder.read_large(room)
        self._body_room = room
        return True

    def _take(self, request: Request, size: int) -> bool:
        """Count so many bytes for a request, or refuse it; whether it may go on."""
        if self._client.take(size):
            request.held += size
            return True
        self._refuse(self._client.holder.full(size, request.account))
        return False

    def _may_send(self, request: Request) -> bool:
        """Whether a large body may come; else it is refused."""
        holder = self._client.holder
        wait_s = holder.large_body_wait_s(self._manager.telemetry.clock())
        if not wait_s:
            return True
        self._refuse(holder.hurried(wait_s, request.account))
        return False

    def _grow(self) -> bool:
        """A body that did not say its length has outgrown what was reserved: double that; whether it may."""
        most, request = self._body_most, self._request
        if self._body_bytes > most:
            self._refuse_body()
            return False
        room = min(max(2 * self._body_room, self._body_bytes), most)
        more, becomes_large = room - self._body_room, self._body_room <= LARGE_BODY < room
        if request is None or (becomes_large and not self._may_send(request)):
            return False
        if not self._take(request, more):
            return False
        if room > LARGE_BODY:
            self._client.holder.read_large(room if becomes_large else more)
        self._body_room = room
        return True

    # --- refusing ---

    def _refuse_body(self) -> None:
        message = f"the request body is larger than {self._body_most} bytes"
        if self._body_most < self._manager.settings.max_body_bytes:
            message += ", the most on a route that costs no tokens"
        self._refuse(Refusal(Reason.BODY_TOO_LARGE, message))

    def _malformed(self, message: str) -> None:
        self._refuse(Refusal(Reason.MALFORMED, message))

    def _refuse(self, refusal: Refusal) -> None:
        """Refuse the request that is being read, in its turn, and nothing after it."""
        if not self.reads:
            return
        self.reads = self.expects = False
        self._body = b""
        request = self._request or Request(self._head)
        self._request = None
        request.refusal = refusal
        request.closes = True
        self._client.on_request(request)
