"""The connection manager: all connections of one listening socket, their holders, and the order of closing.

A connection counts for a holder: the entitlement of its last request, or the unidentified callers. Where a
holder has too many connections, its longest idle one is closed for a new one. ``bounds`` has the
arithmetic. The bytes on a connection are not known here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from operator import itemgetter
from typing import Protocol

from sidecar.proxy.bounds import Bounds, Holder
from sidecar.proxy.heads import RequestFramer
from sidecar.proxy.interface import RequestController
from sidecar.proxy.request_parser import ParserLimits
from sidecar.proxy.upstream import Pool
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry

log = logging.getLogger(__name__)
SEARCH_EVERY_S = 0.1
"""How often, at most, all connections are searched for idle ones that can be closed."""
PER_SWEEP = 200
"""Connections that are examined in one step of a sweep: about 0.1 ms."""
REFUSED_AT_ONCE = 100
"""Connections beyond the bound that get an answer; further ones are closed without one."""


class Counted(Protocol):
    """A connection, as it is counted."""

    holder: Holder
    """The caller for whom it counts."""
    buffered: int
    """The bytes that it counts for."""


class Guest(Counted, Protocol):
    """A connection, as the manager uses it."""

    @property
    def idle_since(self) -> float | None:
        """Since when it could be closed without hurting a request; ``None`` if it could not."""

    @property
    def is_busy(self) -> bool:
        """Whether an exchange is under way."""

    def sweep(self, now: float) -> None:
        """End what has taken too long."""

    def close_if_idle(self) -> None:
        """Close unless a request is being read or served."""

    def end_wait(self) -> None:
        """Refuse a request that waits undecided."""

    def drain(self) -> None:
        """End the exchange now."""

    def abort(self) -> None:
        """Close without waiting for anything."""


class ConnectionManager:
    """The objects that all connections of one listening socket share, and the connections themselves."""

    def __init__(
        self,
        settings: Settings,
        controller: RequestController,
        telemetry: Telemetry,
        pool: Pool,
        framer: RequestFramer,
    ) -> None:
        self.settings = settings
        self.controller = controller
        self.telemetry = telemetry
        self.pool = pool
        self.framer = framer
        self.parser_limits = ParserLimits(
            max_head_bytes=settings.max_head_bytes,
            head_timeout=settings.head_timeout,
            body_timeout=settings.body_timeout,
        )
        self.connections: set[Guest] = set()
        self.bounds = Bounds(
            settings.max_connections,
            settings.max_buffered_bytes,
            settings.entitlement_share,
            settings.unidentified_share,
            unmetered_rate=settings.unmetered_rate,
            large_body_rate=settings.large_body_rate,
        )
        self._idle: dict[Holder, list[tuple[float, Guest]]] = {}
        self._searches_at = 0.0

    def enter(self, guest: Guest) -> bool:
        """A connection begins, of an unidentified caller; whether there is room for it."""
        bounds = self.bounds
        unidentified = bounds.unidentified
        largest = bounds.largest() if bounds.connections >= bounds.max_connections else unidentified
        fits = unidentified.connections < unidentified.max_connections or self._make_room(largest)
        self.connections.add(guest)
        guest.holder = unidentified
        unidentified.join()
        return fits

    def assign(self, guest: Counted, holder: Holder) -> bool:
        """Count a connection for the entitlement of its last request; whether there is room for it there."""
        guest.holder.leave(guest.buffered)
        fits = holder.connections < holder.max_connections or self._make_room(holder)
        guest.holder = holder
        holder.join(guest.buffered)
        return fits

    def leave(self, guest: Guest) -> None:
        """A connection ends: neither it nor its bytes count any longer."""
        if guest in self.connections:
            self.connections.remove(guest)
            guest.holder.leave(guest.buffered)
            guest.buffered = 0

    @property
    def is_flooded(self) -> bool:
        """Whether so many connections are being refused that further ones get no answer."""
        unidentified = self.bounds.unidentified
        return unidentified.connections - unidentified.max_connections > REFUSED_AT_ONCE

    def _make_room(self, holder: Holder) -> bool:
        """Close the longest idle connection of a holder; whether there was one."""
        now = self.telemetry.clock()
        if not self._idle.get(holder) and now >= self._searches_at:
            self._searches_at = now + SEARCH_EVERY_S
            self._idle = self._find_idle()
        idle = self._idle.get(holder, [])
        while idle:
            since, guest = idle.pop()
            if guest in self.connections and guest.holder is holder and guest.idle_since == since:
                holder.cut += 1
                self.leave(guest)
                guest.abort()
                return True
        return False

    def _find_idle(self) -> dict[Holder, list[tuple[float, Guest]]]:
        """The idle connections of each holder, the longest idle last."""
        found: dict[Holder, list[tuple[float, Guest]]] = {}
        for guest in self.connections:
            since = guest.idle_since
            if since is not None:
                found.setdefault(guest.holder, []).append((since, guest))
        for each in found.values():
            each.sort(key=itemgetter(0), reverse=True)
        return found

    def sweep(self, now: float) -> Iterator[None]:
        """End what has taken too long, in steps of ``PER_SWEEP`` connections.

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

    @property
    def exchanges(self) -> int:
        """The number of connections that serve a request."""
        return sum(connection.is_busy for connection in self.connections)

    def close_idle(self) -> None:
        """Close the connections that wait for a request."""
        for connection in list(self.connections):
            connection.close_if_idle()

    def end_waits(self) -> None:
        """Refuse the requests that wait undecided."""
        for connection in list(self.connections):
            connection.end_wait()

    def drain(self) -> None:
        """End every exchange now."""
        for connection in list(self.connections):
            connection.drain()
