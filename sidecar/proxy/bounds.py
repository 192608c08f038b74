"""Bounds on the sidecar's own resources for each caller: connections, bytes of memory, and time.

One rule bounds connections and bytes. A caller may have at most a fixed share of the amount that the other
callers leave free. So a single caller gets that share of the whole, and a new caller always finds some free.

Time is bounded where no price bounds it. An admitted request is charged to its entitlement. A refusal or a
model list is not: after too many of these answers in a second, further ones are delayed. Parsing a large
body blocks the event loop (about 20 ms per 16 MiB), so each caller may send a limited number of bytes of
large bodies per second.

The arithmetic runs at the beginning and the end of a connection or a request. A refusal states the numbers.
This file has no access to sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from runtime.exposition import Family
from sidecar.decisions import Refusal
from sidecar.telemetry import UNIDENTIFIED
from tokenpool.accounting.account import Account
from tokenpool.accounting.bucket import TokenBucket
from tokenpool.outcomes import Reason

REQUEST_BYTES: Final = 2048
"""The bytes that a request counts for beyond its body: its parsed head and the objects of its exchange."""
LARGE_BODY: Final = 16 * 1024
"""Bytes from which on a body counts as large."""
PARSED_PER_S: Final = 400e6
"""Bytes of plain text that a slow machine parses per second. A body that takes longer counts for more."""
VALUE_BYTES: Final = 24
"""The bytes that each value in a large body counts for: the engine makes an object of each."""
UNMETERED_S: Final = 1e-4
"""Approximate CPU seconds of an unmetered answer. With a longer parsing time it counts as several."""
MAX_DELAY_S: Final = 5.0
"""The longest delay of an unmetered answer."""
PER_PIECE: Final = 100
"""Callers that one piece of the metrics adds up: about 50 µs."""
FAMILIES: Final = (
    Family("tokenpool_connections", "gauge", "Client connections open.", ("entitlement",)),
    Family("tokenpool_buffered_bytes", "gauge", "Requests and unread answers in memory.", ("entitlement",)),
    Family(
        "tokenpool_connections_cut",
        "counter",
        "Connections closed because their entitlement had too many, or left too much unread.",
        ("entitlement",),
    ),
    Family(
        "tokenpool_answers_delayed",
        "counter",
        "Unmetered answers that were delayed because there were too many.",
        ("entitlement",),
    ),
)


class Caller:
    """The resources that one entitlement occupies, or that all unidentified callers occupy together."""

    __slots__ = (
        "_bounds",
        "_large",
        "_share",
        "_unmetered",
        "buffered",
        "connections",
        "cut",
        "delayed",
        "name",
    )

    def __init__(self, bounds: Bounds, name: str, share: float) -> None:
        self._bounds = bounds
        self._share = share
        self.name = name
        self.connections = 0
        self.buffered = 0
        self.cut = 0
        """Connections that were closed because the caller had too many, or left too many bytes unread."""
        self.delayed = 0
        """Unmetered answers that were delayed."""
        self._unmetered, self._large = TokenBucket(0.0), TokenBucket(0.0)
        self._unmetered.resize(bounds.unmetered_rate, bounds.unmetered_rate, 0.0)
        self._large.resize(bounds.large_body_rate, bounds.large_body_rate, 0.0)

    @property
    def max_connections(self) -> int:
        """The number of connections that it may have now: at least one, while any is free."""
        bounds = self._bounds
        left = bounds.max_connections - (bounds.connections - self.connections)
        return min(left, max(int(self._share * left), 1))

    @property
    def max_bytes(self) -> int:
        """The number of bytes that it may have now."""
        bounds = self._bounds
        return int(self._share * (bounds.max_bytes - (bounds.buffered - self.buffered)))

    def add_connection(self, buffered: int = 0) -> None:
        """Count a connection, with the bytes that it has buffered."""
        self.connections += 1
        self._bounds.connections += 1
        self.release_bytes(-buffered)

    def remove_connection(self, buffered: int = 0) -> None:
        """Stop counting a connection and its buffered bytes."""
        self.connections -= 1
        self._bounds.connections -= 1
        self.release_bytes(buffered)

    def reserve_bytes(self, size: int) -> bool:
        """Reserve ``size`` bytes if the bound allows it. Returns whether it did."""
        if self.buffered + size > self.max_bytes:
            return False
        self.release_bytes(-size)
        return True

    def release_bytes(self, size: int) -> None:
        """Release ``size`` reserved bytes."""
        self.buffered -= size
        self._bounds.buffered -= size

    def unmetered_s(self, spent_s: float, now: float) -> float:
        """Count an unmetered answer. Returns its delay in seconds, 0 while the rate is below the bound.

        ``spent_s`` is the CPU time of parsing its request, in seconds.
        """
        unmetered, count = self._unmetered, 1.0 + spent_s / UNMETERED_S
        level = unmetered.refill(now)
        if level > -unmetered.rate:
            unmetered.add(-count)
        if level > 0:
            return 0.0
        return self._delay_s(count)

    def debt_s(self, now: float) -> float:
        """The delay, in seconds, of a request that may cause an expensive unmetered answer."""
        level = self._unmetered.refill(now)
        return self._delay_s(max(-level, 1.0)) if level <= 0 else 0.0

    def _delay_s(self, count: float) -> float:
        """The delay that keeps all connections of the caller together at the rate."""
        return min(count * self.connections / self._unmetered.rate, MAX_DELAY_S)

    def large_body_wait_s(self, now: float) -> float:
        """Seconds until a large body may be sent; 0 if it may be sent now."""
        large = self._large
        level = large.refill(now)
        return 0.0 if level > 0 else -level / large.rate + 0.001

    def read_large(self, size: float) -> None:
        """Count ``size`` bytes of large bodies."""
        self._large.add(-size)

    def read_expensive(self, body: bytes, spent_s: float) -> None:
        """Count the CPU seconds ``spent_s`` of parsing a large body, if they cost more than its bytes."""
        expensive = max(spent_s * PARSED_PER_S, VALUE_BYTES * body.count(b","))
        if expensive > len(body):
            self._large.add(len(body) - expensive)

    # --- refusals ---

    def connections_refusal(self, account: Account) -> Refusal:
        """The refusal of a request on a connection beyond the bound."""
        return Refusal(
            Reason.TOO_MANY_CONNECTIONS,
            f"entitlement {self.name!r} has {self.connections} connections to this proxy, and its limit is"
            f" {self.max_connections}; close idle connections",
            retry_after_s=1.0,
            account=account,
        )

    def memory_refusal(self, size: int, account: Account | None) -> Refusal:
        """The refusal of a request that needs ``size`` bytes beyond the bound."""
        is_unidentified = self is self._bounds.unidentified
        whose = "callers without a key" if is_unidentified else f"entitlement {self.name!r}"
        return Refusal(
            Reason.SIDECAR_FULL,
            f"requests and unread responses of {whose} use {self.buffered} bytes of this proxy's"
            f" memory; their limit is {self.max_bytes}, and this request needs {size} more; send"
            " fewer requests at once, and read responses as they arrive",
            retry_after_s=1.0,
            account=account,
        )

    def large_body_refusal(self, wait_s: float, account: Account | None) -> Refusal:
        """The refusal of a large body that arrived too soon after others."""
        return Refusal(
            Reason.SIDECAR_FULL,
            f"bodies of {LARGE_BODY} bytes or more arrive faster than this proxy accepts them from one"
            f" caller, {self._bounds.large_body_rate:.0f} bytes per second; retry in {wait_s:.2f} s, or"
            " send smaller bodies",
            retry_after_s=wait_s,
            account=account,
        )


class Bounds:
    """The bounds of all callers of one sidecar."""

    def __init__(
        self,
        max_connections: int,
        max_bytes: int,
        entitlement_share: float,
        unidentified_share: float,
        *,
        unmetered_rate: float = 500.0,
        large_body_rate: float = 4 << 20,
    ) -> None:
        self.max_connections = max_connections
        self.max_bytes = max_bytes
        self.unmetered_rate = unmetered_rate
        """Unmetered answers per second and caller; more are delayed."""
        self.large_body_rate = large_body_rate
        """Bytes per second and caller, of bodies of at least ``LARGE_BODY`` bytes."""
        self.connections = 0
        self.buffered = 0
        self._share = entitlement_share
        self.unidentified = Caller(self, UNIDENTIFIED, unidentified_share)
        """All connections without an accepted request, as one caller."""
        self._callers: dict[str, Caller] = {}

    def of(self, account: Account) -> Caller:
        """The caller of an entitlement, by name, so that its counters survive a changed pool file."""
        name = account.entitlement.name
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = Caller(self, name, self._share)
        return caller

    def largest(self) -> Caller:
        """The caller with the most connections."""
        return max((self.unidentified, *self._callers.values()), key=lambda caller: caller.connections)

    def pieces(self, label: Callable[[str], str], pool: str) -> Iterator[str]:
        """The metrics for Prometheus, in pieces. ``label`` returns the label of an entitlement."""
        totals: dict[str, list[int]] = {}
        callers = iter([self.unidentified, *self._callers.values()])
        while some := list(islice(callers, PER_PIECE)):
            for caller in some:
                total = totals.setdefault(label(caller.name), [0, 0, 0, 0])
                total[0] += caller.connections
                total[1] += caller.buffered
                total[2] += caller.cut
                total[3] += caller.delayed
            yield ""
        for place, family in enumerate(FAMILIES):
            yield family.head() + "".join(
                [
                    f'{family.series}{{entitlement="{name}",pool="{pool}"}} {total[place]}.0\n'
                    for name, total in totals.items()
                ]
            )
