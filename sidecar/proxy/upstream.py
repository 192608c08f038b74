"""The engine's side: pooled connections, and the parsing of responses.

The pool reuses the most recently used connection first. It does not reuse one that the engine may close for
idleness. If a reused connection closes before the first byte of a response, the request is sent once more, on
a new connection.
"""

from __future__ import annotations

import asyncio
import errno
import re
import time
from typing import Final, Protocol, cast

import httptools

from sidecar.engine.address import EngineAddress
from sidecar.proxy.head_cache import CachedHead, only_chunk, only_chunks
from sidecar.proxy.heads import Headers, ResponseHead

IDLE_S: Final = 4.0
"""vLLM's server closes a connection that was idle for 5 s. One second is left for bytes in transit."""
MOST_IDLE: Final = 256
NO_ROOM: Final = errno.EBUSY
"""The error number of ``on_refused`` if a replica has no room for a request that it got with its ask."""
ONE_WRITE_BYTES: Final = 64 * 1024
"""The longest body that is copied behind its head. A copy of 1 kB costs 1 µs less than a vectored write."""
GOODBYE_S: Final = 1.0
"""Seconds for which a closed TLS connection waits for the engine to close it as well."""

_REASON: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


class ResponseReceiver(Protocol):
    """The receiver of an upstream connection's response."""

    __slots__ = ()

    def on_head(self, head: ResponseHead) -> None:
        """The response's head is complete."""

    def on_read(self, body: bytes, is_complete: bool, chunk: bytes | None = None) -> None:
        """One read returned this part of the body. ``is_complete``: it is the last part.

        ``chunk`` is the same part with its chunk framing, if the read was one chunk.
        """

    def on_chunk(self, chunk: bytes, body: bytes) -> None:
        """One read was one whole chunk or several, none of them the last, with this content."""

    def on_lost(self, *, before_response: bool, was_reused: bool) -> None:
        """The connection ended, or broke the protocol, before the response was complete."""

    def on_refused(self, error: OSError) -> None:
        """No connection could be made; ``error`` has the reason."""

    def preempt(self) -> None:
        """Another replica has ended the request for a guarantee."""


class Owner(Protocol):
    """The owner of a connection that no exchange uses."""

    def release(self, connection: Connection) -> None:
        """A response is complete, and the connection stays open."""

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""


class Connections(Protocol):
    """The source of an exchange's connection: the pool of the engine, or a place on another replica."""

    def take(self) -> Connection | None:
        """An open connection; ``None`` if there is none."""

    def connect(self, waiter: Waiter) -> None:
        """Make a new connection for a waiting request."""

    def release(self, connection: Connection) -> None:
        """A connection is not needed."""


class Connection(asyncio.Protocol):
    """One connection to the engine. At most one exchange uses it at a time."""

    __slots__ = (
        "_body",
        "_cached_head",
        "_exchange",
        "_has_ended_chunk",
        "_head",
        "_headers",
        "_is_between_chunks",
        "_is_complete",
        "_is_first_read",
        "_keeps_alive",
        "_parser",
        "_pool",
        "_reason",
        "_transport",
        "idle_since",
        "on_body",
        "was_used",
    )

    def __init__(self, pool: Owner) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: ResponseReceiver | None = None
        self.was_used = False
        """Whether the engine may have closed it for idleness when its next request arrives."""
        self._body: list[bytes] = []
        self.on_body = self._body.append
        """httptools: a part of the body. The list's own ``append`` saves a Python call per part."""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._cached_head: tuple[CachedHead, ResponseHead] | None = None
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
        """Whether the connection is open."""
        return self._transport is not None

    # --- one exchange ---

    def send(self, exchange: ResponseReceiver, head: bytes, body: bytes) -> None:
        """Send a request; the response goes to the exchange."""
        assert self._transport is not None
        self._exchange = exchange
        self._is_first_read = True
        self._start_response()
        if len(body) <= ONE_WRITE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def abort(self) -> None:
        """Close the connection, so that the engine aborts the request."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading, because the client reads too slowly."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is open."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: the engine sent bytes."""
        exchange, parser = self._exchange, self._parser
        if exchange is None or parser is None:
            # No request is open on this connection, so these bytes answer none.
            self.close()
            return
        is_first = self._is_first_read
        if is_first:
            self._is_first_read = False
            known = self._cached_head
            if known is not None and self._take_cached(exchange, known[0], known[1], data):
                return
        elif self._is_between_chunks:
            inside = only_chunk(data)
            if inside is None:
                inside = only_chunks(data)
            if inside is not None:
                exchange.on_chunk(data, inside)
                return
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._is_complete:
                self._break()
                return
            self._keeps_alive = False  # the response is complete; no request asked for the bytes after it
        if self._exchange is None:
            return  # the exchange has dropped the connection
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._is_complete:
            if is_first and self._keeps_alive and self._head is not None:
                wire = CachedHead.of(data)
                # After an interim response, the first head in the bytes is not the final one.
                is_known = wire is not None and wire.body_of(data) == body
                self._cached_head = (wire, self._head) if wire is not None and is_known else None
            self._finish(exchange, body)
            return
        # A line end completes a chunk or a chunk's header. on_chunk_header notices the latter.
        self._is_between_chunks = self._has_ended_chunk and data.endswith(b"\r\n")
        if body:
            exchange.on_read(body, False)

    def _take_cached(
        self, exchange: ResponseReceiver, wire: CachedHead, head: ResponseHead, data: bytes
    ) -> bool:
        """Relay ``data`` as a whole response if it has the cached head. Returns whether it does."""
        body = wire.body_of(data)
        if body is None:
            return False
        self._head = head
        head.content_length = len(body)
        self._is_complete = self._keeps_alive = True
        exchange.on_head(head)
        if self._exchange is not None:  # otherwise the exchange has dropped the connection
            self._finish(exchange, body)
        return True

    def eof_received(self) -> bool:
        """asyncio: the engine sends no more. A response without a length ends here."""
        exchange, head = self._exchange, self._head
        if exchange is not None and head is not None and head.ends_at_close:
            self._exchange = None
            exchange.on_read(b"", True)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed."""
        self._transport = self._parser = None
        self._pool.forget(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_lost(before_response=self._is_first_read, was_reused=self.was_used)

    def close(self) -> None:
        """Close gracefully."""
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
            raise httptools.HttpParserError("the status line is not HTTP/1.1")
        if status < 200:
            return
        head = ResponseHead(status, self._reason, self._headers)
        if head.codings and (head.codings != [b"chunked"] or version == "1.0"):
            raise httptools.HttpParserError("the transfer coding was not offered")
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
        """httptools: the end of a response, and whether the connection stays open."""
        if self._head is None:
            self._start_response()  # this was an interim response (1xx); the final one follows
            return
        assert self._parser is not None
        self._is_complete = True
        self._keeps_alive = self._parser.should_keep_alive()

    # --- another replica ---

    def preempted(self) -> None:
        """The other replica has ended the request for a guarantee."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.preempt()

    def refused(self, error: OSError) -> None:
        """The engine of the other replica cannot have begun with the request."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_refused(error)

    # --- endings ---

    def _finish(self, exchange: ResponseReceiver, body: bytes) -> None:
        self._exchange = None
        if self._keeps_alive:
            self._pool.release(self)
        else:
            self.close()
        exchange.on_read(body, True)

    def _break(self) -> None:
        """Close the connection after a violation of the protocol: later bytes cannot be trusted."""
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
        """The most recently used connection that the engine cannot have closed yet, or ``None``."""
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since < IDLE_S:
                return connection
            connection.close()
        return None

    def connect(self, waiter: Waiter) -> None:
        """Make a new connection for a waiting request."""
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
        except OSError as error:  # SSLError is a subclass
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
        """Return a connection to the pool after its exchange."""
        connection.idle_since = time.monotonic()
        connection.was_used = True
        if len(self._idle) < MOST_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: Connection) -> None:
        """Remove a closed connection from the pool."""
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
    """A request that waits for a new connection."""

    def on_connected(self, connection: Connection) -> None:
        """The connection is open."""

    def on_refused(self, error: OSError) -> None:
        """No connection could be made; ``error`` has the reason."""
