"""The driver: it performs the effects of the admission control, sends messages and sets the alarm.

Each process has one. All other parts change the admission control (offer, withdraw, observe the engine, set
limits) and then call ``act``. ``act`` ends the requests to end, delivers the decisions, sends the due
messages to the lease store, and sets the alarm for the next deadline. A delivery may cause further effects.
The outermost ``act`` performs them too, so no decision runs within another.

``Ports`` gives access to time, messages and the alarm. A sidecar uses its event loop, and the simulation uses
virtual ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from tokenpool.accounting.ticket import Place, Ticket
from tokenpool.admission.affinity import Cached
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import KnownPeer, PeerAsk
from tokenpool.admission.rules import Shed
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.leases.messages import Answer, Limit, Message, Push, ReplicaRoom
from tokenpool.leases.sync import LeaseSync
from tokenpool.outcomes import Ending
from tokenpool.planning.idle import IdleTerms
from tokenpool.pricing.cost import Usage
from tokenpool.quotas.messages import QuotaAnswer, QuotaMessage
from tokenpool.quotas.quotas import Crossed, Quotas

NOTHING_SPENT = Usage(0, 0)
MOST_ROUNDS = 8
"""The most requests that one event admits because other workers have left room to them. The next event admits
more."""


class Waiter(Protocol):
    """The owner of a request that waits."""

    def decided(self, outcome: Ticket | Shed) -> None:
        """The wait of the request has ended with this decision."""


class Runner(Protocol):
    """The owner of a running request."""

    def start(self) -> None:
        """Send the request to the engine, unless it was ended before."""

    def preempt(self) -> None:
        """End the request now, and settle its ticket."""


class Ports(Protocol):
    """The driver's access to time and to the lease store."""

    def now(self) -> float:
        """Seconds by the sidecar's monotonic clock."""

    def wake_at(self, at: float) -> None:
        """Call ``Driver.wake`` at this time instead of the time before; never if it is infinite."""

    def send_message(self, message: Message) -> None:
        """Send a message to the lease store without waiting. ``answered`` or ``failed`` follows."""

    def send_quotas(self, message: QuotaMessage) -> None:
        """Send a message about quotas without waiting. ``quotas_answered`` or ``quotas_failed`` follows."""

    def ask(self, ask: PeerAsk) -> None:
        """Ask another replica for room, without waiting. ``peer_offered`` or ``peer_refused`` follows."""

    def cancel(self, ask: PeerAsk) -> None:
        """The request of an ask needs no room any more. No answer to the ask may follow."""

    def notify_worker(self, worker: int) -> None:
        """Let another worker of this sidecar ``serve``: a request that waits there may have room."""

    def failed(self, what: str, error: Exception) -> None:
        """Log the failure of one step by a defect. The other steps continue."""


class Driver:
    """Performs the effects of one ``AdmissionControl``. ``sync`` is ``None`` for a lone sidecar."""

    def __init__(self, control: AdmissionControl, ports: Ports, sync: LeaseSync | None = None) -> None:
        self.control = control
        self.sync = sync
        self._ports = ports
        self._waiters: dict[PendingRequest, Waiter] = {}
        self._runners: dict[Ticket, Runner] = {}
        """The owners of running spot requests."""
        self._ended_early: set[Ticket] = set()
        """Requests to end without an owner, because their admission is still being delivered."""
        self._delivered: Ticket | None = None
        """The ticket that is being delivered, until its owner begins with it."""
        self._to_start: list[Runner] = []
        """Requests that start when all effects are performed: others end first to make room for them."""
        self._is_acting = False
        self._is_stopped = False
        self._wakes_at = math.inf

    # --- owners ---

    def wait(self, pending: PendingRequest, waiter: Waiter) -> None:
        """Register the owner of a pending request. The decision is delivered to it."""
        self._waiters[pending] = waiter

    def withdraw(self, pending: PendingRequest) -> None:
        """End the wait of a pending request without a decision. The next request may become due."""
        self._waiters.pop(pending, None)
        ticket = self.control.withdraw(pending, self._ports.now())
        pending.drop_body()
        if ticket is not None:
            self.settle(ticket, NOTHING_SPENT, Ending.CLIENT_GONE, reported=False)
        self.act()

    def begin(self, ticket: Ticket | None, runner: Runner) -> None:
        """Start an admitted request, after the spot requests that make room for it have ended.

        The owner of a spot request is asked to end it when a guarantee needs its capacity.
        """
        if ticket is not None:
            if ticket is self._delivered:
                self._delivered = None
            if self._ended_early and ticket in self._ended_early:
                self._ended_early.discard(ticket)
                runner.preempt()
                return
            if ticket.account.is_spot:
                self._runners[ticket] = runner
        if self._is_acting:
            self._to_start.append(runner)
        elif self.control.has_effects:
            # The end of spot requests may admit waiting requests. This one starts before them.
            self._to_start.append(runner)
            self.act()
        else:
            self.act()
            runner.start()

    def settle(self, ticket: Ticket, spent: Usage, ending: Ending, *, reported: bool = True) -> None:
        """Settle a ticket, and perform the effects of the freed room."""
        if self._runners:
            self._runners.pop(ticket, None)  # its entitlement may have another tier now
        if self._ended_early:
            self._ended_early.discard(ticket)
        self.control.settle(ticket, spent, ending, self._ports.now(), reported=reported)
        self.act()

    # --- effects ---

    def act(self) -> None:
        """Perform all effects of the calls so far."""
        if self._is_acting:
            return
        control, sync = self.control, self.sync
        if control.has_effects:
            self._perform()
        if control.shared_room is not None:
            self._share_room(control.shared_room.index)
        if sync is not None and sync.is_message_due:
            self._send(self._ports.now())
        if control.quota_waits is not None and control.quota_waits.quotas.is_due:
            self._send_quotas(control.quota_waits.quotas, is_regular=False)
        if control.has_waiting or self._wakes_at < math.inf:
            self._set_alarm()

    def _perform(self) -> None:
        control = self.control
        self._is_acting = True
        try:
            while control.has_effects or self._to_start:
                effects = control.take_effects()
                for ticket in effects.to_end:
                    self._end(ticket)
                for pending, outcome in effects.decided:
                    self._deliver(pending, outcome)
                for ask in effects.to_cancel:
                    self._ports.cancel(ask)
                for ask in effects.to_ask:
                    self._ports.ask(ask)
                if not control.has_effects and self._to_start:
                    self._start(self._to_start.pop(0))
        finally:
            self._is_acting = False

    def _share_room(self, own: int) -> None:
        """State this worker's use of the engine, and let the request that comes first take free room."""
        for _ in range(MOST_ROUNDS):
            worker = self.control.share_room(self._ports.now())
            if worker is None:
                return
            if worker != own:
                self._ports.notify_worker(worker)
                return
            self.control.serve(self._ports.now())
            if self.control.has_effects:
                self._perform()

    def _end(self, ticket: Ticket) -> None:
        if ticket.ending is not None:
            return  # its owner settled it after the decision to end it
        runner = self._runners.pop(ticket, None)
        if runner is None:
            self._ended_early.add(ticket)
            return
        try:
            runner.preempt()
        except Exception as error:
            self._ports.failed("a request could not be ended for a guarantee", error)

    def _start(self, runner: Runner) -> None:
        try:
            runner.start()
        except Exception as error:
            self._ports.failed("an admitted request could not be started", error)

    def _deliver(self, pending: PendingRequest, outcome: Ticket | Shed) -> None:
        waiter = self._waiters.pop(pending, None)
        ticket = outcome if isinstance(outcome, Ticket) else None
        self._delivered = ticket
        ending = Ending.CLIENT_GONE  # its client left while it was being decided
        try:
            if waiter is not None:
                ending = Ending.UPSTREAM_ERROR
                waiter.decided(outcome)
        except Exception as error:
            self._ports.failed("a decision could not be delivered", error)
        pending.drop_body()
        if ticket is not None and self._delivered is ticket and ticket.ending is None:
            self.settle(ticket, NOTHING_SPENT, ending)  # no owner has begun with it
        self._delivered = None

    # --- time ---

    def _set_alarm(self) -> None:
        at = math.inf if self._is_stopped else self.control.wakes_at()
        if at != self._wakes_at:
            self._wakes_at = at
            self._ports.wake_at(at)

    def wake(self) -> None:
        """The alarm: the deadline of a waiting request has passed."""
        self._wakes_at = math.inf
        self.control.wake(self._ports.now())
        self.act()

    def serve(self) -> None:
        """Limits or room have changed: decide the requests that wait."""
        self.control.serve(self._ports.now())
        self.act()

    # --- other replicas ---

    def peer_offered(self, ask: PeerAsk) -> bool:
        """Another replica keeps room for a request. Returns whether the request takes it.

        If so, the owner of the request got its ticket, whose ``place`` has the number of the ask.
        """
        takes = self.control.peer_offered(ask, self._ports.now())
        self.act()
        return takes

    def peer_refused(self, ask: PeerAsk, *, has_failed: bool = False) -> None:
        """Another replica has no room, or its peer port failed (``has_failed``)."""
        self.control.peer_refused(ask, self._ports.now(), has_failed=has_failed)
        self.act()

    def place_answered(self, place: Place, *, has_room: bool) -> None:
        """Another replica has answered a request that it got together with the ask."""
        self.control.place_answered(place, has_room=has_room)

    def peer_request_computed(self, prompt: Sequence[Cached], kv_tokens: int) -> None:
        """The engine here has computed a request of another sidecar."""
        self.control.peer_request_computed(prompt, kv_tokens, self._ports.now())

    # --- the lease store ---

    def tick_steps(self) -> Iterator[None]:
        """Renew the leases once per interval, in short steps. Does nothing without a lease store."""
        sync = self.sync
        if sync is not None:
            try:
                yield from sync.tick_steps(self._ports.now())
                self.control.retire_idle()
            except Exception as error:
                # The messages are sent nevertheless: without renewals, all leases would expire.
                self._ports.failed("the tick of the leases failed", error)
            while self._send_one(self._ports.now()):
                yield

    def answered(self, message: Message, answer: Answer) -> None:
        """The lease store answered a message."""
        if self.sync is not None:
            now = self._ports.now()
            self.sync.answered(message, answer, now)
            self.control.peers_named(
                [KnownPeer(p.name, p.address, p.kv_tokens, p.sequences, p.cached) for p in answer.peers], now
            )
            self._act_on_answer()

    def failed(self, message: Message) -> None:
        """A message was not answered in time."""
        if self.sync is not None:
            self.sync.failed(message, self._ports.now())
            self._act_on_answer()

    def _act_on_answer(self) -> None:
        self.control.serve_lease_waits(self._ports.now())
        self.act()
        self._send(self._ports.now())

    # --- quotas ---

    @property
    def _quotas(self) -> Quotas | None:
        waits = self.control.quota_waits
        return waits.quotas if waits is not None else None

    def tick_quotas(self) -> list[Crossed]:
        """State what was spent, once per interval. Returns the levels to report. No effect without quotas."""
        quotas = self._quotas
        if quotas is None:
            return []
        crossed = quotas.tick(self._ports.now())
        self._send_quotas(quotas, is_regular=True)
        return crossed

    def quotas_answered(self, message: QuotaMessage, answer: QuotaAnswer) -> list[Crossed]:
        """The lease store answered a message about quotas. Returns the levels to report."""
        quotas = self._quotas
        if quotas is None:
            return []
        sent_at = quotas.sent_at
        crossed = quotas.answered(message, answer, self._ports.now())
        self._act_on_quotas(sent_at)
        return crossed

    def quotas_failed(self, message: QuotaMessage) -> None:
        """A message about quotas was not answered in time."""
        quotas = self._quotas
        if quotas is not None:
            sent_at = quotas.sent_at
            quotas.failed(message)
            self._act_on_quotas(sent_at)

    def _act_on_quotas(self, sent_at: float) -> None:
        control, now = self.control, self._ports.now()
        if control.quota_waits is not None:
            control.quota_waits.answered(sent_at, now)
        control.serve_quota_waits(now)
        self.act()

    def last_quotas(self) -> QuotaMessage | None:
        """The last message about quotas, which returns all portions. Call it after ``stop``."""
        quotas = self._quotas
        return quotas.last_message() if quotas is not None else None

    def _send_quotas(self, quotas: Quotas, *, is_regular: bool) -> None:
        if self._is_stopped:
            return
        try:
            message = quotas.message(self._ports.now(), is_regular=is_regular)
            if message is not None:
                self._ports.send_quotas(message)
        except Exception as error:
            self._ports.failed("a message about quotas could not be made", error)

    def learned(self, limits: Mapping[str, Limit], terms: IdleTerms) -> None:
        """All limits were read from the lease store."""
        if self.sync is not None:
            self.sync.leases.learn(limits, terms, self._ports.now())
            self.serve()

    def pushed(self, push: Push) -> None:
        """The lease store sent a notification."""
        if self.sync is not None:
            self.sync.pushed(push, self._ports.now())
            self.act()

    def stop(self) -> None:
        """Stop: send no further messages and set no further alarm."""
        self._is_stopped, self._wakes_at = True, math.inf
        self._ports.wake_at(math.inf)

    def last_message(self) -> Message | None:
        """The last message, which returns all leases. All messages before it have an answer or failed."""
        return self.sync.last_message() if self.sync is not None else None

    def _room(self, now: float) -> ReplicaRoom:
        """The room of this replica, and the beginnings of prompts in its engine's cache."""
        room, cached = self.control.stated_room(), self.control.stated_cache(now)
        return ReplicaRoom(room.kv_tokens, room.sequences, room.tokens_spent, room.address, cached)

    def _send(self, now: float) -> None:
        """Send all due messages to the lease store."""
        while self._send_one(now):
            pass

    def _send_one(self, now: float) -> bool:
        """Send the next due message. Returns whether there was one."""
        if self.sync is None or self._is_stopped:
            return False
        try:
            message = self.sync.next_message(now)
            if message is not None:
                self._ports.send_message(replace(message, room=self._room(now)))
        except Exception as error:
            # A defect must not reach the request that is being served: the next interval tries again.
            self._ports.failed("a message to the lease store could not be made", error)
            return False
        return message is not None
