"""Shadow decisions: they admit every request, and state what enforcement would do with it. Pure.

They read the same limits and the same room as enforcement. A request neither waits nor moves, and no other
request ends or waits for it.
"""

from __future__ import annotations

from tokenpool.accounting.account import Account
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.shadow import Shadow, refused
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.placement import Placement
from tokenpool.admission.queue import AdmissionQueue
from tokenpool.admission.rules import (
    Shed,
    account_never_fits,
    count_offer,
    engine_full,
    over_limit,
    over_pool_limit,
    over_quota,
)
from tokenpool.capacity.room import EngineRoom
from tokenpool.control.free_capacity import FreeCapacity
from tokenpool.leases.leases import Leases
from tokenpool.outcomes import Decision, Reason, Verdict
from tokenpool.pricing.cost import Ask, Cost
from tokenpool.quotas.budget import Budget, Exhausted, QuotaHold
from tokenpool.quotas.quotas import Quotas


class ShadowDecisions:
    """The decisions about one sidecar's requests that are not enforced."""

    def __init__(
        self,
        ledger: Ledger,
        queue: AdmissionQueue,
        free_capacity: FreeCapacity,
        leases: Leases | None,
        placement: Placement | None,
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._free_capacity = free_capacity
        self._leases = leases
        self._placement = placement

    def admit(
        self, account: Account, shadow: Shadow, ask: Ask, cost: Cost, verdict: Verdict, now: float
    ) -> Ticket:
        """Admit a request with its verdict. One that enforcement would refuse is surplus."""
        shadow.count(verdict)
        if verdict.decision.is_surplus:
            ticket = self._ledger.count_surplus(account, shadow, ask, cost, now)
        else:
            ticket = self._ledger.reserve(account, ask, cost, now)
            ticket.is_guaranteed = account.is_inside_guarantee()
            ticket.uses_free_capacity = account.take_free_use()
        ticket.verdict = verdict
        return ticket

    def verdict(
        self,
        account: Account,
        shadow: Shadow,
        cost: Cost,
        room: EngineRoom,
        now: float,
        quotas: Quotas | None,
        budgets: tuple[Budget, ...],
    ) -> tuple[Verdict, QuotaHold | None]:
        """The decision of enforcement, and what the request holds of its quotas if that would run it."""
        if not budgets:
            return self._by_capacity(account, shadow, cost, room, now), None
        assert quotas is not None
        hold = quotas.cover_at_once(budgets, cost.throughput, now)
        if isinstance(hold, Exhausted):
            return refused(over_quota(hold).reason), None
        verdict = self._by_capacity(account, shadow, cost, room, now)
        if verdict.decision.is_surplus:
            hold.settle(0.0)
            return verdict, None
        return verdict, hold

    def _by_capacity(
        self, account: Account, shadow: Shadow, cost: Cost, room: EngineRoom, now: float
    ) -> Verdict:
        """The decision within the quotas. The demand counts, as that of a request that is shed."""
        never = account_never_fits(account, cost, room)
        if never is not None:
            return Verdict(Decision.SHED, never.reason)
        count_offer(account, cost)
        shed = self._limited(account, cost, room, now)
        if shed is None and not self._has_room_elsewhere(cost, now):
            shed = engine_full(self._ledger, account, cost, room)
        longest_s = self._queue.settings.longest_wait_s(account)
        if shed is None:
            behind = shadow.behind(longest_s, now)
            if behind is None:
                return Verdict(Decision.ADMIT)
            account.return_free_capacity()
            return behind
        account.return_free_capacity()
        expected_s = shed.expected_s
        if shed.reason is not Reason.TOKENS_PER_SECOND:
            # Requests that would wait run beyond the limit here. Room becomes free at the limit's rate only.
            expected_s *= max(shed.in_use / max(shed.limit, 1.0), 1.0)
        is_queued = shadow.waits(shed.reason, expected_s, longest_s, now)
        return Verdict(Decision.QUEUE if is_queued else Decision.SHED, shed.reason)

    def _limited(self, account: Account, cost: Cost, room: EngineRoom, now: float) -> Shed | None:
        """The refusal by a limit, as if the request had waited for the lease store; ``None`` within it."""
        leases = self._leases
        if leases is None:
            shed = over_limit(account, cost, now)
            may_run = shed is None or self._free_capacity.use_free_capacity(account, cost, room, now)
        elif leases.covers(account, cost, now):
            shed = over_limit(account, cost, now)
            may_run = shed is None
        else:
            shed = over_pool_limit(account, cost)
            may_run = shed is None or not leases.has_limits or leases.use_free_capacity(account, cost, now)
        return None if may_run else shed

    def _has_room_elsewhere(self, cost: Cost, now: float) -> bool:
        placement = self._placement
        return placement is not None and placement.has_room(cost.sequences, cost.kv_tokens, now)
