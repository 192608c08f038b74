"""How much of the sidecar itself each caller may occupy: connections, bytes of memory, and time.

One rule for the first two: whoever it is may have at most a share of what the others leave. So one alone gets
that share of the whole, several divide it, and something is always left for who comes next.

Time is bounded where nothing else bounds it. An admitted request is paid for; a refusal, or a model list, is
not: after too many of those in a second they are delayed. And a large body holds up everybody while it is
read, so each caller may send so many bytes of them in a second.

Counting is arithmetic where a connection or a request begins and ends, and whoever finds no room is told the
figures; sockets are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from runtime.exposition import Family
from sidecar.controller.controller import Refusal
from sidecar.telemetry import NOBODY
from tokenpool.accounting.ledger import Account, TokenBucket
from tokenpool.outcomes import Reason

REQUEST_BYTES = 2048
"""What a request counts for beyond its body: its head, parsed, and what goes with it."""
LARGE_BODY = 16 * 1024
"""From here on a body counts as large."""
SKIMMED_PER_S = 400e6
"""Bytes: a text is read faster on slow machines, too. What takes longer counts as if it were longer."""
VALUE_BYTES = 24
"""What a value in a large body counts for: the engine makes an object of each."""
UNMETERED_S = 1e-4
"""What an unmetered answer takes, about. Where reading its request took longer, it counts as several."""
LONGEST_HOLD_S = 5.0
PER_PIECE = 100
"""Holders that are added up in one piece of the metrics: some 50 µs."""
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
        "Answers that nobody pays for, and that were too many to be given at once.",
        ("entitlement",),
    ),
)


class Holder:
    """What one entitlement occupies, or all callers who are not identified (yet)."""

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
        """Unpaid answers so far that were not given at once."""
        self._unmetered, self._large = TokenBucket(0.0), TokenBucket(0.0)
        self._unmetered.resize(bounds.unmetered_rate, bounds.unmetered_rate, 0.0)
        self._large.resize(bounds.large_body_rate, bounds.large_body_rate, 0.0)

    @property
    def most_connections(self) -> int:
        """How many connections it may have, as things are; one, wherever there is room for any."""
        bounds = self._bounds
        left = bounds.max_connections - (bounds.connections - self.connections)
        return min(left, max(int(self._share * left), 1))

    @property
    def most_bytes(self) -> int:
        """How many bytes it may have, as things are."""
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
        if self.buffered + size > self.most_bytes:
            return False
        self.give(-size)
        return True

    def give(self, size: int) -> None:
        """So many bytes are free again."""
        self.buffered -= size
        self._bounds.buffered -= size

    def unmetered_s(self, spent_s: float, now: float) -> float:
        """An answer is due that nobody pays for: how long to hold it back, lest all get too many of those.

        ``spent_s`` is what reading its request has taken.
        """
        unmetered, count = self._unmetered, 1.0 + spent_s / UNMETERED_S
        level = unmetered.refill(now)
        if level > -unmetered.rate:
            unmetered.add(-count)
        if level > 0:
            return 0.0
        return self._hold_s(count)

    def debt_s(self, now: float) -> float:
        """How long to delay what may become an expensive unmetered answer, after too many of those."""
        level = self._unmetered.refill(now)
        return self._hold_s(max(-level, 1.0)) if level <= 0 else 0.0

    def _hold_s(self, count: float) -> float:
        """So long that all its connections together get no more than the rate."""
        return min(count * self.connections / self._unmetered.rate, LONGEST_HOLD_S)

    def large_body_wait_s(self, now: float) -> float:
        """A large body is announced: 0 where it may come, else when to try again."""
        large = self._large
        level = large.refill(now)
        return 0.0 if level > 0 else -level / large.rate + 0.001

    def read_large(self, size: float) -> None:
        """So many bytes of large bodies come."""
        self._large.add(-size)

    def read_expensive(self, body: bytes, spent_s: float) -> None:
        """A large body was read in so much time: it may count for more than its bytes."""
        expensive = max(spent_s * SKIMMED_PER_S, VALUE_BYTES * body.count(b","))
        if expensive > len(body):
            self._large.add(len(body) - expensive)

    # --- what a caller is told ---

    def crowded(self, account: Account) -> Refusal:
        """There is no room for one more connection."""
        return Refusal(
            Reason.TOO_MANY_CONNECTIONS,
            f"entitlement {self.name!r} has as many connections to this proxy as it may"
            f" ({self.most_connections}); close idle ones",
            retry_after_s=1.0,
            account=account,
        )

    def full(self, size: int, account: Account | None) -> Refusal:
        """There is no room for so many bytes more."""
        is_nobody = self is self._bounds.nobody
        whose = "callers without a key" if is_nobody else f"entitlement {self.name!r}"
        return Refusal(
            Reason.SIDECAR_FULL,
            f"requests and unread answers of {whose} take {self.buffered} bytes of this proxy's"
            f" memory, of {self.most_bytes} that they may, and this request needs {size} more; send"
            " fewer at once, and read answers as they come",
            retry_after_s=1.0,
            account=account,
        )

    def hurried(self, wait_s: float, account: Account | None) -> Refusal:
        """A large body came too soon after others."""
        return Refusal(
            Reason.SIDECAR_FULL,
            f"bodies of {LARGE_BODY} bytes or more come faster than this proxy takes them from one"
            f" caller, {self._bounds.large_body_rate:.0f} bytes a second; come back in {wait_s:.2f} s, or"
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
        """Answers per second and holder that nobody pays for; more are delayed."""
        self.large_body_rate = large_body_rate
        """Bytes per second and holder, of bodies from ``LARGE_BODY`` on."""
        self.connections = 0
        self.buffered = 0
        self._share = entitlement_share
        self.nobody = Holder(self, NOBODY, unidentified_share)
        """The connections that no accepted request has identified."""
        self._holders: dict[str, Holder] = {}

    def of(self, account: Account) -> Holder:
        """What an entitlement occupies. It is remembered by name, as its counts in the metrics are."""
        name = account.entitlement.name
        holder = self._holders.get(name)
        if holder is None:
            holder = self._holders[name] = Holder(self, name, self._share)
        return holder

    def largest(self) -> Holder:
        """Who has the most connections."""
        return max((self.nobody, *self._holders.values()), key=lambda holder: holder.connections)

    def pieces(self, label: Callable[[str], str]) -> Iterator[str]:
        """For Prometheus, in pieces. ``label`` says under which name an entitlement is shown."""
        totals: dict[str, list[int]] = {}
        holders = iter([self.nobody, *self._holders.values()])
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
