"""Leases: the part of every limit that one sidecar holds, and the decision whether it covers a request. Pure.

``now`` is in seconds of the sidecar's monotonic clock. ``LeaseSync`` exchanges messages with the lease store
and passes the leases on to this module. ``AdmissionControl`` calls ``covers`` for each request, and tries the
requests of ``due``. ``LeaseWaits`` has the rules of a lease wait.

- A request is decided from the lease. If the lease is too small and the last answer showed ample room, the
  request is admitted and reported afterwards (``_take_ahead`` has the bound). Otherwise it waits: the next
  message asks for it, and the lease store asks other sidecars to return unused leases.
- A request is never refused before the lease store answers for it, unless the lease store fails. After that
  answer it waits for capacity as long as its tier allows.
- Leases expire here before they expire in the lease store.
- Without the lease store each sidecar uses a share: a limit divided by the last known number of sidecars.
- The work depends on the number of active entitlements (``states``), not on all that exist.

This is one file because every rule here depends on the mode, and some of them change it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from tokenpool.accounting.account import Account, PoolView
from tokenpool.accounting.bucket import bucket_depth
from tokenpool.accounting.group_accounts import PREFIX, group_limit, has_room
from tokenpool.admission.pending import PendingRequest, WaitsFor
from tokenpool.admission.queue import AdmissionQueue
from tokenpool.amounts import NOTHING, Amount
from tokenpool.leases.lease_state import LeaseState
from tokenpool.leases.messages import CONTENDED_S, NO_LIMIT, Lease, LeaseRequest, Limit, Vector
from tokenpool.leases.settings import LeaseSettings, Mode
from tokenpool.leases.shares import MOST_RATE, fallback_share, share_of_guarantee, use_share
from tokenpool.leases.waits import LeaseWaits, may_be_inside_guarantee
from tokenpool.planning.idle import IdleTerms, idle_share
from tokenpool.pricing.cost import Cost

ROUND_TRIP_KEPT: Final = 0.8
"""The part of a long round trip that remains after each answer, because one quick answer proves nothing."""
MARGIN: Final = 0.2
"""The part of a lifetime by which a lease expires here before it does in the lease store."""
HORIZON: Final = 2.0
"""Intervals of demand for which tokens are held: a message may be one interval late."""
ASK_AGAIN_S, LONGEST_ASK_AGAIN_S = 0.006, 0.2
"""The time after which a waiting request asks again without a notification. It grows, but stays below the
time for which the lease store remembers waiting sidecars (``WAIT_S``)."""
AMPLE: Final = 0.25
"""The part of live capacity that must be free, in each dimension, for an admission before the report."""
AHEAD_SHARE: Final = 0.5
"""The part of the free capacity that all sidecars together may take before they report it."""
MOST_TRIED: Final = 16
"""The most entitlements whose waiting requests are tried when the engine here has free room: those that have
waited longest. Their number is bounded, because they are tried at the end of each request."""
FRESH_INTERVALS: Final = 2.0
"""The largest age of the entitlement's last answer, in intervals, for an admission before the report."""

_JOINED: Final = Mode.JOINED


class Leases:
    """All leases of one sidecar."""

    def __init__(self, settings: LeaseSettings, sidecars: int, queue: AdmissionQueue) -> None:
        self.settings = settings
        self.queue = queue
        """It keeps the requests that wait for a lease."""
        self.waits = LeaseWaits(queue)
        self.mode = Mode.EXPIRED
        self.sidecars = max(sidecars, 1)
        """The number of sidecars, by the last answer; before the first answer, an upper bound."""
        self.failures = 0
        """The number of successive messages without an answer."""
        self.paused_until = -math.inf
        """The end of the last pause of this process in which the leases expired."""
        self.round_trip_s = 0.0
        """The duration of the last exchange, or a decreasing value after a longer one."""
        self.expires_at = -math.inf
        """The time at which all leases expire here."""
        self.terms = IdleTerms()
        """The state of the pool in the last answer."""
        self.taken_ahead = 0
        """The number of requests admitted before their report."""
        self.accounts: Mapping[str, Account] = {}
        self.states: dict[str, LeaseState] = {}
        """The state of every active entitlement, by name."""
        self.has_limits = False
        """Whether the sidecar has received limits or terms from a coordinator."""
        self.urgent: set[str] = set()
        """Entitlements with a waiting request for which the next message asks."""
        self.returns: set[str] = set()
        """Entitlements whose unused leases the next message returns."""
        self._limits: Mapping[str, Limit] = {}
        self._guarantees_divided_by = 0
        """The number of sidecars when the last ``activate_guarantees`` ran."""
        self.free: Vector = (0.0, 0.0, 0.0)
        """The free capacity of the pool (``Answer.free``), less what requests have taken of it since."""
        self.free_at = -math.inf
        """The time of that answer."""
        self._pool_ahead = (0.0, 0.0, 0.0)
        """The same amounts as ``LeaseState.ahead``, for all entitlements together."""

    # --- accounts and limits ---

    def follow(self, accounts: Mapping[str, Account], now: float) -> bool:
        """Use these accounts and those of their groups. A new account has no lease until its first request.

        Returns whether an active entitlement was removed. Its waiting requests become due.
        """
        groups = {group.entitlement.name: group for each in accounts.values() for group in each.groups}
        if groups:
            accounts = {**accounts, **groups}
        gone = [name for name in self.states if name not in accounts]
        self.accounts = accounts
        for name in gone:
            del self.states[name]
            self.waits.end_all_of(name, now)
        self._guarantees_divided_by = 0
        return bool(gone)

    def learn(self, limits: Mapping[str, Limit], terms: IdleTerms, now: float) -> None:
        """Use these published limits from now on. An empty lease store changes nothing."""
        if terms.capacity == (0.0, 0.0, 0.0) and all(name.startswith(PREFIX) for name in limits):
            return  # the limits of groups are known without a plan
        self.has_limits, self._limits, self.terms = True, limits, terms
        if self.mode in (Mode.JOINING, Mode.CUT_OFF):
            self.use_shares(now)

    def limit_of(self, account: Account) -> Limit:
        """The pool-wide limit of an entitlement: the published one, or else derived from the terms."""
        published = self._limits.get(account.entitlement.name)
        return published if published is not None else self.idle_limit(account)

    def refresh(self, account: Account) -> None:
        """Update the known limit of an idle entitlement. Does nothing to an active one."""
        if account.entitlement.name not in self.states and self.has_limits:
            account.set_pool(known_limit(self.limit_of(account), has_peers=self.sidecars > 1))

    def idle_limit(self, account: Account) -> Limit:
        """The limit that follows from the pool's terms if none is published; for a group, its ceiling."""
        if account.is_group:
            return limit_of_group(account.entitlement.ceiling)
        if not self.has_limits:
            return NO_LIMIT
        meter = account.meter
        share = idle_share(account.entitlement, self.terms, meter.floor, is_bounded=bool(account.groups))
        limit, assured = share.limit, share.assured
        rate = min(limit.tokens_per_second, MOST_RATE)
        depth = bucket_depth(rate, meter.typical_tokens.value)
        return Limit(
            rate, limit.kv_tokens, limit.concurrency, depth, assured.kv_tokens, assured.concurrency, 0.0
        )

    def were_lost(self, now: float) -> bool:
        """Whether the leases have expired in a pause of this process, so that it must ask for them again."""
        if now >= self.expires_at:
            self.expire(now)
        return self.mode is Mode.EXPIRED

    @property
    def active(self) -> Collection[str]:
        """The names of entitlements with recent requests, a lease, or a reserved part of a guarantee."""
        return self.states.keys()

    # --- the request path ---

    def covers(self, account: Account, cost: Cost, now: float) -> bool:
        """Whether the lease, or an admission before the report, covers the whole cost.

        Always true without the lease store. Waiting requests of the same entitlement come first.
        """
        if now >= self.expires_at:
            self.expire(now)
        name = account.name
        state = self.states.get(name)
        if self.accounts.get(name) is not account:
            return True  # the entitlement was removed meanwhile: the local limits of this account decide
        if state is None:
            state = self.activate(name, account, now)
        for group in account.groups:
            if group.name not in self.states:
                self.activate(group.name, group, now)
        if self.mode is not _JOINED:
            return self.mode is not Mode.EXPIRED
        if self.queue.waiting_for_lease(name):
            return False
        if account.groups and not self._groups_cover(account, cost):
            return False
        return (
            self._is_enough(account, cost)
            or self._take_ahead(account, state, cost, now)
            or self.use_free_capacity(account, cost, now, AHEAD_SHARE / self.sidecars)
        )

    def _groups_cover(self, account: Account, cost: Cost) -> bool:
        """Whether the leases of its groups cover a cost. What they lack is asked for with the next message.

        Nothing is taken from a group before the report. So all sidecars together never exceed a ceiling.
        """
        is_covered = True
        for group in account.groups:
            if not has_room(group, cost):
                self.urgent.add(group.entitlement.name)
                is_covered = False
        return is_covered

    def waiting(self, account: Account) -> Collection[PendingRequest]:
        """The requests that wait for a lease of this entitlement, or of any member of this group."""
        if not account.is_group:
            return self.queue.waiting_for_lease(account.entitlement.name)
        return [
            pending
            for name in self._members_waiting(account)
            for pending in self.queue.waiting_for_lease(name)
        ]

    def _members_waiting(self, group: Account) -> list[str]:
        """The entitlements of a group with requests that wait for a lease."""
        return [
            name
            for name in self.queue.entitlements_waiting_for_lease()
            if group in self.queue.waiting_for_lease(name)[0].account.groups
        ]

    @staticmethod
    def _is_enough(account: Account, cost: Cost) -> bool:
        return (
            account.bucket.level >= cost.throughput
            and account.concurrency_in_use + cost.sequences <= account.limit_sequences
            and account.kv_in_use + cost.kv_tokens <= account.limit_kv
        )

    def _take_ahead(self, account: Account, state: LeaseState, cost: Cost, now: float) -> bool:
        """Take missing capacity before the report, if the last answers showed ample room.

        All sidecars together may take half of the capacity that no sidecar holds: of the entitlement's limit,
        and of the pool's free capacity. Each sidecar may take an equal part of that half. So an entitlement
        exceeds its limit by at most half of the free part, until the reports are answered. With fewer than
        two free sequences per sidecar nothing is taken.
        """
        if (
            now - state.answered_at > self.settings.interval_s * FRESH_INTERVALS
            or self.failures
            or now < state.contended_until
        ):
            return False
        missing = account.missing(cost)
        own, pool = state.ahead, self._pool_ahead
        if (
            missing.tokens > own[0]
            or missing.kv_tokens > own[1]
            or missing.sequences > own[2]
            or missing.kv_tokens > pool[1]
            or missing.sequences > pool[2]
        ):
            return False
        state.ahead = (own[0] - missing.tokens, own[1] - missing.kv_tokens, own[2] - missing.sequences)
        self._pool_ahead = (pool[0], pool[1] - missing.kv_tokens, pool[2] - missing.sequences)
        account.take_ahead(missing)
        self.taken_ahead += 1
        self.urgent.add(account.entitlement.name)
        return True

    def use_free_capacity(self, account: Account, cost: Cost, now: float, part: float = 1.0) -> bool:
        """Take missing capacity beyond the limit, from the capacity that no replica uses.

        Limits bind only under contention. While the pool has free room in every dimension that is short here,
        an entitlement may use it, up to its ceiling. ``part`` is the part of the free capacity that may be
        taken. A request that has waited for the answer may take all of it. Between two answers, all sidecars
        together may take ``AHEAD_SHARE`` of it. If the last plan satisfied every claim, only the room of the
        engines counts.

        Several sidecars may take the same free capacity before they report it. The room of the engines bounds
        that excess.
        """
        if (
            self.mode is not Mode.JOINED
            or self.failures
            or now - self.free_at > self.settings.interval_s * FRESH_INTERVALS
            or not account.is_below_ceiling(cost, self.sidecars)
            or not self._groups_leave_room(account, cost, now)
        ):
            return False
        missing, (tokens, kv_tokens, sequences) = account.missing(cost), self.free
        # Requests beyond a lease that has become smaller run already. The free room does not include theirs.
        kv_missing = min(missing.kv_tokens, cost.kv_tokens)
        sequences_missing = min(missing.sequences, cost.sequences)
        if missing.tokens and (
            missing.tokens > tokens * part or account.entitlement.ceiling.tokens_per_second < math.inf
        ):
            return False
        is_contended = self.terms.others_want or account.is_spot
        if is_contended and (
            (kv_missing and kv_missing > kv_tokens * part)
            or (sequences_missing and sequences_missing > sequences * part)
        ):
            return False
        self.free = (tokens - missing.tokens, kv_tokens - kv_missing, sequences - sequences_missing)
        account.use_free_capacity(cost)
        self.urgent.add(account.entitlement.name)
        return True

    def _groups_leave_room(self, account: Account, cost: Cost, now: float) -> bool:
        """Whether its groups allow it free capacity: their leases cover it, and no sidecar lacks theirs.

        Under contention in a group, the limits of its members bind.
        """
        return all(
            has_room(group, cost)
            and (state := self.states.get(group.entitlement.name)) is not None
            and now >= state.contended_until
            for group in account.groups
        )

    def has_room_here(self, kv_tokens: float, sequences: float) -> bool:
        """The engine here has free room. Waiting requests may use it before the next answer states it.

        Returns whether a request may fit. The requests of a few entitlements are tried, in the order of their
        tiers.
        """
        self._find_free(kv_tokens, sequences)
        names = self.queue.entitlements_waiting_for_lease(MOST_TRIED)
        for name in sorted(names, key=lambda name: self.queue.waiting_for_lease(name)[0].rank):
            self.waits.may_fit(name)
        return bool(self.waits.to_serve)

    def _find_free(self, kv_tokens: float, sequences: float) -> None:
        tokens, pool_kv_tokens, pool_sequences = self.free
        self.free = (tokens, max(pool_kv_tokens, kv_tokens), max(pool_sequences, sequences))

    def lacks_only_room(self, pending: PendingRequest, now: float) -> bool:
        """Whether a request that waits for a larger lease may use room that another replica offers.

        So it is if the lease store has answered for it, and neither a ceiling nor missing tokens bind it.
        """
        account, cost = pending.account, pending.cost
        missing = account.missing(cost).tokens
        return (
            pending.first_answer_at <= now
            and account.is_below_ceiling(cost, self.sidecars)
            and self._groups_leave_room(account, cost, now)
            and (missing <= 0 or missing <= self.free[0])
        )

    def takes_room(self, pending: PendingRequest, now: float) -> bool:
        """Another replica keeps room for this request. Returns whether a lease or free capacity covers it."""
        account, cost = pending.account, pending.cost
        if pending.waits_for is not WaitsFor.LEASE:
            self.cover_queued(account, cost, now)
            return True
        self._find_free(cost.kv_tokens, cost.sequences)
        return self.use_free_capacity(account, cost, now)

    def cover_queued(self, account: Account, cost: Cost, now: float) -> None:
        """Hold enough for a request that waited for room, if its lease has become too small meanwhile.

        It is free capacity of the pool. If the lease store has just failed, it is this sidecar's share.
        """
        if self.mode is not Mode.JOINED or self.accounts.get(account.entitlement.name) is not account:
            return
        missing = account.missing(cost)
        if account.bucket.level > 0 and not (missing.kv_tokens or missing.sequences):
            return
        if self.failures:
            self._admit_within_share(account, cost, now)
        else:
            self.use_free_capacity(account, cost, now)

    def _may_take_ahead(self) -> tuple[float, float, float]:
        """This sidecar's part of the pool's free capacity; zero unless the free capacity is ample."""
        terms = self.terms
        for free, whole in zip(terms.headroom, terms.capacity, strict=True):
            if free < AMPLE * whole:
                return (0.0, 0.0, 0.0)
        part = AHEAD_SHARE / self.sidecars
        tokens, cache, sequences = terms.headroom
        return (tokens * part, cache * part, sequences * part)

    def wait(self, pending: PendingRequest, longest_wait_s: float, now: float) -> bool:
        """Make a request wait for a larger lease. Returns false if a wait cannot help.

        ``longest_wait_s`` is its longest wait for capacity after the first answer, in seconds.
        """
        account, cost = pending.account, pending.cost
        if self.failures and self.mode is Mode.JOINED:
            self._admit_within_share(account, cost, now)
        if self.failures or self.mode not in (Mode.JOINED, Mode.EXPIRED):
            return False
        name = account.entitlement.name
        if self.accounts.get(name) is not account:
            return False
        state = self.states.get(name) or self.activate(name, account, now)
        asks = now >= state.short_until or may_be_inside_guarantee(account, cost)
        if self.waits.is_full(name) or not (asks or longest_wait_s > 0):
            return False
        self.waits.begin(pending, longest_wait_s, now)
        if asks:
            self.urgent.add(name)
            self._groups_cover(account, cost)
        elif state.ask_again_at == math.inf:
            state.ask_again_at = state.short_until
        self.waits.wake_by(state.ask_again_at)
        return True

    def _admit_within_share(self, account: Account, cost: Cost, now: float) -> None:
        """The lease store has just failed: hold enough for a request inside this sidecar's share.

        The last known use of other sidecars does not count. It is out of date, since requests move between
        sidecars all the time.
        """
        state = self.states.get(account.entitlement.name)
        if state is None:
            return
        known = self.limit_of(account) if self.has_limits else None
        limit = fallback_share(account, known, self.sidecars).limit
        rate = limit.tokens_per_second
        if state.share_tokens is None:
            # Until the leases expire, the share has a full bucket and its refill in that time.
            depth = bucket_depth(rate, account.meter.typical_tokens.value)
            state.share_tokens = depth + rate * max(self.expires_at - now, 0.0)
        sequences, kv_tokens = account.concurrency_in_use + cost.sequences, account.kv_in_use + cost.kv_tokens
        if sequences > limit.concurrency or kv_tokens > limit.kv_tokens or state.share_tokens <= 0:
            return
        state.share_tokens -= account.hold_enough(cost)

    def ended(self, account: Account, now: float) -> None:
        """A request has ended. Waiting requests may fit; a contended lease is returned."""
        name = account.entitlement.name
        state = self.states.get(name)
        if state is None:
            return
        state.short_until = -math.inf
        self.waits.may_fit(name)
        if now < state.contended_until:
            self.returns.add(name)
        for group in account.groups:
            self.group_may_fit(group)
            state = self.states.get(group.entitlement.name)
            if state is not None and now < state.contended_until:
                self.returns.add(group.entitlement.name)

    # --- waiting requests ---

    def due(self, now: float) -> Iterator[PendingRequest]:
        """The requests to decide now: their lease is large enough, or their wait for it has ended.

        They have left their wait for a lease. The caller decides each one before it asks for the next,
        because the admission of one may leave no room for the next. After a pause of this process no request
        fits before the next answer.
        """
        waits = self.waits
        if now >= self.expires_at:
            self.expire(now)
        while waits.ended or waits.to_serve:
            while waits.ended:
                pending = waits.ended.popleft()
                if self.failures and self.mode is Mode.JOINED:
                    self._admit_within_share(pending.account, pending.cost, now)
                yield pending
            for name in list(waits.to_serve):
                is_answered = waits.to_serve.pop(name)
                state = self.states.get(name)
                if state is not None and self.mode is not Mode.EXPIRED:
                    yield from self._due_of(name, state, now)
                    if is_answered:
                        self.return_surplus(name, state, now)

    def _due_of(self, name: str, state: LeaseState, now: float) -> Iterator[PendingRequest]:
        """Yield the waiting requests of an entitlement that fit, in order. Then those whose wait is over.

        All of them have left their wait. Without the lease store all requests fit.
        """
        waits, is_joined = self.waits, self.mode is Mode.JOINED
        while (pending := waits.first(name)) is not None and (not is_joined or self._fits(pending, now)):
            waits.end_fitting(pending, state, now)
            yield pending
        for pending in waits.exhausted(name, state, self.round_trip_s, now):
            waits.end_exhausted(pending, state, now)
            yield pending

    def _fits(self, pending: PendingRequest, now: float) -> bool:
        """Whether the lease covers a waiting request now.

        A request for which the lease store has answered may also use free capacity of the pool.
        """
        account, cost = pending.account, pending.cost
        limit = account.limit
        fits = (
            account.bucket.level > 0
            and account.concurrency_in_use + cost.sequences <= limit.concurrency
            and account.kv_in_use + cost.kv_tokens <= limit.kv_tokens
        )
        if not all(has_room(group, cost) for group in account.groups):
            return False
        return fits or (pending.first_answer_at < math.inf and self.use_free_capacity(account, cost, now))

    def group_may_fit(self, group: Account) -> None:
        """Waiting requests of the members of a group may fit."""
        if not self.queue.is_any_waiting_for_lease:
            return
        for name in self._members_waiting(group):
            self.waits.may_fit(name)

    def wake(self, now: float) -> None:
        """End the waits whose deadline has passed, and ask again for the other requests."""
        if now >= self.expires_at:
            self.expire(now)
        for name in self.queue.entitlements_waiting_for_lease():
            state = self.states.get(name)
            if state is None:
                self.waits.end_all_of(name, now)
                continue
            self.waits.end_overdue(name, state, now)
            if state.ask_again_at <= now and self.queue.waiting_for_lease(name):
                state.ask_again_at = math.inf
                self.urgent.add(name)
                first = self.queue.waiting_for_lease(name)[0]
                self._groups_cover(first.account, first.cost)
        self.waits.find_next_wake(self.states)

    def return_surplus(self, name: str, state: LeaseState, now: float) -> None:
        """Return unused capacity of a contended entitlement if none of its requests waits any more.

        The last message asked for this capacity for requests that may have left meanwhile.
        """
        account, limit = self.accounts[name], self.accounts[name].limit
        if (
            self.mode is Mode.JOINED
            and now < state.contended_until
            and not self.waiting(account)
            and (account.is_group or self.queue.first(account) is None)
            and (limit.concurrency > account.concurrency_in_use or limit.kv_tokens > account.kv_in_use)
        ):
            self.returns.add(name)

    # --- leases ---

    def activate(self, name: str, account: Account, now: float) -> LeaseState:
        """Make an entitlement active: its account gets the limits of the mode."""
        state = self.states[name] = LeaseState()
        account.set_pool(known_limit(self.limit_of(account), has_peers=self.sidecars > 1))
        if self.mode in (Mode.JOINING, Mode.CUT_OFF):
            self._share(account, now)
        else:
            account.hold_nothing()
        return state

    def activate_guarantees(self, now: float) -> None:
        """Make entitlements with a guarantee active: every sidecar always holds a part of a guarantee."""
        if self._guarantees_divided_by == self.sidecars or not self.has_limits:
            return
        self._guarantees_divided_by = self.sidecars
        for name, account in self.accounts.items():
            if name not in self.states and self.reserve(account):
                self.activate(name, account, now)

    def reserve(self, account: Account) -> int:
        """The sequences of a guarantee that each sidecar holds without any request.

        All sidecars together hold no more than the guarantee.
        """
        if account.is_spot or not self.has_limits:
            return 0
        return int(account.entitlement.guarantee.concurrency // self.sidecars)

    def store_answered(self, round_trip_s: float, terms: IdleTerms, free: Vector, now: float) -> None:
        """The lease store answered a message after ``round_trip_s`` seconds.

        ``terms`` and ``free`` are the state of the pool (``Answer``).
        """
        self.free, self.free_at = free, now
        if self.failures:
            for state in self.states.values():
                state.share_tokens = None
        self.failures = 0
        self.round_trip_s = max(round_trip_s, self.round_trip_s * ROUND_TRIP_KEPT)
        if terms.capacity != (0.0, 0.0, 0.0):
            self.terms, self.has_limits = terms, True

    def store_failed(self, now: float) -> None:
        """The lease store did not answer a message in time: no request waits for it."""
        self.failures += 1
        if now >= self.expires_at:
            self.expire(now)
        self.waits.end_all(now)

    def answered_late(self, now: float) -> None:
        """An answer came after all leases had expired: this process was late, not the lease store."""
        self.round_trip_s = 0.0
        self.expire(now)

    def join(self, stated: Collection[str]) -> None:
        """Decide from leases. An entitlement that the complete message did not state holds nothing yet."""
        if self.mode is not Mode.JOINED:
            self.mode = Mode.JOINED
            for name in self.states:
                if name not in stated:
                    self.accounts[name].hold_nothing()

    def wait_to_join(self, now: float) -> None:
        """The lease store is closed, or has no limits yet: decide from shares."""
        self.mode = Mode.JOINING
        self.use_shares(now)

    def renewed(self, sent_at: float, sidecars: int) -> None:
        """The lease store began or renewed the lifetime of all leases, for a message sent at ``sent_at``."""
        self.sidecars = sidecars
        self.expires_at = sent_at + self.settings.lifetime_s * (1 - MARGIN)
        self._pool_ahead = self._may_take_ahead()

    def take(self, name: str, request: LeaseRequest, lease: Lease, now: float) -> None:
        """Hold the lease that the lease store granted for ``request``."""
        account, limit = self.accounts[name], lease.limit
        assured = NOTHING
        if not account.is_spot:
            # The largest of three bounds is assured. First: the assured part of the limit, less the use of
            # others as of their last messages. Second: the lease, less the part of the limit that is not
            # assured, because no more than that part is held in all. Third: a share of the guarantee.
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
            lease.tokens - (account.meter.spent - request.tokens_spent),
        )
        state = self.states[name]
        state.answered_at, state.tokens_elsewhere = now, lease.tokens_elsewhere
        part = AHEAD_SHARE / self.sidecars
        state.ahead = (
            max(lease.level, 0.0) * part,
            max(lease.kv_free, 0.0) * part,
            max(lease.concurrency_free, 0.0) * part,
        )
        if lease.is_contended:
            state.contended_until = now + CONTENDED_S / 2
        if request.is_urgent:
            waited = now - min((pending.entered_at for pending in self.waiting(account)), default=now)
            state.ask_again_at = now + min(max(ASK_AGAIN_S, waited), LONGEST_ASK_AGAIN_S)
            self.waits.wake_by(state.ask_again_at)

    def freed(self, name: str) -> bool:
        """The lease store has free capacity again. Returns whether a message should be sent at once."""
        state = self.states.get(name)
        if state is None:
            return False
        state.resume_asking()
        is_waiting = bool(self.waiting(self.accounts[name]))
        if is_waiting:
            self.urgent.add(name)
        return is_waiting

    def reclaimed(self, name: str, now: float) -> bool:
        """Another sidecar lacks capacity. Returns whether a message should be sent at once."""
        state = self.states.get(name)
        if state is None:
            return False
        state.contended_until = now + CONTENDED_S
        account = self.accounts[name]
        if (
            account.limit.concurrency > account.concurrency_in_use
            or account.limit.kv_tokens > account.kv_in_use
            or (account.bucket.level > 0 and tokens_are_short(account, state))
        ):
            self.returns.add(name)
            return True
        return False

    # --- without the lease store ---

    def expire(self, now: float) -> None:
        """The leases have expired: hold nothing, or use shares if the lease store fails.

        If no message has failed, this process was paused; the lease store was not slow.
        """
        if self.failures:
            if self.mode is not Mode.CUT_OFF:
                self.mode = Mode.CUT_OFF
                self.use_shares(now)
        elif self.mode is Mode.JOINED:
            self.mode, self.paused_until = Mode.EXPIRED, now
            for name in self.states:
                self.accounts[name].hold_nothing()
                if self.waits.begin_again(name, now):
                    self.urgent.add(name)

    def use_shares(self, now: float) -> None:
        """Set all active accounts to this sidecar's shares."""
        for name in self.states:
            self._share(self.accounts[name], now)

    def _share(self, account: Account, now: float) -> None:
        known = self.limit_of(account) if self.has_limits else None
        use_share(account, known, self.sidecars, now)


def limit_of_group(ceiling: Amount, debt: float = 0.0) -> Limit:
    """The limit of a group in the lease store: its ceiling."""
    tokens, kv_tokens, sequences = group_limit(ceiling).values()
    return Limit(tokens, kv_tokens, sequences, bucket_depth(tokens, 0.0), debt=debt)


def known_limit(limit: Limit, *, has_peers: bool) -> PoolView:
    """The pool-wide state with this limit, as if other sidecars did not use it."""
    return PoolView(limit.amount, limit.depth, limit.debt, limit.depth, has_peers=has_peers)


def tokens_are_short(account: Account, state: LeaseState) -> bool:
    """Whether the pool-wide bucket has fewer free tokens than a sidecar wants to hold."""
    return account.level_elsewhere < max(
        account.meter.typical_tokens.value, state.report.demand.tokens_per_second * HORIZON / 4
    )
