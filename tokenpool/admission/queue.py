"""The admission queue of one sidecar: all requests that wait, each with a deadline and a reason. Pure.

Requests that wait for room are ordered by tier, then by deadline; within an entitlement by arrival. Requests
that wait for a larger lease are kept here too, by entitlement and arrival; the leases decide when one is due.
Each wait is bounded, and so is the number of waiting requests.

The queue decides which request is tried next, and until when. ``due`` yields the requests to try: the caller
tries each one, and calls ``leave`` for a request whose wait has ended. Whether a request fits is decided in
``rules``. However many wait, the end of a request costs only the tries of those that may fit now.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from tokenpool.accounting.account import Account
from tokenpool.admission.pending import RANKS, PendingRequest, WaitsFor
from tokenpool.entitlements import Tier

MOST_WAITING = 64
"""Requests of one entitlement that wait for room, or for a lease, at the same time. Further ones are shed."""
SHORTEST_RETRY_S = 0.002
"""A request whose tokens are expected sooner is tried again after this time."""
_NOBODY: Sequence[PendingRequest] = ()


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The longest waits by tier, in seconds; 0 means that a request without room is shed at once."""

    guaranteed_s: float = 2.0
    elastic_s: float = 1.0
    spot_s: float = 0.0

    def patience(self, account: Account) -> float:
        """The longest wait of a request of this account, in seconds.

        A promised time to first token shortens it: a longer wait would break the promise before the engine
        has begun.
        """
        entitlement = account.entitlement
        tier, promised_ms = entitlement.tier, entitlement.slo.ttft_ms
        longest = self.spot_s
        if tier is Tier.GUARANTEED:
            longest = self.guaranteed_s
        elif tier is Tier.ELASTIC:
            longest = self.elastic_s
        return longest if promised_ms is None else min(longest, promised_ms / 1000)


class AdmissionQueue:
    """All requests that wait at one sidecar."""

    __slots__ = (
        "_engine",
        "_for_lease",
        "_lines",
        "_need_engine",
        "_pushed",
        "_size",
        "_timers",
        "_tried",
        "lease_waited_s",
        "lease_waits",
        "settings",
        "waited_s",
        "waits",
    )

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self._lines: dict[str, deque[PendingRequest]] = {}
        """Requests that wait for room, by entitlement; no line is empty."""
        self._for_lease: dict[str, deque[PendingRequest]] = {}
        """Requests that wait for a lease, by entitlement; no line is empty."""
        self._timers: list[tuple[float, int, PendingRequest]] = []
        """A heap of deadlines and retries. Entries of requests that left are skipped."""
        self._engine: list[tuple[int, float, int, PendingRequest]] = []
        """A heap of the first request of each entitlement that needs the engine. Some entries are skipped."""
        self._need_engine = [0] * len(RANKS)
        """Requests that need the engine, by rank."""
        self._tried: PendingRequest | None = None
        """The request that the caller tries now. It does not count as one that needs the engine."""
        self._pushed = 0
        self._size = 0
        self.waits = 0
        """Requests that waited for room so far."""
        self.waited_s = 0.0
        """The sum of those waits."""
        self.lease_waits = 0
        """Requests that waited for a lease so far."""
        self.lease_waited_s = 0.0
        """The sum of those waits."""

    def __len__(self) -> int:
        """Requests that wait, for room or for a lease."""
        return self._size + sum(len(line) for line in self._for_lease.values())

    @property
    def waiting_for_room(self) -> int:
        """Requests that wait for room."""
        return self._size

    @property
    def is_any_waiting_for_lease(self) -> bool:
        """Whether a request waits for a lease."""
        return bool(self._for_lease)

    def has_waiting(self, account: Account) -> bool:
        """Whether requests of this entitlement wait for room: a new one goes behind them."""
        return account.entitlement.name in self._lines

    @property
    def needs_engine(self) -> bool:
        """Whether a request waits for the engine's room, but for the one that is tried now."""
        tried, count = self._tried, sum(self._need_engine)
        if tried is not None and not tried.has_left and tried.waits_for is WaitsFor.ENGINE:
            count -= 1
        return count > 0

    # --- waits for room ---

    def may_wait(self, account: Account, expected_s: float, *, needs_engine: bool = False) -> bool:
        """Whether a request that does not fit now may wait.

        ``expected_s`` is the expected time until the next request fits. Those that are tried before this one
        take their room first. A request that is not expected to fit before its deadline is shed at once.
        """
        patience = self.settings.patience(account)
        line = self._lines.get(account.entitlement.name)
        ahead = len(line) if line is not None else 0
        if patience <= 0 or ahead >= MOST_WAITING:
            return False
        if needs_engine:
            ahead = sum(self._need_engine[: RANKS[account.entitlement.tier] + 1])
        return expected_s * (ahead + 1) <= patience

    def enter(
        self,
        pending: PendingRequest,
        now: float,
        waits_for: WaitsFor = WaitsFor.LIMIT,
        retry_in_s: float = math.inf,
    ) -> None:
        """Wait for room from ``now`` on. The deadline counts from the request's arrival."""
        self._pushed += 1
        pending.number, pending.entered_at = self._pushed, now
        pending.deadline = pending.arrived_at + self.settings.patience(pending.account)
        pending.waits_for, pending.retry_in_s = waits_for, retry_in_s
        pending.has_left = pending.is_listed = pending.is_retimed = False
        self._lines.setdefault(pending.account.entitlement.name, deque()).append(pending)
        heappush(self._timers, (pending.deadline, self._pushed, pending))
        self._count(pending, 1)
        self._schedule(pending, now)
        self.waits += 1

    def leave(self, pending: PendingRequest, now: float) -> None:
        """A request waits no longer, for whatever it waited."""
        if pending.has_left:
            return
        if pending.waits_for is WaitsFor.LEASE:
            self.leave_lease_wait(pending, now)
            return
        pending.has_left = True
        self._count(pending, -1)
        self.waited_s += now - pending.entered_at
        name = pending.account.entitlement.name
        line = self._lines[name]
        was_first = line[0] is pending
        line.remove(pending)
        if not line:
            del self._lines[name]
        elif was_first:
            # The next one is tried soon, whatever it waits for.
            if line[0].waits_for is not WaitsFor.ENGINE:
                line[0].retry_in_s = 0.0
            self._schedule(line[0], now)

    def change(self, pending: PendingRequest, waits_for: WaitsFor, retry_in_s: float) -> None:
        """The request that is tried now waits on for room, perhaps for another reason."""
        self._count(pending, -1)
        pending.waits_for, pending.retry_in_s = waits_for, retry_in_s
        self._count(pending, 1)

    def due(self, now: float, ended: Account | None = None) -> Iterator[PendingRequest]:
        """The requests to try now, in order; at their deadline for the last time (``deadline <= now``).

        The caller tries each one before it asks for the next, and calls ``leave`` or ``change``. ``ended`` is
        the account whose request has ended, if nothing else changed. If one request of an entitlement does
        not fit, its later ones are not tried: they keep their order.
        """
        self._tried = None  # of a caller that failed
        if self._size:
            yield from self._due_for_engine(now)
            if ended is None:
                yield from self._due_of_all(now)
            else:
                yield from self._due_of(self._lines.get(ended.entitlement.name), now)
            yield from self._due_by_time(now)

    def wakes_at(self) -> float:
        """The latest time for the next ``due``; infinite while no request waits for room."""
        timers = self._timers
        while timers and _is_stale(timers[0][2]):
            heappop(timers)
        return timers[0][0] if timers else math.inf

    # --- waits for a lease ---

    def enter_for_lease(self, pending: PendingRequest, now: float, deadline: float) -> None:
        """Wait for a larger lease, until the leases call ``leave``."""
        pending.waits_for, pending.entered_at, pending.deadline = WaitsFor.LEASE, now, deadline
        pending.has_left, pending.first_answer_at = False, math.inf
        self._for_lease.setdefault(pending.account.entitlement.name, deque()).append(pending)
        self.lease_waits += 1

    def leave_lease_wait(self, pending: PendingRequest, now: float) -> None:
        """A request waits for a lease no longer."""
        name = pending.account.entitlement.name
        line = self._for_lease.get(name)
        if pending.has_left or line is None:
            return
        pending.has_left = True
        self.lease_waited_s += now - pending.entered_at
        if line[0] is pending:
            line.popleft()
        else:
            line.remove(pending)
        if not line:
            del self._for_lease[name]

    def waiting_for_lease(self, name: str) -> Sequence[PendingRequest]:
        """An entitlement's requests that wait for a lease, in order of arrival. Not to be changed."""
        return self._for_lease.get(name, _NOBODY)

    def entitlements_waiting_for_lease(self) -> list[str]:
        """The entitlements with requests that wait for a lease."""
        return list(self._for_lease)

    # --- the order ---

    def _due_for_engine(self, now: float) -> Iterator[PendingRequest]:
        """The first requests that need the engine, until one finds no room."""
        heap = self._engine
        while heap:
            pending = heappop(heap)[3]
            pending.is_listed = False
            if pending.has_left or pending.waits_for is not WaitsFor.ENGINE or not self._is_first(pending):
                continue
            self._set_aside(pending)
            yield pending
            if not self._put_back(pending, now) and pending.waits_for is WaitsFor.ENGINE:
                break

    def _due_of_all(self, now: float) -> Iterator[PendingRequest]:
        heap = [_turn(line) for line in self._lines.values()]
        heapify(heap)
        while heap:
            line = heappop(heap)[3]
            if not line:
                continue
            first = line[0]
            self._set_aside(first)
            yield first
            if self._put_back(first, now) and line:
                heappush(heap, _turn(line))

    def _due_of(self, line: deque[PendingRequest] | None, now: float) -> Iterator[PendingRequest]:
        while line:
            first = line[0]
            self._set_aside(first)
            yield first
            if not self._put_back(first, now):
                break

    def _due_by_time(self, now: float) -> Iterator[PendingRequest]:
        timers = self._timers
        while timers and timers[0][0] <= now:
            pending = heappop(timers)[2]
            if _is_stale(pending):
                continue
            if now < pending.deadline:
                pending.is_retimed = False
            if now >= pending.deadline or self._is_first(pending):
                self._set_aside(pending)
                yield pending
                self._put_back(pending, now)

    def _is_first(self, pending: PendingRequest) -> bool:
        return self._lines[pending.account.entitlement.name][0] is pending

    def _set_aside(self, pending: PendingRequest) -> None:
        self._tried = pending

    def _put_back(self, pending: PendingRequest, now: float) -> bool:
        """A request was tried; returns whether that was the end of its wait for room."""
        self._tried = None
        if _is_stale(pending):
            return True
        self._schedule(pending, now)
        return False

    def _count(self, pending: PendingRequest, change: int) -> None:
        self._size += change
        if pending.waits_for is WaitsFor.ENGINE:
            self._need_engine[pending.rank] += change

    def _schedule(self, pending: PendingRequest, now: float) -> None:
        """Let the first request of a line be tried once it may fit."""
        if not self._is_first(pending):
            return
        if pending.waits_for is WaitsFor.ENGINE:
            if not pending.is_listed:
                pending.is_listed = True
                heappush(self._engine, (pending.rank, pending.deadline, pending.number, pending))
        elif pending.retry_in_s < math.inf and not pending.is_retimed:
            pending.is_retimed = True
            self._pushed += 1
            at = now + max(pending.retry_in_s, SHORTEST_RETRY_S)
            heappush(self._timers, (at, self._pushed, pending))


def _is_stale(pending: PendingRequest) -> bool:
    """Whether a request waits for room no longer. It may wait for a lease now, with another deadline."""
    return pending.has_left or pending.waits_for is WaitsFor.LEASE


def _turn(line: deque[PendingRequest]) -> tuple[int, float, int, deque[PendingRequest]]:
    """A line by the turn of its first request."""
    first = line[0]
    return first.rank, first.deadline, first.number, line
