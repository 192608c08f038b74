"""Lease waits: the requests of one sidecar that wait for a larger lease, and the end of each wait. Pure.

``Leases`` owns this object, reports answers and failures to it, and decides whether a request fits. The
admission queue keeps the requests
themselves, by entitlement and in order of arrival.

- A request waits until the lease store answers a message that asks for it, for at most ``ANSWER_S`` seconds.
- After that answer, if the pool is not short, it waits while other sidecars may return unused leases.
- Otherwise it waits as long as its tier and SLO allow.
"""

from __future__ import annotations

import math
from collections import deque

from tokenpool.accounting.account import Account
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.queue import MOST_WAITING, AdmissionQueue
from tokenpool.leases.lease_state import LeaseState
from tokenpool.pricing.cost import Cost

ANSWER_S = 1.0
"""The longest wait of a request for the first answer. A store that takes longer has already failed."""
RECLAIM_S, RECLAIM_TRIPS, LONGEST_RECLAIM_S = 0.1, 10, 2.0
"""The time for other sidecars to return unused leases: ``RECLAIM_S`` seconds, or ``RECLAIM_TRIPS`` round
trips if they take longer; at most ``LONGEST_RECLAIM_S``."""


class LeaseWaits:
    """All requests of one sidecar that wait for a larger lease."""

    __slots__ = ("_queue", "_wakes_at", "ended", "to_serve")

    def __init__(self, queue: AdmissionQueue) -> None:
        self._queue = queue
        self._wakes_at = math.inf
        """No deadline of a waiting request is earlier. The request with this deadline may have left
        already."""
        self.to_serve: dict[str, bool] = {}
        """Entitlements whose waiting requests may fit. True if an answer for the entitlement has arrived."""
        self.ended: deque[PendingRequest] = deque()
        """Requests whose wait has ended and that are not decided yet."""

    # --- begin ---

    def is_full(self, name: str) -> bool:
        """Whether the entitlement has the most waiting requests.

        Before the first answer a shortage is not known, so any number of requests may wait for that answer.
        """
        waiting = self._queue.waiting_for_lease(name)
        return len(waiting) >= MOST_WAITING and waiting[0].first_answer_at < math.inf

    def begin(self, pending: PendingRequest, longest_wait_s: float, now: float) -> None:
        """Make a request wait; ``longest_wait_s`` is its longest wait for capacity, in seconds."""
        pending.longest_wait_s = longest_wait_s
        self._queue.enter_for_lease(pending, now, now + max(longest_wait_s, ANSWER_S))
        self.wake_by(pending.deadline)

    def begin_again(self, name: str, now: float) -> bool:
        """Begin all waits of an entitlement again. Returns whether there are any."""
        waiting = self._queue.waiting_for_lease(name)
        for pending in waiting:
            pending.first_answer_at, pending.entered_at = math.inf, now
            pending.deadline = now + max(pending.longest_wait_s, ANSWER_S)
            self.wake_by(pending.deadline)
        return bool(waiting)

    # --- events ---

    def answered(self, name: str, sent_at: float, now: float) -> None:
        """The lease store answered a message of ``sent_at`` for an entitlement: its requests may fit."""
        for pending in self._queue.waiting_for_lease(name):
            if sent_at >= pending.entered_at and pending.first_answer_at == math.inf:
                pending.first_answer_at = now
        self.to_serve[name] = True

    def may_fit(self, name: str) -> None:
        """Requests of an entitlement may fit, for another reason than an answer."""
        if self._queue.waiting_for_lease(name):
            self.to_serve.setdefault(name, False)

    def all_may_fit(self) -> None:
        """Requests of all entitlements may fit."""
        for name in self._queue.entitlements_waiting_for_lease():
            self.to_serve.setdefault(name, False)

    # --- end ---

    def first(self, name: str) -> PendingRequest | None:
        """The first waiting request of an entitlement."""
        waiting = self._queue.waiting_for_lease(name)
        return waiting[0] if waiting else None

    def end_fitting(self, pending: PendingRequest, state: LeaseState, now: float) -> None:
        """A waiting request fits: it leaves its wait."""
        state.resume_asking()
        self._queue.leave_lease_wait(pending, now)

    def exhausted(
        self, name: str, state: LeaseState, round_trip_s: float, now: float
    ) -> list[PendingRequest]:
        """The requests of an entitlement that do not fit now, and whose wait is over.

        ``end_exhausted`` follows for each.
        """
        reclaim_s = min(max(RECLAIM_S, RECLAIM_TRIPS * round_trip_s), LONGEST_RECLAIM_S)
        waiting = self._queue.waiting_for_lease(name)
        return [each for each in waiting if not self._continues(state, each, reclaim_s, now)]

    def end_exhausted(self, pending: PendingRequest, state: LeaseState, now: float) -> None:
        """The wait of a request is over, and it does not fit: it leaves its wait."""
        state.pause_asking(pending.account, now)
        self._queue.leave_lease_wait(pending, now)

    def end_overdue(self, name: str, state: LeaseState, now: float) -> None:
        """End the waits of an entitlement whose deadline has passed."""
        for pending in [each for each in self._queue.waiting_for_lease(name) if each.deadline <= now]:
            self.end_exhausted(pending, state, now)
            self.ended.append(pending)

    def end_all_of(self, name: str, now: float) -> None:
        """End all waits of an entitlement."""
        for pending in list(self._queue.waiting_for_lease(name)):
            self._queue.leave_lease_wait(pending, now)
            self.ended.append(pending)

    def end_all(self, now: float) -> None:
        """End all waits: the lease store failed."""
        for name in self._queue.entitlements_waiting_for_lease():
            self.end_all_of(name, now)

    def withdraw(self, pending: PendingRequest) -> None:
        """Forget a request whose wait has ended, but that is not decided yet."""
        if pending in self.ended:
            self.ended.remove(pending)

    def _continues(self, state: LeaseState, pending: PendingRequest, reclaim_s: float, now: float) -> bool:
        """Whether a request that does not fit now continues to wait. Sets its deadline."""
        if pending.first_answer_at == math.inf:
            return True
        account, cost = pending.account, pending.cost
        pending.deadline = pending.entered_at + pending.longest_wait_s
        if account.is_inside_guarantee(cost.sequences, cost.kv_tokens):
            pending.deadline = max(pending.deadline, pending.entered_at + LONGEST_RECLAIM_S)
        elif not _is_short(state, account, cost) or may_be_inside_guarantee(account, cost):
            # The answer may be out of date: requests elsewhere may have ended since their sidecars' messages.
            pending.deadline = max(pending.deadline, pending.first_answer_at + reclaim_s)
        self.wake_by(pending.deadline)
        return pending.deadline > now

    # --- time ---

    def wakes_at(self) -> float:
        """The time of the next wake; infinite while no request waits for a lease.

        It may be too early, never too late. Each call of ``AdmissionControl`` asks for it: an examination of
        1,500 waiting requests would take 0.5 ms.
        """
        return self._wakes_at if self._queue.is_any_waiting_for_lease else math.inf

    def wake_by(self, at: float) -> None:
        """Wake at this time or earlier."""
        if at < self._wakes_at:
            self._wakes_at = at

    def find_next_wake(self, states: dict[str, LeaseState]) -> None:
        """Compute the time of the next wake from all deadlines, and from the times to ask again."""
        self._wakes_at = math.inf
        for name in self._queue.entitlements_waiting_for_lease():
            state = states.get(name)
            if state is not None:
                self.wake_by(state.ask_again_at)
            for pending in self._queue.waiting_for_lease(name):
                self.wake_by(pending.deadline)


def may_be_inside_guarantee(account: Account, cost: Cost) -> bool:
    """Whether a request lies inside its entitlement's guarantee if other sidecars do not use it."""
    return account.is_inside_guarantee(cost.sequences, cost.kv_tokens, counts_elsewhere=False)


def _is_short(state: LeaseState, account: Account, cost: Cost) -> bool:
    """Whether the use on all sidecars leaves no room for a request."""
    limit = account.pool_limit
    return (
        account.concurrency_in_use + account.concurrency_elsewhere + cost.sequences > limit.concurrency
        or account.kv_in_use + account.kv_elsewhere + cost.kv_tokens > limit.kv_tokens
        or account.level + state.tokens_elsewhere <= 0
    )
