"""Leases: a sidecar's side of the lease store. What it holds of every limit, asks for, and does without them.

Pure, with ``now`` from the sidecar's monotonic clock. A driver (the sidecar's replication, or a simulation)
calls ``tick`` once an interval, carries every ``next_message`` to the lease store and brings its answer back.

- Leases decide requests. If a lease is too small and the last answer showed ample room, a request is admitted
  and reported afterwards (``_take_ahead`` has the bound). Otherwise it waits: the next message says so, and
  the lease store ask other holders to return unused leases.
- A request is never refused before the lease store answers for it, unless they fail. After that answer it
  waits for capacity as long as its tier allows.
- Messages name changed entitlements. Several are in flight, so no request waits behind a long message.
  Only one of them names a given entitlement. A complete message follows each failed one.
- Before a message leaves, what it no longer asks for is given up here; so the lease store may give it away.
- Everything held expires here before it expires in the lease store.
- Without the lease store each sidecar goes on with a *share*: a limit divided by the last known number of
  sidecars.
- The work depends on the number of active entitlements (``_lines``), not on all that exist.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tokenpool.accounting.ledger import Account, bucket_depth
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Tier
from tokenpool.leases.messages import CONTENDED_S, NO_LIMIT, Answer, Lease, LeaseRequest, Limit, Message
from tokenpool.planning.allocation import IdleTerms
from tokenpool.planning.planner import Report, idle_share
from tokenpool.pricing.cost import Cost

MARGIN = 0.2
"""The part of a lifetime by which a lease expires here before it does in the lease store."""
SPARE = 0.25
"""Held beyond what was in use at once of late, as a share of it."""
PEAKS = 4
"""Intervals over which the most in use is remembered."""
HORIZON = 2.0
"""Tokens are held for so many intervals at the rate of demand: a message may be one interval late."""
GROWTH = 2.0
"""Tokens held, at least, as a multiple of those spent since the last complete message."""
ASK_AGAIN_S, LONGEST_ASK_AGAIN_S = 0.006, 0.2
"""The time after which a waiting request asks again without a push. It grows, but stays below the time for
which the lease store remember waiting holders (``WAIT_S``)."""
RECLAIM_S, RECLAIM_TRIPS, LONGEST_RECLAIM_S = 0.1, 10, 2.0
"""How long others may take to return what they do not use: so long, or so many round trips."""
ROUND_TRIP_KEPT = 0.8
"""How slowly a long round trip is forgotten, per answer: one quick answer does not make slow books quick."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.25
"""How long the sidecar does not ask for an entitlement without free capacity; it doubles each time."""
ANSWER_S = 1.0
"""The longest wait of a request for the first answer. A store that takes longer has already failed."""
MOST_WAITING = 64
"""The most requests of one entitlement that wait for capacity; further requests are decided at once."""
MOST_ROWS = 50
"""The most entitlements in one message: about 1 ms of Redis (24 us each). The next one names the others."""
PER_STEP = 20
"""Entitlements in one step of a tick: about 0.4 ms."""
MOST_UNDER_WAY = 8
"""The most messages in flight. With one, a request 40 ms from the store waited for another's answer."""
AMPLE = 0.25
"""The part of live capacity that must be free, in each dimension, for an admission before the report."""
AHEAD_SHARE = 0.5
"""The part of the free capacity that all sidecars together may take before they report it."""
FRESH_INTERVALS = 2.0
"""The largest age of the entitlement's last answer, in intervals, for an admission before the report."""
CHANGED = 0.1
"""A smaller relative change of demand is not reported."""
UNEVEN = 3.0
"""Standard deviations of requests at random places for which a share of a guarantee leaves room."""
_MOST_RATE = 1e12
"""Tokens/s that stand for no bound: an infinite rate would make a bucket's level undefined."""


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """The constants of the protocol. Seconds."""

    lifetime_s: float = 1.5
    interval_s: float = 0.25


class Mode(StrEnum):
    """How a sidecar stands with the lease store."""

    JOINED = "joined"
    """It decides from leases."""
    JOINING = "joining"
    """The lease store is new, closed, or have no limits yet: it decides from shares, and reports."""
    EXPIRED = "expired"
    """It is new, or was asleep for longer than its leases live.

    It holds nothing until the lease store answers.
    """
    CUT_OFF = "cut_off"
    """The lease store does not answer, and what was held has expired: it decides from shares."""


class Waiter:
    """A request that waits for a larger lease."""

    __slots__ = ("account", "cost", "deadline", "decide", "heard_at", "patience_s", "since")

    def __init__(
        self, account: Account, cost: Cost, since: float, patience_s: float, decide: Callable[[], None]
    ) -> None:
        self.account = account
        self.cost = cost
        self.since = since
        self.patience_s = patience_s
        """The longest wait for capacity, in seconds, after the lease store answered that none is free."""
        self.heard_at = math.inf
        """The time of the first answer to a message that asked for this request."""
        self.deadline = since + max(patience_s, ANSWER_S)
        self.decide = decide
        """Called once, when there is enough or the time is up; what it admits is booked when it returns."""


class _Line:
    """The state of one active entitlement in the exchange with the lease store."""

    __slots__ = (
        "ahead",
        "ask_again_at",
        "contended_until",
        "fresh",
        "heard_at",
        "is_idle",
        "number",
        "pause_s",
        "peaks",
        "report",
        "said",
        "share_tokens",
        "short_until",
        "tokens_elsewhere",
        "under_way",
        "waiters",
    )

    def __init__(self) -> None:
        self.waiters: deque[Waiter] = deque()
        self.peaks: deque[tuple[int, int]] = deque(maxlen=PEAKS)
        self.report = Report()
        self.fresh = NOTHING
        self.is_idle = False
        self.contended_until = -math.inf
        self.ask_again_at = math.inf
        self.short_until = -math.inf
        """The lease store had nothing left: until this time the sidecar does not ask for each new request."""
        self.pause_s = FIRST_PAUSE_S
        self.said: LeaseRequest | None = None
        """The last holding that was sent; ``None`` if it must be sent again."""
        self.number = -1
        """The number of the message with that holding."""
        self.under_way = False
        """Whether that message is still unanswered."""
        self.heard_at = -math.inf
        self.tokens_elsewhere = 0.0
        """The part of the bucket that other sidecars hold."""
        self.share_tokens: float | None = None
        """Tokens left of this sidecar's share while the lease store fails; ``None`` otherwise."""
        self.ahead = (0.0, 0.0, 0.0)
        """Tokens, KV tokens and sequences that the sidecar may still take before a report."""

    def soothe(self) -> None:
        """Capacity may be free: ask again."""
        self.short_until, self.pause_s = -math.inf, FIRST_PAUSE_S

    def disappoint(self, account: Account, now: float) -> None:
        """The lease store had nothing left. For a while the sidecar does not ask them for each new request.

        An empty bucket refills by itself. A push reports other free capacity, so a pause may be long.
        """
        rate = account.pool_limit.tokens_per_second
        if account.level < 0 and rate > 0:
            self.short_until = now + min(-account.level / rate, LONGEST_PAUSE_S)
        else:
            self.short_until = now + self.pause_s
            self.pause_s = min(self.pause_s * 2, LONGEST_PAUSE_S)


class Leases:
    """All that one sidecar holds."""

    def __init__(self, holder: str, settings: LeaseSettings, sidecars: int) -> None:
        self.holder = holder
        self.settings = settings
        self.mode = Mode.EXPIRED
        self.sidecars = max(sidecars, 1)
        """How many there are, as the lease store last said; until then, as many as there may be."""
        self.failures = 0
        """Messages in a row that were not answered."""
        self.unled_s = 0.0
        """How long nobody has published limits, as the lease store last said."""
        self.round_trip_s = 0.0
        """Of the last message, or less and less of a longer one before."""
        self.expires_at = -math.inf
        self.answered_at: float | None = None
        self.terms = IdleTerms()
        """The state of the pool in the last answer."""
        self._number = 0
        self._accounts: Mapping[str, Account] = {}
        self._lines: dict[str, _Line] = {}
        self._limits: Mapping[str, Limit] = {}
        self._is_led = False
        """Whether limits or terms were ever received."""
        self._reserved_for = 0
        """The number of sidecars at the last opening of lines for guarantees."""
        self._waiting: set[str] = set()
        """Entitlements with requests that wait, or waited a moment ago."""
        self._urgent: set[str] = set()
        self._returns: set[str] = set()
        self._changed: dict[str, None] = {}
        """Entitlements whose change is not urgent, oldest first."""
        self._is_renewal_due = False
        self._must_complete = True
        self._under_way: dict[int, tuple[Message, float]] = {}
        """Unanswered messages, with the time at which each was sent."""
        self._pool_ahead = (0.0, 0.0, 0.0)
        """As ``_Line.ahead``, for all entitlements together."""
        self.lease_waits = 0
        """Requests that waited so far."""
        self.lease_waited_s = 0.0
        """... and for how long, all together."""
        self.taken_ahead = 0
        """The number of requests that were admitted before their report."""

    # --- what the accounts are ---

    def follow(self, accounts: Mapping[str, Account], now: float) -> None:
        """The accounts in force. Those that are new hold nothing until they are asked for."""
        gone = [line for name, line in self._lines.items() if name not in accounts]
        self._accounts = accounts
        self._lines = {name: line for name, line in self._lines.items() if name in accounts}
        for line in gone:
            self._release(line)
        if gone:
            self._must_complete = True
        self._reserved_for = 0

    def learn(self, limits: Mapping[str, Limit], terms: IdleTerms, now: float) -> None:
        """All limits as published: what shares are made of. Books that are empty unteach nothing."""
        if terms.capacity == (0.0, 0.0, 0.0) and not limits:
            return
        self._is_led, self._limits, self.terms = True, limits, terms
        if self.mode in (Mode.JOINING, Mode.CUT_OFF):
            self._live_on_shares(now)

    @property
    def has_limits(self) -> bool:
        """Whether a coordinator's limits were ever heard of."""
        return self._is_led

    def limit_of(self, account: Account) -> Limit:
        """The pool-wide limit of an entitlement: the published one, or else derived from the terms."""
        published = self._limits.get(account.entitlement.name)
        return published if published is not None else self._idle_limit(account)

    def refresh(self, account: Account) -> None:
        """Update the known limit of an idle entitlement. Does nothing to an active one."""
        if account.entitlement.name not in self._lines and self._is_led:
            self._know_limit(account, self.limit_of(account))

    def _idle_limit(self, account: Account) -> Limit:
        if not self._is_led:
            return NO_LIMIT
        meter = account.meter
        share = idle_share(account.entitlement, self.terms, meter.floor)
        limit, assured = share.limit, share.assured
        rate = min(limit.tokens_per_second, _MOST_RATE)
        depth = bucket_depth(rate, meter.typical_tokens.value)
        return Limit(
            rate, limit.kv_tokens, limit.concurrency, depth, assured.kv_tokens, assured.concurrency, 0.0
        )

    @property
    def active(self) -> Collection[str]:
        """The entitlements with recent requests or leases, or with a part of a guarantee held in advance."""
        return self._lines.keys()

    @property
    def waiting(self) -> int:
        """Requests that wait for a larger lease."""
        lines = (self._lines.get(name) for name in self._waiting)
        return sum(len(line.waiters) for line in lines if line is not None)

    # --- the request path ---

    def covers(self, account: Account, cost: Cost, now: float) -> bool:
        """Whether the lease, or an admission before the report, covers the whole cost.

        Always true without the lease store. Waiting requests of the same entitlement come first.
        """
        if now >= self.expires_at:
            self._expire(now)
        name = account.entitlement.name
        line = self._lines.get(name)
        if self._accounts.get(name) is not account:
            return True  # its entitlement was removed in the meantime: the remaining local limits decide
        if line is None:
            line = self._open(name, account, now)
        if self.mode is not Mode.JOINED:
            return self.mode is not Mode.EXPIRED
        if line.waiters:
            return False
        return self._is_enough(account, cost) or self._take_ahead(account, line, cost, now)

    @staticmethod
    def _is_enough(account: Account, cost: Cost) -> bool:
        limit = account.limit
        return (
            account.bucket.level >= cost.throughput
            and account.concurrency_in_use + cost.sequences <= limit.concurrency
            and account.kv_in_use + cost.kv_tokens <= limit.kv_tokens
        )

    def _take_ahead(self, account: Account, line: _Line, cost: Cost, now: float) -> bool:
        """Take missing capacity before the report, if the last answers showed ample room.

        Each sidecar may take its part of half of the capacity that no sidecar held: of this entitlement's
        limit, and of the pool's free capacity. So an entitlement exceeds its limit by at most half of the
        free part, until the reports are answered. Below two free sequences for each sidecar nothing is taken.
        """
        if (
            now - line.heard_at > self.settings.interval_s * FRESH_INTERVALS
            or self.failures
            or now < line.contended_until
        ):
            return False
        limit = account.limit
        missing = (
            max(cost.throughput - account.bucket.level, 0.0),
            max(account.kv_in_use + cost.kv_tokens - limit.kv_tokens, 0.0),
            max(account.concurrency_in_use + cost.sequences - limit.concurrency, 0.0),
        )
        own, pool = line.ahead, self._pool_ahead
        if (
            missing[0] > own[0]
            or missing[1] > own[1]
            or missing[2] > own[2]
            or missing[1] > pool[1]
            or missing[2] > pool[2]
        ):
            return False
        line.ahead = (own[0] - missing[0], own[1] - missing[1], own[2] - missing[2])
        self._pool_ahead = (pool[0], pool[1] - missing[1], pool[2] - missing[2])
        account.limit = Amount(
            limit.tokens_per_second, limit.kv_tokens + missing[1], limit.concurrency + missing[2]
        )
        account.bucket.level += missing[0]
        account.level_elsewhere -= missing[0]
        self.taken_ahead += 1
        self._urgent.add(account.entitlement.name)
        return True

    def _may_take_ahead(self) -> tuple[float, float, float]:
        """This sidecar's part of the pool's free capacity; zero unless the free capacity is ample."""
        terms = self.terms
        for free, whole in zip(terms.headroom, terms.capacity, strict=True):
            if free < AMPLE * whole:
                return (0.0, 0.0, 0.0)
        part = AHEAD_SHARE / self.sidecars
        tokens, cache, sequences = terms.headroom
        return (tokens * part, cache * part, sequences * part)

    def wait(
        self, account: Account, cost: Cost, now: float, patience_s: float, decide: Callable[[], None]
    ) -> Waiter | None:
        """Make a request wait for a larger lease; ``None`` if a wait cannot help.

        It waits until the lease store answers for it. If they have nothing left, it waits as long as other
        sidecars may take to return unused leases, or for ``patience_s`` seconds.
        """
        if self.failures and self.mode is Mode.JOINED:
            self._stretch(account, cost, now)
        if self.failures or self.mode not in (Mode.JOINED, Mode.EXPIRED):
            return None
        name = account.entitlement.name
        if self._accounts.get(name) is not account:
            return None
        line = self._lines.get(name) or self._open(name, account, now)
        asks = now >= line.short_until or _may_be_inside_guarantee(account, cost)
        # Before the first answer a shortage is not known, so any number of requests may wait for it.
        is_full = len(line.waiters) >= MOST_WAITING and line.waiters[0].heard_at < math.inf
        if is_full or not (asks or patience_s > 0):
            return None
        waiter = Waiter(account, cost, now, patience_s, decide)
        line.waiters.append(waiter)
        self._waiting.add(name)
        self.lease_waits += 1
        if asks:
            self._urgent.add(name)
        elif line.ask_again_at == math.inf:
            line.ask_again_at = line.short_until
        return waiter

    @staticmethod
    def _is_short(line: _Line, account: Account, cost: Cost) -> bool:
        """Whether the use on all sidecars leaves no room for a request."""
        limit = account.pool_limit
        return (
            account.concurrency_in_use + account.concurrency_elsewhere + cost.sequences > limit.concurrency
            or account.kv_in_use + account.kv_elsewhere + cost.kv_tokens > limit.kv_tokens
            or account.level + line.tokens_elsewhere <= 0
        )

    def _reclaim_s(self) -> float:
        return min(max(RECLAIM_S, RECLAIM_TRIPS * self.round_trip_s), LONGEST_RECLAIM_S)

    def _stretch(self, account: Account, cost: Cost, now: float) -> None:
        """The lease store has just failed: admit a request inside this sidecar's share.

        What others had in use is no measure any more: requests move between sidecars all the time.
        """
        line = self._lines.get(account.entitlement.name)
        if line is None:
            return
        limit, _, rate = self._shares(account)
        if line.share_tokens is None:
            # Until the leases expire: a full bucket of the share, and its refill in that time.
            depth = bucket_depth(rate, account.meter.typical_tokens.value)
            line.share_tokens = depth + rate * max(self.expires_at - now, 0.0)
        sequences, kv_tokens = account.concurrency_in_use + cost.sequences, account.kv_in_use + cost.kv_tokens
        if sequences > limit.concurrency or kv_tokens > limit.kv_tokens or line.share_tokens <= 0:
            return
        account.limit = account.limit.at_least(Amount(0.0, float(kv_tokens), float(sequences)))
        missing = cost.throughput - account.bucket.level
        if missing > 0:
            account.bucket.level += missing
            line.share_tokens -= missing

    def give_up(self, waiter: Waiter) -> None:
        """The request is gone, and waits no longer."""
        line = self._lines.get(waiter.account.entitlement.name)
        if line is not None and waiter in line.waiters:
            line.waiters.remove(waiter)

    def ended(self, account: Account, now: float) -> bool:
        """A request has ended; returns whether a message should be sent at once.

        A request that waits here gets its capacity. Otherwise it is returned if other sidecars want it.
        """
        line = self._lines.get(account.entitlement.name)
        if line is None:
            return False
        line.short_until = -math.inf
        if line.waiters:
            self._serve(line, now)
        if now >= line.contended_until:
            return bool(self._urgent)
        self._returns.add(account.entitlement.name)
        return True

    # --- what the lease store pushes ---

    def reclaimed(self, name: str, now: float) -> bool:
        """Another sidecar is short. Whether a message should go at once."""
        line = self._lines.get(name)
        if line is None:
            return False
        line.contended_until = now + CONTENDED_S
        account = self._accounts[name]
        if (
            account.limit.concurrency > account.concurrency_in_use
            or account.limit.kv_tokens > account.kv_in_use
            or (account.bucket.level > 0 and self._tokens_are_short(account, line))
        ):
            self._returns.add(name)
            return True
        return False

    def freed(self, name: str) -> bool:
        """Something is to be had again. Whether a message should go at once."""
        line = self._lines.get(name)
        if line is None:
            return False
        line.soothe()
        if line.waiters:
            self._urgent.add(name)
        return bool(line.waiters)

    # --- messages ---

    @property
    def has_something_to_say(self) -> bool:
        """Whether a message should be sent at once."""
        return bool(self._urgent or self._returns)

    def tick(self, now: float) -> None:
        """Once an interval: examine the active entitlements, and renew the leases."""
        for _ in self.tick_steps(now):
            pass

    def tick_steps(self, now: float) -> Iterator[None]:
        """The same in steps of ``PER_STEP`` entitlements, between which requests may be decided."""
        if now >= self.expires_at:
            self._expire(now)
        self._reserve_lines(now)
        self._is_renewal_due = True
        for number, name in enumerate(list(self._lines), 1):
            line = self._lines.get(name)
            if line is not None:
                self._take_report(name, line, now)
            if number % PER_STEP == 0:
                yield

    def next_message(self, now: float, report: Callable[[], bytes] = lambda: b"") -> Message | None:
        """The next message to send, or ``None``. The caller repeats the call until it returns ``None``.

        ``report`` is asked for where the message carries one.
        """
        if now >= self.expires_at:
            self._expire(now)
        if self._must_complete or self.mode is not Mode.JOINED:
            begins = self._complete(now, report)
            if begins is not None or self._must_complete or self.mode is not Mode.JOINING:
                return begins
        is_renewal = self._is_renewal_due and not any(m.renews for m, _ in self._under_way.values())
        if not is_renewal and len(self._under_way) >= MOST_UNDER_WAY:
            return None
        names = self._due(is_renewal=is_renewal)
        if not (names or is_renewal):
            return None
        self._is_renewal_due = self._is_renewal_due and not is_renewal
        lease_requests = {name: self._lease_request(name, now) for name in names}
        return self._send(lease_requests, now, renews=is_renewal, report=report() if is_renewal else b"")

    def _due(self, *, is_renewal: bool) -> list[str]:
        """The names in the next message, urgent ones first."""
        names: list[str] = []
        for group in (sorted(self._urgent), sorted(self._returns), list(self._changed)):
            for name in group:
                if len(names) == MOST_ROWS:
                    return names
                line = self._lines.get(name)
                if line is None:
                    self._forget(name)
                elif not line.under_way:
                    self._forget(name)
                    names.append(name)
        return names

    def _forget(self, name: str) -> None:
        self._urgent.discard(name)
        self._returns.discard(name)
        self._changed.pop(name, None)

    def _complete(self, now: float, report: Callable[[], bytes]) -> Message | None:
        """Begin a lifetime: name all held entitlements, and state as many as fit."""
        is_asked = self._is_renewal_due or self.failures == 1 or bool(self._urgent)
        if not is_asked or any(message.is_complete for message, _ in self._under_way.values()):
            return None
        self._is_renewal_due = self._must_complete = False
        for line in self._lines.values():
            line.under_way = False
        first = [name for name in self._urgent if name in self._lines]
        first += [name for name in self._lines if name not in self._urgent]
        self._urgent.clear()
        self._returns.clear()
        self._changed = dict.fromkeys(first[MOST_ROWS:])
        lease_requests = {name: self._lease_request(name, now) for name in first[:MOST_ROWS]}
        kept = tuple(first[MOST_ROWS:])
        return self._send(lease_requests, now, is_complete=True, kept=kept, report=report())

    def _send(
        self,
        lease_requests: Mapping[str, LeaseRequest],
        now: float,
        *,
        is_complete: bool = False,
        renews: bool = False,
        kept: tuple[str, ...] = (),
        report: bytes = b"",
    ) -> Message:
        self._number += 1
        message = Message(self.holder, self._number, lease_requests, is_complete, report, kept, renews)
        self._under_way[message.number] = (message, now)
        for name in lease_requests:
            line = self._lines[name]
            line.number, line.under_way, line.said = message.number, True, lease_requests[name]
        return message

    def farewell(self, report: bytes = b"") -> Message:
        """The last message: all that was spent is told, everything returned. Nothing may begin after it."""
        self._number += 1
        lease_requests = {}
        for name, line in self._lines.items():
            meter, said = self._accounts[name].meter, line.said
            if said is not None and not said.concurrency_in_use and said.tokens_spent == meter.spent:
                continue  # nothing was spent since then: its row is returned without being named
            lease_requests[name] = LeaseRequest(
                tokens_spent=meter.spent,
                kv_seconds=meter.kv_seconds,
                concurrency_seconds=meter.concurrency_seconds,
            )
        return Message(self.holder, self._number, lease_requests, report=report)

    def answered(self, message: Message, answer: Answer, now: float) -> None:
        """A message was answered. Waiting requests are decided before this returns."""
        _, sent_at = self._under_way.pop(message.number, (message, None))
        if sent_at is None:
            return
        self._note(message, answer, sent_at, now)
        # A later message names some entitlements again: its answer counts for them, not this one.
        heard = {
            name: lease
            for name, lease in answer.leases.items()
            if name in self._lines and self._lines[name].number == message.number
        }
        for name, lease in heard.items():
            self._lines[name].under_way = False
            self._see(self._accounts[name], lease)
        self._change_mode(message, answer, now)
        if self.mode is Mode.JOINED:
            for name, lease in heard.items():
                self._take(name, message.lease_requests[name], lease, now)
        self._retire(heard, message)
        if self.mode is not Mode.JOINED:
            for line in list(self._lines.values()):
                self._serve(line, now)
            return
        for name in heard:
            heard_of = self._lines.get(name)
            if heard_of is None:
                continue
            for waiter in heard_of.waiters:
                if sent_at >= waiter.since and waiter.heard_at == math.inf:
                    waiter.heard_at = now
            self._serve(heard_of, now)
            self._return_surplus(name, heard_of, now)

    def _note(self, message: Message, answer: Answer, sent_at: float, now: float) -> None:
        """Take over the fields of an answer other than leases."""
        was_failing, self.failures = self.failures > 0, 0
        if was_failing:
            for line in self._lines.values():
                line.share_tokens = None
        self.round_trip_s = max(now - sent_at, self.round_trip_s * ROUND_TRIP_KEPT)
        self.answered_at, self.unled_s = now, answer.limits_age_s
        if answer.terms.capacity != (0.0, 0.0, 0.0):
            self.terms, self._is_led = answer.terms, True
        if answer.is_known and (message.is_complete or message.renews):
            # Closed books have not heard everyone yet: shares of too few would be too large.
            self.sidecars = max(answer.sidecars, 1 if answer.is_open else self.sidecars)
            self.expires_at = sent_at + self.settings.lifetime_s * (1 - MARGIN)
            self._pool_ahead = self._may_take_ahead()
        if not message.is_complete and (
            was_failing or not answer.is_known or self._has_strayed(message, answer)
        ):
            self._must_complete = self._is_renewal_due = True

    def _change_mode(self, message: Message, answer: Answer, now: float) -> None:
        if now >= self.expires_at:
            self.round_trip_s = 0.0  # it was this process that was late
            self._expire(now)
        elif message.is_complete and answer.is_open and self._is_led:
            self._join(message)
        elif message.is_complete:
            self.mode = Mode.JOINING
            self._live_on_shares(now)

    def _has_strayed(self, message: Message, answer: Answer) -> bool:
        """Whether the lease store' number of rows differs from this sidecar's.

        Rows were lost, or remained.
        """
        if self._under_way or not message.renews or not answer.is_known:
            return False
        stated = sum(1 for line in self._lines.values() if line.said is not None and not line.said.is_last)
        return answer.rows != stated

    def failed(self, message: Message, now: float) -> None:
        """A message was not answered in time. No request waits for books that do not answer."""
        if self._under_way.pop(message.number, None) is None:
            return
        for name in message.lease_requests:
            line = self._lines.get(name)
            if line is not None and line.number == message.number:
                line.under_way, line.said = False, None
        self.failures += 1
        self._must_complete = True
        if now >= self.expires_at:
            self._expire(now)
        for line in list(self._lines.values()):
            while line.waiters:
                waiter = line.waiters.popleft()
                if self.mode is Mode.JOINED:
                    self._stretch(waiter.account, waiter.cost, now)
                self._decide(waiter, now)

    def look(self, now: float) -> None:
        """Decide the requests whose time is up, and ask again for those that wait on."""
        if now >= self.expires_at:
            self._expire(now)
        # Whoever is decided may bring the next request at once, and with it another line.
        for name in list(self._waiting):
            line = self._lines.get(name)
            if line is None or not line.waiters:
                self._waiting.discard(name)
                continue
            for waiter in [waiter for waiter in line.waiters if waiter.deadline <= now]:
                line.waiters.remove(waiter)
                line.disappoint(waiter.account, now)
                self._decide(waiter, now)
            if line.waiters and line.ask_again_at <= now:
                line.ask_again_at = math.inf
                self._urgent.add(name)

    def looks_at(self) -> float:
        """When to look next; infinite while nothing waits."""
        at = math.inf
        for name in self._waiting:
            line = self._lines.get(name)
            if line is not None and line.waiters:
                at = min(at, line.ask_again_at, *(waiter.deadline for waiter in line.waiters))
        return at

    # --- what is said ---

    def _open(self, name: str, account: Account, now: float) -> _Line:
        """An entitlement becomes active: set its account up for the mode."""
        line = self._lines[name] = _Line()
        account.has_peers = self.sidecars > 1
        self._know_limit(account, self.limit_of(account))
        if self.mode in (Mode.JOINING, Mode.CUT_OFF):
            self._share(account, now)
        else:
            self._hold_nothing(account)
        return line

    def _reserve_lines(self, now: float) -> None:
        """Open lines for guarantees: every sidecar always holds a part of them."""
        if self._reserved_for == self.sidecars or not self._is_led:
            return
        self._reserved_for = self.sidecars
        for name, account in self._accounts.items():
            if name not in self._lines and self._reserve(account):
                self._open(name, account, now)

    def _take_report(self, name: str, line: _Line, now: float) -> None:
        """Close an interval of one entitlement; queue a message if its report changed."""
        account = self._accounts[name]
        meter = account.meter
        line.peaks.append((meter.peak_kv, meter.peak_concurrency))
        meter.peak_kv, meter.peak_concurrency = account.kv_in_use, account.concurrency_in_use
        line.report = account.report(now)
        line.fresh = meter.fresh
        line.is_idle = meter.is_idle and not account.concurrency_in_use and not line.waiters
        if self._is_news(account, line):
            self._changed[name] = None

    def _is_news(self, account: Account, line: _Line) -> bool:
        """Whether a message should name an entitlement again."""
        said = line.said
        if said is None or said.is_last:
            return True
        kv_tokens, sequences, _ = self._ahead(account, line)
        return (
            said.concurrency_in_use > 0
            or account.concurrency_in_use > 0  # the service of running requests grows with time
            or said.tokens_spent != account.meter.spent
            or said.kv_wanted != kv_tokens
            or said.concurrency_wanted != sequences
            or (line.is_idle and not sequences)
            or _differ(said.demand[2], line.report.demand.concurrency)
            or _differ(said.demand[0], line.report.demand.tokens_per_second)
        )

    def _reserve(self, account: Account) -> int:
        """Sequences of a guarantee that every sidecar may hold ahead of any request, all at once."""
        if account.entitlement.tier is Tier.SPOT or not self._is_led:
            return 0
        return int(account.entitlement.guarantee.concurrency // self.sidecars)

    def _lease_request(self, name: str, now: float) -> LeaseRequest:
        """What to say of one entitlement; gives up here what is no longer asked for."""
        account, line = self._accounts[name], self._lines[name]
        meter, kv_in_use, in_use = account.meter, account.kv_in_use, account.concurrency_in_use
        kv_wanted, wanted, tokens_wanted = self._ahead(account, line)
        if now < line.contended_until:
            kv_wanted, wanted = float(kv_in_use), float(in_use)
            if self._tokens_are_short(account, line):
                tokens_wanted = 0.0
        needed = [w.cost for w in line.waiters]
        kv_wanted = max(kv_wanted, kv_in_use + sum(cost.kv_tokens for cost in needed))
        wanted = max(wanted, in_use + sum(cost.sequences for cost in needed))
        tokens_wanted = max(tokens_wanted, math.fsum(cost.throughput for cost in needed))
        kv_bound, bound = float(kv_in_use), float(in_use)
        if self.mode is Mode.JOINED:
            limit = account.limit
            limit = Amount(
                limit.tokens_per_second, min(limit.kv_tokens, kv_wanted), min(limit.concurrency, wanted)
            )
            account.limit = limit
            kv_bound, bound = max(kv_bound, limit.kv_tokens), max(bound, limit.concurrency)
            account.bucket.level = min(account.bucket.level, tokens_wanted)
        said, floor = line.report, line.report.floor
        is_last = line.is_idle and not (in_use or kv_wanted or wanted or needed)
        return LeaseRequest(
            float(kv_in_use),
            float(in_use),
            kv_bound,
            bound,
            kv_wanted,
            wanted,
            meter.spent,
            tokens_wanted,
            bool(needed),
            said.demand.values(),
            meter.kv_seconds,
            meter.concurrency_seconds,
            line.fresh.values(),
            (meter.typical_tokens.value, floor.kv_tokens, floor.concurrency),
            is_last,
            self._idle_limit(account),
        )

    def _ahead(self, account: Account, line: _Line) -> tuple[float, float, float]:
        """What to hold for the requests of the next interval: KV tokens, sequences, tokens."""
        kv_peak = max((kv for kv, _ in line.peaks), default=0)
        peak = max((sequences for _, sequences in line.peaks), default=0)
        kv_ahead, ahead, tokens = float(kv_peak), float(peak), 0.0
        floor = line.report.floor
        if not line.is_idle:
            is_scarce = account.pool_limit.concurrency < 2 * self.sidecars
            spare = 0.0 if is_scarce else max(math.ceil(SPARE * peak), floor.concurrency)
            ahead += spare
            kv_ahead += spare * max(floor.kv_tokens, kv_peak / max(peak, 1))
            demand = line.report.demand.tokens_per_second
            tokens = demand * self.settings.interval_s * HORIZON + account.meter.typical_tokens.value
            # Demand is an average. Where it has just begun, each part message asks for more than the last;
            # for no more than there is, which would count as a shortage and have everybody return theirs.
            tokens = max(tokens, min(GROWTH * account.meter.unreported, account.level))
        reserve = self._reserve(account)
        if reserve:
            guarantee = account.entitlement.guarantee
            ahead = max(ahead, float(reserve))
            kv_ahead = max(kv_ahead, guarantee.kv_tokens / self.sidecars)
            tokens = max(tokens, guarantee.tokens_per_second / self.sidecars)
        return kv_ahead, ahead, tokens

    @staticmethod
    def _tokens_are_short(account: Account, line: _Line) -> bool:
        """Whether the bucket has less left than a sidecar likes to hold."""
        return account.level_elsewhere < max(
            account.meter.typical_tokens.value, line.report.demand.tokens_per_second * HORIZON / 4
        )

    def _retire(self, heard: Mapping[str, Lease], message: Message) -> None:
        """Close the lines of entitlements whose last holding the lease store has booked."""
        for name in heard:
            line, said = self._lines[name], message.lease_requests[name]
            account = self._accounts[name]
            if not said.is_last:
                continue
            if (
                line.is_idle
                and account.meter.is_idle
                and said.tokens_spent == account.meter.spent
                and not (line.waiters or account.concurrency_in_use)
            ):
                del self._lines[name]
                self._hold_nothing(account)
                account.bucket.forget()
            else:
                line.said = None

    # --- what is heard ---

    def _join(self, message: Message) -> None:
        if self.mode is not Mode.JOINED:
            self.mode = Mode.JOINED
            for name in self._lines:
                if name not in message.lease_requests:
                    self._hold_nothing(self._accounts[name])

    @staticmethod
    def _know_limit(account: Account, limit: Limit) -> None:
        account.pool_limit, account.depth, account.debt = limit.amount, limit.depth, limit.debt
        account.level_elsewhere, account.kv_elsewhere, account.concurrency_elsewhere = limit.depth, 0.0, 0.0

    def _see(self, account: Account, lease: Lease) -> None:
        """Where the pool stands, whatever this sidecar holds of it."""
        limit = lease.limit
        account.has_peers = self.sidecars > 1
        account.pool_limit, account.depth, account.debt = limit.amount, limit.depth, limit.debt
        account.level_elsewhere = lease.level
        account.kv_elsewhere, account.concurrency_elsewhere = (
            lease.kv_elsewhere,
            lease.concurrency_elsewhere,
        )

    def _take(self, name: str, said: LeaseRequest, lease: Lease, now: float) -> None:
        account, limit = self._accounts[name], lease.limit
        account.limit = Amount(limit.tokens_per_second, lease.kv_tokens, lease.concurrency)
        account.assured = NOTHING
        if account.entitlement.tier is not Tier.SPOT:
            # What others have in use may have ended since; but of all that is held no more lies beyond what
            # is assured than the limit does. And a share of a guarantee is assured in any case.
            beyond = limit.amount - limit.assured
            least = self._share_of_guarantee(account)
            account.assured = Amount(
                0.0,
                max(
                    limit.assured_kv_tokens - lease.kv_elsewhere,
                    lease.kv_tokens - beyond.kv_tokens,
                    least.kv_tokens,
                ),
                max(
                    limit.assured_concurrency - lease.concurrency_elsewhere,
                    lease.concurrency - beyond.concurrency,
                    least.concurrency,
                ),
            )
        account.bucket.hold(lease.tokens - (account.meter.spent - said.tokens_spent))
        line = self._lines[name]
        line.heard_at, line.tokens_elsewhere = now, lease.tokens_elsewhere
        part = AHEAD_SHARE / self.sidecars
        line.ahead = (
            max(lease.level, 0.0) * part,
            max(lease.kv_free, 0.0) * part,
            max(lease.concurrency_free, 0.0) * part,
        )
        if lease.is_contended:
            line.contended_until = now + CONTENDED_S / 2
        if said.is_urgent:
            waited = now - line.waiters[0].since if line.waiters else 0.0
            line.ask_again_at = now + min(max(ASK_AGAIN_S, waited), LONGEST_ASK_AGAIN_S)

    @staticmethod
    def _hold_nothing(account: Account) -> None:
        account.limit = Amount(account.pool_limit.tokens_per_second, 0.0, 0.0)
        account.assured = NOTHING
        account.bucket.hold(min(account.bucket.level, 0.0))

    # --- those who wait ---

    def _serve(self, line: _Line, now: float) -> None:
        """Decide, in order, the requests that fit, then the requests whose deadline has passed."""
        while line.waiters:
            waiter = line.waiters[0]
            account, cost = waiter.account, waiter.cost
            if self.mode is Mode.JOINED and not (
                account.bucket.level > 0
                and account.concurrency_in_use + cost.sequences <= account.limit.concurrency
                and account.kv_in_use + cost.kv_tokens <= account.limit.kv_tokens
            ):
                break
            line.waiters.popleft()
            line.soothe()
            self._decide(waiter, now)
        for waiter in [waiter for waiter in line.waiters if not self._waits_on(line, waiter, now)]:
            line.waiters.remove(waiter)
            line.disappoint(waiter.account, now)
            self._decide(waiter, now)

    def _waits_on(self, line: _Line, waiter: Waiter, now: float) -> bool:
        """Whether a request that does not fit now continues to wait; sets its deadline.

        It waits until the lease store answers for it. If the pool is not short, other sidecars may return
        unused leases. Otherwise its tier sets the deadline.
        """
        if waiter.heard_at == math.inf:
            return True
        account, cost = waiter.account, waiter.cost
        waiter.deadline = waiter.since + waiter.patience_s
        if account.is_inside_guarantee(cost.sequences, cost.kv_tokens):
            waiter.deadline = max(waiter.deadline, waiter.since + LONGEST_RECLAIM_S)
        elif not self._is_short(line, account, cost) or _may_be_inside_guarantee(account, cost):
            # By the latest answer; requests elsewhere may have ended since their sidecars' last message.
            waiter.deadline = max(waiter.deadline, waiter.heard_at + self._reclaim_s())
        return waiter.deadline > now

    def _return_surplus(self, name: str, line: _Line, now: float) -> None:
        """What was asked for ahead may be wanted elsewhere by now, as those who waited may have gone."""
        account, limit = self._accounts[name], self._accounts[name].limit
        if (
            self.mode is Mode.JOINED
            and now < line.contended_until
            and not line.waiters
            and (limit.concurrency > account.concurrency_in_use or limit.kv_tokens > account.kv_in_use)
        ):
            self._returns.add(name)

    @staticmethod
    def _release(line: _Line) -> None:
        while line.waiters:
            line.waiters.popleft().decide()

    def _decide(self, waiter: Waiter, now: float) -> None:
        self.lease_waited_s += now - waiter.since
        waiter.decide()

    # --- without the lease store ---

    def _expire(self, now: float) -> None:
        if self.failures:
            if self.mode is not Mode.CUT_OFF:
                self.mode = Mode.CUT_OFF
                self._live_on_shares(now)
        elif self.mode is Mode.JOINED:
            self.mode = Mode.EXPIRED
            for name, line in self._lines.items():
                self._hold_nothing(self._accounts[name])
                for waiter in line.waiters:
                    # It was this process that slept, not the lease store that were slow: the wait begins
                    # anew.
                    waiter.heard_at = math.inf
                    waiter.deadline = now + max(waiter.patience_s, ANSWER_S)
                    self._urgent.add(name)

    def _live_on_shares(self, now: float) -> None:
        for name in self._lines:
            self._share(self._accounts[name], now)

    def _share_of_guarantee(self, account: Account) -> Amount:
        """What of a guarantee a sidecar may count on by itself: its part, with room for uneven spread.

        With ``m`` sequences for each sidecar on average, ``m + 3 sqrt(m)``: at random places, more than those
        meet at one sidecar once in hundreds of times. Tokens and cache to match.
        """
        if account.is_spot:
            return NOTHING
        guarantee, part = account.entitlement.guarantee, 1.0 / self.sidecars
        sequences = 0
        if guarantee.concurrency:
            mean = guarantee.concurrency * part
            sequences = math.ceil(min(mean + UNEVEN * math.sqrt(mean), guarantee.concurrency))
            part = sequences / guarantee.concurrency
        return Amount(guarantee.tokens_per_second * part, guarantee.kv_tokens * part, sequences)

    def _share(self, account: Account, now: float) -> None:
        """Use this sidecar's part of a limit while the lease store does not answer."""
        if self._is_led:
            self._know_limit(account, self.limit_of(account))
        account.limit, account.assured, rate = self._shares(account)
        if not self._is_led:
            account.pool_limit, account.depth = account.limit, bucket_depth(rate, 0.0)
        bucket = account.bucket
        if not self._is_led:
            bucket.forget()
        elif bucket.depth == math.inf:
            # The bucket was a lease: add this sidecar's part of the tokens that no sidecar held.
            bucket.level = max(bucket.level, account.level_elsewhere / self.sidecars)
        account.level_elsewhere = account.kv_elsewhere = account.concurrency_elsewhere = 0.0
        bucket.resize(rate, bucket_depth(rate, account.meter.typical_tokens.value), now)

    def _shares(self, account: Account) -> tuple[Amount, Amount, float]:
        """This sidecar's part of a limit, the assured part of it, and its rate in tokens/s.

        The limit divided by the number of sidecars, but at least one request; of a guarantee more. Spot goes
        by its ceiling, and so by the engine's free room.
        """
        entitlement, part = account.entitlement, 1.0 / self.sidecars
        is_spot, share = entitlement.tier is Tier.SPOT, self._share_of_guarantee(account)
        known = self.limit_of(account) if self._is_led else None
        whole = entitlement.ceiling if known is None or is_spot else known.amount
        rate = min(max(whole.tokens_per_second * part, share.tokens_per_second), _MOST_RATE)
        sequences = max(math.ceil(min(whole.concurrency * part, _MOST_RATE)), 1)
        floor = account.meter.floor
        limit = Amount(
            rate,
            max(whole.kv_tokens * part, share.kv_tokens, floor.kv_tokens),
            max(sequences, share.concurrency, floor.concurrency),
        )
        if is_spot:
            return limit, NOTHING, rate
        assured = known.assured if known is not None else NOTHING
        return (
            limit,
            Amount(
                0.0,
                max(share.kv_tokens, assured.kv_tokens * part, floor.kv_tokens),
                max(share.concurrency, math.ceil(assured.concurrency * part)),
            ),
            rate,
        )


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > CHANGED * max(one, other)


def _may_be_inside_guarantee(account: Account, cost: Cost) -> bool:
    """Whether a request lies inside its entitlement's guarantee if nobody else uses any of it."""
    return account.is_inside_guarantee(cost.sequences, cost.kv_tokens, counts_elsewhere=False)
