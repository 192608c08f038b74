"""TLS on the proxied port: connections are accepted here, and become HTTP when they have shaken hands.

A connection counts from the moment it is accepted, so handshakes without end are bounded like any other
connection. asyncio's own TLS server tells nobody of a handshake that fails: so accepting is done here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from typing import cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from runtime.tls import Certificate
from sidecar.proxy.bounds import Holder
from sidecar.proxy.connection import ClientConnection
from sidecar.proxy.connection_manager import ConnectionManager
from sidecar.settings import Settings

log = logging.getLogger(__name__)

WRITE_BUFFER_BYTES = 64 * 1024
"""What an unread answer may fill before the engine is delayed: as much as without TLS."""
ACCEPT_AGAIN_S = 1.0
"""When to look again for new connections if the system has no file left for one."""


class TlsServer:
    """A listening port that speaks TLS."""

    def __init__(self, manager: ConnectionManager, certificate: Certificate, settings: Settings) -> None:
        self._manager = manager
        self._certificate = certificate
        self._handshake_timeout = settings.tls_handshake_timeout
        self._goodbye_timeout = settings.write_timeout
        self._accepting: list[asyncio.Task[None]] = []
        self._failed = 0
        self.sockets: tuple[socket.socket, ...] = ()

    def accept(self, sockets: list[socket.socket]) -> None:
        """Begin to accept connections from sockets that listen."""
        loop = asyncio.get_running_loop()
        self.sockets = tuple(sockets)
        self._accepting = [loop.create_task(self._accept(listening)) for listening in self.sockets]

    def close(self) -> None:
        """Accept nobody any more; connections that stand go on."""
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
        handshake = Handshake(self._manager.bounds.nobody, self._manager.telemetry.clock())
        if self._manager.enter(handshake):
            handshake.task = asyncio.get_running_loop().create_task(self._shake(handshake, sock))
        else:
            # An answer would cost a handshake, which is what whoever floods us wants.
            self._manager.leave(handshake)
            sock.close()

    async def _shake(self, handshake: Handshake, sock: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: SecuredDownstream(self._manager, handshake),
                sock,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._handshake_timeout,
                ssl_shutdown_timeout=self._goodbye_timeout,
            )
        except OSError as error:  # SSLError and TimeoutError are, too
            self._failed += 1
            log.debug("a handshake failed", extra={"error": str(error) or repr(error)})
        finally:
            self._manager.leave(handshake)

    def metrics(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield GaugeMetricFamily(
            "tokenpool_certificate_current",
            "Whether the certificate on disk is the one in force.",
            value=float(self._certificate.problem is None),
        )
        yield CounterMetricFamily(
            "tokenpool_handshakes_failed", "TLS handshakes that failed or took too long.", value=self._failed
        )


class Handshake:
    """A connection that shakes hands: in the place of a ``ClientConnection`` until then."""

    __slots__ = ("buffered", "holder", "idle_since", "task")

    is_busy = False

    def __init__(self, holder: Holder, now: float) -> None:
        self.holder = holder
        self.buffered = 0
        self.idle_since: float | None = now
        self.task: asyncio.Task[None] | None = None

    def sweep(self, now: float) -> None:
        """A handshake has a time limit of its own."""

    def close_if_idle(self) -> None:
        """Nothing was asked yet."""
        self.abort()

    def end_wait(self) -> None:
        """Nothing was asked yet."""

    def drain(self) -> None:
        """Nothing was asked yet."""
        self.abort()

    def abort(self) -> None:
        """Give it up."""
        if self.task is not None:
            self.task.cancel()


class SecuredDownstream(ClientConnection):
    """A client connection that takes the place of its handshake."""

    __slots__ = ("_handshake",)

    def __init__(self, manager: ConnectionManager, handshake: Handshake) -> None:
        super().__init__(manager)
        self._handshake = handshake

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the handshake is over."""
        self._manager.leave(self._handshake)
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        super().connection_made(transport)
