"""Grants: a sidecar's side of the books. What it holds of every limit, asks for, and does without them.

Pure, with ``now`` from the sidecar's monotonic clock. Whoever drives it (the sidecar's replication, or a
simulation) carries messages to the books and brings answers back; one is under way at a time.

- Requests are decided from what is held. Where that falls short, a request may *wait*: the next message says
  so, and whoever holds something unused is asked to return it.
- Before a message leaves, what it no longer asks for is given up here; so the books may give it away.
- Everything held expires here before it expires in the books.
- Without the books each sidecar goes on with a *share*: a limit divided by the last known number of sidecars.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tokenpool.amounts import NOTHING, Amount
from tokenpool.books import CONTENDED_S, Answer, Grant, Holding, Limit, Message
from tokenpool.cost import Cost
from tokenpool.entitlements import Tier
from tokenpool.ledger import Account, bucket_depth
from tokenpool.planner import Report

MARGIN = 0.2
"""The part of a lifetime by which a grant expires here before it does in the books."""
SPARE = 0.25
"""Held beyond what was in use at once of late, as a share of it."""
PEAKS = 4
"""Intervals over which the most in use is remembered."""
HORIZON = 2.0
"""Tokens are held for so many intervals at the rate of demand: a message may be one interval late."""
GROWTH = 2.0
"""Tokens held, at least, as a multiple of those spent since the last complete message."""
ASK_AGAIN_S = 0.006
"""When a request that still waits asks once more, should no push have come; then ever later."""
RECALL_S, RECALL_TRIPS = 0.1, 10
"""How long others may take to return what they do not use: so long, or so many round trips."""
ROUND_TRIP_KEPT = 0.8
"""How slowly a long round trip is forgotten, per answer: one quick answer does not make slow books quick."""
PATIENCE = 3
"""Refusals in a row after which requests stop waiting for a while."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.25
UNEVEN = 3.0
"""Standard deviations of requests at random places for which a share of a guarantee leaves room."""
_MOST_RATE = 1e12
"""Tokens/s that stand for no bound: an infinite rate would make a bucket's level undefined."""


@dataclass(frozen=True, slots=True)
class GrantSettings:
    """The constants of the protocol. Seconds."""

    lifetime_s: float = 1.5
    interval_s: float = 0.25
    borrow_s: float = 0.01
    """The longest wait of a request for a larger grant."""
    guaranteed_borrow_s: float = 2.0
    """The same where the request lies inside a guarantee: better late than shed."""


class Mode(StrEnum):
    """How a sidecar stands with the books."""

    JOINED = "joined"
    """It decides from grants."""
    JOINING = "joining"
    """The books are new, closed, or have no limits yet: it decides from shares, and reports."""
    EXPIRED = "expired"
    """It is new, or was asleep for longer than its grants live: it holds nothing until the books answer."""
    CUT_OFF = "cut_off"
    """The books do not answer, and what was held has expired: it decides from shares."""


class Waiter:
    """A request that waits for a larger grant."""

    __slots__ = ("account", "cost", "deadline", "decide", "since")

    def __init__(
        self, account: Account, cost: Cost, since: float, deadline: float, decide: Callable[[], None]
    ) -> None:
        self.account = account
        self.cost = cost
        self.since = since
        self.deadline = deadline
        self.decide = decide
        """Called once, when there is enough or the time is up; what it admits is booked when it returns."""


class _Line:
    """What this sidecar says of one entitlement, and heard of it."""

    __slots__ = (
        "ask_again_at",
        "contended_until",
        "fresh",
        "is_idle",
        "pause_s",
        "paused_until",
        "peaks",
        "refusals",
        "report",
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
        self.paused_until = -math.inf
        self.pause_s = FIRST_PAUSE_S
        self.refusals = 0

    def soothe(self) -> None:
        """Something was to be had: wait again."""
        self.refusals, self.paused_until, self.pause_s = 0, -math.inf, FIRST_PAUSE_S

    def disappoint(self, account: Account, now: float) -> None:
        """A request waited in vain. After some in a row none waits for a while.

        An empty bucket says itself when it is no longer; of the rest a push tells, so a pause may be long.
        """
        self.refusals += 1
        rate = account.pool_limit.tokens_per_second
        if account.level < 0 and rate > 0:
            self.paused_until = now + min(-account.level / rate, LONGEST_PAUSE_S)
        elif self.refusals >= PATIENCE:
            self.paused_until = now + self.pause_s
            self.pause_s = min(self.pause_s * 2, LONGEST_PAUSE_S)


class Grants:
    """All that one sidecar holds."""

    def __init__(self, holder: str, settings: GrantSettings, sidecars: int) -> None:
        self.holder = holder
        self.settings = settings
        self.mode = Mode.EXPIRED
        self.sidecars = max(sidecars, 1)
        """How many there are, as the books last said; until then, as many as there may be."""
        self.failures = 0
        """Messages in a row that were not answered."""
        self.unled_s = 0.0
        """How long nobody has published limits, as the books last said."""
        self.round_trip_s = 0.0
        """Of the last message, or less and less of a longer one before."""
        self.expires_at = -math.inf
        self.answered_at: float | None = None
        self._number = 0
        self._accounts: Mapping[str, Account] = {}
        self._lines: dict[str, _Line] = {}
        self._limits: Mapping[str, Limit] = {}
        self._urgent: set[str] = set()
        self._returns: set[str] = set()
        self._in_flight: Message | None = None
        self._sent_at = 0.0
        self.borrows = 0
        """Requests that waited so far."""
        self.borrowed_s = 0.0
        """... and for how long, all together."""

    # --- what the accounts are ---

    def follow(self, accounts: Mapping[str, Account], now: float) -> None:
        """The accounts in force. Those that are new hold nothing until they are asked for."""
        gone = [line for name, line in self._lines.items() if name not in accounts]
        self._accounts = accounts
        self._lines = {name: line for name, line in self._lines.items() if name in accounts}
        for line in gone:
            self._release(line)
        if self.mode is Mode.JOINED:
            for name, account in accounts.items():
                if name not in self._lines:
                    self._hold_nothing(account)
        elif self.mode is not Mode.EXPIRED:
            self._live_on_shares(now)

    def learn(self, limits: Mapping[str, Limit], now: float) -> None:
        """All limits as published: what shares are made of. Books that are empty unteach nothing."""
        if not limits:
            return
        self._limits = limits
        for name, account in self._accounts.items():
            limit = limits.get(name)
            if limit is not None and name not in self._lines:
                account.pool_limit, account.depth, account.debt = limit.amount, limit.depth, limit.debt
        if self.mode in (Mode.JOINING, Mode.CUT_OFF):
            self._live_on_shares(now)

    @property
    def has_limits(self) -> bool:
        """Whether a coordinator's limits were ever heard of."""
        return bool(self._limits)

    # --- the request path ---

    def covers(self, account: Account, cost: Cost, now: float) -> bool:
        """Whether what is held is enough for the whole cost; without the books, whatever it is."""
        if now >= self.expires_at:
            self._expire(now)
        if self.mode is not Mode.JOINED:
            return self.mode is not Mode.EXPIRED
        limit = account.limit
        return (
            account.bucket.level >= cost.throughput
            and account.concurrency_in_use + cost.sequences <= limit.concurrency
            and account.kv_in_use + cost.kv_tokens <= limit.kv_tokens
        )

    def wait(self, account: Account, cost: Cost, now: float, decide: Callable[[], None]) -> Waiter | None:
        """Have a request wait for a larger grant; ``None`` where that is no use."""
        if self.failures and self.mode is Mode.JOINED:
            self._stretch(account, cost)
        if self.failures or self.mode not in (Mode.JOINED, Mode.EXPIRED):
            return None
        name = account.entitlement.name
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = _Line()
        patience, is_paused = self.settings.borrow_s, now < line.paused_until
        if _may_be_inside_guarantee(account, cost):
            patience, is_paused = max(patience, self._patience_inside(account, cost)), False
        is_slow = self.mode is Mode.JOINED and self.round_trip_s > patience
        if is_slow or is_paused:
            return None
        waiter = Waiter(account, cost, now, now + patience, decide)
        line.waiters.append(waiter)
        self.borrows += 1
        self._urgent.add(name)
        return waiter

    def _patience_inside(self, account: Account, cost: Cost) -> float:
        """For a request that lies inside a guarantee, or may.

        What others have in use is known from their last message, and one of theirs may have ended since: so
        long they may take to be asked, and to say so.
        """
        longest = self.settings.guaranteed_borrow_s
        if account.is_inside_guarantee(cost.sequences, cost.kv_tokens):
            return longest
        return min(max(RECALL_S, RECALL_TRIPS * self.round_trip_s), longest)

    def _stretch(self, account: Account, cost: Cost) -> None:
        """The books have just failed: let in what lies inside this sidecar's share of a guarantee.

        What others had in use is no measure any more: requests move between sidecars all the time.
        """
        share = self._share_of_guarantee(account)
        sequences, kv_tokens = account.concurrency_in_use + cost.sequences, account.kv_in_use + cost.kv_tokens
        if sequences <= share.concurrency and kv_tokens <= share.kv_tokens:
            limit = account.limit
            account.limit = limit.at_least(Amount(0.0, float(kv_tokens), float(sequences)))
            account.bucket.level = max(account.bucket.level, cost.throughput)

    def give_up(self, waiter: Waiter) -> None:
        """The request is gone, and waits no longer."""
        line = self._lines.get(waiter.account.entitlement.name)
        if line is not None and waiter in line.waiters:
            line.waiters.remove(waiter)

    def ended(self, account: Account, now: float) -> bool:
        """A request has ended; whether what it held is wanted elsewhere, and a message should go at once."""
        line = self._lines.get(account.entitlement.name)
        if line is None:
            return False
        line.paused_until = -math.inf
        if now >= line.contended_until:
            return False
        self._returns.add(account.entitlement.name)
        return True

    # --- what the books push ---

    def recalled(self, name: str, now: float) -> bool:
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
    def is_waiting_for_an_answer(self) -> bool:
        """Whether a message is under way."""
        return self._in_flight is not None

    @property
    def has_something_to_say(self) -> bool:
        """Whether a part message should go at once."""
        return bool(self._urgent or self._returns)

    def message(self, now: float, *, is_complete: bool, report: bytes = b"") -> Message | None:
        """The next message; ``None`` where a part of nothing would be said. None may be under way.

        Only a complete message begins a lifetime: one that is not joined says everything.
        """
        assert self._in_flight is None
        if now >= self.expires_at:
            self._expire(now)
        is_complete = is_complete or self.mode is not Mode.JOINED
        if is_complete:
            self._take_reports(now)
            names = [name for name in self._accounts if name in self._lines]
        else:
            names = sorted(name for name in self._urgent | self._returns if name in self._lines)
            if not names:
                self._urgent.clear()
                self._returns.clear()
                return None
        holdings = {name: self._holding(name, now) for name in names}
        self._urgent.clear()
        self._returns.clear()
        self._number += 1
        self._sent_at = now
        self._in_flight = Message(self.holder, self._number, holdings, is_complete, report)
        return self._in_flight

    def farewell(self, report: bytes = b"") -> Message:
        """The last message: all that was spent is told, everything returned. Nothing may begin after it."""
        self._number += 1
        holdings = {}
        for name in self._lines:
            meter = self._accounts[name].meter
            holdings[name] = Holding(
                tokens_spent=meter.spent,
                kv_seconds=meter.kv_seconds,
                concurrency_seconds=meter.concurrency_seconds,
            )
        return Message(self.holder, self._number, holdings, report=report)

    def answered(self, answer: Answer, now: float) -> None:
        """The message under way was answered. Requests that waited are decided before this returns."""
        message, self._in_flight = self._in_flight, None
        assert message is not None
        self.failures = 0
        self.round_trip_s = max(now - self._sent_at, self.round_trip_s * ROUND_TRIP_KEPT)
        self.answered_at, self.unled_s = now, answer.unled_s
        if message.is_complete:
            # Closed books have not heard everyone yet: shares of too few would be too large.
            self.sidecars = max(answer.sidecars, 1 if answer.is_open else self.sidecars)
            self.expires_at = self._sent_at + self.settings.lifetime_s * (1 - MARGIN)
        heard = {name: grant for name, grant in answer.grants.items() if name in self._accounts}
        for name, grant in heard.items():
            self._see(self._accounts[name], grant)
        if now >= self.expires_at:
            self.round_trip_s = 0.0  # it was this process that was late
            self._expire(now)
        elif message.is_complete and answer.is_open and self._limits:
            self._join(message)
        elif message.is_complete:
            self.mode = Mode.JOINING
            self._live_on_shares(now)
        if self.mode is Mode.JOINED:
            for name, grant in heard.items():
                self._take(name, message.holdings[name], grant, now)
        if message.is_complete:
            self._forget_idle(message)
        for name, line in list(self._lines.items()):
            if line.waiters:
                self._serve(line, now)
            if name in answer.grants:
                self._return_surplus(name, line, now)

    def failed(self, now: float) -> None:
        """The message under way was not answered in time. Nobody waits for books that do not answer."""
        self._in_flight = None
        self.failures += 1
        if now >= self.expires_at:
            self._expire(now)
        for line in list(self._lines.values()):
            while line.waiters:
                waiter = line.waiters.popleft()
                if self.mode is Mode.JOINED:
                    self._stretch(waiter.account, waiter.cost)
                waiter.decide()

    def look(self, now: float) -> None:
        """Decide the requests whose time is up, and ask again for those that wait on."""
        if now >= self.expires_at:
            self._expire(now)
        # Whoever is decided may bring the next request at once, and with it another line.
        for name, line in list(self._lines.items()):
            if not line.waiters:
                continue
            for waiter in [waiter for waiter in line.waiters if waiter.deadline <= now]:
                if self._hears_late(waiter, now):
                    waiter.deadline = now + RECALL_S
                    continue
                line.waiters.remove(waiter)
                line.disappoint(waiter.account, now)
                self._decide(waiter, now)
            if line.waiters and line.ask_again_at <= now:
                line.ask_again_at = math.inf
                self._urgent.add(name)

    def _hears_late(self, waiter: Waiter, now: float) -> bool:
        """Whether the books have just become slow, and a request waits that may lie inside a guarantee."""
        return (
            self._in_flight is not None
            and now - self._sent_at > RECALL_S / 2
            and now - waiter.since < self.settings.guaranteed_borrow_s
            and _may_be_inside_guarantee(waiter.account, waiter.cost)
        )

    def looks_at(self) -> float:
        """When to look next; infinite while nothing waits."""
        at = math.inf
        for line in self._lines.values():
            if line.waiters:
                at = min(at, line.ask_again_at, *(waiter.deadline for waiter in line.waiters))
        return at

    # --- what is said ---

    def _take_reports(self, now: float) -> None:
        for name, account in self._accounts.items():
            line = self._lines.get(name)
            meter = account.meter
            if line is None:
                if meter.is_idle and not account.concurrency_in_use and not self._reserve(account):
                    continue
                line = self._lines[name] = _Line()
            line.peaks.append((meter.peak_kv, meter.peak_concurrency))
            meter.peak_kv, meter.peak_concurrency = account.kv_in_use, account.concurrency_in_use
            line.report = account.report(now)
            line.fresh = meter.fresh
            line.is_idle = meter.is_idle and not account.concurrency_in_use and not line.waiters

    def _reserve(self, account: Account) -> int:
        """Sequences of a guarantee that every sidecar may hold ahead of any request, all at once."""
        if account.entitlement.tier is Tier.SPOT or not self._limits:
            return 0
        return int(account.entitlement.guarantee.concurrency // self.sidecars)

    def _holding(self, name: str, now: float) -> Holding:
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
        return Holding(
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

    def _forget_idle(self, message: Message) -> None:
        """Stop naming what the books have heard the last of."""
        for name, said in message.holdings.items():
            line = self._lines.get(name)
            if line is None or not line.is_idle or line.waiters:
                continue
            account = self._accounts[name]
            if said.tokens_spent == account.meter.spent and not (said.concurrency_wanted or said.kv_wanted):
                del self._lines[name]
                if self.mode is Mode.JOINED:
                    self._hold_nothing(account)

    # --- what is heard ---

    def _join(self, message: Message) -> None:
        if self.mode is not Mode.JOINED:
            self.mode = Mode.JOINED
            for name, account in self._accounts.items():
                if name not in message.holdings:
                    self._hold_nothing(account)

    def _see(self, account: Account, grant: Grant) -> None:
        """Where the pool stands, whatever this sidecar holds of it."""
        limit = grant.limit
        account.has_peers = self.sidecars > 1
        account.pool_limit, account.depth, account.debt = limit.amount, limit.depth, limit.debt
        account.level_elsewhere = grant.level
        account.kv_elsewhere, account.concurrency_elsewhere = (
            grant.kv_elsewhere,
            grant.concurrency_elsewhere,
        )

    def _take(self, name: str, said: Holding, grant: Grant, now: float) -> None:
        account, limit = self._accounts[name], grant.limit
        account.limit = Amount(limit.tokens_per_second, grant.kv_tokens, grant.concurrency)
        account.assured = NOTHING
        if account.entitlement.tier is not Tier.SPOT:
            # What others have in use may have ended since; but of all that is held no more lies beyond what
            # is assured than the limit does. And a share of a guarantee is assured in any case.
            beyond = limit.amount - limit.assured
            least = self._share_of_guarantee(account)
            account.assured = Amount(
                0.0,
                max(
                    limit.assured_kv_tokens - grant.kv_elsewhere,
                    grant.kv_tokens - beyond.kv_tokens,
                    least.kv_tokens,
                ),
                max(
                    limit.assured_concurrency - grant.concurrency_elsewhere,
                    grant.concurrency - beyond.concurrency,
                    least.concurrency,
                ),
            )
        account.bucket.hold(grant.tokens - (account.meter.spent - said.tokens_spent))
        line = self._lines.get(name)
        if line is not None and grant.is_contended:
            line.contended_until = now + CONTENDED_S / 2
        if line is not None and said.is_urgent:
            waited = now - line.waiters[0].since if line.waiters else 0.0
            line.ask_again_at = now + max(ASK_AGAIN_S, waited)

    @staticmethod
    def _hold_nothing(account: Account) -> None:
        account.limit = Amount(account.pool_limit.tokens_per_second, 0.0, 0.0)
        account.assured = NOTHING
        account.bucket.hold(min(account.bucket.level, 0.0))

    # --- those who wait ---

    def _serve(self, line: _Line, now: float) -> None:
        """Decide, in order, those for whom there is enough. A level above zero is: it may go below."""
        while line.waiters:
            waiter = line.waiters[0]
            account, cost = waiter.account, waiter.cost
            if _may_be_inside_guarantee(account, cost):
                # As was just heard, and as long as it took: what was known when it came may have been old.
                waiter.deadline = max(waiter.deadline, waiter.since + self._patience_inside(account, cost))
            if self.mode is Mode.JOINED and not (
                account.bucket.level > 0
                and account.concurrency_in_use + cost.sequences <= account.limit.concurrency
                and account.kv_in_use + cost.kv_tokens <= account.limit.kv_tokens
            ):
                return
            line.waiters.popleft()
            line.soothe()
            self._decide(waiter, now)

    def _return_surplus(self, name: str, line: _Line, now: float) -> None:
        """What was asked for ahead may be wanted elsewhere by now, as those who waited may have gone."""
        account, limit = self._accounts[name], self._accounts[name].limit
        if (
            self.mode is Mode.JOINED
            and now < line.contended_until
            and (limit.concurrency > account.concurrency_in_use or limit.kv_tokens > account.kv_in_use)
        ):
            self._returns.add(name)

    def _release(self, line: _Line) -> None:
        while line.waiters:
            line.waiters.popleft().decide()

    def _decide(self, waiter: Waiter, now: float) -> None:
        self.borrowed_s += now - waiter.since
        waiter.decide()

    # --- without the books ---

    def _expire(self, now: float) -> None:
        if self.failures:
            if self.mode is not Mode.CUT_OFF:
                self.mode = Mode.CUT_OFF
                self._live_on_shares(now)
        elif self.mode is Mode.JOINED:
            self.mode = Mode.EXPIRED
            for account in self._accounts.values():
                self._hold_nothing(account)
            for line in self._lines.values():
                for waiter in line.waiters:
                    # It was this process that slept, not the books that were slow: the wait begins anew.
                    waiter.deadline = now + (waiter.deadline - waiter.since)

    def _live_on_shares(self, now: float) -> None:
        for name, account in self._accounts.items():
            self._share(account, self._limits.get(name), now)

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

    def _share(self, account: Account, known: Limit | None, now: float) -> None:
        """A sidecar's part of a limit while the books say nothing.

        The limit divided by the number of sidecars, but at least one request; of a guarantee more. Spot goes
        by its ceiling, and so by the engine's free room.
        """
        entitlement, part = account.entitlement, 1.0 / self.sidecars
        is_spot, share = entitlement.tier is Tier.SPOT, self._share_of_guarantee(account)
        whole = entitlement.ceiling if known is None or is_spot else known.amount
        rate = min(max(whole.tokens_per_second * part, share.tokens_per_second), _MOST_RATE)
        sequences = max(math.ceil(min(whole.concurrency * part, _MOST_RATE)), 1)
        floor = account.meter.floor
        account.limit = Amount(
            rate,
            max(whole.kv_tokens * part, share.kv_tokens, floor.kv_tokens),
            max(sequences, share.concurrency, floor.concurrency),
        )
        account.assured = NOTHING
        if not is_spot:
            assured = known.assured if known is not None else NOTHING
            account.assured = Amount(
                0.0,
                max(share.kv_tokens, assured.kv_tokens * part, floor.kv_tokens),
                max(share.concurrency, math.ceil(assured.concurrency * part)),
            )
        if known is None:
            account.pool_limit, account.depth = account.limit, bucket_depth(rate, 0.0)
        account.level_elsewhere = account.kv_elsewhere = account.concurrency_elsewhere = 0.0
        account.bucket.resize(rate, bucket_depth(rate, account.meter.typical_tokens.value), now)


def _may_be_inside_guarantee(account: Account, cost: Cost) -> bool:
    """Whether a request lies inside its entitlement's guarantee if nobody else uses any of it."""
    return account.is_inside_guarantee(cost.sequences, cost.kv_tokens, counts_elsewhere=False)
