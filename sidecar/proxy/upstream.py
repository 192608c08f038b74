"""The engine's side: pooled connections, and the parsing of responses.

Connections are reused last in, first out, and never when idle for as long as the engine might be about to
close them. A reused connection that closes before the first byte of a response has told us nothing of the
request, which is sent once more, on a fresh one.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Protocol, cast

import httptools

from sidecar.engine.address import EngineAddress
from sidecar.proxy.head_cache import CachedHead, only_chunk
from sidecar.proxy.heads import Headers, ResponseHead

IDLE_S = 4.0
"""vLLM's server closes a connection that was idle for 5 s; a second is left for what is under way."""
MOST_IDLE = 256
GOODBYE_S = 1.0
"""How long a TLS connection that is closed waits for the engine to close it, too."""

_REASON = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class Exchange(Protocol):
    """What an upstream connection tells of the response it is reading."""

    def on_head(self, head: ResponseHead) -> None:
        """The response's head is complete."""

    def on_read(self, body: bytes, is_complete: bool, chunk: bytes | None = None) -> None:
        """One read brought so much of the body; the last one completes it.

        ``chunk`` is the same body with its chunk framing, where the read was one chunk.
        """

    def on_lost(self, *, before_response: bool, was_reused: bool) -> None:
        """The connection ended, or broke the protocol, before the response was complete."""

    def on_refused(self, error: OSError) -> None:
        """No connection could be made, and why."""


class Connection(asyncio.Protocol):
    """One connection to the engine. At most one exchange uses it at a time."""

    __slots__ = (
        "_body",
        "_exchange",
        "_has_ended_chunk",
        "_head",
        "_headers",
        "_is_between_chunks",
        "_is_complete",
        "_is_first_read",
        "_keeps_alive",
        "_known",
        "_parser",
        "_pool",
        "_reason",
        "_transport",
        "_used",
        "idle_since",
        "on_body",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._used = False
        self._body: list[bytes] = []
        self.on_body = self._body.append
        """httptools: a part of the body. Most responses have one, so no call of our own is made for it."""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._known: tuple[CachedHead, ResponseHead] | None = None
        self._is_first_read = True
        self._start_response()
        self.idle_since = 0.0

    def _start_response(self) -> None:
        self._head: ResponseHead | None = None
        self._headers: Headers = []
        self._reason = b""
        self._is_complete = self._keeps_alive = False
        self._has_ended_chunk = self._is_between_chunks = False

    @property
    def is_open(self) -> bool:
        """Whether it stands."""
        return self._transport is not None

    # --- one exchange ---

    def send(self, exchange: Exchange, head: bytes, body: bytes) -> None:
        """Send a request; the response goes to the exchange."""
        assert self._transport is not None
        self._exchange = exchange
        self._is_first_read = True
        self._start_response()
        self._transport.writelines((head, body) if body else (head,))

    def abort(self) -> None:
        """Give the exchange up: the engine sees the connection close, and aborts the request."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading: the client does not keep up."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection stands."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: the engine sent something."""
        exchange, parser = self._exchange, self._parser
        if exchange is None or parser is None:
            # An idle connection has nothing to say: whatever this is, it is no answer of ours.
            self.close()
            return
        is_first = self._is_first_read
        if is_first:
            self._is_first_read = False
            if self._known is not None and self._take_cached(exchange, *self._known, data):
                return
        elif self._is_between_chunks:
            inside = only_chunk(data)
            if inside is not None:
                exchange.on_read(inside, False, data)
                return
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._is_complete:
                self._break()
                return
            self._keeps_alive = False  # the response is whole; what follows it was not asked for
        if self._exchange is None:
            return  # the exchange gave the connection up
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._is_complete:
            if is_first and self._keeps_alive and self._head is not None:
                wire = CachedHead.of(data)
                # Where an interim response came first, the head in front is not the one that counts.
                is_known = wire is not None and wire.body_of(data) == body
                self._known = (wire, self._head) if wire is not None and is_known else None
            self._finish(exchange, body)
            return
        # A line end completes a chunk, or else a chunk's header, which on_chunk_header noticed.
        self._is_between_chunks = self._has_ended_chunk and data.endswith(b"\r\n")
        if body:
            exchange.on_read(body, False)

    def _take_cached(self, exchange: Exchange, wire: CachedHead, head: ResponseHead, data: bytes) -> bool:
        """Take ``data`` for a whole response if its head is the last one's; whether it was."""
        body = wire.body_of(data)
        if body is None:
            return False
        self._head = head
        head.content_length = len(body)
        self._is_complete = self._keeps_alive = True
        exchange.on_head(head)
        if self._exchange is not None:  # else the exchange gave the connection up
            self._finish(exchange, body)
        return True

    def eof_received(self) -> bool:
        """asyncio: the engine will send no more. A response without a length ends here."""
        exchange, head = self._exchange, self._head
        if exchange is not None and head is not None and head.ends_at_close:
            self._exchange = None
            exchange.on_read(b"", True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._transport = self._parser = None
        self._pool.forget(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_lost(before_response=self._is_first_read, was_reused=self._used)

    def close(self) -> None:
        """Close in good order."""
        if self._transport is not None:
            self._transport.close()

    # --- httptools' callbacks ---

    def on_message_begin(self) -> None:
        """httptools: the first byte of a response."""
        if self._is_complete:
            raise httptools.HttpParserError("a second response to one request")

    def on_status(self, reason: bytes) -> None:
        """httptools: (a part of) the status line's reason."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header."""
        self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """httptools: the end of the head."""
        assert self._parser is not None
        status, version = self._parser.get_status_code(), self._parser.get_http_version()
        if version not in ("1.0", "1.1") or not 100 <= status <= 599 or not _REASON.fullmatch(self._reason):
            raise httptools.HttpParserError("a status line that is not HTTP/1.1's")
        if status < 200:
            return
        head = ResponseHead(status, self._reason, self._headers)
        if head.codings and (head.codings != [b"chunked"] or version == "1.0"):
            raise httptools.HttpParserError("a transfer coding that was not offered")
        self._head = head
        if self._exchange is not None:
            self._exchange.on_head(head)

    def on_chunk_header(self) -> None:
        """httptools: the size line of a chunk."""
        self._has_ended_chunk = False

    def on_chunk_complete(self) -> None:
        """httptools: the end of a chunk."""
        self._has_ended_chunk = True

    def on_message_complete(self) -> None:
        """httptools: the end of a response. Only here does it know whether the connection lives on."""
        if self._head is None:
            self._start_response()  # that was an interim response (1xx): the real one follows
            return
        assert self._parser is not None
        self._is_complete = True
        self._keeps_alive = self._parser.should_keep_alive()

    # --- endings ---

    def _finish(self, exchange: Exchange, body: bytes) -> None:
        self._exchange = None
        self._used = True
        if self._keeps_alive:
            self._pool.release(self)
        else:
            self.close()
        exchange.on_read(body, True)

    def _break(self) -> None:
        """The engine broke the protocol: what it would say next cannot be trusted."""
        exchange, self._exchange = self._exchange, None
        if self._transport is not None:
            self._transport.abort()
        if exchange is not None:
            exchange.on_lost(before_response=False, was_reused=False)


class Pool:
    """The connections to one engine."""

    def __init__(self, engine: EngineAddress, connect_timeout: float) -> None:
        self._engine = engine
        self._connect_timeout = connect_timeout
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    def take(self) -> Connection | None:
        """The most recently used connection that is surely still open, or ``None``."""
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since < IDLE_S:
                return connection
            connection.close()
        return None

    def connect(self, waiter: Waiter) -> None:
        """Make a fresh connection for one who waits."""
        task = asyncio.get_running_loop().create_task(self._connect(waiter))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, waiter: Waiter) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._open_one()
        except TimeoutError:
            waiter.on_refused(TimeoutError(f"no connection within {self._connect_timeout:g} s"))
            return
        except OSError as error:  # SSLError is one, too
            waiter.on_refused(error)
            return
        self._open.add(connection)
        waiter.on_connected(connection)

    async def _open_one(self) -> Connection:
        loop, engine = asyncio.get_running_loop(), self._engine
        host, port, _ = engine.origin
        if engine.context is None:
            _, connection = await loop.create_connection(lambda: Connection(self), host, port)
        else:
            _, connection = await loop.create_connection(
                lambda: Connection(self),
                host,
                port,
                ssl=engine.context,
                server_hostname=engine.name,
                ssl_shutdown_timeout=GOODBYE_S,
            )
        if not connection.is_open:
            raise ConnectionResetError("the engine closed the connection at once")
        return connection

    def release(self, connection: Connection) -> None:
        """Take back a connection whose exchange is over."""
        connection.idle_since = time.monotonic()
        if len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: Connection) -> None:
        """A connection closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self, now: float) -> None:
        """Close connections that have been idle too long to be used again."""
        while self._idle and now - self._idle[0].idle_since >= IDLE_S:
            self._idle.pop(0).close()

    def close(self) -> None:
        """Close every connection."""
        for task in self._connecting:
            task.cancel()
        for connection in list(self._open):
            connection.abort()


class Waiter(Protocol):
    """Somebody who waits for a fresh connection."""

    def on_connected(self, connection: Connection) -> None:
        """Here it is."""

    def on_refused(self, error: OSError) -> None:
        """No connection could be made, and why."""
