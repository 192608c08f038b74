"""A simulated sidecar with its engine. It runs the shipped driver, admission control and lease sync."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from simulation.clock import VirtualClock
from simulation.setup import KV_PER_SLOT, TOKENS_PER_SEQUENCE_S, Setup, Tenant
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.queue import AdmissionQueue
from tokenpool.admission.rules import Shed
from tokenpool.amounts import Amount
from tokenpool.capacity.room import PREEMPTIBLE_QUEUE, EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver
from tokenpool.entitlements import Pricing
from tokenpool.leases.leases import Leases
from tokenpool.leases.messages import Answer, Message, Push
from tokenpool.leases.settings import Mode
from tokenpool.leases.sync import LeaseSync
from tokenpool.leases.wire import SidecarReport, encode_report
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Ask, Cost, EngineShape, Usage

TIMEOUT_S = 0.5
"""The time after which a sidecar treats a message as lost."""
SHAPE = EngineShape(16, None)


class Environment(Protocol):
    """The parts of the simulated world that a sidecar calls."""

    setup: Setup
    chance: random.Random
    clock: VirtualClock

    def carry(self, sidecar: Sidecar, message: Message, answered: Callable[[Answer], None]) -> None:
        """Send a message to the lease store, and call ``answered`` with each answer that arrives."""

    def request_admitted(self, sidecar: Sidecar, request: Request) -> None:
        """A sidecar admits a request."""

    def request_shed(self, sidecar: Sidecar, request: Request, shed: Shed) -> None:
        """A sidecar sheds a request."""

    def request_began(self) -> None:
        """An engine begins a request."""

    def request_ended(self, request: Request) -> None:
        """An engine has served a request."""

    def request_preempted(self, request: Request) -> None:
        """A spot request is ended for a guarantee."""


class Request:
    """One request. It implements ``Waiter`` and ``Runner`` of the driver."""

    __slots__ = (
        "account",
        "arrived_at",
        "began_at",
        "cost",
        "is_running",
        "sidecar",
        "size",
        "tenant",
        "ticket",
    )

    def __init__(self, tenant: Tenant, size: int) -> None:
        self.tenant = tenant
        self.size = size
        self.ticket: Ticket | None = None
        self.arrived_at = 0.0
        self.began_at = 0.0
        self.is_running = False

    @property
    def entitlement(self) -> str:
        """The name of its entitlement."""
        return self.tenant.entitlement.name

    def assign(self, sidecar: Sidecar, account: Account, cost: Cost) -> None:
        """Set the sidecar that decides this request, with its account and price there."""
        self.sidecar, self.account, self.cost = sidecar, account, cost

    def decided(self, outcome: Ticket | Shed) -> None:
        """See ``Waiter``."""
        self.sidecar.decided(self, outcome)

    def start(self) -> None:
        """See ``Runner``."""
        if self.ticket is not None:
            self.sidecar.queue_in_engine(self)

    def preempt(self) -> None:
        """See ``Runner``."""
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            self.sidecar.preempt(self, ticket)


class Sidecar:
    """One sidecar with its engine. Its clock has an offset and a drift."""

    def __init__(self, world: Environment, number: int, life: int) -> None:
        self.name = f"s{number:04}.{life}"
        self.number = number
        self.is_gone = False
        self.is_cut = False
        """Whether a partition separates it from the lease store."""
        self.paused_until = 0.0
        self._world = world
        setup, chance = world.setup, world.chance
        self._offset = chance.uniform(0, 1000)
        self._speed = 1 + chance.uniform(-1, 1) * setup.faults.drift
        now = self.now()
        self.accounts = {t.entitlement.name: Account(t.entitlement, Pricing(), now) for t in setup.tenants}
        queue = AdmissionQueue(setup.queue)
        self.leases = Leases(setup.settings, setup.sidecars, queue)
        self.control = AdmissionControl(now, queue, leases=self.leases)
        sync = LeaseSync(self.name, self.leases)
        sync.follow(self.accounts, now)
        self.driver = Driver(self.control, self, sync)
        self.capacity = Amount(setup.slots * TOKENS_PER_SEQUENCE_S, setup.slots * KV_PER_SLOT, setup.slots)
        self.control.engine_changed(_room(setup.slots), now)
        self.waiting: dict[Request, None] = {}
        """Requests that wait for their decision."""
        self.backlog: deque[Request] = deque()
        """Admitted requests that wait in the engine."""
        self.running = 0
        self._awaited: set[int] = set()
        """Numbers of messages that are neither answered nor failed."""
        self._wakes_at = math.inf

    @property
    def uses_fallback(self) -> bool:
        """Whether it admits by fallback shares, or the lease store does not answer its messages."""
        return self.leases.mode is not Mode.JOINED or self.leases.failures > 0

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Schedule a call by this sidecar's clock. See ``when_awake``."""
        self._world.clock.after(seconds / self._speed, lambda: self.when_awake(call))

    def when_awake(self, call: Callable[[], None]) -> None:
        """Make a call now, or at the end of this sidecar's pause. A sidecar that is gone makes none."""
        if self.is_gone:
            return
        clock = self._world.clock
        if clock.now < self.paused_until:
            clock.after(self.paused_until - clock.now, lambda: self.when_awake(call))
            return
        call()

    # --- requests ---

    def offer(self, request: Request) -> None:
        """Decide a request, or let it wait."""
        account = self.accounts[request.entitlement]
        ask = Ask(token_ids=request.size // 4, output_bound=request.size - request.size // 4)
        cost = account.pricer.price(ask, SHAPE)
        request.assign(self, account, cost)
        outcome = self.control.offer(account, ask, cost, self.now(), request=request)
        if isinstance(outcome, PendingRequest):
            self.waiting[request] = None
            self.driver.wait(outcome, request)
        else:
            self.decided(request, outcome)
        self.driver.act()

    def decided(self, request: Request, outcome: Ticket | Shed) -> None:
        """Send an admitted request to the engine, or refuse it."""
        self.waiting.pop(request, None)
        if isinstance(outcome, Shed):
            self._world.request_shed(self, request, outcome)
            return
        request.ticket = outcome
        self._world.request_admitted(self, request)
        self.driver.begin(outcome, request)

    def queue_in_engine(self, request: Request) -> None:
        """An admitted request reaches the engine."""
        self.backlog.append(request)
        self._start()

    def _start(self) -> None:
        while self.backlog and self.running < self._world.setup.slots:
            request = self.backlog.popleft()
            self.running += 1
            request.is_running = True
            now = self._world.clock.now
            request.began_at = now
            self._world.request_began()
            if request.ticket is not None:
                self.control.first_token(request.ticket, now - request.arrived_at)
            seconds = request.size / TOKENS_PER_SEQUENCE_S
            # The engine continues while the sidecar is paused; the settlement waits.
            self.later(seconds * self._speed, lambda request=request: self._end(request))  # type: ignore[misc]

    def _end(self, request: Request) -> None:
        ticket = request.ticket
        if ticket is None:
            return  # it was preempted
        self.running -= 1
        request.ticket = None
        self._world.request_ended(request)
        spent = Usage(ticket.cost.input_tokens, ticket.ask.output_bound or 0)
        self.driver.settle(ticket, spent, Ending.FINISHED)
        self._start()

    def preempt(self, request: Request, ticket: Ticket) -> None:
        """End a spot request for a guarantee."""
        if request.is_running:
            self.running -= 1
        elif request in self.backlog:
            self.backlog.remove(request)
        self._world.request_preempted(request)
        self.driver.settle(ticket, Usage(ticket.cost.input_tokens, 0), Ending.PREEMPTED)
        self._start()

    # --- the driver's ports ---

    def now(self) -> float:
        """See ``Ports``."""
        return self._offset + self._world.clock.now * self._speed

    def wake_at(self, at: float) -> None:
        """See ``Ports``."""
        self._wakes_at = at
        if at < math.inf:
            self.later(max(at - self.now(), 0.0) + 1e-6, lambda: self._wake(at))

    def _wake(self, planned_at: float) -> None:
        if planned_at == self._wakes_at:
            self._wakes_at = math.inf
            self.driver.wake()

    def failed(self, what: str, error: Exception) -> None:
        """See ``Ports``. In a simulation a defect ends the run."""
        raise error

    def send(self, message: Message) -> None:
        """See ``Ports``."""
        report = encode_report(SidecarReport(self.capacity, self.capacity, True))
        sent = replace(message, report=report) if message.carries_report else message
        self._awaited.add(message.number)
        self._world.carry(self, sent, lambda answer: self.when_awake(lambda: self._answered(message, answer)))
        self.later(TIMEOUT_S, lambda: self._missed(message))

    def _answered(self, message: Message, answer: Answer) -> None:
        if self._is_awaited(message):
            self.driver.answered(message, answer)

    def _missed(self, message: Message) -> None:
        if self._is_awaited(message):
            self.driver.failed(message)

    def _is_awaited(self, message: Message) -> bool:
        """Whether a message is neither answered nor failed. The driver hears of one end of each message."""
        is_awaited = message.number in self._awaited
        self._awaited.discard(message.number)
        return is_awaited

    def interval(self) -> None:
        """Renew the leases once, and schedule the next renewal."""
        for _ in self.driver.tick_steps():
            pass
        self.later(self._world.setup.settings.interval_s, self.interval)

    def pushed(self, push: Push) -> None:
        """Process a notification of the lease store."""
        self.driver.pushed(push)


def _room(slots: int) -> EngineRoom:
    """The room of an idle engine, as a sidecar's watcher reports it."""
    return EngineRoom(
        float(slots), slots * KV_PER_SLOT, proven_slots=float(slots), preemptible_queue=PREEMPTIBLE_QUEUE
    )
