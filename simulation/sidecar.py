"""A simulated sidecar with its engine. It runs the shipped driver, admission control and lease sync."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from simulation.clock import VirtualClock
from simulation.engine import PROMPT_TOKENS_S, AnyEngine, Engine, Prompt, RoomWatch
from simulation.handover import Question, Visit, question_of, question_with
from simulation.learned import LearnedEngine
from simulation.setup import KV_PER_SLOT, TOKENS_PER_SEQUENCE_S, Lie, Recorded, Setup, Tenant
from simulation.stepped_engine import SteppedEngine
from tokenpool.accounting.account import Account
from tokenpool.accounting.group_accounts import group_accounts, place
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.affinity import PrefixCaches
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import PeerAsk, Placement
from tokenpool.admission.queue import AdmissionQueue
from tokenpool.admission.rules import Shed
from tokenpool.amounts import Amount
from tokenpool.capacity.room import PREEMPTIBLE_QUEUE, EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver
from tokenpool.leases.leases import Leases
from tokenpool.leases.messages import Answer, Message, Push, ReplicaRoom
from tokenpool.leases.settings import Mode
from tokenpool.leases.sync import LeaseSync
from tokenpool.leases.wire import SidecarReport, encode_report
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Ask, Cost, EngineShape, Usage
from tokenpool.pricing.learned_costs import PREFIX_BYTES
from tokenpool.quotas.messages import QuotaMessage

TIMEOUT_S = 0.5
"""The time after which a sidecar treats a message as lost."""
LATE_S = 1.0
"""Seconds after the longest wait of an ask at which a silent sidecar counts as lost. The value is that of
``sidecar.handover.asking``."""
SHAPE = EngineShape(16, None)
BYTES_PER_TOKEN = 4


class Environment(Protocol):
    """The parts of the simulated world that a sidecar calls."""

    setup: Setup
    chance: random.Random
    clock: VirtualClock
    watch: RoomWatch

    def carry(self, sidecar: Sidecar, message: Message, answered: Callable[[Answer], None]) -> None:
        """Send a message to the lease store, and call ``answered`` with each answer that arrives."""

    def request_admitted(self, sidecar: Sidecar, request: Request) -> None:
        """A sidecar admits a request."""

    def request_shed(self, sidecar: Sidecar, request: Request, shed: Shed) -> None:
        """A sidecar sheds a request."""

    def request_began(self, request: Request) -> None:
        """An engine begins a request."""

    def request_ended(self, request: Request) -> None:
        """An engine has served a request."""

    def request_preempted(self, request: Request) -> None:
        """A spot request is ended for a guarantee."""

    def request_handed_over(self) -> None:
        """Another replica begins with a request."""

    def message_failed(self, sidecar: Sidecar) -> None:
        """The lease store has not answered in time. Requests that wait may run within fallback shares."""

    def request_displaced(self, request: Request) -> None:
        """Another replica has refused an admitted request. It is decided again."""

    def visit(self, sidecar: Sidecar, question: Question, ask: PeerAsk | None) -> Visit | None:
        """An ask to another sidecar; ``None`` if that sidecar is gone. See ``Visit``."""


class Request:
    """One request. It implements ``Waiter`` and ``Runner`` of the driver."""

    __slots__ = (
        "account",
        "arrived_at",
        "began_at",
        "cached_tokens",
        "cost",
        "is_running",
        "prompt",
        "recorded",
        "sidecar",
        "size",
        "tenant",
        "ticket",
        "tried",
        "uses_free_capacity",
        "visit",
    )

    def __init__(self, tenant: Tenant, size: int, prompt: Prompt | None = None) -> None:
        self.tried: list[Sidecar] = []
        """The sidecars that have refused it."""
        self.tenant = tenant
        self.size = size
        """Its tokens; with a prompt, its output tokens."""
        self.prompt = prompt
        self.recorded: Recorded | None = None
        """The request of the past that it repeats."""
        self.cached_tokens = 0
        self.ticket: Ticket | None = None
        self.visit: Visit | None = None
        """Its place on another replica, by handover."""
        self.arrived_at = 0.0
        self.began_at = 0.0
        self.is_running = False
        self.uses_free_capacity = False
        """Whether it runs beyond its limit."""

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
            self.sidecar.send(self)

    def found(self, cached_tokens: int) -> None:
        """See ``Work``."""
        self.cached_tokens = cached_tokens

    def began(self) -> None:
        """See ``Work``."""
        self.sidecar.began(self)

    def finished(self) -> None:
        """See ``Work``. The engine continues while the sidecar is paused; the settlement waits."""
        self.sidecar.when_awake(lambda: self.sidecar.finished(self))

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
        self.paused_until = self.cut_until = 0.0
        self.lie = lie_of(world.setup, number)
        self._world = world
        setup, chance = world.setup, world.chance
        self._offset = chance.uniform(0, 1000)
        self._speed = 1 + chance.uniform(-1, 1) * setup.faults.drift
        now = self.now()
        self.accounts = {
            t.entitlement.name: Account(t.entitlement, setup.pricing, now) for t in setup.tenants
        }
        place(self.accounts.values(), setup.groups, group_accounts(setup.groups, {}, now))
        queue = AdmissionQueue(setup.queue)
        self.leases = Leases(setup.settings, setup.sidecars, queue)
        caches = PrefixCaches() if setup.affinity else None
        placement = Placement(self.name, caches) if setup.handover else None
        self.control = AdmissionControl(now, queue, leases=self.leases, placement=placement)
        self.control.peer_address = self.name if setup.handover else ""
        self.control.is_serving = True
        sync = LeaseSync(self.name, self.leases)
        sync.follow(self.accounts, now)
        self.driver = Driver(self.control, self, sync)
        rate = PROMPT_TOKENS_S if setup.conversations else TOKENS_PER_SEQUENCE_S
        self._known_capacity = Amount(setup.slots * rate, setup.slots * KV_PER_SLOT, setup.slots)
        self._shape = SHAPE
        self._learned: LearnedEngine | None = None
        """The knowledge of an engine with steps."""
        self.waiting: dict[Request, None] = {}
        """Requests that wait for their decision."""
        self.admitted: dict[Request, None] = {}
        """Requests that run."""
        self.engine: AnyEngine
        if setup.model is None:
            self.engine = Engine(world.clock, setup.slots, world.watch, number)
            self.control.engine_changed(_room(setup.slots), now)
        else:
            engine = SteppedEngine(world.clock, setup.model, world.watch, number, setup.seed)
            self.engine, self._learned = engine, LearnedEngine(engine, setup.replica)
            self._shape = EngineShape(setup.model.block_size, setup.model.window)
        self._visits: dict[int, Visit] = {}
        """The asks to other replicas by number, until their request is sent."""
        self._awaited: set[int] = set()
        """Numbers of messages that are neither answered nor failed."""
        self._wakes_at = math.inf
        self.observe_engine()

    @property
    def capacity(self) -> Amount:
        """The capacity of its engine, as it states it."""
        return self._known_capacity if self._learned is None else self._learned.capacity

    def observe_engine(self) -> None:
        """Read the metrics of an engine with steps, and schedule the next read."""
        learned = self._learned
        if learned is None:
            return
        now, ledger = self.now(), self.control.ledger
        learned.observe(ledger.concurrency_in_use, ledger.kv_in_use)
        reserved = self.control.slots_to_reserve(learned.room.slots, now)
        self.control.engine_changed(replace(learned.room, reserved_slots=reserved), now)
        self.driver.act()
        self.later(self._world.setup.poll_s, self.observe_engine)

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
        ask = _ask(request, states_bound=self._world.setup.states_bound)
        cost = account.pricer.price(ask, self._shape)
        request.assign(self, account, cost)
        self._offer(request, ask, None)

    def _offer(self, request: Request, ask: Ask, arrived_at: float | None) -> None:
        outcome = self.control.offer(
            request.account, ask, request.cost, self.now(), request=request, arrived_at=arrived_at
        )
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
            if self._learned is not None:
                self._learned.shed(outcome)
            self._world.request_shed(self, request, outcome)
            return
        request.ticket, request.uses_free_capacity = outcome, outcome.uses_free_capacity
        self.admitted[request] = None
        self._world.request_admitted(self, request)
        self.driver.begin(outcome, request)

    def send(self, request: Request) -> None:
        """Send an admitted request to the engine, or to the replica that keeps room for it."""
        ticket = request.ticket
        if ticket is None or ticket.place is None:
            self.engine.add(request)
            return
        question = question_with(ticket)
        if question is not None:
            self._send_with_ask(request, question)
            return
        request.visit = visit = self._visits.pop(ticket.place.number)
        visit.send(request)

    def _send_with_ask(self, request: Request, question: Question) -> None:
        request.visit = visit = self._world.visit(self, question, None)
        if visit is None:
            self.later(0.0, lambda: self._place_again(request))  # the connection to that sidecar is closed
            return
        visit.send_with_ask(request)
        self.later(LATE_S, lambda: self._give_up_sent(visit))

    def _give_up_sent(self, visit: Visit) -> None:
        """The other sidecar is silent. It may have begun, so the request ends."""
        request = visit.request
        if isinstance(request, Request) and request.visit is visit and not visit.is_answered:
            visit.cancel()
            self.finished(request, Ending.UPSTREAM_ERROR)

    def _place_again(self, request: Request) -> None:
        """Another replica has not begun with a request: decide it again."""
        ticket, request.ticket, request.visit = request.ticket, None, None
        if ticket is None:
            return
        self.admitted.pop(request, None)
        self._world.request_displaced(request)
        self.driver.settle(ticket, Usage(0, 0), Ending.UPSTREAM_ERROR, reported=False)
        self._offer(request, ticket.ask, self._offset + request.arrived_at * self._speed)

    def began(self, request: Request) -> None:
        """The engine begins with a request."""
        now = self._world.clock.now
        request.is_running = True
        request.began_at = now
        self._world.request_began(request)
        if request.ticket is not None:
            self.control.first_token(request.ticket, now - request.arrived_at)

    def finished(self, request: Request, ending: Ending = Ending.FINISHED) -> None:
        """Settle a request that its engine has finished. It may have been preempted meanwhile."""
        ticket, request.ticket = request.ticket, None
        self.admitted.pop(request, None)
        if ticket is None:
            return
        if ending is Ending.PREEMPTED or ending is not Ending.FINISHED:
            self._world.request_preempted(request)
            self.driver.settle(ticket, Usage(ticket.cost.input_tokens, 0), ending)
            return
        self._world.request_ended(request)
        prompt = request.prompt
        input_tokens = ticket.cost.input_tokens if prompt is None else prompt.tokens
        output_tokens = (ticket.ask.output_bound or 0) if prompt is None else request.size
        spent = Usage(input_tokens, output_tokens, request.cached_tokens)
        self.driver.settle(ticket, spent, Ending.FINISHED)

    def preempt(self, request: Request, ticket: Ticket) -> None:
        """End a spot request for a guarantee."""
        relayed = self.engine.stop(request)
        self.admitted.pop(request, None)
        self._world.request_preempted(request)
        self.driver.settle(ticket, Usage(ticket.cost.input_tokens, relayed), Ending.PREEMPTED)

    # --- handover ---

    def ask(self, ask: PeerAsk) -> None:
        """See ``Ports``."""
        visit = self._world.visit(self, question_of(ask), ask)
        if visit is None:
            self.later(TIMEOUT_S, lambda: self._refused(ask, has_failed=True))
            return
        self._visits[ask.number] = visit
        visit.send_ask()
        self.later(ask.longest_wait_s + LATE_S, lambda: self._give_up(visit, ask))

    def _give_up(self, visit: Visit, ask: PeerAsk) -> None:
        """The other sidecar is silent: close the connection."""
        if self._visits.get(ask.number) is visit:
            visit.cancel()
            self._refused(ask, has_failed=True)

    def cancel(self, ask: PeerAsk) -> None:
        """See ``Ports``."""
        visit = self._visits.pop(ask.number, None)
        if visit is not None:
            visit.cancel()

    def offered(self, visit: Visit) -> None:
        """See ``Home``."""
        ask = visit.ask
        assert ask is not None
        if ask.number not in self._visits or not self.driver.peer_offered(ask):
            self._visits.pop(ask.number, None)
            visit.cancel()

    def refused(self, visit: Visit, *, has_failed: bool) -> None:
        """See ``Home``."""
        request = visit.request
        if visit.ask is not None:
            self._refused(visit.ask, has_failed=has_failed)
        elif isinstance(request, Request) and request.visit is visit:
            self._answered_sent(visit, has_room=False)
            self._place_again(request)

    def _refused(self, ask: PeerAsk, *, has_failed: bool) -> None:
        self._visits.pop(ask.number, None)
        self.driver.peer_refused(ask, has_failed=has_failed)

    def _answered_sent(self, visit: Visit, *, has_room: bool) -> None:
        """The other sidecar answers a request that it got together with the ask."""
        request = visit.request
        if visit.ask is None and not visit.is_answered and isinstance(request, Request):
            visit.is_answered = True
            if request.ticket is not None and request.ticket.place is not None:
                self.driver.place_answered(request.ticket.place, has_room=has_room)

    def taken_elsewhere(self, visit: Visit) -> None:
        """See ``Home``."""
        self._answered_sent(visit, has_room=True)

    def began_elsewhere(self, visit: Visit) -> None:
        """See ``Home``."""
        request = visit.request
        self._answered_sent(visit, has_room=True)
        if isinstance(request, Request) and request.visit is visit and request.ticket is not None:
            self._world.request_handed_over()
            self.began(request)

    def ended_elsewhere(self, visit: Visit, ending: Ending) -> None:
        """See ``Home``."""
        request = visit.request
        if isinstance(request, Request) and request.visit is visit:
            self.finished(request, ending)

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

    def send_message(self, message: Message) -> None:
        """See ``Ports``."""
        report = encode_report(SidecarReport(self.capacity, self.capacity, True))
        sent = replace(message, report=report) if message.carries_report else message
        if self.lie is not None and sent.room is not None:
            sent = replace(sent, room=self._untrue(sent.room))
        self._awaited.add(message.number)
        self._world.carry(self, sent, lambda answer: self.when_awake(lambda: self._answered(message, answer)))
        self.later(TIMEOUT_S, lambda: self._missed(message))

    def notify_worker(self, worker: int) -> None:
        """See ``Ports``. A simulated sidecar is one process."""

    def send_quotas(self, message: QuotaMessage) -> None:
        """See ``Ports``. These tenants have no quotas; ``simulation.quotas`` has such a pool."""
        raise AssertionError("no quota is configured")

    def _untrue(self, room: ReplicaRoom) -> ReplicaRoom:
        if self.lie is Lie.BOASTS:
            return ReplicaRoom(
                self.capacity.kv_tokens, self.capacity.concurrency, room.tokens_spent, room.address
            )
        return ReplicaRoom(0.0, 0.0, room.tokens_spent, room.address) if self.lie is Lie.HIDES else room

    def _answered(self, message: Message, answer: Answer) -> None:
        if self._is_awaited(message):
            self.driver.answered(message, answer)

    def _missed(self, message: Message) -> None:
        if self._is_awaited(message):
            self._world.message_failed(self)
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


def _ask(request: Request, *, states_bound: bool) -> Ask:
    """The ask of a request. Without a prompt, a quarter of its tokens is its input."""
    prompt, size, recorded = request.prompt, request.size, request.recorded
    if recorded is not None:
        bound = size if states_bound else None
        return Ask(token_ids=recorded.input_tokens, output_bound=bound, target=("chat", "m"))
    if prompt is None:
        return Ask(token_ids=size // 4, output_bound=size - size // 4)
    text_bytes = BYTES_PER_TOKEN * prompt.tokens
    prefixes = tuple(
        prompt.conversation * len(PREFIX_BYTES) + depth
        for depth, length in enumerate(PREFIX_BYTES)
        if length <= text_bytes
    )
    return Ask(text_bytes=text_bytes, output_bound=size, target=("chat", "m"), prefixes=prefixes)


def lie_of(setup: Setup, number: int) -> Lie | None:
    """The lie of a sidecar; ``None`` for an honest one."""
    first = setup.sidecars - len(setup.liars)
    return setup.liars[number - first] if number >= first else None


def _room(slots: int) -> EngineRoom:
    """The room of an idle engine, as a sidecar's watcher reports it."""
    return EngineRoom(
        float(slots), slots * KV_PER_SLOT, proven_slots=float(slots), preemptible_queue=PREEMPTIBLE_QUEUE
    )
