"""Admission control: it admits, queues or sheds the requests of one sidecar, and preempts spot. Pure.

Every call has the time as an argument and returns at once. Some events decide requests that waited, or end
running ones. These effects are collected, and ``take_effects`` returns them. The driver of the process
performs them. Production and simulation run this class.

This is one file because each event may change the decision about another request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tokenpool.accounting.account import Account
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.shadow import Shadow, refused
from tokenpool.accounting.ticket import Place, Ticket
from tokenpool.admission.affinity import Cached, PrefixCaches
from tokenpool.admission.pending import RANK_BEYOND, PendingRequest, Standing, WaitsFor
from tokenpool.admission.placement import KnownPeer, PeerAsk, Placement
from tokenpool.admission.preemption import Preemption
from tokenpool.admission.queue import AdmissionQueue
from tokenpool.admission.rules import (
    EngineQueue,
    Shed,
    admit,
    engine_full,
    has_room_here,
    over_quota,
    refused_with_any_lease,
)
from tokenpool.capacity.room import EngineRoom
from tokenpool.capacity.shared_room import SharedRoom, Waiting
from tokenpool.capacity.slo_controller import SloController
from tokenpool.control.arrival import Arrival
from tokenpool.control.effects import Effects
from tokenpool.control.free_capacity import FreeCapacity
from tokenpool.control.peer_accounts import PEER_ASK, PeerAccounts
from tokenpool.control.preferring import Preferred, Preferring
from tokenpool.control.quota_waits import QuotaWaits
from tokenpool.control.shadow_decisions import ShadowDecisions
from tokenpool.entitlements import Tier
from tokenpool.leases.leases import Leases
from tokenpool.leases.messages import MOST_ROOM, ReplicaRoom
from tokenpool.outcomes import Ending, Reason
from tokenpool.planning.active_accounts import ActiveAccounts
from tokenpool.pricing.cost import Ask, Cost, Usage
from tokenpool.quotas.budget import Budget, Exhausted, QuotaHold
from tokenpool.quotas.quotas import Quotas

_FINISHED: Final = Ending.FINISHED
_QUEUE_NONE: Final = EngineQueue.NONE
LIMITED: Final = frozenset({Reason.TOKENS_PER_SECOND, Reason.KV_TOKENS, Reason.CONCURRENCY})
"""The reasons of a refusal by a limit."""
PLACE_S: Final = 0.03
"""If another replica had room as last known, a request looks there for these seconds. Then it may join the
queue of a full engine here. An ask takes about 0.5 ms, and more at a busy replica."""
MOST_ASKING: Final = 8
"""The most requests of one sidecar that ask other replicas at a time: the first of each entitlement.

Requests of lower rank do not count. So a backlog beyond limits does not keep requests within theirs from
asking."""

MOST_SENT_BYTES: Final = 64 * 1024
"""The longest body in bytes that is sent together with its ask. A replica without room gets it in vain."""
MOST_TRIED: Final = 64
"""The most waiting entitlements that are tried when an answer names replicas, or an ask is refused."""


class AdmissionControl:
    """The decisions about one sidecar's requests. ``leases`` is ``None`` for a lone sidecar."""

    def __init__(
        self,
        now: float,
        queue: AdmissionQueue,
        *,
        leases: Leases | None = None,
        placement: Placement | None = None,
        has_slo_feedback: bool = True,
    ) -> None:
        """``placement`` is ``None`` without handover."""
        self.ledger = Ledger()
        self.active = ActiveAccounts()
        self.queue = queue
        self.leases = leases
        self.placement = placement
        self.peer_accounts = PeerAccounts(now)
        self.peer_address = ""
        """``HOST:PORT`` of the peer port; empty if other replicas cannot hand requests over to this one."""
        self.is_serving = False
        """Whether the engine is up, and the sidecar is not stopping."""
        self.free_capacity = FreeCapacity(self.ledger, queue, now)
        """The free capacity of a lone sidecar. Requests beyond their limits may use it."""
        self._shadow = ShadowDecisions(self.ledger, queue, self.free_capacity, leases, placement)
        self.room = self._engine_room = EngineRoom(0.0, 0.0)
        """The engine's room, with reserved slots and queues. With other workers, their load is foreign."""
        self.shared_room: SharedRoom | None = None
        """The room that the workers of this sidecar share; ``None`` without other workers."""
        self.worker_address = ""
        """The address of another worker's peer port, without its number at the end."""
        self.slo = SloController(now)
        self.preemption = Preemption()
        self.preferring = Preferring()
        self.quota_waits: QuotaWaits | None = None
        """The requests that wait for portions of their quotas; ``None`` until a quota is configured."""
        self._has_slo_feedback = has_slo_feedback
        self._effects = Effects()

    @property
    def has_waiting(self) -> bool:
        """Whether a request waits."""
        queue, quotas = self.queue, self.quota_waits
        if quotas is not None and len(quotas) > 0:
            return True
        return queue.waiting_for_room > 0 or queue.is_any_waiting_for_lease or self.preferring.is_any_asking

    @property
    def knows_others(self) -> bool:
        """Whether requests can be handed over to other replicas."""
        return self.placement is not None and self.placement.replicas > 1

    @property
    def has_effects(self) -> bool:
        """Whether ``take_effects`` has something to return."""
        return self._effects.has_any

    def take_effects(self) -> Effects:
        """Return the effects since the last call. The caller must perform all of them."""
        effects, self._effects = self._effects, Effects()
        return effects

    # --- a request arrives ---

    def offer(
        self,
        account: Account,
        ask: Ask,
        cost: Cost,
        now: float,
        *,
        body: bytes = b"",
        request: object = None,
        streams: bool = True,
        arrived_at: float | None = None,
        budgets: tuple[Budget, ...] = (),
    ) -> Ticket | PendingRequest | Shed:
        """Decide a priced request, or make it wait. A ticket must be settled exactly once.

        ``body`` has the bytes by which a retry is recognised. ``request`` is the caller's record, which the
        pending request keeps. ``streams`` states whether the sidecar will see the answer's first token.
        ``arrived_at`` is the time of arrival of a request that was admitted before and is placed again. Such
        a request keeps its deadline. Its demand is counted already. It is not handed over for a cache only.
        ``budgets`` are those of its quotas. They are decided first, and hold its cost until its end.
        """
        arrival = Arrival(account, ask, cost, body, request, streams=streams, arrived_at=arrived_at)
        if not budgets:
            return self._offer(arrival, now)
        quotas = self.quota_waits
        assert quotas is not None
        found = quotas.quotas.cover(budgets, cost.throughput, now)
        if isinstance(found, Exhausted):
            return over_quota(found)
        if found is None:
            pending = self._pending(arrival, now)
            quotas.begin(pending, budgets, now)
            return pending
        outcome = self._offer(arrival, now)
        if isinstance(outcome, Shed):
            found.settle(0.0)
        else:
            outcome.hold = found
        return outcome

    def _offer(self, arrival: Arrival, now: float) -> Ticket | PendingRequest | Shed:
        """Decide a request that its quotas cover, or make it wait."""
        account, cost = arrival.account, arrival.cost
        if not account.is_active:
            self.active.touch(account, now)
        if self.shared_room is not None:
            self._read_shared_room(self.shared_room, now)
        leases = self.leases
        if leases is not None and not leases.covers(account, cost, now):
            pending = self._pending(arrival, now)
            if not self._has_room_elsewhere(cost, now):
                is_retry = account.retries.is_retry(arrival.body, now)
                shed = refused_with_any_lease(
                    self.ledger, account, cost, self.room, is_retry=is_retry, is_counted=pending.is_counted
                )
                if shed is not None:
                    pending.is_counted = True
                    return self._queue_or_shed(pending, shed, now)
            if leases.wait(pending, max(pending.leaves_by - now, 0.0), now):
                return pending
        elif self.queue.has_waiting(account):
            pending = self._pending(arrival, now)
            if self._enter(pending, None, now):
                account.return_free_capacity()
                return pending
        return self._offer_now(arrival, now)

    def _offer_now(self, arrival: Arrival, now: float) -> Ticket | PendingRequest | Shed:
        """Decide a request for which neither a lease nor others of its entitlement must be waited for."""
        ask, cost, is_again = arrival.ask, arrival.cost, arrival.arrived_at is not None
        has_room = has_room_here(self.ledger, cost, self.room)
        looks_elsewhere = not has_room and self._has_room_elsewhere(cost, now)
        sent: PeerAsk | None = None
        if looks_elsewhere:
            pending = self._pending(arrival, now)
            sent = self._send_elsewhere(pending, now)
        outcome = self._decide(
            arrival.account,
            ask,
            cost,
            arrival.body,
            now,
            is_counted=is_again,
            streams=arrival.streams,
            place=sent.place if sent is not None else None,
            may_queue=_QUEUE_NONE if looks_elsewhere else self._engine_queue(),
        )
        if isinstance(outcome, Ticket):
            if sent is not None:
                self.preferring.runs(outcome, sent.preference)
                return outcome
            if self.placement is None or is_again or not ask.prefixes:
                return outcome
            pending = self._pending(arrival, now)
            return pending if self._prefers_another(pending, outcome, now) else outcome
        if not looks_elsewhere:
            pending = self._pending(arrival, now)
        elif sent is not None:
            self._unsend(sent)
        pending.is_counted = True
        if looks_elsewhere:
            pending.places_until = now + PLACE_S
        if self._may_fit_soon(outcome) and self._enter(pending, outcome, now):
            return pending
        return self._last_try(pending, outcome, now)

    def offer_shadow(
        self,
        account: Account,
        shadow: Shadow,
        ask: Ask,
        cost: Cost,
        now: float,
        *,
        streams: bool = True,
        refusal: Reason | None = None,
        budgets: tuple[Budget, ...] = (),
    ) -> Ticket:
        """Admit a request whose decision is not enforced to the engine here, at once.

        ``shadow`` is the account's own. ``refusal`` is the reason of a refusal before this decision. The
        ticket has the verdict. The request neither waits nor moves, and no other request ends or waits for
        it. If enforcement would run it, it is counted like any other request, also in the ``budgets`` of its
        quotas. Otherwise it is surplus.
        """
        if not account.is_active:
            self.active.touch(account, now)
        if self.shared_room is not None:
            self._read_shared_room(self.shared_room, now)
        if refusal is not None:
            verdict, hold = refused(refusal), None
        else:
            quotas = self.quota_waits.quotas if self.quota_waits is not None else None
            verdict, hold = self._shadow.verdict(account, shadow, cost, self.room, now, quotas, budgets)
        ticket = self._shadow.admit(account, shadow, ask, cost, verdict, now)
        self._state_load()
        ticket.streams, ticket.hold = streams, hold
        return ticket

    def _send_elsewhere(self, pending: PendingRequest, now: float) -> PeerAsk | None:
        """The ask to send together with a request that has just arrived and has no room here.

        ``None`` if no replica is likely enough to have room. Requests that wait for the engine come first.
        """
        placement = self.placement
        if (
            placement is None
            or not pending.may_prefer
            or self.queue.needs_engine
            or len(pending.body) > MOST_SENT_BYTES
        ):
            return None
        return placement.send(pending, now)

    def _unsend(self, ask: PeerAsk) -> None:
        """The limit of a request is used up, so it is not sent."""
        if self.placement is not None:
            self.placement.unsend(ask)

    def offer_peer_request(
        self,
        tier: Tier,
        cost: Cost,
        longest_wait_s: float,
        now: float,
        *,
        is_preemptible: bool,
        standing: Standing = Standing.WITHIN,
    ) -> Ticket | PendingRequest | Shed:
        """Decide a request of another sidecar, which needs room on the engine here, or make it wait.

        ``longest_wait_s`` is in seconds; 0 means that it is decided now. It is not handed over again.
        ``standing`` states the capacity that it may use. Spot is preempted for an assured request. A request
        beyond its limit waits behind those within theirs.
        """
        account = self.peer_accounts.account(tier, is_preemptible=is_preemptible, standing=standing)
        outcome = self._decide(
            account,
            PEER_ASK,
            cost,
            b"",
            now,
            is_counted=True,
            streams=True,
            may_queue=self.peer_accounts.engine_queue(account),
        )
        if isinstance(outcome, Ticket) or longest_wait_s <= 0 or outcome.reason is not Reason.ENGINE_FULL:
            return outcome
        pending = PendingRequest(account, PEER_ASK, cost, now, longest_wait_s=longest_wait_s, is_of_peer=True)
        pending.is_counted = True
        if standing is Standing.BEYOND:
            pending.rank = max(pending.rank, RANK_BEYOND)
        return pending if self._enter(pending, outcome, now) else outcome

    def withdraw(self, pending: PendingRequest, now: float) -> Ticket | None:
        """End the wait of a request without a decision: its client left, or the sidecar stops.

        Returns its ticket if it was admitted already. The caller must settle it.
        """
        hold, pending.hold = pending.hold, None
        preferred = self.preferring.end(pending)
        if preferred is not None:
            self._effects.cancel([preferred.ask])
            preferred.ticket.hold = hold
            return preferred.ticket
        if hold is not None:
            hold.settle(0.0)
        if self.quota_waits is not None and self.quota_waits.withdraw(pending):
            return None
        self._leave(pending, now)
        if self.leases is not None:
            self.leases.waits.withdraw(pending)
        return None

    def _pending(self, arrival: Arrival, now: float) -> PendingRequest:
        return arrival.pending(self.queue.settings.longest_wait_s(arrival.account), now)

    def _queue_or_shed(self, pending: PendingRequest, shed: Shed, now: float) -> PendingRequest | Shed:
        if self._may_fit_soon(shed) and self._enter(pending, shed, now):
            return pending
        self._note_shed(pending, shed, now)
        return shed

    def _engine_queue(self) -> EngineQueue:
        """The queue of the engine that a request may join before its deadline.

        With handover, a guaranteed request waits in the admission queue while another replica may have room
        first. It gets the first slot that becomes free on a replica that it has asked. In the queue of an
        engine it would wait for that engine only. In the simulation, the P99 of guaranteed waits fell from
        374 to 46 ms (100 replicas, 95 % load). With nine of ten requests at one of four replicas (80 % load),
        it fell from 370 to 72 ms.

        With other workers, it waits there too: it may end spot of another worker.
        """
        asks_others = self.knows_others or self.shared_room is not None
        return EngineQueue.BEHIND_PREEMPTIBLE if asks_others else EngineQueue.ANY

    def _engine_queue_of(self, pending: PendingRequest, now: float, *, is_last: bool) -> EngineQueue:
        """The queue of the engine that a request may join after a wait."""
        if pending.is_of_peer:
            return self.peer_accounts.engine_queue(pending.account)
        if now < pending.places_until:
            return EngineQueue.NONE
        cost = pending.cost
        if (
            not is_last
            and self.preemption.is_guarantee_starting(now)
            and not pending.account.is_inside_guarantee(cost.sequences, cost.kv_tokens)
        ):
            return EngineQueue.NONE  # it could take the slot that was freed for the guarantee
        return EngineQueue.ANY if is_last else self._engine_queue()

    def _last_try(self, pending: PendingRequest, shed: Shed, now: float) -> Ticket | Shed:
        """A request may not wait. Inside its guarantee it joins the engine's queue. Otherwise it is shed."""
        outcome: Ticket | Shed = shed
        if shed.reason is Reason.ENGINE_FULL and self.placement is not None:
            outcome = self._try(pending, now, EngineQueue.ANY)
        if isinstance(outcome, Shed):
            self._note_shed(pending, outcome, now)
        return outcome

    def _may_fit_soon(self, shed: Shed) -> bool:
        """Whether a wait for room may help. With a lease store, requests wait for a limit in a lease wait."""
        if shed.reason is Reason.NEVER_FITS:
            return False
        return self.leases is None or shed.reason is Reason.ENGINE_FULL

    def _enter(self, pending: PendingRequest, shed: Shed | None, now: float) -> bool:
        """Make a request wait for room, or behind others of its entitlement. Returns whether it may wait."""
        waits_for = _reason(shed)
        expected_s = shed.expected_s if shed is not None else 0.0
        needs_engine = waits_for is WaitsFor.ENGINE
        retry_in_s = _retry_in_s(shed)
        if needs_engine and self.placement is not None and not pending.is_of_peer:
            usable = self.placement.replicas - (1 if self.room.is_down else 0)
            if not usable:
                return False
            # All workers of a sidecar free slots of its engine.
            expected_s /= usable * (self.shared_room.workers if self.shared_room is not None else 1)
            # Even a request without a queue timeout gets the time to find the room that a replica had.
            finds_until = 0.0
            if self._has_room_elsewhere(pending.cost, now):
                finds_until = now + PLACE_S
            elif not pending.may_prefer:
                finds_until = pending.arrived_at + PLACE_S  # a replica has refused it meanwhile
            if finds_until > now:
                pending.leaves_by = max(pending.leaves_by, finds_until)
                expected_s = 0.0
            if pending.places_until > now:
                retry_in_s = min(retry_in_s, pending.places_until - now)
        if not self.queue.may_wait(pending, expected_s, now, needs_engine=needs_engine):
            return False
        self.queue.enter(pending, now, waits_for, retry_in_s)
        self._ask_for(self.queue.first(pending.account), now)
        return True

    def _leave(self, pending: PendingRequest, now: float) -> None:
        """End the wait of a request, and cancel its asks at other replicas."""
        self.queue.leave(pending, now)
        if self.placement is not None:
            self._cancel_asks(pending)
            self._ask_for(self.queue.first(pending.account), now)

    def _cancel_asks(self, pending: PendingRequest) -> None:
        """The request needs no room on another replica any more."""
        if self.placement is not None:
            self._effects.cancel(self.placement.withdraw(pending))

    def _decide(
        self,
        account: Account,
        ask: Ask,
        cost: Cost,
        body: bytes,
        now: float,
        *,
        is_counted: bool,
        streams: bool,
        place: Place | None = None,
        may_queue: EngineQueue = EngineQueue.ANY,
    ) -> Ticket | Shed:
        """Decide a priced request now. ``place`` is another replica that keeps room for it."""
        if not account.is_active:
            self.active.touch(account, now)  # it may have become idle while the request waited
        if self.shared_room is not None:
            self._read_shared_room(self.shared_room, now)
        room, retries = self.room, account.retries
        if (
            room.preemptible_queue
            and account.is_preemptible
            and (may_queue is _QUEUE_NONE or self._is_engine_queue_closed(now))
        ):
            room = replace(room, preemptible_queue=0.0)
        is_retry = retries.is_retry(body, now)
        decision = admit(
            self.ledger,
            account,
            ask,
            cost,
            room,
            now,
            is_retry=is_retry,
            is_counted=is_counted,
            place=place,
            may_queue=may_queue,
        )
        if isinstance(decision, Shed):
            if not (
                self.leases is None
                and decision.reason in LIMITED
                and self.free_capacity.use_free_capacity(account, cost, room, now)
            ):
                account.return_free_capacity()
                return decision
            # The limit does not bind, because no other request needs the room.
            decision = admit(self.ledger, account, ask, cost, room, now, is_retry=is_retry, is_counted=True)
            if isinstance(decision, Shed):
                account.return_free_capacity()
                return decision
        if is_retry:
            retries.admitted(body)
        ticket = decision
        ticket.streams = streams
        ticket.is_guaranteed = account.is_inside_guarantee()
        ticket.uses_free_capacity = account.take_free_use()
        if place is None:  # otherwise it takes no room here
            self._state_load()
            self._effects.end(self.preemption.admitted(ticket, self.ledger, self.room))
        return ticket

    def _try(
        self, pending: PendingRequest, now: float, may_queue: EngineQueue, place: Place | None = None
    ) -> Ticket | Shed:
        """Decide a pending request now. Its demand is counted at most once."""
        is_counted, pending.is_counted = pending.is_counted, True
        return self._decide(
            pending.account,
            pending.ask,
            pending.cost,
            pending.body,
            now,
            is_counted=is_counted,
            streams=pending.streams,
            place=place,
            may_queue=may_queue,
        )

    def _is_engine_queue_closed(self, now: float) -> bool:
        """Whether no preemptible request may wait in the engine now.

        It would start before requests that wait for room here, or before a guaranteed one that was just sent.
        """
        return self.preemption.is_guarantee_starting(now) or self.queue.needs_engine

    # --- quotas ---

    def follow_quotas(self, quotas: Quotas) -> None:
        """Quotas are configured: requests may have budgets from now on."""
        if self.quota_waits is None:
            self.quota_waits = QuotaWaits(quotas)

    def serve_quota_waits(self, now: float) -> None:
        """Portions have changed, or a deadline has passed: end the waits that are over."""
        waits = self.quota_waits
        if waits is None or not len(waits):
            return
        for pending, found in waits.due(now):
            if isinstance(found, QuotaHold):
                pending.hold = found
                self._offer_again(pending, now)
            else:
                self._decided(pending, over_quota(found))

    def _offer_again(self, pending: PendingRequest, now: float) -> None:
        """Decide a request whose quotas cover it now, or make it wait for a lease or for room."""
        account, leases = pending.account, self.leases
        pending.entered_at, pending.first_answer_at = now, math.inf
        if not account.is_active:
            self.active.touch(account, now)
        if leases is not None and not leases.covers(account, pending.cost, now):
            if leases.wait(pending, max(pending.leaves_by - now, 0.0), now):
                return
        elif self.queue.has_waiting(account) and self._enter(pending, None, now):
            account.return_free_capacity()
            return
        self._decide_pending(pending, now, was_queued=False)

    # --- waiting requests ---

    def serve(self, now: float, ended: Account | None = None) -> None:
        """Room or a lease may be free, or a deadline has passed: decide the waiting requests that are due.

        ``ended`` is the account whose request has ended, if nothing else changed.
        """
        if self.shared_room is not None:
            self._read_shared_room(self.shared_room, now)
        self.serve_lease_waits(now)
        if ended is not None and ended.groups:
            ended = None  # a request of another member of its groups may fit now
        if self.queue.waiting_for_room:
            for pending in self.queue.due(now, ended):
                self._decide_pending(pending, now, was_queued=True)
        if self.leases is not None and self.queue.is_any_waiting_for_lease:
            self._offer_room(self.leases, now)

    def _offer_room(self, leases: Leases, now: float) -> None:
        """Requests that wait for a larger lease may use the free room of the engine here."""
        sequences, kv_tokens = self._free_room()
        if sequences >= 1 and leases.has_room_here(min(max(kv_tokens, 0.0), MOST_ROOM), sequences):
            self.serve_lease_waits(now)

    def serve_lease_waits(self, now: float) -> None:
        """The lease store answered or failed: decide the requests whose wait for a lease has ended.

        An answer frees no room on the engine, so requests that wait for room are not tried. Otherwise a
        request of a contended entitlement would ask for a lease, return it at the full engine, and ask again
        in a loop.
        """
        if self.leases is not None:
            for pending in self.leases.due(now):
                self._decide_pending(pending, now, was_queued=False)
            if self.placement is not None and self.queue.is_any_waiting_for_lease:
                for name in self.queue.entitlements_waiting_for_lease(MOST_ASKING):
                    self._ask_for(self.queue.waiting_for_lease(name)[0], now)

    def wakes_at(self) -> float:
        """The time of the next ``wake``; infinite while no request waits."""
        at = min(self.queue.wakes_at(), self.preferring.wakes_at())
        if self.quota_waits is not None:
            at = min(at, self.quota_waits.wakes_at())
        if self.leases is not None:
            at = min(at, self.leases.waits.wakes_at())
        return at

    def wake(self, now: float) -> None:
        """Decide the requests whose deadline has passed, or whose entitlement's bucket has refilled."""
        for pending, preferred in self.preferring.overdue(now):
            self._effects.cancel([preferred.ask])
            self._decided(pending, preferred.ticket)
        if self.quota_waits is not None and self.quota_waits.wakes_at() <= now:
            self.serve_quota_waits(now)
        leases = self.leases
        if leases is not None and leases.waits.wakes_at() <= now:
            leases.wake(now)
            self.serve_lease_waits(now)
        if self.queue.wakes_at() <= now:
            for pending in self.queue.due(now):
                self._decide_pending(pending, now, was_queued=True)

    def _decide_pending(self, pending: PendingRequest, now: float, *, was_queued: bool) -> None:
        """Try a request that waited; ``was_queued`` states that it waited for room, not for a lease."""
        account = pending.account
        if not was_queued:
            self._cancel_asks(pending)
        # A peer request does not wait for an engine that is down: its own sidecar asks another replica.
        is_last = was_queued and (now >= pending.deadline or (pending.is_of_peer and self.room.is_down))
        was_paused = False
        if was_queued and self.leases is not None:
            was_paused = self.leases.were_lost(now)
            self.leases.cover_queued(account, pending.cost, now)
        if not was_queued and self._has_room_elsewhere(pending.cost, now):
            pending.places_until = now + PLACE_S
        outcome = self._try(pending, now, self._engine_queue_of(pending, now, is_last=is_last))
        if isinstance(outcome, Shed):
            if not is_last and self._may_fit_soon(outcome):
                if was_queued:
                    self.queue.change(pending, _reason(outcome), _retry_in_s(outcome), outcome.dimension)
                    self._ask_for(pending, now)
                    return
                if self._enter(pending, outcome, now):
                    return
                self._decided(pending, self._last_try(pending, outcome, now))
                return
            # The deadline may have passed in a pause of this process. Or the lease has just gone to another
            # sidecar: inside its guarantee, the request gets it back.
            is_owed = was_paused or account.is_inside_guarantee(
                pending.cost.sequences, pending.cost.kv_tokens
            )
            if was_queued and (is_owed or not is_last) and self._waits_for_lease(pending, outcome, now):
                return
            if is_last:
                outcome = self._reason_of_wait(pending, outcome)
            self._note_shed(pending, outcome, now)
        if was_queued:
            self._leave(pending, now)
        self._deliver(pending, outcome, now)

    def _deliver(self, pending: PendingRequest, outcome: Ticket | Shed, now: float) -> None:
        """Deliver a decision. An admitted request may first ask the replica with its prompt in the cache."""
        if isinstance(outcome, Ticket) and self._prefers_another(pending, outcome, now):
            return
        self._decided(pending, outcome)

    def _decided(self, pending: PendingRequest, outcome: Ticket | Shed) -> None:
        """Deliver a decision. What the request holds of its quotas goes to its ticket, or is returned."""
        hold, pending.hold = pending.hold, None
        if hold is not None:
            if isinstance(outcome, Ticket):
                outcome.hold = hold
            else:
                hold.settle(0.0)
        self._effects.decide(pending, outcome)

    def _waits_for_lease(self, pending: PendingRequest, shed: Shed, now: float) -> bool:
        """Make a request that waited for the engine wait for a larger lease, if it needs one now."""
        leases = self.leases
        if leases is None or shed.reason in (Reason.ENGINE_FULL, Reason.NEVER_FITS):
            return False
        left_s = max(pending.leaves_by - now, 0.0)
        self._leave(pending, now)
        return leases.wait(pending, left_s, now)

    def _reason_of_wait(self, pending: PendingRequest, shed: Shed) -> Shed:
        """The refusal of a request that waited for room until its deadline.

        A lease is returned if it is unused while its request waits for the engine. Then the missing lease
        shows no shortage of the limit: the reason is the full engine.
        """
        is_never = shed.reason is Reason.NEVER_FITS
        if self.leases is None or is_never or pending.waits_for is not WaitsFor.ENGINE:
            return shed
        return engine_full(self.ledger, pending.account, pending.cost, self.room) or shed

    def _note_shed(self, pending: PendingRequest, shed: Shed, now: float) -> None:
        if shed.reason is not Reason.NEVER_FITS:
            pending.account.retries.shed(pending.body, now)

    # --- other replicas ---

    def _has_room_elsewhere(self, cost: Cost, now: float) -> bool:
        """Whether another replica had room for such a request, as last known."""
        placement = self.placement
        return placement is not None and placement.has_room(cost.sequences, cost.kv_tokens, now)

    def _ask_for(self, pending: PendingRequest | None, now: float) -> None:
        """Ask other replicas for room for a waiting request, if it may use that room and has no asks yet."""
        placement = self.placement
        if placement is None or pending is None or pending in placement.asks or pending.is_of_peer:
            return
        if pending.waits_for is WaitsFor.LEASE:
            # No lease covers it. It may use room that other requests do not need.
            leases = self.leases
            if leases is None or not leases.lacks_only_room(pending, now):
                return
        elif pending.waits_for is not WaitsFor.ENGINE:
            return
        rank = _rank_of_ask(pending)
        if sum(1 for each in placement.asks if _rank_of_ask(each) <= rank) < MOST_ASKING:
            self._effects.ask(placement.ask(pending, pending.deadline - now, now))

    def _prefers_another(self, pending: PendingRequest, ticket: Ticket, now: float) -> bool:
        """Ask the replica that has the prompt of an admitted request in its cache, if there is one.

        The request keeps its room here until the answer. So the ask cannot lead to a refusal.
        """
        placement = self.placement
        if placement is None or not pending.may_prefer or not pending.ask.prefixes or self._effects.to_end:
            return False  # requests that end for it are ended for its room here
        ledger, room = self.ledger, self.room
        free = room.slots - ledger.concurrency_in_use - room.foreign_sequences + pending.cost.sequences
        ask = placement.prefer(pending, free, now)
        if ask is None:
            return False
        self.preferring.begin(pending, ticket, ask, now)
        self._effects.ask([ask])
        return True

    def _moves(self, pending: PendingRequest, preferred: Preferred, now: float) -> bool:
        """The preferred replica offers room. Returns whether the request moves there."""
        ticket, ask = preferred.ticket, preferred.ask
        self.preferring.end(pending)
        self._decided(pending, ticket)
        if ticket in self.preemption.ending:
            return False
        self.ledger.move(ticket, ask.place)
        self._state_load()
        self.preemption.left(ticket)
        self.preferring.runs(ticket, ask.preference)
        self.serve(now)
        return True

    def peers_named(self, peers: Sequence[KnownPeer], now: float) -> None:
        """An answer of the lease store names other replicas. Waiting requests may ask one that has room."""
        placement = self.placement
        if placement is None:
            return
        placement.learn(peers, now)
        if self.shared_room is not None:
            named = [
                (f"worker {each}", f"{self.worker_address}{each}") for each in self.shared_room.others(now)
            ]
            placement.learn_mates(named, now)
        for pending in list(placement.asks):
            if placement.has_room(pending.cost.sequences, pending.cost.kv_tokens, now):
                self._effects.ask(placement.ask(pending, pending.deadline - now, now, more=1))
        self._ask_for_others(now)

    def _ask_for_others(self, now: float) -> None:
        """Ask for waiting requests without asks, while another replica has room, as last known."""
        for pending in self.queue.waiting_first(MOST_TRIED):
            if self._has_room_elsewhere(pending.cost, now):
                self._ask_for(pending, now)

    def peer_offered(self, ask: PeerAsk, now: float) -> bool:
        """Another replica keeps room for a request. Returns whether the request takes it."""
        placement, pending = self.placement, ask.pending
        if placement is not None:
            placement.offered(ask.peer)
        preferred = self.preferring.of(pending)
        if preferred is not None:
            return ask is preferred.ask and self._moves(pending, preferred, now)
        if (
            placement is None
            or not placement.ended(ask)
            or pending.has_left
            or pending.waits_for is WaitsFor.LIMIT
        ):
            return False
        leases = self.leases
        if leases is not None and (leases.were_lost(now) or not leases.takes_room(pending, now)):
            return False
        outcome = self._try(pending, now, EngineQueue.NONE, ask.place)
        if isinstance(outcome, Shed):
            # Its limit is used up now. It asks again once the limit has room.
            if pending.waits_for is not WaitsFor.LEASE and not self._waits_for_lease(pending, outcome, now):
                self._shed_later(pending, outcome, now)
            return False
        self.preferring.runs(outcome, ask.preference)
        self._leave(pending, now)
        self._decided(pending, outcome)
        # The next request of the entitlement is tried now, and asks. Its retry would come 2 ms later.
        for following in self.queue.due_of(pending.account, now):
            self._decide_pending(following, now, was_queued=True)
        return True

    def _shed_later(self, pending: PendingRequest, shed: Shed, now: float) -> None:
        """A request cannot take room elsewhere: it keeps waiting, or is shed if it has left the queue."""
        if pending.has_left:
            self._note_shed(pending, shed, now)
            self._decided(pending, shed)
        else:
            self.queue.change(pending, _reason(shed), _retry_in_s(shed), shed.dimension)

    def peer_refused(self, ask: PeerAsk, now: float, *, has_failed: bool = False) -> None:
        """Another replica has no room, or did not answer (``has_failed``)."""
        placement = self.placement
        if placement is None:
            return
        if has_failed:
            placement.failed(ask.peer, now)
        else:
            placement.refused(ask.peer)
        preferred = self.preferring.of(ask.pending)
        if preferred is not None and preferred.ask is ask:
            self.preferring.end(ask.pending)
            self._decided(ask.pending, preferred.ticket)
            return
        pending = ask.pending
        if ask.is_probe and not has_failed:
            placement.probe_refused(ask.peer, now)
        if not placement.ended(ask) or pending.has_left:
            return
        if ask.is_probe:
            self._try_here(pending, now)
            if not pending.has_left and pending.waits_for is WaitsFor.ENGINE:
                self._effects.ask(placement.probe_again(pending, pending.deadline - now, now))
        elif has_failed or ask.preference is not None:
            self._ask_for(pending, now)
        if pending not in placement.asks:
            self._try_here(pending, now)
            self._ask_for_others(now)

    def _try_here(self, pending: PendingRequest, now: float) -> None:
        """A request need not look for room on other replicas first any more: they have none.

        It may join the queue of the engine here, or preempt spot on it.
        """
        if now < pending.places_until and pending.waits_for is WaitsFor.ENGINE:
            pending.places_until = now
            if self.queue.first(pending.account) is pending:
                self._decide_pending(pending, now, was_queued=True)

    def place_answered(self, place: Place, *, has_room: bool) -> None:
        """A replica has answered a request that it got together with the ask. Without room it has refused."""
        if self.placement is not None:
            self.placement.answered(place, has_room=has_room)

    def place_failed(self, place: Place, now: float) -> None:
        """Another replica kept room for a request but cannot run it. Do not ask that replica for a while."""
        if self.placement is not None:
            self.placement.failed(place.peer, now)

    def _free_room(self) -> tuple[float, float]:
        """Free sequences here, less those that wait for the engine, and free KV tokens."""
        ledger, room = self.ledger, self.room
        if not self.is_serving:
            return 0.0, 0.0
        # Surplus counts here: a request that has room on another replica should run there.
        sequences = room.slots - room.reserved_slots - ledger.concurrency_in_use - room.foreign_sequences
        sequences -= ledger.surplus_concurrency
        kv_tokens = room.kv_tokens - ledger.kv_in_use - room.foreign_kv_tokens - ledger.surplus_kv
        return max(max(sequences, 0.0) - self.queue.waiting_for_engine, 0.0), kv_tokens

    def stated_room(self) -> ReplicaRoom:
        """The free room here, for the other replicas. Each worker states its part of the engine's."""
        if not self.is_serving:
            return ReplicaRoom(0.0, 0.0, self.ledger.spent)
        sequences, kv_tokens = self._free_room()
        shared_room = self.shared_room
        if shared_room is not None:
            # Whole slots, whose sum over all workers is what is free.
            sequences = float(math.floor((math.floor(sequences) + shared_room.index) / shared_room.workers))
            kv_tokens /= shared_room.workers
        return ReplicaRoom(
            min(max(kv_tokens, 0.0), MOST_ROOM), sequences, self.ledger.spent, self.peer_address
        )

    def stated_cache(self, now: float) -> str:
        """The beginnings of prompts in the engine's cache, for the other replicas."""
        caches, room = self._caches, self.room
        if caches is None:
            return ""
        caches.resize(room.kv_tokens - self.ledger.kv_in_use - room.foreign_kv_tokens)
        return caches.statement(now)

    def peer_request_computed(self, prompt: Sequence[Cached], kv_tokens: int, now: float) -> None:
        """The engine here has computed a request of another sidecar."""
        caches = self._caches
        if caches is not None:
            caches.computed(prompt, max(kv_tokens - caches.here(prompt), 0), now)

    def forget_cache(self) -> None:
        """The engine has restarted: its prefix cache is empty."""
        if self._caches is not None:
            self._caches.forget()

    @property
    def _caches(self) -> PrefixCaches | None:
        return self.placement.caches if self.placement is not None else None

    # --- running requests ---

    def retire_idle(self) -> None:
        """Retire the active accounts without a lease. Call it after a tick of the lease exchange."""
        leases = self.leases
        if leases is not None:
            for account in [each for each in self.active if each.entitlement.name not in leases.states]:
                self.active.retire(account)

    def first_token(self, ticket: Ticket, seconds: float) -> None:
        """The first output of an answer arrived ``seconds`` after the request."""
        ticket.has_begun = True
        self.preemption.began(ticket)
        if ticket.is_guaranteed and ticket.streams and self._has_slo_feedback:
            entitlement = ticket.account.entitlement
            promised_ms = entitlement.slo.ttft_ms
            is_enforced = ticket.verdict is None  # no slot is reserved for another request
            if promised_ms is not None and entitlement.tier is Tier.GUARANTEED and is_enforced:
                self.slo.observe(seconds, promised_ms / 1000)

    def settle(
        self, ticket: Ticket, spent: Usage, ending: Ending, now: float, *, reported: bool = True
    ) -> None:
        """Replace a reservation by actual usage, and decide the requests that have room now.

        Raises ``TicketEnded`` the second time.
        """
        self.ledger.settle(ticket, spent, ending, now, reported=reported)
        self._state_load()
        if ending is _FINISHED and not self.peer_accounts.has(ticket.account):
            self.preferring.finished(ticket, spent, self._caches, now, reported=reported)
        else:
            self.preferring.forget(ticket)
        self.preemption.left(ticket)
        if ticket.place is not None and self.placement is not None:
            self.placement.unanswered(ticket.place)
        if self.leases is not None:
            self.leases.ended(ticket.account, now)
        self.serve(now, ticket.account)

    def slots_to_reserve(self, slots: float, now: float) -> float:
        """The number of slots to reserve, of ``slots``, while guaranteed requests miss their SLO."""
        return self.slo.judge(slots, now) if self._has_slo_feedback else 0.0

    def use_room(self, room: EngineRoom) -> None:
        """Use this room of the engine from now on. The next event decides the waiting requests."""
        self.room = self._engine_room = room

    def engine_changed(self, room: EngineRoom, now: float) -> None:
        """Use the room of a new observation of the engine."""
        self.use_room(room)
        others = self.shared_room.load_of_others()[0] if self.shared_room is not None else 0.0
        self._effects.end(self.preemption.surplus(self.ledger, room, others))
        self.serve(now)

    # --- other workers of this sidecar ---

    def load(self) -> tuple[int, int]:
        """Sequences and KV tokens that this sidecar has put on the engine, with all workers."""
        if self.shared_room is not None:
            self._state_load()
            return self.shared_room.load()
        ledger = self.ledger
        return ledger.concurrency_in_use + ledger.surplus_concurrency, ledger.kv_in_use + ledger.surplus_kv

    def _read_shared_room(self, shared_room: SharedRoom, now: float) -> None:
        """See the room that the other workers leave now."""
        self.room = shared_room.seen_here(self._engine_room, now)

    def _state_load(self) -> None:
        """Let the other workers see the load of this one."""
        if self.shared_room is not None:
            ledger = self.ledger
            self.shared_room.use(
                ledger.concurrency_in_use, ledger.kv_in_use, ledger.surplus_concurrency, ledger.surplus_kv
            )

    def share_room(self, now: float) -> int | None:
        """State the request that waits first here. Returns the worker that should ``serve`` now, if any."""
        shared_room = self.shared_room
        if shared_room is None:
            return None
        self._state_load()
        first = self.queue.first_for_engine()
        waiting = None
        if first is not None:
            cost = first.cost
            waiting = Waiting(
                first.rank, first.deadline, shared_room.index, float(cost.sequences), float(cost.kv_tokens)
            )
        shared_room.wait(waiting, now)
        return shared_room.next_to_try(self._engine_room, now)


def _rank_of_ask(pending: PendingRequest) -> int:
    """The rank of a request in the order of asks. Without a lease, it is beyond its limit."""
    return max(pending.rank, RANK_BEYOND) if pending.waits_for is WaitsFor.LEASE else pending.rank


def _reason(shed: Shed | None) -> WaitsFor:
    return WaitsFor.ENGINE if shed is not None and shed.reason is Reason.ENGINE_FULL else WaitsFor.LIMIT


def _retry_in_s(shed: Shed | None) -> float:
    """The seconds after which the request may fit without an event: only a bucket fills by itself."""
    return shed.expected_s if shed is not None and shed.reason is Reason.TOKENS_PER_SECOND else math.inf
