"""Quota waits: the requests of one sidecar that wait for larger portions of their quotas. Pure.

A request waits for the store's first answer to a message that asks for it, for at most a lifetime of portions
if none comes. Then it waits while other sidecars may return portions. It ends at once if the spending alone
leaves no room for it.
"""

from __future__ import annotations

import math

from tokenpool.admission.pending import PendingRequest
from tokenpool.quotas.budget import Budget, Exhausted, QuotaHold
from tokenpool.quotas.quotas import SHORT_S, Quotas

RECLAIM_S = 0.6
"""The time for other sidecars to return portions: two of their regular messages and the way."""
LONGEST_S = 3.0
"""The longest wait in seconds while the store does not know all earlier spending: twice the lifetime of a
lease. After a restart of the store, its sidecars state their spending within one lifetime."""

Ended = tuple[PendingRequest, QuotaHold | Exhausted]
"""A request that waited, with the tokens that it holds, or the reason of its refusal."""


class QuotaWaits:
    """All requests of one sidecar that wait for larger portions."""

    __slots__ = ("_earliest", "_waiting", "quotas")

    def __init__(self, quotas: Quotas) -> None:
        self.quotas = quotas
        self._waiting: dict[PendingRequest, None] = {}
        """In the order of arrival."""
        self._earliest = math.inf
        """A time at or before every deadline. It is exact after ``due``."""

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, pending: PendingRequest, budgets: tuple[Budget, ...], now: float) -> None:
        """Make a request wait."""
        pending.budgets, pending.has_left = budgets, False
        pending.entered_at, pending.first_answer_at = now, math.inf
        pending.deadline = now + LONGEST_S
        self._earliest = min(self._earliest, pending.deadline)
        self._waiting[pending] = None
        self.quotas.begin_wait(budgets, pending.cost.throughput)

    def withdraw(self, pending: PendingRequest) -> bool:
        """End the wait of a request without a decision. Returns false if it does not wait here."""
        if pending not in self._waiting:
            return False
        self._end(pending)
        return True

    def _end(self, pending: PendingRequest) -> None:
        del self._waiting[pending]
        pending.has_left = True
        self.quotas.end_wait(pending.budgets, pending.cost.throughput)

    def answered(self, sent_at: float, now: float) -> None:
        """The store answered, or failed to answer, a message of this time."""
        for pending in self._waiting:
            if pending.entered_at <= sent_at and pending.first_answer_at == math.inf:
                pending.first_answer_at = now

    def due(self, now: float) -> list[Ended]:
        """End the waits that are over, in the order of arrival within each budget."""
        ended: list[Ended] = []
        blocked: set[str] = set()
        for pending in list(self._waiting):
            budgets, tokens = pending.budgets, pending.cost.throughput
            if not blocked.isdisjoint([budget.key for budget in budgets]):
                if now >= pending.deadline:
                    self._end(pending)
                    ended.append((pending, self.quotas.exhausted(budgets[0], tokens, now)))
                continue
            found = self.quotas.cover_waiting(budgets, tokens, now)
            if isinstance(found, QuotaHold):
                self._end(pending)
                ended.append((pending, found))
            elif self._continues(pending, found, now):
                blocked.update([budget.key for budget in budgets])
            else:
                self._end(pending)
                found.short_until = now + SHORT_S
                ended.append((pending, self.quotas.exhausted(found, tokens, now)))
        self._earliest = min([pending.deadline for pending in self._waiting], default=math.inf)
        return ended

    def _continues(self, pending: PendingRequest, lacking: Budget, now: float) -> bool:
        """Whether a request that is not covered continues to wait. Sets its deadline."""
        answered_at = pending.first_answer_at
        if answered_at == math.inf or now >= pending.deadline:
            return now < pending.deadline
        if self.quotas.failures:
            return not self.quotas.is_cut_off(now)
        if not lacking.is_open:
            return True
        if lacking.never_covers(pending.cost.throughput):
            return False
        pending.deadline = min(pending.deadline, answered_at + RECLAIM_S)
        return now < pending.deadline

    def wakes_at(self) -> float:
        """The time of the next deadline, or earlier; infinite while no request waits.

        It is read after each event, so it must not depend on the number of requests.
        """
        return self._earliest if self._waiting else math.inf
