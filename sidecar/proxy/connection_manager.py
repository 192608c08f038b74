"""The manager: which connections there are, who each counts for, and who makes way where there are too many.

What is said on a connection is not known here; ``bounds`` has the arithmetic.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from operator import itemgetter
from typing import Protocol

from sidecar.proxy.bounds import Bounds, Holder
from sidecar.proxy.heads import RequestFramer
from sidecar.proxy.interface import RequestController
from sidecar.proxy.upstream import Pool
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.1
"""How often, at most, all connections are looked through for idle ones that can make way."""
PER_SWEEP = 200
"""Connections that are looked at in one step of a sweep: some 0.1 ms."""
REFUSED_AT_ONCE = 100
"""Connections beyond the bound that get an answer; more are closed without one."""


class Guest(Protocol):
    """A connection as the manager sees it."""

    holder: Holder
    """Who it counts for."""
    buffered: int
    """Bytes that it counts for."""

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
    """What all connections of one listening socket share."""

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
        self._looks_at = 0.0

    def enter(self, guest: Guest) -> bool:
        """A connection begins, and counts for nobody yet; whether there is room for it."""
        bounds = self.bounds
        nobody = bounds.nobody
        crowded = bounds.largest() if bounds.connections >= bounds.max_connections else nobody
        fits = nobody.connections < nobody.most_connections or self._make_way(crowded)
        self.connections.add(guest)
        guest.holder = nobody
        nobody.join()
        return fits

    def hand_over(self, guest: Guest, holder: Holder) -> bool:
        """A connection is its last request's entitlement's; whether there is room for it there."""
        guest.holder.leave(guest.buffered)
        fits = holder.connections < holder.most_connections or self._make_way(holder)
        guest.holder = holder
        holder.join(guest.buffered)
        return fits

    def leave(self, guest: Guest) -> None:
        """A connection counts no longer."""
        if guest in self.connections:
            self.connections.remove(guest)
            guest.holder.leave(guest.buffered)
            guest.buffered = 0

    @property
    def is_flooded(self) -> bool:
        """Whether so many connections are being refused that no more get an answer."""
        nobody = self.bounds.nobody
        return nobody.connections - nobody.most_connections > REFUSED_AT_ONCE

    def _make_way(self, holder: Holder) -> bool:
        """Close the connection of a holder that has been idle longest; whether there was one."""
        now = self.telemetry.clock()
        if not self._idle.get(holder) and now >= self._looks_at:
            self._looks_at = now + LOOK_EVERY_S
            self._idle = self._look_for_idle()
        idle = self._idle.get(holder, [])
        while idle:
            since, guest = idle.pop()
            if guest in self.connections and guest.holder is holder and guest.idle_since == since:
                holder.cut += 1
                self.leave(guest)
                guest.abort()
                return True
        return False

    def _look_for_idle(self) -> dict[Holder, list[tuple[float, Guest]]]:
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
        """End what has taken too long. Run about once a second: no request pays for a timer of its own.

        In steps of ``PER_SWEEP`` connections.
        """
        for number, connection in enumerate(list(self.connections), 1):
            try:
                connection.sweep(now)
            except Exception:
                # Whatever is wrong with one, the others' time limits go on.
                log.exception("a connection could not be swept")
                connection.abort()
            if number % PER_SWEEP == 0:
                yield
        self.pool.close_idle(now)

    @property
    def exchanges(self) -> int:
        """Requests under way."""
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
