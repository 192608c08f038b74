"""Client connections in memory, with a recording transport instead of a socket."""

from __future__ import annotations

import asyncio
from typing import Any

from sidecar.proxy.connection import ClientConnection
from sidecar.proxy.connection_manager import ConnectionManager


class Transport(asyncio.Transport):
    """Records the calls of a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_paused = self.has_eof = self.is_aborted = self._is_closing = False

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.has_eof = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self.is_aborted = self._is_closing = True

    def is_closing(self) -> bool:
        return self._is_closing

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_write_buffer_size(self) -> int:
        return 0


def connect(
    manager: ConnectionManager, transport: Transport | None = None
) -> tuple[ClientConnection, Transport]:
    """A connection of a client."""
    connection, transport = ClientConnection(manager), transport or Transport()
    connection.connection_made(transport)
    return connection, transport
