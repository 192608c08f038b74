"""The lease store: the exact account of one pool's limits, and of what every sidecar holds of them.

Pure, with ``now`` from the clock of whoever keeps the lease store. A store keeps them (in memory as they are;
in Redis the same rules as scripts), and one contract suite holds both to what is written here:

- What is held never adds up to more than the limit by a decision of the lease store. Only what runs already
  is booked beyond it: after a limit shrank, or when books start anew.
- A message names only changed entitlements. It states totals (current use, wanted leases, all use and service
  since the holder began), never differences, and has a number. Each row keeps the number of the message that
  wrote it. So several messages may be in flight, and a lost, duplicated or late message does no harm.
- What a sidecar may come to hold before it hears the answer (its *bound*) stays booked until its next
  message: an answer that is lost frees nothing that is still in use.
- Every lease expires. A holder that renews nothing for a lifetime holds nothing, and must begin again with a
  complete message.
- Limits are published for active entitlements. For any other the holder states the limit that
  follows from the pool's ``IdleTerms``, which every answer carries. So an idle entitlement costs nothing.
- Limits carry the epoch of the coordinator that wrote them; an older one is refused.
- New lease store, and books that nobody wrote in for a lifetime, are closed for one: first everyone has
  booked what runs, then more is given out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from tokenpool.amounts import NOTHING, Amount
from tokenpool.planning.idle import IdleTerms

Vector = tuple[float, float, float]
"""An amount on the wire: tokens per second, KV tokens, sequences."""

_EPSILON = 1e-6
"""Slack of sums of fractions before they are rounded down."""
_ZERO: Vector = (0.0, 0.0, 0.0)

REMEMBER_S = 60.0
"""How long the lease store knows what a silent sidecar had spent."""
CONTENDED_S = 0.5
"""How long sidecars hold nothing beyond use after one of them was short; asked anew after half of it."""
WAIT_S = 0.25
"""How long a sidecar that was refused is told when something comes free."""
FLOOR_MEMORY_S = 60.0
"""Time constant with which the largest request of a page fades when nobody repeats it.

With 5 s, who sent one in three seconds had a limit of half a request when the next one came."""


class Limit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one entitlement may use pool-wide. Positional on the wire: new fields go to the end."""

    tokens_per_second: float = 0.0
    kv_tokens: float = 0.0
    concurrency: float = 0.0
    depth: float = 0.0
    """Tokens that its bucket holds."""
    assured_kv_tokens: float = 0.0
    assured_concurrency: float = 0.0
    debt: float = 0.0
    """In seconds of service; kept here, so that a new coordinator has nothing to learn by heart."""

    @property
    def amount(self) -> Amount:
        """The limit in each dimension."""
        return Amount(self.tokens_per_second, self.kv_tokens, self.concurrency)

    @property
    def assured(self) -> Amount:
        """What never needs physical room on an engine."""
        return Amount(0.0, self.assured_kv_tokens, self.assured_concurrency)


NO_LIMIT = Limit()


class Holding(NamedTuple):
    """What one sidecar says of one entitlement. Positional on the wire: new fields go to the end."""

    kv_in_use: float = 0.0
    concurrency_in_use: float = 0.0
    kv_bound: float = 0.0
    """The most it may come to hold before it hears the answer."""
    concurrency_bound: float = 0.0
    kv_wanted: float = 0.0
    """To hold in all, what runs included."""
    concurrency_wanted: float = 0.0
    tokens_spent: float = 0.0
    """Throughput tokens charged less refunds, since this holder began. It may fall."""
    tokens_wanted: float = 0.0
    """To be able to spend before the next message."""
    is_urgent: bool = False
    """A request waits: where the answer falls short, others are asked to return what they do not use."""
    demand: Vector = _ZERO
    """Offered of late, shed requests included."""
    kv_seconds: float = 0.0
    """KV-token-seconds held, since this holder began."""
    concurrency_seconds: float = 0.0
    """Sequence-seconds held, since this holder began."""
    fresh: Vector = _ZERO
    """Demand without the retries of what was shed."""
    floor: Vector = _ZERO
    """A typical request's tokens, the largest one's KV tokens and sequences."""
    is_last: bool = False
    """The holder holds nothing and sends nothing until it does: the lease store drop its row."""
    idle_limit: Limit = NO_LIMIT
    """The limit that counts if none is published for this entitlement."""


class Lease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one sidecar holds of a limit, and where the pool stands. Positional on the wire."""

    kv_tokens: float = 0.0
    concurrency: float = 0.0
    tokens: float = 0.0
    limit: Limit = Limit()
    level: float = 0.0
    """Of the bucket, less what all sidecars hold of it."""
    kv_elsewhere: float = 0.0
    """In use at other sidecars, as they last said."""
    concurrency_elsewhere: float = 0.0
    is_contended: bool = False
    """A sidecar lacked capacity a moment ago: holders should return unused leases."""
    kv_unheld: float = 0.0
    """The part of the limit that no sidecar holds."""
    concurrency_unheld: float = 0.0
    tokens_elsewhere: float = 0.0
    """The part of the bucket that other sidecars hold."""


NO_LEASE = Lease()


@dataclass(frozen=True, slots=True)
class Message:
    """One sidecar's word to the lease store."""

    holder: str
    number: int
    """Rises with every message of this holder."""
    holdings: Mapping[str, Holding]
    is_complete: bool = True
    """Whether a lifetime begins. Leases neither in ``holdings`` nor in ``kept`` are returned."""
    report: bytes = b""
    """For the coordinator.

    The lease store does not decode it. Only in messages that begin or renew a lifetime.
    """
    kept: Sequence[str] = ()
    """In a complete message: other held entitlements. Messages that follow at once state them."""
    renews: bool = False
    """Whether the lifetime starts again, for a holder that is known to be alive."""

    @property
    def carries_report(self) -> bool:
        """Whether the sender adds the sidecar's report."""
        return self.is_complete or self.renews


@dataclass(frozen=True, slots=True)
class Answer:
    """What the lease store answers a sidecar."""

    leases: Mapping[str, Lease] = field(default_factory=dict)
    is_open: bool = False
    """Whether the lease store gives out anything yet."""
    sidecars: int = 0
    """How many sidecars the lease store knows to live."""
    file_version: str = ""
    """Of the pool file that the coordinator leads with."""
    unled_s: float = math.inf
    """How long ago a coordinator published limits."""
    terms: IdleTerms = IdleTerms()
    """The state of the pool in the last plan."""
    is_known: bool = False
    """Whether the holder is known to be alive. If not, the lease store accept only a complete message."""
    rows: int = 0
    """The number of entitlements with a row of the holder. If it differs from the holder's own count, the
    holder sends a complete message."""


class Push(NamedTuple):
    """A word from the lease store to one sidecar, between its messages. It may be lost."""

    holder: str
    kind: str
    """``reclaim``: return what is not in use. ``freed``: ask again."""
    entitlement: str


def level_of(level: float, depth: float, limit: Limit, elapsed_s: float, is_open: bool) -> float:
    """What a bucket holds ``elapsed_s`` after it held ``level``, by the limit that stands now.

    ``depth`` is that of the limit before: a bucket that is new starts full. While the lease store is closed
    it runs over: against what came in while nobody spoke, everyone has yet to book what was spent.
    """
    if depth == 0 or limit.depth == 0:
        return limit.depth
    level += limit.tokens_per_second * elapsed_s
    return min(level, limit.depth) if is_open else level


RECLAIM, FREED = "reclaim", "freed"


class Page(msgspec.Struct, frozen=True, gc=False):
    """One entitlement as the coordinator reads it: sums over all sidecars."""

    limit: Limit = Limit()
    level: float = 0.0
    held: Amount = NOTHING
    """KV tokens and sequences held; for throughput the tokens granted."""
    in_use: Amount = NOTHING
    demand: Amount = NOTHING
    served: Amount = NOTHING
    """Tokens spent, KV-token-seconds and sequence-seconds, since the page began: service is its rate.

    A sum of rates that were true at other times would not do: whoever is busy reports late and is sampled
    less, and large requests would look a quarter smaller than they are.
    """
    fresh: Amount = NOTHING
    floor: Amount = NOTHING
    """A typical request's tokens, the largest one's KV tokens and sequences."""


@dataclass(frozen=True, slots=True)
class Census:
    """All that the lease store knows, at one moment."""

    pages: Mapping[str, Page]
    reports: Mapping[str, bytes]
    """Of every sidecar that lives."""
    epoch: int
    is_open: bool
    """Whether the lease store gives: not while they are new, nor when nobody has spoken for a lifetime."""
    at: float = 0.0
    """Seconds by the clock of the lease store."""
    file_version: str = ""
    """Of the pool file that is published."""


# The part of a page that is summed over its holders.
_KV, _CONCURRENCY, _TOKENS, _KV_USED, _CONCURRENCY_USED = range(5)
_DEMAND, _FRESH = 5, 8
_WIDTH = 11
_NOBODY = (0.0,) * _WIDTH


class _Row:
    """One sidecar's part of an entitlement."""

    __slots__ = ("number", "served", "values")

    def __init__(self, served: Vector) -> None:
        self.number = -1
        """The number of the message that wrote it."""
        self.served = served
        """Totals of its holder, as last said."""
        self.values: tuple[float, ...] = _NOBODY


class _Page:
    """One entitlement's page: its limit, its bucket, its holders."""

    __slots__ = (
        "at",
        "contended_until",
        "depth",
        "floor",
        "level",
        "limit",
        "rows",
        "served",
        "sums",
        "waiters",
    )

    def __init__(self, now: float) -> None:
        self.limit = NO_LIMIT
        """The published limit, or else the last one that a holder stated."""
        self.level = 0.0
        self.depth = 0.0
        """Of the limit by which the bucket was filled last; 0 where it had none."""
        self.at = now
        self.contended_until = -math.inf
        self.floor: list[float] = [0.0, 0.0, 0.0]
        self.sums = list(_NOBODY)
        self.served = [0.0, 0.0, 0.0]
        self.rows: dict[str, _Row] = {}
        self.waiters: dict[str, float] = {}

    def refill(self, now: float, is_open: bool) -> None:
        """Bring bucket and floor up to date; a clock that stands still adds nothing."""
        elapsed = max(now - self.at, 0.0)
        self.level = level_of(self.level, self.depth, self.limit, elapsed, is_open)
        self.depth = self.limit.depth
        if elapsed > 0:
            kept = math.exp(-elapsed / FLOOR_MEMORY_S)
            self.floor = [value * kept for value in self.floor]
            self.at = now

    def write(self, row: _Row, values: tuple[float, ...]) -> None:
        """Replace a row, and keep the sums."""
        sums, old = self.sums, row.values
        for i in range(_WIDTH):
            sums[i] += values[i] - old[i]
        row.values = values

    def charge(self, row: _Row, served: Vector, is_open: bool) -> None:
        """Book what a holder spent and held since it last said so."""
        tokens, cache, sequences = row.served
        self.level -= served[0] - tokens
        if is_open:
            self.level = min(self.level, self.limit.depth)
        self.served[0] += served[0] - tokens
        self.served[1] += served[1] - cache
        self.served[2] += served[2] - sequences
        row.served = served

    def drop(self, holder: str) -> None:
        """Forget a row; with nobody left the sums are nothing, exactly."""
        row = self.rows.pop(holder, None)
        if row is not None:
            self.write(row, _NOBODY)
            if not self.rows:
                self.sums = list(_NOBODY)

    def view(self, limit: Limit, now: float, is_open: bool) -> Page:
        """The page as of now, with the published limit. This call changes no state."""
        s, elapsed = self.sums, max(now - self.at, 0.0)
        kept = math.exp(-elapsed / FLOOR_MEMORY_S)
        return Page(
            limit,
            level_of(self.level, self.depth, limit, elapsed, is_open),
            Amount(s[_TOKENS], s[_KV], s[_CONCURRENCY]),
            Amount(0.0, s[_KV_USED], s[_CONCURRENCY_USED]),
            Amount(*s[_DEMAND : _DEMAND + 3]),
            Amount(*self.served),
            Amount(*s[_FRESH : _FRESH + 3]),
            Amount(*(value * kept for value in self.floor)),
        )


class _Holder:
    """One sidecar."""

    __slots__ = ("at", "expires_at", "is_alive", "names", "number", "report")

    def __init__(self) -> None:
        self.number = -1
        """The number of its last complete message."""
        self.at = -math.inf
        self.expires_at = -math.inf
        self.is_alive = False
        self.names: set[str] = set()
        self.report = b""


class ReferenceLeaseStore:
    """The lease store of one pool."""

    def __init__(self, now: float, lifetime_s: float) -> None:
        self._lifetime_s = lifetime_s
        self._opens_at = now + lifetime_s
        self._heard_at = now
        self._led_at = -math.inf
        self._limits: dict[str, Limit] = {}
        self._terms = IdleTerms()
        self._pages: dict[str, _Page] = {}
        self._holders: dict[str, _Holder] = {}
        self._alive = 0
        self._expire_at = math.inf
        """Nobody expires, and nobody is forgotten, before."""
        self.epoch = 0
        """Of the coordinator whose limits stand; 0 before the first."""
        self.file_version = ""
        self.file = b""
        self.pushes: list[Push] = []
        """What is to be said to sidecars; whoever keeps the lease store takes it away."""

    # --- the coordinator's side ---

    def publish(self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int, now: float) -> bool:
        """Replace all limits, unless a later coordinator has written already; whether they stand now.

        No page is brought up to date for it: its next reader or writer does that, by the limit that stands
        then. An entitlement without a limit loses its page when no holder has a row of it.
        """
        if epoch < self.epoch:
            return False
        self.epoch, self._led_at = epoch, now
        self._limits, self._terms = dict(limits), terms
        for name in [name for name, page in self._pages.items() if not page.rows and name not in limits]:
            del self._pages[name]
        return True

    def publish_file(self, version: str, content: bytes, epoch: int) -> bool:
        """Replace the pool file that all sidecars enforce, unless a later coordinator has written already."""
        if epoch < self.epoch:
            return False
        self.epoch, self.file_version, self.file = epoch, version, content
        return True

    def read(self, now: float) -> Census:
        """Everything, for one tick of the coordinator."""
        self._expire(now)
        is_open = self._is_open(now) and now - self._heard_at <= self._lifetime_s
        pages = {name: self._view(name, now, is_open) for name in {**self._limits, **self._pages}}
        return Census(
            pages,
            {name: holder.report for name, holder in self._holders.items() if holder.is_alive},
            self.epoch,
            is_open,
            now,
            self.file_version,
        )

    def _view(self, name: str, now: float, is_open: bool) -> Page:
        page, limit = self._pages.get(name), self._limits.get(name, NO_LIMIT)
        return page.view(limit, now, is_open) if page is not None else Page(limit, limit.depth)

    def page(self, name: str, now: float) -> Page | None:
        """One entitlement."""
        if name not in self._pages and name not in self._limits:
            return None
        return self._view(name, now, self._is_open(now))

    def limits(self) -> tuple[Mapping[str, Limit], IdleTerms]:
        """All published limits, and the terms for every other entitlement."""
        return dict(self._limits), self._terms

    # --- the sidecars' side ---

    def exchange(self, message: Message, now: float) -> Answer:
        """Book what a sidecar says, and answer with what it holds.

        A complete message begins a lifetime, and returns whatever it does not name (a sidecar names it once
        more with all that it spent, and waits for the answer, before it stops). A message that is not later
        than the holder's last complete one books nothing and is answered with what stands; so does each row
        that a later message wrote already.
        """
        self._expire(now)
        if now - self._heard_at > self._lifetime_s:
            self._opens_at = now + self._lifetime_s
        self._heard_at = now
        is_open = self._is_open(now)
        me = message.holder
        holder = self._holders.get(me)
        if holder is None:
            holder = self._holders[me] = _Holder()
        is_late = message.number <= holder.number
        if not is_late:
            holder.at = now
            self._expire_at = min(self._expire_at, now + REMEMBER_S)
        if message.is_complete and not is_late:
            self._begin(holder, message, now)
        lease_store = not is_late and holder.is_alive
        if lease_store and (message.is_complete or message.renews):
            holder.expires_at = now + self._lifetime_s
            self._expire_at = min(self._expire_at, holder.expires_at)
            holder.report = message.report
        leases = {}
        for name, said in message.holdings.items():
            page = self._pages.get(name)
            row = page.rows.get(me) if page is not None else None
            if not lease_store or (row is not None and row.number >= message.number):
                leases[name] = self._standing(me, name, said, now)
            else:
                leases[name] = self._book(me, holder, name, said, message.number, now, is_open)
        return Answer(
            leases,
            self._is_open(now),
            self._alive,
            self.file_version,
            now - self._led_at,
            self._terms,
            holder.is_alive,
            len(holder.names),
        )

    def _begin(self, holder: _Holder, message: Message, now: float) -> None:
        """Apply a complete message: its holder is alive, and holds only the named entitlements."""
        if not holder.is_alive:
            holder.is_alive = True
            self._alive += 1
        holder.number = message.number
        for name in sorted(holder.names.difference(message.holdings, message.kept)):
            page = self._pages[name]
            if page.rows[message.holder].number < message.number:
                page.drop(message.holder)
                holder.names.discard(name)
                if name in self._limits:
                    page.limit = self._limits[name]
                    page.refill(now, self._is_open(now))
                    self._tell_waiters(name, page, message.holder, now)

    def _is_open(self, now: float) -> bool:
        return now >= self._opens_at

    def _page(self, name: str, said: Holding, now: float) -> _Page:
        """The page with the limit in force."""
        page = self._pages.get(name)
        if page is None:
            page = self._pages[name] = _Page(now)
        page.limit = self._limits.get(name, said.idle_limit)
        return page

    def _standing(self, holder: str, name: str, said: Holding, now: float) -> Lease:
        page = copy(self._pages.get(name)) or _Page(now)
        page.limit = self._limits.get(name, said.idle_limit)
        page.refill(now, self._is_open(now))
        row = page.rows.get(holder)
        values = row.values if row is not None else _NOBODY
        return _lease(page, values, values[_KV], values[_CONCURRENCY], values[_TOKENS], now)

    def _book(
        self,
        me: str,
        holder: _Holder,
        name: str,
        said: Holding,
        number: int,
        now: float,
        is_open: bool,
    ) -> Lease:
        page = self._page(name, said, now)
        page.refill(now, is_open)
        row, served = page.rows.get(me), (said.tokens_spent, said.kv_seconds, said.concurrency_seconds)
        if row is None:
            row = page.rows[me] = _Row(served)
            holder.names.add(name)
        row.number = number
        page.charge(row, served, is_open)
        limit, sums, old = page.limit, page.sums, row.values
        page.floor = [max(a, b) for a, b in zip(page.floor, said.floor, strict=True)]
        kv_tokens = concurrency = tokens = 0.0
        if is_open:
            kv_tokens = min(said.kv_wanted, limit.kv_tokens - (sums[_KV] - old[_KV]))
            free = limit.concurrency - (sums[_CONCURRENCY] - old[_CONCURRENCY])
            # Whole sequences: parts of one at several sidecars are of no use to any of them.
            concurrency = float(math.floor(min(said.concurrency_wanted, free) + _EPSILON))
            tokens = max(min(said.tokens_wanted, page.level - (sums[_TOKENS] - old[_TOKENS])), 0.0)
        # May be less than what runs: then nothing new begins until enough of it has ended.
        kv_tokens, concurrency = max(kv_tokens, 0.0), max(concurrency, 0.0)
        page.write(
            row,
            (
                max(kv_tokens, said.kv_in_use, said.kv_bound),
                max(concurrency, said.concurrency_in_use, said.concurrency_bound),
                tokens,
                said.kv_in_use,
                said.concurrency_in_use,
                *said.demand,
                *said.fresh,
            ),
        )
        is_short = (
            kv_tokens < said.kv_wanted or concurrency < said.concurrency_wanted or tokens < said.tokens_wanted
        )
        if said.is_urgent and is_short:
            page.waiters = {other: until for other, until in page.waiters.items() if until > now}
            page.waiters[me] = now + WAIT_S
            if page.contended_until < now + CONTENDED_S / 2:
                page.contended_until = now + CONTENDED_S
                self._reclaim(name, page, me)
        else:
            self._tell_waiters(name, page, me, now)
        lease = _lease(page, row.values, kv_tokens, concurrency, tokens, now)
        if said.is_last:
            page.drop(me)
            holder.names.discard(name)
        return lease

    def _reclaim(self, name: str, page: _Page, asker: str) -> None:
        """Ask everyone else who holds something to return what is not in use."""
        for other in sorted(page.rows):
            values = page.rows[other].values
            if other != asker and (values[_KV] > 0 or values[_CONCURRENCY] > 0 or values[_TOKENS] > 0):
                self.pushes.append(Push(other, RECLAIM, name))

    def _tell_waiters(self, name: str, page: _Page, teller: str, now: float) -> None:
        """Where there is something to be had now, say so to those who were refused."""
        if not page.waiters:
            return
        limit, sums = page.limit, page.sums
        if (
            limit.kv_tokens > sums[_KV]
            and limit.concurrency > sums[_CONCURRENCY]
            and page.level > sums[_TOKENS]
        ):
            for other, until in sorted(page.waiters.items()):
                if other != teller and until > now:
                    self.pushes.append(Push(other, FREED, name))
            page.waiters = {}

    def _expire(self, now: float) -> None:
        """Take back the leases of sidecars that have said nothing complete for a lifetime.

        What they had spent is remembered for a while: one that was cut off and comes back is charged for
        what it spent unheard.
        """
        if now < self._expire_at:
            return
        for name, holder in list(self._holders.items()):
            if holder.is_alive and holder.expires_at <= now:
                holder.is_alive = False
                self._alive -= 1
                for entitlement in sorted(holder.names):
                    page = self._pages[entitlement]
                    page.write(page.rows[name], _NOBODY)
            if not holder.is_alive and holder.at + REMEMBER_S <= now:
                for entitlement in sorted(holder.names):
                    self._pages[entitlement].drop(name)
                del self._holders[name]
        ends = [h.expires_at if h.is_alive else h.at + REMEMBER_S for h in self._holders.values()]
        self._expire_at = min(ends, default=math.inf)


def _lease(
    page: _Page,
    mine: Iterable[float],
    kv_tokens: float,
    concurrency: float,
    tokens: float,
    now: float,
) -> Lease:
    values, sums = tuple(mine), page.sums
    return Lease(
        kv_tokens,
        concurrency,
        tokens,
        page.limit,
        page.level - sums[_TOKENS],
        sums[_KV_USED] - values[_KV_USED],
        sums[_CONCURRENCY_USED] - values[_CONCURRENCY_USED],
        now < page.contended_until,
        page.limit.kv_tokens - sums[_KV],
        page.limit.concurrency - sums[_CONCURRENCY],
        sums[_TOKENS] - values[_TOKENS],
    )
