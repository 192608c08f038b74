"""The admission queue of one sidecar: requests wait for room until a deadline, and then they are shed. Pure.

The order is by tier, then by deadline; within an entitlement it is the order of arrival. Each wait is
bounded, and so is the number of waiting requests. Whether a request fits is ``admission``'s decision; the
queue decides which request is tried next, and until when.

However many wait, the end of a request costs only the tries of those that may fit now: the first that need
the engine, and the first of the same entitlement.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from tokenpool.accounting.account import Account
from tokenpool.entitlements import Tier

MOST_WAITING = 64
"""Requests of one entitlement that wait at the same time; further ones are shed."""
SHORTEST_RETRY_S = 0.002
"""A request whose tokens are expected sooner is tried again after this time."""

_RANKS = {Tier.GUARANTEED: 0, Tier.ELASTIC: 1, Tier.SPOT: 2}


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The longest waits by tier, in seconds; 0 means that a request without room is shed at once."""

    guaranteed_s: float = 2.0
    elastic_s: float = 1.0
    spot_s: float = 0.0

    def patience(self, account: Account) -> float:
        """How long a request of this account may wait, in seconds.

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


class Place:
    """One request's place in the queue."""

    __slots__ = (
        "account",
        "deadline",
        "is_listed",
        "is_timed",
        "is_waiting",
        "needs_engine",
        "number",
        "rank",
        "retry_in_s",
        "since",
        "try_now",
    )

    def __init__(
        self,
        account: Account,
        number: int,
        since: float,
        deadline: float,
        try_now: Callable[[bool], bool],
    ) -> None:
        self.number = number
        """In the order of arrival."""
        self.account = account
        self.since = since
        self.deadline = deadline
        self.rank = _RANKS[account.entitlement.tier]
        self.is_waiting = self.is_listed = self.is_timed = False
        """The queue's own: whether it waits, and has an entry in the heaps."""
        self.needs_engine = False
        """Whether the engine's room is what it lacks. Changed by the caller, while it is tried."""
        self.retry_in_s = math.inf
        """When time alone may make it fit, as a bucket fills. Changed by the caller, while it is tried."""
        self.try_now = try_now
        """Decide now; returns whether that was the end of the wait. ``True`` says that it is the last try."""


class AdmissionQueue:
    """All requests that wait at one sidecar."""

    __slots__ = (
        "_engine",
        "_is_serving",
        "_lines",
        "_need_engine",
        "_pushed",
        "_size",
        "_timers",
        "settings",
        "waited",
        "waited_s",
    )

    def __init__(self, settings: QueueSettings) -> None:
        self.settings = settings
        self._lines: dict[str, deque[Place]] = {}
        """By entitlement; none of them is empty."""
        self._timers: list[tuple[float, int, Place]] = []
        """A heap of deadlines and retries. Entries of requests that left are skipped."""
        self._engine: list[tuple[int, float, int, Place]] = []
        """A heap of the first of each entitlement, where they need the engine. Some entries are skipped."""
        self._need_engine = [0] * len(_RANKS)
        """Requests that need the engine, by rank."""
        self._pushed = 0
        self._size = 0
        self._is_serving = False
        self.waited = 0
        """Requests that waited so far."""
        self.waited_s = 0.0
        """The sum of their waits."""

    def __len__(self) -> int:
        return self._size

    def has_waiting(self, account: Account) -> bool:
        """Whether requests of this entitlement wait: a new one goes behind them."""
        return account.entitlement.name in self._lines

    @property
    def needs_engine(self) -> bool:
        """Whether a request waits for the engine's room."""
        return any(self._need_engine)

    def waits(self, account: Account, expected_s: float, *, needs_engine: bool = False) -> bool:
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
            ahead = sum(self._need_engine[: _RANKS[account.entitlement.tier] + 1])
        return expected_s * (ahead + 1) <= patience

    def enter(
        self,
        account: Account,
        now: float,
        try_now: Callable[[bool], bool],
        *,
        came_at: float | None = None,
        needs_engine: bool = False,
        retry_in_s: float = math.inf,
    ) -> Place:
        """Wait from ``now`` on; the deadline counts from ``came_at``, where the request has waited before."""
        came_at = now if came_at is None else came_at
        self._pushed += 1
        place = Place(account, self._pushed, now, came_at + self.settings.patience(account), try_now)
        place.needs_engine, place.retry_in_s = needs_engine, retry_in_s
        line = self._lines.setdefault(account.entitlement.name, deque())
        line.append(place)
        heappush(self._timers, (place.deadline, self._pushed, place))
        self._count(place, 1)
        self._schedule(place, now)
        self.waited += 1
        return place

    def leave(self, place: Place, now: float) -> None:
        """A request waits no longer."""
        if place.is_waiting:
            self._count(place, -1)
            self._remove(place, now)

    def serve(self, now: float, account: Account | None = None) -> None:
        """Try the requests that may fit now, in order, and for the last time those whose deadline is over.

        ``account`` says whose request has ended, if that is all that changed. Where one request of an
        entitlement does not fit, its later ones are not tried: they keep their order.
        """
        if self._is_serving or not self._size:
            return
        self._is_serving = True
        try:
            self._serve_engine(now)
            if account is None:
                self._serve_lines(now)
            else:
                self._serve_line(self._lines.get(account.entitlement.name), now)
            self._serve_timers(now)
        finally:
            self._is_serving = False

    def looks_at(self) -> float:
        """When to serve at the latest; infinite while the queue is empty."""
        timers = self._timers
        while timers and not timers[0][2].is_waiting:
            heappop(timers)
        return timers[0][0] if timers else math.inf

    # --- the order ---

    def _serve_engine(self, now: float) -> None:
        """What the engine has room for goes to the first that need it, until one finds none."""
        heap = self._engine
        while heap:
            place = heappop(heap)[3]
            place.is_listed = False
            is_tried = place.is_waiting and place.needs_engine and self._is_first(place)
            if is_tried and not self._try(place, now) and place.needs_engine:
                break

    def _serve_lines(self, now: float) -> None:
        heap = [_turn(line) for line in self._lines.values()]
        heapify(heap)
        while heap:
            line = heappop(heap)[3]
            if line and self._try(line[0], now) and line:
                heappush(heap, _turn(line))

    def _serve_line(self, line: deque[Place] | None, now: float) -> None:
        while line:
            if not self._try(line[0], now):
                break

    def _serve_timers(self, now: float) -> None:
        timers = self._timers
        while timers and timers[0][0] <= now:
            place = heappop(timers)[2]
            if not place.is_waiting:
                continue
            if now < place.deadline:
                place.is_timed = False
            if now >= place.deadline or self._is_first(place):
                self._try(place, now)

    def _is_first(self, place: Place) -> bool:
        return self._lines[place.account.entitlement.name][0] is place

    def _try(self, place: Place, now: float) -> bool:
        """Try one request; returns whether that was the end of its wait. It keeps its place meanwhile."""
        self._count(place, -1)
        if place.try_now(now >= place.deadline):
            self._remove(place, now)
            return True
        self._count(place, 1)
        self._schedule(place, now)
        return False

    def _count(self, place: Place, change: int) -> None:
        place.is_waiting = change > 0
        self._size += change
        if place.needs_engine:
            self._need_engine[place.rank] += change

    def _remove(self, place: Place, now: float) -> None:
        """Take a request out of its line. The next one is tried soon, whatever it waits for."""
        self.waited_s += now - place.since
        place.try_now = _has_left
        name = place.account.entitlement.name
        line = self._lines[name]
        was_first = line[0] is place
        line.remove(place)
        if not line:
            del self._lines[name]
        elif was_first:
            if not line[0].needs_engine:
                line[0].retry_in_s = 0.0
            self._schedule(line[0], now)

    def _schedule(self, place: Place, now: float) -> None:
        """See to it that the first of a line is tried once it may fit."""
        if not self._is_first(place):
            return
        if place.needs_engine and not place.is_listed:
            place.is_listed = True
            heappush(self._engine, (place.rank, place.deadline, place.number, place))
        elif place.retry_in_s < math.inf and not place.is_timed:
            place.is_timed = True
            self._pushed += 1
            heappush(self._timers, (now + max(place.retry_in_s, SHORTEST_RETRY_S), self._pushed, place))


def _has_left(is_last: bool) -> bool:
    """In the place of what would keep a request's body in memory until its deadline."""
    raise AssertionError("a request that waits no longer was tried")


def _turn(line: deque[Place]) -> tuple[int, float, int, deque[Place]]:
    """A line by when its first request is to be tried."""
    first = line[0]
    return first.rank, first.deadline, first.number, line
