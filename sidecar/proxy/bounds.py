"""How much of the sidecar itself each caller may occupy: connections, bytes of memory, and time.

One rule bounds connections and bytes. A caller may have at most a share of what the others leave. So a
single caller gets that share of the whole, several callers divide it, and something is always left for the
next one.

Time is bounded where no price bounds it. An admitted request is charged to its entitlement. A refusal or a
model list is not: after too many of these answers in a second, further ones are delayed. Parsing a large
body blocks the event loop (about 20 ms per 16 MiB), so each caller may send a limited number of bytes of
large bodies per second.

All of it is arithmetic at the beginning and the end of a connection or a request. A refusal states the
figures. Sockets are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from runtime.exposition import Family
from sidecar.decisions import Refusal
from sidecar.telemetry import NOBODY
from tokenpool.accounting.account import Account
from tokenpool.accounting.bucket import TokenBucket
from tokenpool.outcomes import Reason

REQUEST_BYTES = 2048
"""The bytes that a request counts for beyond its body: its parsed head and the objects of its exchange."""
LARGE_BODY = 16 * 1024
"""Bytes from which on a body counts as large."""
PARSED_PER_S = 400e6
"""Bytes of plain text that are parsed per second, also on slow machines. A slower body counts for more."""
VALUE_BYTES = 24
"""The bytes that each value in a large body counts for: the engine makes an object of each."""
UNMETERED_S = 1e-4
"""CPU seconds of an unmetered answer, about. If parsing its request took longer, it counts as several."""
MAX_DELAY_S = 5.0
"""The longest delay of an unmetered answer."""
PER_PIECE = 100
"""Holders that are added up in one piece of the metrics: about 50 µs."""
FAMILIES = (
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


class Holder:
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
        """Connections closed so far because the holder had too many, or left too much unread."""
        self.delayed = 0
        """Unmetered answers so far that were delayed."""
        self._unmetered, self._large = TokenBucket(0.0), TokenBucket(0.0)
        self._unmetered.resize(bounds.unmetered_rate, bounds.unmetered_rate, 0.0)
        self._large.resize(bounds.large_body_rate, bounds.large_body_rate, 0.0)

    @property
    def max_connections(self) -> int:
        """How many connections it may have now; at least one, while there is room for any."""
        bounds = self._bounds
        left = bounds.max_connections - (bounds.connections - self.connections)
        return min(left, max(int(self._share * left), 1))

    @property
    def max_bytes(self) -> int:
        """How many bytes it may have now."""
        bounds = self._bounds
        return int(self._share * (bounds.max_bytes - (bounds.buffered - self.buffered)))

    def join(self, buffered: int = 0) -> None:
        """A connection begins to count here, with what it has buffered."""
        self.connections += 1
        self._bounds.connections += 1
        self.give(-buffered)

    def leave(self, buffered: int = 0) -> None:
        """A connection counts here no longer."""
        self.connections -= 1
        self._bounds.connections -= 1
        self.give(buffered)

    def take(self, size: int) -> bool:
        """Occupy so many bytes, if that is within the bound; whether it was."""
        if self.buffered + size > self.max_bytes:
            return False
        self.give(-size)
        return True

    def give(self, size: int) -> None:
        """So many bytes are free again."""
        self.buffered -= size
        self._bounds.buffered -= size

    def unmetered_s(self, spent_s: float, now: float) -> float:
        """Count an unmetered answer that is due: how many seconds to delay it, 0 while there were few.

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
        """Seconds to delay a request whose answer may be unmetered and expensive, after too many of these."""
        level = self._unmetered.refill(now)
        return self._delay_s(max(-level, 1.0)) if level <= 0 else 0.0

    def _delay_s(self, count: float) -> float:
        """A delay with which all its connections together get no more than the rate."""
        return min(count * self.connections / self._unmetered.rate, MAX_DELAY_S)

    def large_body_wait_s(self, now: float) -> float:
        """Seconds until a large body may be sent; 0 if it may be sent now."""
        large = self._large
        level = large.refill(now)
        return 0.0 if level > 0 else -level / large.rate + 0.001

    def read_large(self, size: float) -> None:
        """So many bytes of large bodies arrive."""
        self._large.add(-size)

    def read_expensive(self, body: bytes, spent_s: float) -> None:
        """A large body took ``spent_s`` CPU seconds to parse: it may count for more than its bytes."""
        expensive = max(spent_s * PARSED_PER_S, VALUE_BYTES * body.count(b","))
        if expensive > len(body):
            self._large.add(len(body) - expensive)

    # --- refusals ---

    def connections_refusal(self, account: Account) -> Refusal:
        """There is no room for one more connection."""
        return Refusal(
            Reason.TOO_MANY_CONNECTIONS,
            f"entitlement {self.name!r} has as many connections to this proxy as it may"
            f" ({self.max_connections}); close idle ones",
            retry_after_s=1.0,
            account=account,
        )

    def memory_refusal(self, size: int, account: Account | None) -> Refusal:
        """There is no room for so many bytes more."""
        is_unidentified = self is self._bounds.unidentified
        whose = "callers without a key" if is_unidentified else f"entitlement {self.name!r}"
        return Refusal(
            Reason.SIDECAR_FULL,
            f"requests and unread answers of {whose} take {self.buffered} bytes of this proxy's"
            f" memory; their limit is {self.max_bytes}, and this request needs {size} more; send"
            " fewer at once, and read answers as they arrive",
            retry_after_s=1.0,
            account=account,
        )

    def large_body_refusal(self, wait_s: float, account: Account | None) -> Refusal:
        """A large body arrived too soon after others."""
        return Refusal(
            Reason.SIDECAR_FULL,
            f"bodies of {LARGE_BODY} bytes or more arrive faster than this proxy accepts them from one"
            f" caller, {self._bounds.large_body_rate:.0f} bytes per second; retry in {wait_s:.2f} s, or"
            " send smaller ones",
            retry_after_s=wait_s,
            account=account,
        )


class Bounds:
    """All holders of one sidecar."""

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
        """Unmetered answers per second and holder; further ones are delayed."""
        self.large_body_rate = large_body_rate
        """Bytes per second and holder, of bodies from ``LARGE_BODY`` on."""
        self.connections = 0
        self.buffered = 0
        self._share = entitlement_share
        self.unidentified = Holder(self, NOBODY, unidentified_share)
        """The connections that no accepted request has identified."""
        self._holders: dict[str, Holder] = {}

    def of(self, account: Account) -> Holder:
        """The holder of an entitlement. It is kept by name, as its counts in the metrics are."""
        name = account.entitlement.name
        holder = self._holders.get(name)
        if holder is None:
            holder = self._holders[name] = Holder(self, name, self._share)
        return holder

    def largest(self) -> Holder:
        """The holder with the most connections."""
        return max((self.unidentified, *self._holders.values()), key=lambda holder: holder.connections)

    def pieces(self, label: Callable[[str], str]) -> Iterator[str]:
        """For Prometheus, in pieces. ``label`` says under which name an entitlement is shown."""
        totals: dict[str, list[int]] = {}
        holders = iter([self.unidentified, *self._holders.values()])
        while some := list(islice(holders, PER_PIECE)):
            for holder in some:
                total = totals.setdefault(label(holder.name), [0, 0, 0, 0])
                total[0] += holder.connections
                total[1] += holder.buffered
                total[2] += holder.cut
                total[3] += holder.delayed
            yield ""
        for place, family in enumerate(FAMILIES):
            yield family.head() + "".join(
                [
                    f'{family.series}{{entitlement="{name}"}} {total[place]}.0\n'
                    for name, total in totals.items()
                ]
            )
