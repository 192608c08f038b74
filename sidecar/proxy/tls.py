"""TLS on the proxied port: accepts connections, and passes them to HTTP after their handshake.

A connection counts from the moment it is accepted, so unfinished handshakes are bounded like any other
connection. asyncio's own TLS server does not report a handshake that fails, so this module accepts
connections itself.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from typing import Final, cast

from prometheus_client.core import CounterMetricFamily, Metric

from runtime.tls import Certificate
from sidecar.proxy.bounds import Caller
from sidecar.proxy.connection import ClientConnection
from sidecar.proxy.connection_manager import ConnectionManager
from sidecar.settings import Settings

log = logging.getLogger(__name__)

WRITE_BUFFER_BYTES: Final = 64 * 1024
"""Bytes of an unread answer at which reading from the engine pauses: the same as without TLS."""
ACCEPT_AGAIN_S: Final = 1.0
"""Seconds until the next attempt to accept, after the system had no file descriptor left."""


class TlsServer:
    """A listening port that speaks TLS."""

    def __init__(self, manager: ConnectionManager, certificate: Certificate, settings: Settings) -> None:
        self._manager = manager
        self._certificate = certificate
        self._handshake_timeout = settings.tls_handshake_timeout
        self._shutdown_timeout = settings.write_timeout
        self._accepting: list[asyncio.Task[None]] = []
        self._failed = 0
        self.sockets: tuple[socket.socket, ...] = ()

    def accept(self, sockets: list[socket.socket]) -> None:
        """Begin to accept connections from sockets that listen."""
        loop = asyncio.get_running_loop()
        self.sockets = tuple(sockets)
        self._accepting = [loop.create_task(self._accept(listening)) for listening in self.sockets]

    def close(self) -> None:
        """Accept no more connections. Open connections stay open."""
        for task in self._accepting:
            task.cancel()
        for listening in self.sockets:
            listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                log.warning("no connection can be accepted", extra={"error": str(error)})
                await asyncio.sleep(ACCEPT_AGAIN_S)
            else:
                self._take(sock)

    def _take(self, sock: socket.socket) -> None:
        handshake = Handshake(self._manager.bounds.unidentified, self._manager.telemetry.clock())
        if self._manager.add(handshake):
            handshake.task = asyncio.get_running_loop().create_task(self._shake(handshake, sock))
        else:
            # An answer would need a handshake, which costs more than closing the connection.
            self._manager.remove(handshake)
            sock.close()

    async def _shake(self, handshake: Handshake, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: SecuredConnection(self._manager, handshake),
                sock,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._handshake_timeout,
                ssl_shutdown_timeout=self._shutdown_timeout,
            )
        except OSError as error:  # SSLError and TimeoutError are subclasses
            self._failed += 1
            log.debug("a handshake failed", extra={"error": str(error) or repr(error)})
        finally:
            self._manager.remove(handshake)

    def metrics(self) -> Iterator[Metric]:
        """The metrics of TLS, for Prometheus."""
        yield from self._certificate.metrics()
        yield CounterMetricFamily(
            "tokenpool_handshakes_failed", "TLS handshakes that failed or took too long.", value=self._failed
        )


class Handshake:
    """A connection during its handshake: it counts in place of the ``ClientConnection`` that follows."""

    __slots__ = ("buffered", "caller", "idle_since", "task")

    is_busy = False

    def __init__(self, caller: Caller, now: float) -> None:
        self.caller = caller
        self.buffered = 0
        self.idle_since: float | None = now
        self.task: asyncio.Task[None] | None = None

    def sweep(self, now: float) -> None:
        """No effect: asyncio limits the time of a handshake."""

    def close_if_idle(self) -> None:
        """No effect: no request was received yet."""
        self.abort()

    def end_wait(self) -> None:
        """No effect: no request was received yet."""

    def drain(self) -> None:
        """No effect: no request was received yet."""
        self.abort()

    def abort(self) -> None:
        """End the handshake."""
        if self.task is not None:
            self.task.cancel()


class SecuredConnection(ClientConnection):
    """A client connection that replaces its handshake."""

    __slots__ = ("_handshake",)

    def __init__(self, manager: ConnectionManager, handshake: Handshake) -> None:
        super().__init__(manager)
        self._handshake = handshake

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the handshake succeeded."""
        self._manager.remove(self._handshake)
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        super().connection_made(transport)
