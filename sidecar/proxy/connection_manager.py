"""The connection manager: all connections of one listening socket, their callers, and the order of closing.

A connection counts for a caller: the entitlement of its last request, or all unidentified callers together.
If a caller has too many connections, its longest idle one is closed for a new one. ``bounds`` has the
arithmetic. This file has no access to the bytes on a connection.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from operator import itemgetter
from typing import Final, Protocol

from sidecar.memory_bounds import MemoryBounds
from sidecar.proxy.bounds import Bounds, Caller
from sidecar.proxy.heads import RequestFramer
from sidecar.proxy.interface import RequestController
from sidecar.proxy.request_ids import RequestIds
from sidecar.proxy.request_parser import ParserLimits
from sidecar.proxy.upstream import Connections, Pool
from sidecar.proxy.write_batch import WriteBatch
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry
from sidecar.tracing.interface import Tracer
from tokenpool.accounting.ticket import Place, Ticket

log = logging.getLogger(__name__)
SEARCH_EVERY_S: Final = 0.1
"""The shortest interval between two searches of all connections for idle ones, in seconds."""
PER_SWEEP: Final = 200
"""Connections that are examined in one step of a sweep: about 0.1 ms."""
REFUSED_AT_ONCE: Final = 100
"""Connections beyond the bound that receive a refusal. More are closed without an answer."""


class CountedConnection(Protocol):
    """The part of a connection that the bounds need."""

    caller: Caller
    """The caller for whom it counts."""
    buffered: int
    """The bytes that it counts for."""


class ManagedConnection(CountedConnection, Protocol):
    """The part of a connection that the manager needs."""

    @property
    def idle_since(self) -> float | None:
        """The start of its idle time; ``None`` if closing it would end a request."""

    @property
    def is_busy(self) -> bool:
        """Whether an exchange is under way."""

    def sweep(self, now: float) -> None:
        """Apply the time limits."""

    def close_if_idle(self) -> None:
        """Close unless a request is being read or served."""

    def end_wait(self) -> None:
        """Refuse a request that waits for a decision."""

    def drain(self) -> None:
        """End the exchange now."""

    def abort(self) -> None:
        """Close without waiting for anything."""


class Places(Protocol):
    """The requests that run on other replicas."""

    def connection_of(self, ticket: Ticket, place: Place) -> Connections:
        """The source of connections for a request at this place. Its ticket has the price."""


class ConnectionManager:
    """The objects that all connections of one listening socket share, and the connections themselves."""

    def __init__(
        self,
        settings: Settings,
        memory: MemoryBounds,
        controller: RequestController,
        telemetry: Telemetry,
        pool: Pool,
        framer: RequestFramer,
        places: Places | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``places`` is ``None`` without handover, and ``tracer`` without tracing."""
        self.settings = settings
        self.controller = controller
        self.telemetry = telemetry
        self.pool = pool
        self.framer = framer
        self.tracer = tracer
        self._places = places
        self.request_ids = RequestIds()
        self.batch = WriteBatch()
        self.parser_limits = ParserLimits(
            max_head_bytes=settings.max_head_bytes,
            head_timeout=settings.head_timeout,
            body_timeout=settings.body_timeout,
        )
        self.connections: set[ManagedConnection] = set()
        self.bounds = Bounds(
            memory.connections,
            memory.buffered_bytes,
            settings.entitlement_share,
            settings.unidentified_share,
            unmetered_rate=settings.unmetered_rate,
            large_body_rate=settings.large_body_rate,
        )
        self._idle: dict[Caller, list[tuple[float, ManagedConnection]]] = {}
        self._searches_at = 0.0

    def add(self, connection: ManagedConnection) -> bool:
        """Count a new connection for the unidentified callers. Returns whether the bounds allow it."""
        bounds = self.bounds
        unidentified = bounds.unidentified
        largest = bounds.largest() if bounds.connections >= bounds.max_connections else unidentified
        fits = unidentified.connections < unidentified.max_connections or self._make_room(largest)
        self.connections.add(connection)
        connection.caller = unidentified
        unidentified.add_connection()
        return fits

    def assign(self, connection: CountedConnection, caller: Caller) -> bool:
        """Count a connection for another caller. Returns whether the bounds of that caller allow it."""
        connection.caller.remove_connection(connection.buffered)
        fits = caller.connections < caller.max_connections or self._make_room(caller)
        connection.caller = caller
        caller.add_connection(connection.buffered)
        return fits

    def remove(self, connection: ManagedConnection) -> None:
        """Stop counting a connection that has ended, and its bytes."""
        if connection in self.connections:
            self.connections.remove(connection)
            connection.caller.remove_connection(connection.buffered)
            connection.buffered = 0

    @property
    def is_flooded(self) -> bool:
        """Whether too many connections are being refused to answer another one."""
        unidentified = self.bounds.unidentified
        return unidentified.connections - unidentified.max_connections > REFUSED_AT_ONCE

    def _make_room(self, caller: Caller) -> bool:
        """Close the longest idle connection of a caller. Returns whether there was one."""
        now = self.telemetry.clock()
        if not self._idle.get(caller) and now >= self._searches_at:
            self._searches_at = now + SEARCH_EVERY_S
            self._idle = self._find_idle()
        idle = self._idle.get(caller, [])
        while idle:
            since, connection = idle.pop()
            if (
                connection in self.connections
                and connection.caller is caller
                and connection.idle_since == since
            ):
                caller.cut += 1
                self.remove(connection)
                connection.abort()
                return True
        return False

    def _find_idle(self) -> dict[Caller, list[tuple[float, ManagedConnection]]]:
        """The idle connections of each caller, the longest idle last."""
        found: dict[Caller, list[tuple[float, ManagedConnection]]] = {}
        for connection in self.connections:
            since = connection.idle_since
            if since is not None:
                found.setdefault(connection.caller, []).append((since, connection))
        for each in found.values():
            each.sort(key=itemgetter(0), reverse=True)
        return found

    def sweep(self, now: float) -> Iterator[None]:
        """Apply the time limits of all connections, in steps of ``PER_SWEEP`` connections.

        It runs about once per second, so that no request needs a timer of its own.
        """
        for number, connection in enumerate(list(self.connections), 1):
            try:
                connection.sweep(now)
            except Exception:
                # An error in one connection must not suspend the time limits of the others.
                log.exception("the time limits of a connection could not be applied; it is closed")
                connection.abort()
            if number % PER_SWEEP == 0:
                yield
        self.pool.close_idle(now)

    def connections_for(self, ticket: Ticket | None) -> Connections:
        """The source of connections for a request: the engine here, or another replica."""
        if ticket is None or ticket.place is None or self._places is None:
            return self.pool
        return self._places.connection_of(ticket, ticket.place)

    @property
    def exchanges(self) -> int:
        """The number of connections that serve a request."""
        return sum(connection.is_busy for connection in self.connections)

    def close_idle(self) -> None:
        """Close the connections that wait for a request."""
        for connection in list(self.connections):
            connection.close_if_idle()

    def end_waits(self) -> None:
        """Refuse the requests that wait for a decision."""
        for connection in list(self.connections):
            connection.end_wait()

    def drain(self) -> None:
        """End every exchange now."""
        for connection in list(self.connections):
            connection.drain()
