"""Leases: what one sidecar holds of every limit, and the requests that wait for more. Pure.

``now`` is from the sidecar's monotonic clock. ``LeaseSync`` exchanges messages with the lease store and
changes what is held here; ``AdmissionControl`` asks ``covers`` for each request and tries those of ``due``.

- A request is decided from the lease. If the lease is too small and the last answer showed ample room, the
  request is admitted and reported afterwards (``_take_ahead`` has the bound). Otherwise it waits: the next
  message says so, and the lease store asks other holders to return unused leases.
- A request is never refused before the lease store answers for it, unless the lease store fails. After that
  answer it waits for capacity as long as its tier allows.
- Leases expire here before they expire in the lease store.
- Without the lease store each sidecar goes on with a share: a limit divided by the last known number of
  sidecars.
- The work depends on the number of active entitlements (``lines``), not on all that exist.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping

from tokenpool.accounting.account import Account, PoolView
from tokenpool.accounting.bucket import bucket_depth
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.queue import MOST_WAITING, AdmissionQueue
from tokenpool.amounts import NOTHING, Amount
from tokenpool.leases.line import Line
from tokenpool.leases.messages import CONTENDED_S, NO_LIMIT, Lease, LeaseRequest, Limit
from tokenpool.leases.settings import LeaseSettings, Mode
from tokenpool.leases.shares import MOST_RATE, fallback_share, share_of_guarantee, use_share
from tokenpool.planning.idle import IdleTerms, idle_share
from tokenpool.pricing.cost import Cost

MARGIN = 0.2
"""The part of a lifetime by which a lease expires here before it does in the lease store."""
HORIZON = 2.0
"""Tokens are held for so many intervals at the rate of demand: a message may be one interval late."""
ASK_AGAIN_S, LONGEST_ASK_AGAIN_S = 0.006, 0.2
"""The time after which a waiting request asks again without a push. It grows, but stays below the time for
which the lease store remembers waiting holders (``WAIT_S``)."""
RECLAIM_S, RECLAIM_TRIPS, LONGEST_RECLAIM_S = 0.1, 10, 2.0
"""How long other sidecars may take to return unused leases: so long, or so many round trips."""
ANSWER_S = 1.0
"""The longest wait of a request for the first answer. A store that takes longer has already failed."""
AMPLE = 0.25
"""The part of live capacity that must be free, in each dimension, for an admission before the report."""
AHEAD_SHARE = 0.5
"""The part of the free capacity that all sidecars together may take before they report it."""
FRESH_INTERVALS = 2.0
"""The largest age of the entitlement's last answer, in intervals, for an admission before the report."""


class Leases:
    """All that one sidecar holds."""

    def __init__(self, settings: LeaseSettings, sidecars: int, queue: AdmissionQueue) -> None:
        self.settings = settings
        self.queue = queue
        """The requests that wait for a lease are in it."""
        self.mode = Mode.EXPIRED
        self.sidecars = max(sidecars, 1)
        """The number of sidecars in the lease store's last answer; before it, the most that there may be."""
        self.failures = 0
        """Messages in a row that were not answered."""
        self.round_trip_s = 0.0
        """The duration of the last exchange, or a decreasing value after a longer one."""
        self.expires_at = -math.inf
        self.terms = IdleTerms()
        """The state of the pool in the last answer."""
        self.taken_ahead = 0
        """The number of requests that were admitted before their report."""
        self.accounts: Mapping[str, Account] = {}
        self.lines: dict[str, Line] = {}
        self.is_led = False
        """Whether limits or terms were ever received."""
        self.urgent: set[str] = set()
        """Entitlements with a request for which the next message asks."""
        self.returns: set[str] = set()
        """Entitlements of which the next message returns unused capacity."""
        self._limits: Mapping[str, Limit] = {}
        self._reserved_for = 0
        """The number of sidecars at the last opening of lines for guarantees."""
        self._pool_ahead = (0.0, 0.0, 0.0)
        """As ``Line.ahead``, for all entitlements together."""
        self._wakes_at = math.inf
        """No deadline of a waiting request is earlier. It may have left; the next ``wake`` finds out."""
        self._to_serve: dict[str, bool] = {}
        """Entitlements whose waiting requests may fit, and whether an answer has come for them."""
        self._ready: deque[PendingRequest] = deque()
        """Requests whose wait for a lease has ended."""

    # --- accounts and limits ---

    def follow(self, accounts: Mapping[str, Account], now: float) -> bool:
        """Use these accounts from now on. A new one has no lease until it is used.

        Returns whether an active entitlement was removed. Its waiting requests become due.
        """
        gone = [name for name in self.lines if name not in accounts]
        self.accounts = accounts
        for name in gone:
            del self.lines[name]
            self._release(name, now)
        self._reserved_for = 0
        return bool(gone)

    def learn(self, limits: Mapping[str, Limit], terms: IdleTerms, now: float) -> None:
        """All limits as published: what shares are made of. Books that are empty unteach nothing."""
        if terms.capacity == (0.0, 0.0, 0.0) and not limits:
            return
        self.is_led, self._limits, self.terms = True, limits, terms
        if self.mode in (Mode.JOINING, Mode.CUT_OFF):
            self.live_on_shares(now)

    def limit_of(self, account: Account) -> Limit:
        """The pool-wide limit of an entitlement: the published one, or else derived from the terms."""
        published = self._limits.get(account.entitlement.name)
        return published if published is not None else self.idle_limit(account)

    def refresh(self, account: Account) -> None:
        """Update the known limit of an idle entitlement. Does nothing to an active one."""
        if account.entitlement.name not in self.lines and self.is_led:
            account.set_pool(known_limit(self.limit_of(account), has_peers=self.sidecars > 1))

    def idle_limit(self, account: Account) -> Limit:
        """The limit that follows from the pool's terms if none is published."""
        if not self.is_led:
            return NO_LIMIT
        meter = account.meter
        share = idle_share(account.entitlement, self.terms, meter.floor)
        limit, assured = share.limit, share.assured
        rate = min(limit.tokens_per_second, MOST_RATE)
        depth = bucket_depth(rate, meter.typical_tokens.value)
        return Limit(
            rate, limit.kv_tokens, limit.concurrency, depth, assured.kv_tokens, assured.concurrency, 0.0
        )

    @property
    def active(self) -> Collection[str]:
        """The entitlements with recent requests or leases, or with a part of a guarantee held in advance."""
        return self.lines.keys()

    # --- the request path ---

    def covers(self, account: Account, cost: Cost, now: float) -> bool:
        """Whether the lease, or an admission before the report, covers the whole cost.

        Always true without the lease store. Waiting requests of the same entitlement come first.
        """
        if now >= self.expires_at:
            self.expire(now)
        name = account.entitlement.name
        line = self.lines.get(name)
        if self.accounts.get(name) is not account:
            return True  # its entitlement was removed in the meantime: the remaining local limits decide
        if line is None:
            line = self.open_line(name, account, now)
        if self.mode is not Mode.JOINED:
            return self.mode is not Mode.EXPIRED
        if self.queue.waiting_for_lease(name):
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

    def _take_ahead(self, account: Account, line: Line, cost: Cost, now: float) -> bool:
        """Take missing capacity before the report, if the last answers showed ample room.

        Each sidecar may take its part of half of the capacity that no sidecar held: of this entitlement's
        limit, and of the pool's free capacity. So an entitlement exceeds its limit by at most half of the
        free part, until the reports are answered. Below two free sequences for each sidecar nothing is taken.
        """
        if (
            now - line.answered_at > self.settings.interval_s * FRESH_INTERVALS
            or self.failures
            or now < line.contended_until
        ):
            return False
        missing = account.missing(cost)
        own, pool = line.ahead, self._pool_ahead
        if (
            missing.tokens > own[0]
            or missing.kv_tokens > own[1]
            or missing.sequences > own[2]
            or missing.kv_tokens > pool[1]
            or missing.sequences > pool[2]
        ):
            return False
        line.ahead = (own[0] - missing.tokens, own[1] - missing.kv_tokens, own[2] - missing.sequences)
        self._pool_ahead = (pool[0], pool[1] - missing.kv_tokens, pool[2] - missing.sequences)
        account.take_ahead(missing)
        self.taken_ahead += 1
        self.urgent.add(account.entitlement.name)
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

    def wait(self, pending: PendingRequest, patience_s: float, now: float) -> bool:
        """Make a request wait for a larger lease; returns false if a wait cannot help.

        It waits until the lease store answers for it. If nothing is left, it waits as long as other sidecars
        may take to return unused leases, or for ``patience_s`` seconds.
        """
        account, cost = pending.account, pending.cost
        if self.failures and self.mode is Mode.JOINED:
            self._stretch(account, cost, now)
        if self.failures or self.mode not in (Mode.JOINED, Mode.EXPIRED):
            return False
        name = account.entitlement.name
        if self.accounts.get(name) is not account:
            return False
        line = self.lines.get(name) or self.open_line(name, account, now)
        asks = now >= line.short_until or _may_be_inside_guarantee(account, cost)
        # Before the first answer a shortage is not known, so any number of requests may wait for it.
        waiting = self.queue.waiting_for_lease(name)
        is_full = len(waiting) >= MOST_WAITING and waiting[0].first_answer_at < math.inf
        if is_full or not (asks or patience_s > 0):
            return False
        pending.patience_s = patience_s
        self.queue.enter_for_lease(pending, now, now + max(patience_s, ANSWER_S))
        self._wake_by(pending.deadline)
        if asks:
            self.urgent.add(name)
        elif line.ask_again_at == math.inf:
            line.ask_again_at = line.short_until
        self._wake_by(line.ask_again_at)
        return True

    def _stretch(self, account: Account, cost: Cost, now: float) -> None:
        """The lease store has just failed: admit a request inside this sidecar's share.

        What others had in use is no measure any more: requests move between sidecars all the time.
        """
        line = self.lines.get(account.entitlement.name)
        if line is None:
            return
        known = self.limit_of(account) if self.is_led else None
        limit = fallback_share(account, known, self.sidecars).limit
        rate = limit.tokens_per_second
        if line.share_tokens is None:
            # Until the leases expire: a full bucket of the share, and its refill in that time.
            depth = bucket_depth(rate, account.meter.typical_tokens.value)
            line.share_tokens = depth + rate * max(self.expires_at - now, 0.0)
        sequences, kv_tokens = account.concurrency_in_use + cost.sequences, account.kv_in_use + cost.kv_tokens
        if sequences > limit.concurrency or kv_tokens > limit.kv_tokens or line.share_tokens <= 0:
            return
        line.share_tokens -= account.stretch(cost)

    def ended(self, account: Account, now: float) -> None:
        """A request has ended. Waiting requests may fit; a contended lease is returned."""
        name = account.entitlement.name
        line = self.lines.get(name)
        if line is None:
            return
        line.short_until = -math.inf
        if self.queue.waiting_for_lease(name):
            self._to_serve.setdefault(name, False)
        if now < line.contended_until:
            self.returns.add(name)

    # --- waiting requests ---

    def due(self, now: float) -> Iterator[PendingRequest]:
        """The requests to decide now: their lease is large enough, or their wait for it has ended.

        They have left their wait for a lease. The caller decides each one before it asks for the next: the
        admission of one may leave no room for the next.
        """
        while self._ready or self._to_serve:
            while self._ready:
                pending = self._ready.popleft()
                if self.failures and self.mode is Mode.JOINED:
                    self._stretch(pending.account, pending.cost, now)
                yield pending
            for name in list(self._to_serve):
                is_answered = self._to_serve.pop(name)
                line = self.lines.get(name)
                if line is not None:
                    yield from self._serve(name, line, now)
                    if is_answered:
                        self._return_surplus(name, line, now)

    def withdraw(self, pending: PendingRequest) -> None:
        """Forget a request whose wait for a lease has ended, but that is not decided yet."""
        if pending in self._ready:
            self._ready.remove(pending)

    def serve_answered(self, name: str, sent_at: float, now: float) -> None:
        """An answer came for an entitlement, to a message of ``sent_at``: its waiting requests may fit."""
        for pending in self.queue.waiting_for_lease(name):
            if sent_at >= pending.entered_at and pending.first_answer_at == math.inf:
                pending.first_answer_at = now
        self._to_serve[name] = True

    def serve_all(self) -> None:
        """Requests of all entitlements may fit."""
        for name in self.queue.entitlements_waiting_for_lease():
            self._to_serve.setdefault(name, False)

    def release_all(self, now: float) -> None:
        """The lease store failed: no request waits for it."""
        for name in self.queue.entitlements_waiting_for_lease():
            self._release(name, now)

    def wake(self, now: float) -> None:
        """End the waits whose deadline has passed, and ask again for the other requests."""
        if now >= self.expires_at:
            self.expire(now)
        for name in self.queue.entitlements_waiting_for_lease():
            line = self.lines.get(name)
            if line is None:
                self._release(name, now)
                continue
            for pending in [each for each in self.queue.waiting_for_lease(name) if each.deadline <= now]:
                line.pause_asking(pending.account, now)
                self._end_wait(pending, now)
            if line.ask_again_at <= now and self.queue.waiting_for_lease(name):
                line.ask_again_at = math.inf
                self.urgent.add(name)
        self._find_next_wake()

    def wakes_at(self) -> float:
        """The time of the next ``wake``; infinite while no request waits for a lease.

        It may be too early, never too late. Each call of ``AdmissionControl`` asks: 1,500 waiting requests
        would cost 0.5 ms if all were examined.
        """
        return self._wakes_at if self.queue.is_any_waiting_for_lease else math.inf

    def _wake_by(self, at: float) -> None:
        if at < self._wakes_at:
            self._wakes_at = at

    def _find_next_wake(self) -> None:
        self._wakes_at = math.inf
        for name in self.queue.entitlements_waiting_for_lease():
            line = self.lines.get(name)
            if line is not None:
                self._wake_by(line.ask_again_at)
            for pending in self.queue.waiting_for_lease(name):
                self._wake_by(pending.deadline)

    def _serve(self, name: str, line: Line, now: float) -> Iterator[PendingRequest]:
        """Yield, in order, the requests that fit, then the requests that wait no longer."""
        queue = self.queue
        while waiting := queue.waiting_for_lease(name):
            pending = waiting[0]
            account, cost = pending.account, pending.cost
            if self.mode is Mode.JOINED and not (
                account.bucket.level > 0
                and account.concurrency_in_use + cost.sequences <= account.limit.concurrency
                and account.kv_in_use + cost.kv_tokens <= account.limit.kv_tokens
            ):
                break
            line.resume_asking()
            queue.leave_lease_wait(pending, now)
            yield pending
        for pending in [
            each for each in queue.waiting_for_lease(name) if not self._waits_on(line, each, now)
        ]:
            line.pause_asking(pending.account, now)
            queue.leave_lease_wait(pending, now)
            yield pending

    def _end_wait(self, pending: PendingRequest, now: float) -> None:
        self.queue.leave_lease_wait(pending, now)
        self._ready.append(pending)

    def _release(self, name: str, now: float) -> None:
        """The requests of an entitlement wait for a lease no longer."""
        for pending in list(self.queue.waiting_for_lease(name)):
            self._end_wait(pending, now)

    def _waits_on(self, line: Line, pending: PendingRequest, now: float) -> bool:
        """Whether a request that does not fit now continues to wait; sets its deadline.

        It waits until the lease store answers for it. If the pool is not short, other sidecars may return
        unused leases. Otherwise its tier sets the deadline.
        """
        if pending.first_answer_at == math.inf:
            return True
        account, cost = pending.account, pending.cost
        pending.deadline = pending.entered_at + pending.patience_s
        if account.is_inside_guarantee(cost.sequences, cost.kv_tokens):
            pending.deadline = max(pending.deadline, pending.entered_at + LONGEST_RECLAIM_S)
        elif not self._is_short(line, account, cost) or _may_be_inside_guarantee(account, cost):
            # By the latest answer; requests elsewhere may have ended since their sidecars' last message.
            pending.deadline = max(pending.deadline, pending.first_answer_at + self._reclaim_s())
        self._wake_by(pending.deadline)
        return pending.deadline > now

    @staticmethod
    def _is_short(line: Line, account: Account, cost: Cost) -> bool:
        """Whether the use on all sidecars leaves no room for a request."""
        limit = account.pool_limit
        return (
            account.concurrency_in_use + account.concurrency_elsewhere + cost.sequences > limit.concurrency
            or account.kv_in_use + account.kv_elsewhere + cost.kv_tokens > limit.kv_tokens
            or account.level + line.tokens_elsewhere <= 0
        )

    def _reclaim_s(self) -> float:
        return min(max(RECLAIM_S, RECLAIM_TRIPS * self.round_trip_s), LONGEST_RECLAIM_S)

    def _return_surplus(self, name: str, line: Line, now: float) -> None:
        """What was asked for ahead may be wanted elsewhere by now, as those who waited may have gone."""
        account, limit = self.accounts[name], self.accounts[name].limit
        if (
            self.mode is Mode.JOINED
            and now < line.contended_until
            and not self.queue.waiting_for_lease(name)
            and (limit.concurrency > account.concurrency_in_use or limit.kv_tokens > account.kv_in_use)
        ):
            self.returns.add(name)

    # --- what is held ---

    def open_line(self, name: str, account: Account, now: float) -> Line:
        """An entitlement becomes active: set its account up for the mode."""
        line = self.lines[name] = Line()
        account.set_pool(known_limit(self.limit_of(account), has_peers=self.sidecars > 1))
        if self.mode in (Mode.JOINING, Mode.CUT_OFF):
            self._share(account, now)
        else:
            account.hold_nothing()
        return line

    def reserve_lines(self, now: float) -> None:
        """Open lines for guarantees: every sidecar always holds a part of them."""
        if self._reserved_for == self.sidecars or not self.is_led:
            return
        self._reserved_for = self.sidecars
        for name, account in self.accounts.items():
            if name not in self.lines and self.reserve(account):
                self.open_line(name, account, now)

    def reserve(self, account: Account) -> int:
        """Sequences of a guarantee that every sidecar may hold ahead of any request, all at once."""
        if account.is_spot or not self.is_led:
            return 0
        return int(account.entitlement.guarantee.concurrency // self.sidecars)

    def renewed(self, sent_at: float, sidecars: int) -> None:
        """The lease store began or renewed the lifetime of all leases, by a message of ``sent_at``."""
        self.sidecars = sidecars
        self.expires_at = sent_at + self.settings.lifetime_s * (1 - MARGIN)
        self._pool_ahead = self._may_take_ahead()

    def take(self, name: str, said: LeaseRequest, lease: Lease, now: float) -> None:
        """Hold what an answer to ``said`` gives."""
        account, limit = self.accounts[name], lease.limit
        assured = NOTHING
        if not account.is_spot:
            # What others have in use may have ended since; but of all that is held no more lies beyond what
            # is assured than the limit does. And a share of a guarantee is assured in any case.
            beyond = limit.amount - limit.assured
            least = share_of_guarantee(account, self.sidecars)
            assured = Amount(
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
        account.set_lease(
            Amount(limit.tokens_per_second, lease.kv_tokens, lease.concurrency),
            assured,
            lease.tokens - (account.meter.spent - said.tokens_spent),
        )
        line = self.lines[name]
        line.answered_at, line.tokens_elsewhere = now, lease.tokens_elsewhere
        part = AHEAD_SHARE / self.sidecars
        line.ahead = (
            max(lease.level, 0.0) * part,
            max(lease.kv_free, 0.0) * part,
            max(lease.concurrency_free, 0.0) * part,
        )
        if lease.is_contended:
            line.contended_until = now + CONTENDED_S / 2
        if said.is_urgent:
            waiting = self.queue.waiting_for_lease(name)
            waited = now - waiting[0].entered_at if waiting else 0.0
            line.ask_again_at = now + min(max(ASK_AGAIN_S, waited), LONGEST_ASK_AGAIN_S)
            self._wake_by(line.ask_again_at)

    def freed(self, name: str) -> bool:
        """Something is to be had again. Whether a message should go at once."""
        line = self.lines.get(name)
        if line is None:
            return False
        line.resume_asking()
        is_waiting = bool(self.queue.waiting_for_lease(name))
        if is_waiting:
            self.urgent.add(name)
        return is_waiting

    def reclaimed(self, name: str, now: float) -> bool:
        """Another sidecar is short. Whether a message should go at once."""
        line = self.lines.get(name)
        if line is None:
            return False
        line.contended_until = now + CONTENDED_S
        account = self.accounts[name]
        if (
            account.limit.concurrency > account.concurrency_in_use
            or account.limit.kv_tokens > account.kv_in_use
            or (account.bucket.level > 0 and tokens_are_short(account, line))
        ):
            self.returns.add(name)
            return True
        return False

    # --- without the lease store ---

    def expire(self, now: float) -> None:
        """The leases may have expired: hold nothing, or go on with shares."""
        if self.failures:
            if self.mode is not Mode.CUT_OFF:
                self.mode = Mode.CUT_OFF
                self.live_on_shares(now)
        elif self.mode is Mode.JOINED:
            self.mode = Mode.EXPIRED
            for name in self.lines:
                self.accounts[name].hold_nothing()
                for pending in self.queue.waiting_for_lease(name):
                    # This process was paused; the lease store was not slow. The wait begins again.
                    pending.first_answer_at = math.inf
                    pending.deadline = now + max(pending.patience_s, ANSWER_S)
                    self._wake_by(pending.deadline)
                    self.urgent.add(name)

    def live_on_shares(self, now: float) -> None:
        """Set all active accounts to this sidecar's shares."""
        for name in self.lines:
            self._share(self.accounts[name], now)

    def _share(self, account: Account, now: float) -> None:
        known = self.limit_of(account) if self.is_led else None
        if known is not None:
            account.set_pool(known_limit(known, has_peers=self.sidecars > 1))
        use_share(account, known, self.sidecars, now)


def known_limit(limit: Limit, *, has_peers: bool) -> PoolView:
    """The pool-wide state with this limit, as if no other sidecar used any of it."""
    return PoolView(limit.amount, limit.depth, limit.debt, limit.depth, has_peers=has_peers)


def _may_be_inside_guarantee(account: Account, cost: Cost) -> bool:
    """Whether a request lies inside its entitlement's guarantee if nobody else uses any of it."""
    return account.is_inside_guarantee(cost.sequences, cost.kv_tokens, counts_elsewhere=False)


def tokens_are_short(account: Account, line: Line) -> bool:
    """Whether the bucket has less left than a sidecar wants to hold."""
    return account.level_elsewhere < max(
        account.meter.typical_tokens.value, line.report.demand.tokens_per_second * HORIZON / 4
    )
