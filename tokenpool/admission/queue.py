"""The admission queue of one sidecar: all requests that wait, each with a deadline and a reason. Pure.

Requests that wait for room are ordered by tier and then by deadline. Requests of one entitlement are in one
*line* and keep their order of arrival. A request of another sidecar has a line of its own. A request that
does not fit does not delay smaller ones of other lines. Requests that wait for a larger lease are kept here
too, by entitlement and arrival, and ``LeaseWaits`` decides when one of them is due. The length of each wait
and the number of waiting requests are bounded.

The queue decides which request is tried next. ``due`` yields the requests to try. The caller tries each one
with ``rules.admit``, and calls ``leave`` for a request whose wait has ended. The end of a running request
costs only the tries of requests that may fit now, for any number of waiting requests.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import islice

from tokenpool.accounting.account import Account
from tokenpool.admission.pending import MOST_RANKS, PendingRequest, WaitsFor
from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.entitlements import Tier

MOST_WAITING = 64
"""The most requests of one entitlement that wait for room, or for a lease. Further requests are shed. The
peer requests of one account have the same bound."""
MOST_SMALLER = 64
"""The most lines that are examined for a smaller request when one does not fit. It takes about 1.2 µs a line
(from source)."""
SHORTEST_RETRY_S = 0.002
"""The shortest time before a request without tokens is tried again, in seconds."""
_NO_REQUESTS: Sequence[PendingRequest] = ()


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The longest waits by tier, in seconds; 0 means that a request without room is shed at once."""

    guaranteed_s: float = 2.0
    elastic_s: float = 1.0
    spot_s: float = 0.0

    def longest_wait_s(self, account: Account) -> float:
        """The longest wait of a request of this account, in seconds.

        A promised time to first token shortens it: a longer wait would break the promise before the engine
        starts the request.
        """
        entitlement = account.entitlement
        tier, promised_ms = entitlement.tier, entitlement.slo.ttft_ms
        longest = self.spot_s
        if tier is Tier.GUARANTEED:
            longest = self.guaranteed_s
        elif tier is Tier.ELASTIC:
            longest = self.elastic_s
        return longest if promised_ms is None else min(longest, promised_ms / 1000)


class WaitCounts:
    """The waits of one tier: the number under way, the number so far, and their sum in seconds."""

    __slots__ = ("count", "seconds", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        self.count = 0
        self.seconds = 0.0

    def begin(self) -> None:
        """A wait begins."""
        self.under_way += 1
        self.count += 1

    def end(self, seconds: float) -> None:
        """A wait of this length has ended."""
        self.under_way -= 1
        self.seconds += seconds


class AdmissionQueue:
    """All requests that wait at one sidecar."""

    __slots__ = (
        "_engine",
        "_for_lease",
        "_for_room",
        "_need_engine",
        "_peer_requests",
        "_pushed",
        "_size",
        "_timers",
        "_tried",
        "lease_waits",
        "peer_waits",
        "room_waits",
        "settings",
    )

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self._for_room: dict[str, deque[PendingRequest]] = {}
        """Requests that wait for room, by line, in order of arrival. No deque is empty."""
        self._peer_requests: dict[str, int] = {}
        """The number of peer requests that wait for room, by account."""
        self._for_lease: dict[str, deque[PendingRequest]] = {}
        """Requests that wait for a lease, by entitlement, in order of arrival. No deque is empty."""
        self._timers: list[tuple[float, int, PendingRequest]] = []
        """A heap of deadlines and retries. Entries of requests whose wait has ended are skipped."""
        self._engine: list[tuple[int, float, int, PendingRequest]] = []
        """A heap with the first request of each line that needs the engine. Stale entries are skipped."""
        self._need_engine = [0] * MOST_RANKS
        """The number of requests that need the engine, by rank."""
        self._tried: PendingRequest | None = None
        """The request that the caller tries now. It does not count as one that needs the engine."""
        self._pushed = 0
        """The number of requests and heap entries so far, for their order."""
        self._size = 0
        """The number of requests that wait for room."""
        self.room_waits = {tier: WaitCounts() for tier in Tier}
        """The waits for room, by tier."""
        self.lease_waits = {tier: WaitCounts() for tier in Tier}
        """The waits for a lease, by tier."""
        self.peer_waits = {tier: WaitCounts() for tier in Tier}
        """The waits for room of requests of other sidecars, by tier. Those sidecars count them, too."""

    def __len__(self) -> int:
        """The number of requests that wait, for room or for a lease."""
        return self._size + sum(len(waiting) for waiting in self._for_lease.values())

    @property
    def waiting_for_room(self) -> int:
        """The number of requests that wait for room."""
        return self._size

    @property
    def is_any_waiting_for_lease(self) -> bool:
        """Whether a request waits for a lease."""
        return bool(self._for_lease)

    def has_waiting(self, account: Account) -> bool:
        """Whether requests of this entitlement wait for room. A new request must wait behind them."""
        return account.entitlement.name in self._for_room

    def first(self, account: Account) -> PendingRequest | None:
        """The first of an entitlement's requests that wait for room; ``None`` if none waits."""
        waiting = self._for_room.get(account.entitlement.name)
        return waiting[0] if waiting else None

    def waiting_amount(self, name: str) -> Amount:
        """The KV tokens and sequences of an entitlement's requests that wait, for any reason."""
        found = (*self._for_room.get(name, ()), *self._for_lease.get(name, ()))
        if not found:
            return NOTHING
        return Amount(0.0, sum(p.cost.kv_tokens for p in found), sum(p.cost.sequences for p in found))

    @property
    def waiting_for_engine(self) -> int:
        """The number of requests that wait for the engine's room."""
        return sum(self._need_engine)

    @property
    def needs_engine(self) -> bool:
        """Whether a request waits for the engine's room, but for the one that is tried now."""
        tried, count = self._tried, sum(self._need_engine)
        if tried is not None and not tried.has_left and tried.waits_for is WaitsFor.ENGINE:
            count -= 1
        return count > 0

    def first_for_engine(self) -> PendingRequest | None:
        """The request that comes first of those that need the engine; ``None`` if none does."""
        heap = self._engine
        while heap:
            pending = heap[0][3]
            if not pending.has_left and pending.waits_for is WaitsFor.ENGINE and self._is_first(pending):
                return pending
            heappop(heap)
            pending.is_listed = False
        return None

    # --- waits for room ---

    def may_wait(
        self, pending: PendingRequest, expected_s: float, now: float, *, needs_engine: bool = False
    ) -> bool:
        """Whether a request that does not fit now may wait.

        ``expected_s`` is the expected time in seconds until the next request fits. Requests that are tried
        before this one get room first. A request that is not expected to fit before its deadline may not
        wait.
        """
        longest = pending.leaves_by - now
        name = pending.account.entitlement.name
        if pending.is_of_peer:
            ahead = self._peer_requests.get(name, 0)
        else:
            waiting = self._for_room.get(name)
            ahead = len(waiting) if waiting is not None else 0
        if longest <= 0 or ahead >= MOST_WAITING:
            return False
        if needs_engine:
            ahead = sum(self._need_engine[: pending.rank + 1])
        return expected_s * (ahead + 1) <= longest

    def enter(
        self,
        pending: PendingRequest,
        now: float,
        waits_for: WaitsFor = WaitsFor.LIMIT,
        retry_in_s: float = math.inf,
    ) -> None:
        """Make a request wait for room from ``now`` on, until it ``leaves_by``."""
        self._pushed += 1
        pending.number, pending.entered_at = self._pushed, now
        pending.deadline = pending.leaves_by
        pending.waits_for, pending.retry_in_s = waits_for, retry_in_s
        pending.has_left = pending.is_listed = pending.is_retimed = False
        if pending.is_of_peer:
            name = pending.account.entitlement.name
            pending.line = f"{name} {self._pushed}"
            self._peer_requests[name] = self._peer_requests.get(name, 0) + 1
        self._for_room.setdefault(pending.line, deque()).append(pending)
        heappush(self._timers, (pending.deadline, self._pushed, pending))
        self._count(pending, 1)
        self._schedule(pending, now)
        self._waits_of(pending).begin()

    def leave(self, pending: PendingRequest, now: float) -> None:
        """End the wait of a request, for any reason of the wait. Does nothing if it has ended."""
        if pending.has_left:
            return
        if pending.waits_for is WaitsFor.LEASE:
            self.leave_lease_wait(pending, now)
            return
        pending.has_left = True
        self._count(pending, -1)
        self._waits_of(pending).end(now - pending.entered_at)
        if pending.is_of_peer:
            self._peer_requests[pending.account.entitlement.name] -= 1
        waiting = self._for_room[pending.line]
        was_first = waiting[0] is pending
        waiting.remove(pending)
        if not waiting:
            del self._for_room[pending.line]
        elif was_first:
            # The next request is tried soon, for any reason of its wait.
            if waiting[0].waits_for is not WaitsFor.ENGINE:
                waiting[0].retry_in_s = 0.0
            self._schedule(waiting[0], now)

    def change(
        self,
        pending: PendingRequest,
        waits_for: WaitsFor,
        retry_in_s: float,
        lacks: Dimension = Dimension.CONCURRENCY,
    ) -> None:
        """The request that is tried now continues to wait for room, perhaps for another reason.

        ``lacks`` is the dimension in which it did not fit.
        """
        pending.lacks = lacks
        self._count(pending, -1)
        pending.waits_for, pending.retry_in_s = waits_for, retry_in_s
        self._count(pending, 1)

    def due(self, now: float, ended: Account | None = None) -> Iterator[PendingRequest]:
        """Yield the requests to try now, in order. At the deadline (``deadline <= now``) it is the last try.

        The caller tries each one before it asks for the next, and calls ``leave`` or ``change``. ``ended`` is
        the account whose request has ended, if nothing else changed. If a request does not fit, later
        requests of its line are not tried, so they keep their order.
        """
        self._tried = None  # of a caller that failed
        if self._size:
            yield from self._due_for_engine(now)
            if ended is None:
                yield from self._due_of_all(now)
            else:
                yield from self._due_of(self._for_room.get(ended.entitlement.name), now)
            yield from self._due_by_time(now)

    def due_of(self, account: Account, now: float) -> Iterator[PendingRequest]:
        """Yield the first request of an entitlement, as ``due`` does, if it was not decided yet."""
        waiting = self._for_room.get(account.entitlement.name)
        if waiting and waiting[0].waits_for is not WaitsFor.ENGINE:
            yield from self._due_of(waiting, now)

    def wakes_at(self) -> float:
        """The latest time for the next call of ``due``; infinite while no request waits for room."""
        timers = self._timers
        while timers and _is_stale(timers[0][2]):
            heappop(timers)
        return timers[0][0] if timers else math.inf

    # --- waits for a lease ---

    def enter_for_lease(self, pending: PendingRequest, now: float, deadline: float) -> None:
        """Make a request wait for a larger lease, until ``LeaseWaits`` ends the wait."""
        pending.waits_for, pending.entered_at, pending.deadline = WaitsFor.LEASE, now, deadline
        pending.has_left, pending.first_answer_at = False, math.inf
        self._for_lease.setdefault(pending.account.entitlement.name, deque()).append(pending)
        self.lease_waits[pending.tier].begin()

    def leave_lease_wait(self, pending: PendingRequest, now: float) -> None:
        """End the wait of a request for a lease. Does nothing if it has ended."""
        name = pending.account.entitlement.name
        waiting = self._for_lease.get(name)
        if pending.has_left or waiting is None:
            return
        pending.has_left = True
        self.lease_waits[pending.tier].end(now - pending.entered_at)
        if waiting[0] is pending:
            waiting.popleft()
        else:
            waiting.remove(pending)
        if not waiting:
            del self._for_lease[name]

    def waiting_for_lease(self, name: str) -> Sequence[PendingRequest]:
        """An entitlement's requests that wait for a lease, in order of arrival. Read-only."""
        return self._for_lease.get(name, _NO_REQUESTS)

    def entitlements_waiting_for_lease(self, most: int | None = None) -> list[str]:
        """The names of the entitlements with requests that wait for a lease, at most ``most``."""
        return list(islice(self._for_lease, most))

    def waiting_first(self, most: int) -> list[PendingRequest]:
        """The first requests of up to ``most`` entitlements that need the engine, by urgency.

        Peer requests are not among them.
        """
        needed: list[PendingRequest] = []
        for waiting in self._for_room.values():
            head = waiting[0]
            if head.is_of_peer:
                continue
            if head.waits_for is WaitsFor.ENGINE:
                needed.append(head)
            most -= 1
            if most <= 0:
                break
        return sorted(needed, key=lambda head: (head.rank, head.deadline, head.number))

    # --- the order ---

    def _due_for_engine(self, now: float) -> Iterator[PendingRequest]:
        """Yield the first requests of all lines that need the engine and may fit, in order.

        If one finds no room, only requests that need less in the same dimension are tried after it.
        """
        heap = self._engine
        passed: list[PendingRequest] = []
        sequences, kv_tokens = math.inf, math.inf
        try:
            while heap and sequences > 1 and len(passed) < MOST_SMALLER:
                pending = heappop(heap)[3]
                pending.is_listed = False
                if (
                    pending.has_left
                    or pending.waits_for is not WaitsFor.ENGINE
                    or not self._is_first(pending)
                ):
                    continue
                passed.append(pending)
                if pending.cost.sequences >= sequences or pending.cost.kv_tokens >= kv_tokens:
                    continue
                self._set_aside(pending)
                yield pending
                self._tried = None
                if _is_stale(pending) or pending.waits_for is not WaitsFor.ENGINE:
                    passed.pop()
                    self._put_back(pending, now)
                elif pending.lacks is Dimension.KV_TOKENS:
                    kv_tokens = float(pending.cost.kv_tokens)
                else:
                    sequences = float(pending.cost.sequences)
        finally:
            for pending in passed:
                if not _is_stale(pending):
                    self._schedule(pending, now)

    def _due_of_all(self, now: float) -> Iterator[PendingRequest]:
        heap = [_sort_key(waiting) for waiting in self._for_room.values()]
        heapify(heap)
        while heap:
            waiting = heappop(heap)[3]
            if not waiting:
                continue
            first = waiting[0]
            self._set_aside(first)
            yield first
            if self._put_back(first, now) and waiting:
                heappush(heap, _sort_key(waiting))

    def _due_of(self, waiting: deque[PendingRequest] | None, now: float) -> Iterator[PendingRequest]:
        while waiting:
            first = waiting[0]
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
        return self._for_room[pending.line][0] is pending

    def _set_aside(self, pending: PendingRequest) -> None:
        self._tried = pending

    def _put_back(self, pending: PendingRequest, now: float) -> bool:
        """Continue after a try. Returns whether the wait of the request for room has ended."""
        self._tried = None
        if _is_stale(pending):
            return True
        self._schedule(pending, now)
        return False

    def _waits_of(self, pending: PendingRequest) -> WaitCounts:
        """The counts of waits for room to which this request belongs."""
        return (self.peer_waits if pending.is_of_peer else self.room_waits)[pending.tier]

    def _count(self, pending: PendingRequest, change: int) -> None:
        self._size += change
        if pending.waits_for is WaitsFor.ENGINE:
            self._need_engine[pending.rank] += change

    def _schedule(self, pending: PendingRequest, now: float) -> None:
        """Schedule the next try of a request, if it is the first of its line."""
        if not self._is_first(pending):
            return
        if pending.waits_for is WaitsFor.ENGINE and not pending.is_listed:
            pending.is_listed = True
            heappush(self._engine, (pending.rank, pending.deadline, pending.number, pending))
        if pending.retry_in_s < math.inf and not pending.is_retimed:
            pending.is_retimed = True
            self._pushed += 1
            at = now + max(pending.retry_in_s, SHORTEST_RETRY_S)
            heappush(self._timers, (at, self._pushed, pending))


def _is_stale(pending: PendingRequest) -> bool:
    """Whether the wait for room has ended. The request may wait for a lease now, with another deadline."""
    return pending.has_left or pending.waits_for is WaitsFor.LEASE


def _sort_key(waiting: deque[PendingRequest]) -> tuple[int, float, int, deque[PendingRequest]]:
    """The requests of one line, with the sort key of the first one."""
    first = waiting[0]
    return first.rank, first.deadline, first.number, waiting
