"""A world of sidecars, one set of books and a coordinator, in virtual time.

Everything random comes from one seed. Time is the world's; each sidecar has a clock of its own that is off by
some and drifts. Nothing here waits.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.admission.rules import Shed
from tokenpool.amounts import Amount
from tokenpool.capacity.room import PREEMPTIBLE_QUEUE, EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver
from tokenpool.entitlements import Entitlement, Pricing
from tokenpool.leases.leases import Leases
from tokenpool.leases.messages import Answer, Message, PoolSnapshot, Push
from tokenpool.leases.reference_store import ReferenceLeaseStore
from tokenpool.leases.settings import LeaseSettings, Mode
from tokenpool.leases.sync import LeaseSync
from tokenpool.leases.tick import NO_MEMORY, tick
from tokenpool.leases.wire import SidecarReport, encode_report
from tokenpool.outcomes import Ending, Reason
from tokenpool.planning.planner import PlannerSettings
from tokenpool.pricing.cost import Ask, Cost, EngineShape, Usage

TICK_S = 0.25
TIMEOUT_S = 0.5
"""After which a sidecar takes a message for lost."""
SHAPE = EngineShape(16, None)
TOKENS_PER_SEQUENCE_S = 50.0
"""How fast an engine's sequence produces."""
KV_PER_SLOT = 2048.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """One entitlement, and what it asks for: workers in closed loop, each request at a random sidecar."""

    entitlement: Entitlement
    workers: int
    tokens: int = 50
    """Mean size of a request."""
    think_s: float = 0.2
    skew: float = 0.0
    """The share of requests that goes to the first sidecar instead."""
    starts_at: float = 0.0
    arrivals: float = 1.0
    """The relative rate of this tenant's arrivals in open loop."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad the world is. Probabilities are of each message; the others are per sidecar and second."""

    loss: float = 0.0
    duplicates: float = 0.0
    late: float = 0.0
    """Of a delay of up to a second."""
    crashes: float = 0.0
    pauses: float = 0.0
    partitions: float = 0.0
    outages: Sequence[tuple[float, float, bool]] = ()
    """Of the lease store: from, to, and whether they come back empty."""
    drift: float = 0.0
    """Clocks run fast or slow by up to this share."""
    quiet_after: float = math.inf
    """No fault begins later."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated."""

    tenants: Sequence[Tenant]
    sidecars: int
    slots: int = 8
    """Sequences that each engine runs."""
    seconds: float = 20.0
    faults: Faults = Faults()
    seed: int = 1
    settings: LeaseSettings = LeaseSettings()
    queue: QueueSettings = QueueSettings()
    planner: PlannerSettings = PlannerSettings()
    warm_up_s: float = 4.0
    """Not counted, but for over-admission."""
    distance_s: float = 0.00035
    """Between a sidecar and the lease store, one way."""
    message_s: float = 0.0001
    """How long the lease store work at a message ..."""
    row_s: float = 0.000024
    """... and at each entitlement that it names: measured on Redis 6.2. They do one message at a time."""
    open_loop: float = 0.0
    """Requests per second of all tenants together, whatever became of others; 0: workers in closed loop."""
    cut_at: float = math.inf
    """When engines are lost for good ..."""
    kept: int = 0
    """... and how many sidecars are left then."""


@dataclass(slots=True)
class Figures:
    """What came out."""

    requests: int = 0
    admitted: int = 0
    sheds: Counter[str] = field(default_factory=Counter)
    idle_refusals: int = 0
    """Sheds by a limit at a sidecar that was joined, while the entitlement used less than its limit."""
    guaranteed_sheds: int = 0
    """Sheds of requests inside a guarantee."""
    lease_waits: int = 0
    lease_waited_s: float = 0.0
    preempted: int = 0
    """Spot requests that were ended for a guarantee."""
    taken_ahead: int = 0
    """Requests that were admitted before they were reported."""
    offered: Counter[str] = field(default_factory=Counter)
    """Requests by entitlement."""
    shed: Counter[str] = field(default_factory=Counter)
    """Shed requests by entitlement."""
    waits: list[float] = field(default_factory=list)
    """Of every request that was admitted: the time to its decision, in seconds."""
    busy: float = 0.0
    """Slot-seconds in use."""
    possible: float = 0.0
    over_admitted: float = 0.0
    """The most sequences in use beyond any limit of the last lifetime, as a sidecar that was joined let one
    in; what runs at those that were apart within a lifetime is theirs."""
    over_apart: float = 0.0
    """The same wherever it was admitted, spot aside: those that are apart live on shares."""
    reconverged_s: float = 0.0
    """The longest from the end of a fault until everyone was joined again."""
    messages: int = 0
    rows: int = 0
    service: Counter[str] = field(default_factory=Counter)
    """Tokens by entitlement."""
    served: list[tuple[float, float, str, int]] = field(default_factory=list)
    """Of each request: when an engine began and ended it, whose it was, its tokens."""
    most_running: Counter[str] = field(default_factory=Counter)

    def served_part(self, prefix: str) -> float:
        """The served share (0 to 1) of the requests of entitlements whose names begin with ``prefix``."""
        offered = sum(count for name, count in self.offered.items() if name.startswith(prefix))
        shed = sum(count for name, count in self.shed.items() if name.startswith(prefix))
        return 1 - shed / offered

    @property
    def utilisation(self) -> float:
        """Slot-seconds in use as a share of those there were."""
        return self.busy / self.possible if self.possible else 0.0


class _Request:
    """One request. It owns its wait and its run: see ``Waiter`` and ``Runner``."""

    __slots__ = ("account", "began", "came", "cost", "is_running", "sidecar", "size", "tenant", "ticket")

    def __init__(self, tenant: Tenant, size: int) -> None:
        self.tenant = tenant
        self.size = size
        self.ticket: Ticket | None = None
        self.came = 0.0
        self.began = 0.0
        self.is_running = False

    def came_to(self, sidecar: _Sidecar, account: Account, cost: Cost) -> None:
        """The request has come to this sidecar, which prices it."""
        self.sidecar, self.account, self.cost = sidecar, account, cost

    def decided(self, outcome: Ticket | Shed) -> None:
        """See ``Waiter``."""
        sidecar, world = self.sidecar, self.sidecar.world
        sidecar.waiting.pop(self, None)
        if isinstance(outcome, Shed):
            world.refused(sidecar, self, outcome, self.account, self.cost)
            return
        self.ticket = outcome
        world.waited(world.now - self.came)
        world.admitted(sidecar, self.account)
        sidecar.driver.begin(outcome, self)

    def start(self) -> None:
        """See ``Runner``."""
        if self.ticket is not None:
            self.sidecar.queue_in_engine(self)

    def preempt(self) -> None:
        """See ``Runner``."""
        ticket, self.ticket = self.ticket, None
        if ticket is not None:
            self.sidecar.preempt(self, ticket)


class _Sidecar:
    """One sidecar with its engine. It drives the shipped admission control and exchange with the store."""

    def __init__(self, world: World, number: int, life: int) -> None:
        self.world = world
        self.name = f"s{number:04}.{life}"
        self.number = number
        self.is_gone = False
        self.is_cut = False
        self.paused_until = 0.0
        setup, chance = world.setup, world.chance
        self._offset = chance.uniform(0, 1000)
        self._speed = 1 + chance.uniform(-1, 1) * setup.faults.drift
        now = self.clock()
        self.accounts = {t.entitlement.name: Account(t.entitlement, Pricing(), now) for t in setup.tenants}
        queue = AdmissionQueue(setup.queue)
        self.leases = Leases(setup.settings, setup.sidecars, queue)
        self.control = AdmissionControl(now, queue, leases=self.leases)
        sync = LeaseSync(self.name, self.leases)
        sync.follow(self.accounts, now)
        self.driver = Driver(self.control, self, sync)
        self.capacity = Amount(setup.slots * TOKENS_PER_SEQUENCE_S, setup.slots * KV_PER_SLOT, setup.slots)
        self.control.engine_changed(_room(setup.slots), now)
        self.waiting: dict[_Request, None] = {}
        """Requests that wait for their decision."""
        self.backlog: deque[_Request] = deque()
        self.running = 0
        self._awaited: set[int] = set()
        """Numbers of messages that are neither answered nor failed."""
        self._wakes_at = math.inf

    @property
    def is_apart(self) -> bool:
        """Whether it lives on shares: the lease store does not answer it."""
        return self.leases.mode is not Mode.JOINED or self.leases.failures > 0

    def clock(self) -> float:
        """This sidecar's own monotonic clock."""
        return self._offset + self.world.now * self._speed

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call by this sidecar's clock, if it still lives then; not before a pause has ended."""
        self.world.after(seconds / self._speed, lambda: self.when_awake(call))

    def when_awake(self, call: Callable[[], None]) -> None:
        """Call when this sidecar runs; never, if it is gone."""
        if self.is_gone:
            return
        if self.world.now < self.paused_until:
            self.world.after(self.paused_until - self.world.now, lambda: self.when_awake(call))
            return
        call()

    # --- requests ---

    def offer(self, request: _Request) -> None:
        """A request has come."""
        account = self.accounts[request.tenant.entitlement.name]
        ask = Ask(token_ids=request.size // 4, output_bound=request.size - request.size // 4)
        cost = account.pricer.price(ask, SHAPE)
        request.came_to(self, account, cost)
        outcome = self.control.offer(account, ask, cost, self.clock(), request=request)
        if isinstance(outcome, PendingRequest):
            self.waiting[request] = None
            self.driver.wait(outcome, request)
        else:
            request.decided(outcome)
        self.driver.act()

    def queue_in_engine(self, request: _Request) -> None:
        """An admitted request reaches the engine."""
        self.backlog.append(request)
        self._start()

    def _start(self) -> None:
        while self.backlog and self.running < self.world.setup.slots:
            request = self.backlog.popleft()
            self.running += 1
            request.is_running = True
            request.began = self.world.now
            self.world.began()
            if request.ticket is not None:
                self.control.first_token(request.ticket, self.world.now - request.came)
            seconds = request.size / TOKENS_PER_SEQUENCE_S
            # The engine goes on while the sidecar is paused; settling waits.
            self.later(seconds * self._speed, lambda request=request: self._end(request))  # type: ignore[misc]

    def _end(self, request: _Request) -> None:
        ticket = request.ticket
        if ticket is None:
            return  # it was preempted
        self.running -= 1
        request.ticket = None
        self.world.ended(self, request)
        spent = Usage(ticket.cost.input_tokens, ticket.ask.output_bound or 0)
        self.driver.settle(ticket, spent, Ending.FINISHED)
        self._start()

    def preempt(self, request: _Request, ticket: Ticket) -> None:
        """End a spot request for a guarantee."""
        if request.is_running:
            self.running -= 1
        elif request in self.backlog:
            self.backlog.remove(request)
        self.world.preempted(request)
        self.driver.settle(ticket, Usage(ticket.cost.input_tokens, 0), Ending.PREEMPTED)
        self._start()

    # --- the driver's ports ---

    def now(self) -> float:
        """See ``Ports``."""
        return self.clock()

    def wake_at(self, at: float) -> None:
        """See ``Ports``."""
        self._wakes_at = at
        if at < math.inf:
            self.later(max(at - self.clock(), 0.0) + 1e-6, lambda: self._wake(at))

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
        self.world.carry(self, sent, lambda answer: self.when_awake(lambda: self._answered(message, answer)))
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
        """Once an interval: renew the leases."""
        for _ in self.driver.tick_steps():
            pass
        self.later(self.world.setup.settings.interval_s, self.interval)

    def pushed(self, push: Push) -> None:
        """The lease store said something between messages."""
        self.driver.pushed(push)


def _room(slots: int) -> EngineRoom:
    """The room of an idle engine, as a sidecar's watcher reports it."""
    return EngineRoom(
        float(slots), slots * KV_PER_SLOT, proven_slots=float(slots), preemptible_queue=PREEMPTIBLE_QUEUE
    )


class World:
    """Everything."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.chance = random.Random(setup.seed)
        self.now = 0.0
        self.figures = Figures()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self.lease_store: ReferenceLeaseStore | None = ReferenceLeaseStore(0.0, setup.settings.lifetime_s)
        self._store_free_at = 0.0
        self._epoch = 1
        self._before: PoolSnapshot | None = None
        self._entitlements = {t.entitlement.name: t.entitlement for t in setup.tenants}
        self._memory = NO_MEMORY
        self._arrivals = list(accumulate(t.arrivals for t in setup.tenants))
        self._running: Counter[str] = Counter()
        self._limits: dict[str, deque[tuple[float, float]]] = {}
        self._busy_since = 0.0
        self._busy = 0
        self._fault_until = 0.0
        self._all_joined = True
        self._broken_at = 0.0
        self._apart: dict[str, tuple[float, _Sidecar]] = {}
        """Who was not joined within the last lifetime, and when last."""
        self.sidecars = [_Sidecar(self, number, 0) for number in range(setup.sidecars)]

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call then."""
        self._order += 1
        heapq.heappush(self._events, (self.now + seconds, self._order, call))

    def run(self) -> Figures:
        """Run to the end."""
        setup = self.setup
        self._tick()
        for sidecar in self.sidecars:
            self._begin(sidecar)
        if setup.open_loop:
            self.after(setup.warm_up_s / 2, self._arrive_at_random)
        for tenant in () if setup.open_loop else setup.tenants:
            for _ in range(tenant.workers):
                wait = tenant.starts_at + 0.5 + self.chance.random() * max(tenant.think_s, 0.2)
                self.after(wait, lambda tenant=tenant: self._arrive(tenant))  # type: ignore[misc]
        for start, end, is_empty in setup.faults.outages:
            self.after(start, self._lose_store)
            self.after(end, lambda is_empty=is_empty: self._bring_store(is_empty))  # type: ignore[misc]
        if setup.cut_at < math.inf:
            self.after(setup.cut_at, self._cut)
        while self._events and self._events[0][0] <= setup.seconds:
            self.now, _, call = heapq.heappop(self._events)
            call()
        self._count_busy()
        self.figures.possible = setup.sidecars * setup.slots * (setup.seconds - setup.warm_up_s)
        for sidecar in self.sidecars:
            self._retire(sidecar)
        return self.figures

    def _retire(self, sidecar: _Sidecar) -> None:
        self.figures.lease_waits += sidecar.control.queue.lease_waits
        self.figures.lease_waited_s += sidecar.control.queue.lease_waited_s
        self.figures.taken_ahead += sidecar.leases.taken_ahead

    def _begin(self, sidecar: _Sidecar) -> None:
        sidecar.later(self.chance.uniform(0, self.setup.settings.interval_s), sidecar.interval)
        faults = self.setup.faults
        for rate, happen in (
            (faults.crashes, self._crash),
            (faults.pauses, self._pause),
            (faults.partitions, self._partition),
        ):
            if rate:
                self._plan_fault(sidecar, rate, happen)

    def _plan_fault(self, sidecar: _Sidecar, rate: float, happen: Callable[[_Sidecar], None]) -> None:
        def strike() -> None:
            if self.now <= self.setup.faults.quiet_after and not sidecar.is_gone:
                happen(sidecar)
                self._plan_fault(sidecar, rate, happen)

        self.after(self.chance.expovariate(rate), strike)

    # --- tenants ---

    def _arrive(self, tenant: Tenant) -> None:
        chance = self.chance
        request = _Request(tenant, max(round(tenant.tokens * chance.uniform(0.5, 1.5)), 8))
        self._offer(request)

    def _offer(self, request: _Request) -> None:
        chance, sidecars = self.chance, self.sidecars
        sidecar = sidecars[0] if chance.random() < request.tenant.skew else chance.choice(sidecars)
        if self.now >= self.setup.warm_up_s:
            self.figures.requests += 1
            self.figures.offered[request.tenant.entitlement.name] += 1
        request.came = self.now
        sidecar.when_awake(lambda: sidecar.offer(request))

    def _arrive_at_random(self) -> None:
        """Poisson arrivals, each of a random tenant."""
        chosen = self.chance.choices(self.setup.tenants, cum_weights=self._arrivals)
        self._arrive(chosen[0])
        self.after(self.chance.expovariate(self.setup.open_loop), self._arrive_at_random)

    def _again(self, tenant: Tenant, wait: float) -> None:
        if self.setup.open_loop:
            return
        self.after(wait * self.chance.uniform(0.5, 1.5), lambda: self._arrive(tenant))

    # --- what is judged ---

    def _count_busy(self) -> None:
        start = max(self._busy_since, self.setup.warm_up_s)
        if self.now > start:
            self.figures.busy += (self.now - start) * self._busy
        self._busy_since = self.now

    def admitted(self, sidecar: _Sidecar, account: Account) -> None:
        """A sidecar let a request in: is more in use than any limit of the last lifetime?"""
        name = account.entitlement.name
        self._running[name] += 1
        self.figures.most_running[name] = max(self.figures.most_running[name], self._running[name])
        if self.now >= self.setup.warm_up_s:
            self.figures.admitted += 1
        if sidecar.is_apart:
            self._apart[sidecar.name] = (self.now, sidecar)
        limits = self._limits.get(name)
        if limits:
            while len(limits) > 1 and limits[1][0] < self.now - self.setup.settings.lifetime_s:
                limits.popleft()
            excess = self._running[name] - max(limit for _, limit in limits)
            if excess > 0:
                self._judge(sidecar, account, excess)

    def _judge(self, sidecar: _Sidecar, account: Account, excess: float) -> None:
        """More is in use than a limit: who has it, and might they?"""
        figures, name = self.figures, account.entitlement.name
        if not account.is_spot:
            figures.over_apart = max(figures.over_apart, excess)
        if sidecar.name not in self._apart:
            theirs = (s.accounts[name] for _, s in self._apart.values() if not s.is_gone)
            excess -= sum(account.concurrency_in_use for account in theirs)
            figures.over_admitted = max(figures.over_admitted, excess)

    def waited(self, seconds: float) -> None:
        """A request was admitted so long after it came."""
        if self.now >= self.setup.warm_up_s:
            self.figures.waits.append(seconds)

    def began(self) -> None:
        """An engine began with a request."""
        self._count_busy()
        self._busy += 1

    def ended(self, sidecar: _Sidecar, request: _Request) -> None:
        """A request was served and settled; its worker thinks, and comes again."""
        name = request.tenant.entitlement.name
        self._running[name] -= 1
        self._count_busy()
        self._busy -= 1
        self.figures.service[name] += request.size
        self.figures.served.append((request.began, self.now, name, request.size))
        self._again(request.tenant, request.tenant.think_s)

    def preempted(self, request: _Request) -> None:
        """A spot request was ended for a guarantee; its worker comes again."""
        name = request.tenant.entitlement.name
        self._running[name] -= 1
        if request.is_running:
            self._count_busy()
            self._busy -= 1
        if self.now >= self.setup.warm_up_s:
            self.figures.preempted += 1
        self._again(request.tenant, 1.0)

    def refused(self, sidecar: _Sidecar, request: _Request, shed: Shed, account: Account, cost: Cost) -> None:
        """A request was shed: was there reason to? Its worker comes again."""
        name = account.entitlement.name
        if self.now >= self.setup.warm_up_s:
            self.figures.sheds[shed.reason.value] += 1
            self.figures.shed[name] += 1
            page = self.lease_store.record(name, self.now) if self.lease_store is not None else None
            limited = shed.reason in (Reason.CONCURRENCY, Reason.KV_TOKENS, Reason.TOKENS_PER_SECOND)
            in_use = self._running[name]
            if page is not None and limited and not sidecar.is_apart:
                kv = sum(s.accounts[name].kv_in_use for s in self.sidecars)
                self.figures.idle_refusals += (
                    in_use + cost.sequences <= page.limit.concurrency
                    and kv + cost.kv_tokens <= page.limit.kv_tokens
                    and page.level - page.held.tokens_per_second >= cost.throughput
                )
            if in_use + cost.sequences <= account.entitlement.guarantee.concurrency:
                self.figures.guaranteed_sheds += 1
        self._again(request.tenant, min(max(shed.retry_after_s, 0.05), 1.0))

    # --- the network ---

    def _delay(self) -> float:
        faults, chance = self.setup.faults, self.chance
        if faults.late and chance.random() < faults.late and self.now <= faults.quiet_after:
            return chance.uniform(0.0, 1.0)
        distance = self.setup.distance_s
        return chance.uniform(distance * 0.3, distance * 1.7) if distance < 0.001 else distance

    def _is_lost(self, sidecar: _Sidecar) -> bool:
        if sidecar.is_cut:
            return True
        faults = self.setup.faults
        return self.now <= faults.quiet_after and self.chance.random() < faults.loss

    def carry(self, sidecar: _Sidecar, message: Message, answered: Callable[[Answer], None]) -> None:
        """Bring a message to the lease store, perhaps twice or never, and the answer back."""
        self.figures.messages += 1
        self.figures.rows += len(message.lease_requests)
        copies = 1 + (
            self.now <= self.setup.faults.quiet_after and self.chance.random() < self.setup.faults.duplicates
        )
        for _ in range(copies):
            if not self._is_lost(sidecar):
                self.after(self._delay(), lambda: self._deliver(sidecar, message, answered))

    def _deliver(self, sidecar: _Sidecar, message: Message, answered: Callable[[Answer], None]) -> None:
        setup = self.setup
        took = setup.message_s + setup.row_s * (len(message.lease_requests) + 0.04 * len(message.kept))
        self._store_free_at = max(self._store_free_at, self.now) + took
        self.after(self._store_free_at - self.now, lambda: self._book(sidecar, message, answered))

    def _book(self, sidecar: _Sidecar, message: Message, answered: Callable[[Answer], None]) -> None:
        if self.lease_store is None:
            return
        answer, pushes = self.lease_store.exchange(message, self.now)
        for push in pushes:
            number, _, _ = push.holder[1:].partition(".")
            other = self.sidecars[int(number)] if int(number) < len(self.sidecars) else None
            if other is not None and other.name == push.holder and not self._is_lost(other):
                self.after(
                    self._delay(),
                    lambda other=other, push=push: other.when_awake(  # type: ignore[misc]
                        lambda: other.pushed(push)
                    ),
                )
        if not self._is_lost(sidecar):
            self.after(self._delay(), lambda: answered(answer))

    # --- the coordinator ---

    def _tick(self) -> None:
        if self.lease_store is not None:
            census = self.lease_store.read(self.now)
            made = tick(census, self._entitlements, self._before, self.setup.planner, self._memory)
            self._memory = made.memory
            self._before = census
            if census.is_open or not self._limits:
                self.lease_store.publish(made.limits, made.plan.idle, self._epoch, self.now)
                for name, limit in made.limits.items():
                    self._limits.setdefault(name, deque()).append((self.now, limit.concurrency))
        if self._order % 7 == 0 or self.now < 2:
            self._learn()
        self._see_whether_all_joined()
        self.after(TICK_S, self._tick)

    def _learn(self) -> None:
        """Sidecars read all limits now and then."""
        if self.lease_store is not None:
            limits, terms = self.lease_store.limits()
            for sidecar in self.sidecars:
                if not sidecar.is_cut and self.now >= sidecar.paused_until:
                    sidecar.driver.learned(limits, terms)

    def _see_whether_all_joined(self) -> None:
        joined = all(s.leases.mode is Mode.JOINED for s in self.sidecars)
        if joined and not self._all_joined and self.now >= self._fault_until:
            took = self.now - max(self._fault_until, self._broken_at)
            self.figures.reconverged_s = max(self.figures.reconverged_s, took)
        if not joined and self._all_joined:
            self._broken_at = self.now
        self._all_joined = joined
        for sidecar in self.sidecars:
            asleep = self.now < sidecar.paused_until or sidecar.is_cut
            if asleep or sidecar.is_apart:
                self._apart[sidecar.name] = (self.now, sidecar)
        since = self.now - self.setup.settings.lifetime_s
        self._apart = {key: row for key, row in self._apart.items() if row[0] >= since}

    # --- faults ---

    def _fault(self, seconds: float) -> None:
        self._fault_until = max(self._fault_until, self.now + seconds)

    def _lose(self, sidecar: _Sidecar) -> None:
        """A sidecar is gone with all that it ran."""
        sidecar.is_gone = True
        self._retire(sidecar)
        self._count_busy()
        self._busy -= sidecar.running
        for name, account in sidecar.accounts.items():
            self._running[name] -= account.concurrency_in_use
        # Its clients come back: the requests are lost, the workers are not.
        for tenant in self.setup.tenants:
            for _ in range(sidecar.accounts[tenant.entitlement.name].concurrency_in_use):
                self._again(tenant, 0.5)
        for request in sidecar.waiting:
            self._again(request.tenant, 0.5)

    def _crash(self, sidecar: _Sidecar) -> None:
        self._lose(sidecar)
        life = int(sidecar.name.rpartition(".")[2]) + 1
        again = _Sidecar(self, sidecar.number, life)
        if self.lease_store is not None:
            again.driver.learned(*self.lease_store.limits())
        self.sidecars[sidecar.number] = again
        self._fault(0.0)
        self._begin(again)

    def _cut(self) -> None:
        """Engines are lost with their sidecars, and do not come back."""
        for sidecar in self.sidecars[self.setup.kept :]:
            self._lose(sidecar)
        del self.sidecars[self.setup.kept :]

    def _pause(self, sidecar: _Sidecar) -> None:
        seconds = self.chance.uniform(0.1, 4.0)
        sidecar.paused_until = max(sidecar.paused_until, self.now + seconds)
        self._fault(seconds)

    def _partition(self, sidecar: _Sidecar) -> None:
        seconds = self.chance.uniform(0.1, 5.0)
        sidecar.is_cut = True
        self._fault(seconds)

        def mend() -> None:
            sidecar.is_cut = False

        self.after(seconds, mend)

    def _lose_store(self) -> None:
        self._kept, self.lease_store = self.lease_store, None

    def _bring_store(self, is_empty: bool) -> None:
        kept = self._kept
        self.lease_store = ReferenceLeaseStore(self.now, self.setup.settings.lifetime_s) if is_empty else kept
        self._fault(0.0)


def simulate(setup: Setup) -> Figures:
    """Run one world to its end."""
    return World(setup).run()
