"""A simulated pool whose tenants spend their quotas, with the shipped admission, pricing and quotas.

The engines have room for every request, so only quotas refuse. The lease store has the shipped rules, and
may lose its content. A usage store receives each settled request some time later; the simulated leader
restores quotas from it.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from simulation.clock import VirtualClock
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import PeerAsk
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.admission.rules import Shed
from tokenpool.amounts import Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver
from tokenpool.entitlements import Entitlement, Pricing, Quota, Tier, Window
from tokenpool.leases.messages import Message
from tokenpool.outcomes import Ending, Reason
from tokenpool.pricing.cost import Ask, EngineShape, Usage
from tokenpool.quotas.messages import QuotaAnswer, QuotaMessage, Scope, parsed_key
from tokenpool.quotas.quotas import Quotas
from tokenpool.quotas.reference import ReferenceQuotaStore

TICK_S = 0.25
LIFETIME_S = 1.5
TIMEOUT_S = 0.5
LEADER_S = 0.5
SHAPE = EngineShape(16, None)
PLENTY = Amount(1e9, 1e9, 1e6)
MOST_ERROR, MOST_ERROR_EMPTIED = 0.005, 0.01
"""The largest deviation of a tenant's spending from its quota, without and with an emptied store."""
EARLY = 0.9
"""The spent share of a quota until which waits and refusals are counted."""
RETRY_S = 1.0
"""Clients of this simulation try again after this time, also where they are told not to."""


@dataclass(frozen=True, slots=True)
class QuotaSetup:
    """One simulated pool."""

    sidecars: int = 8
    tenants: int = 10
    workers: int = 2
    """Workers of each tenant at each sidecar. Each has one request at a time."""
    quota: Quota = Quota(1e6, Window.DAY)
    input_tokens: int = 200
    output_tokens: float = 250.0
    """The mean of the outputs, which are distributed log-normally."""
    tokens_per_second: float = 100.0
    """The speed of one sequence."""
    seconds: float = 450.0
    begins_at: float = 1_800_000_000.0
    """The epoch time of the start."""
    distance_s: float = 0.0005
    """The way to the lease store, one way."""
    empties_at: float | None = None
    """The store loses its content when this share of all quotas is spent."""
    usage_lag_s: float | None = 2.0
    """The time from a settlement to the usage store; ``None`` without a usage store."""
    down: tuple[float, float] | None = None
    """The store does not answer from the first time to the second, in seconds."""
    kills: Sequence[float] = ()
    """Times at which one sidecar ends with its requests. A new one replaces it."""
    seed: int = 1


@dataclass(slots=True)
class QuotaFigures:
    """The result of a simulation."""

    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Weighted tokens that the engines computed in the window, by tenant."""
    ended: int = 0
    waited: int = 0
    """Requests that waited for a portion before ``EARLY`` of their tenant's quota was spent."""
    waited_s: float = 0.0
    refused: Counter[Reason] = field(default_factory=Counter)
    refused_early: int = 0
    """Refusals before that."""
    messages: int = 0
    rows: int = 0

    def deviations(self, quota: float) -> list[float]:
        """The deviation of each tenant's spending from its quota, as a share of it."""
        return [spent / quota - 1 for spent in self.spent.values()]


class _Request:
    """One request of a worker. It implements ``Waiter``."""

    def __init__(self, sidecar: _Sidecar, tenant: str) -> None:
        self.sidecar = sidecar
        self.tenant = tenant
        self.output = sidecar.pool.output()
        self.began_at = sidecar.pool.clock.now

    def decided(self, outcome: Ticket | Shed) -> None:
        """See ``Waiter``."""
        pool = self.sidecar.pool
        if pool.is_early(self.tenant):
            pool.figures.waited += 1
            pool.figures.waited_s += pool.clock.now - self.began_at
        self.sidecar.decided(self, outcome)

    def start(self) -> None:
        """See ``Runner``."""

    def preempt(self) -> None:
        """See ``Runner``."""
        raise AssertionError("no request is spot")


class _Sidecar:
    """One sidecar with an engine that has room for every request."""

    def __init__(self, pool: QuotaPool, name: str) -> None:
        self.pool, self.name = pool, name
        self.is_gone = False
        setup = pool.setup
        self._offset = pool.chance.uniform(0, 1000)
        now = self.now()
        queue = AdmissionQueue(QueueSettings())
        self.control = AdmissionControl(now, queue)
        self.control.engine_changed(EngineRoom(1e6, 1e9, proven_slots=1e6), now)
        self.driver = Driver(self.control, self)
        # Its own clock is wrong by a minute, until the store's answer corrects it.
        self.quotas = Quotas(name, LIFETIME_S, setup.begins_at - self._offset + pool.chance.uniform(-60, 60))
        self.accounts: dict[str, Account] = {}
        for tenant in pool.tenants:
            account = Account(Entitlement(tenant, "chat", Tier.ELASTIC), Pricing(), now)
            account.set_limits(PLENTY, PLENTY, 0.0, now)
            account.budgets = self.quotas.of(Scope.ENTITLEMENT, tenant, (setup.quota,))
            self.accounts[tenant] = account
        self.control.follow_quotas(self.quotas)
        self._awaited: QuotaMessage | None = None
        self._wakes_at = math.inf

    def begin(self) -> None:
        """Start the ticks and the workers."""
        clock, chance = self.pool.clock, self.pool.chance
        clock.after(chance.uniform(0, TICK_S), self._tick)
        for tenant in self.pool.tenants:
            for _ in range(self.pool.setup.workers):
                self._again(tenant, chance.uniform(0, 2.0))

    def _tick(self) -> None:
        if not self.is_gone:
            self.driver.tick_quotas()
            self.pool.clock.after(TICK_S, self._tick)

    def _again(self, tenant: str, seconds: float) -> None:
        self.pool.clock.after(seconds, lambda: self._offer(tenant))

    def _offer(self, tenant: str) -> None:
        if self.is_gone:
            return
        account, request = self.accounts[tenant], _Request(self, tenant)
        ask = Ask(token_ids=self.pool.setup.input_tokens, target=("/v1/chat/completions", "m"))
        cost = account.pricer.price(ask, SHAPE)
        outcome = self.control.offer(account, ask, cost, self.now(), budgets=account.budgets)
        if isinstance(outcome, PendingRequest):
            self.driver.wait(outcome, request)
        else:
            self.decided(request, outcome)
        self.driver.act()

    def decided(self, request: _Request, outcome: Ticket | Shed) -> None:
        """Run an admitted request, or try again later."""
        if isinstance(outcome, Shed):
            self.pool.refused(request.tenant, outcome)
            self._again(request.tenant, RETRY_S)
            return
        self.driver.begin(outcome, request)
        seconds = request.output / self.pool.setup.tokens_per_second
        self.pool.clock.after(seconds, lambda: self._finish(request, outcome))

    def _finish(self, request: _Request, ticket: Ticket) -> None:
        if self.is_gone:
            return
        usage = Usage(self.pool.setup.input_tokens, request.output)
        self.control.ledger.extend(ticket, request.output, SHAPE.block_size, self.now())
        self.driver.settle(ticket, usage, Ending.FINISHED)
        self.pool.settled(request.tenant, ticket.account.pricer.throughput(usage))
        self._offer(request.tenant)

    # --- the driver's ports ---

    def now(self) -> float:
        """See ``Ports``."""
        return self._offset + self.pool.clock.now

    def wake_at(self, at: float) -> None:
        """See ``Ports``."""
        self._wakes_at = at
        if at < math.inf:
            self.pool.clock.after(max(at - self.now(), 0.0) + 1e-6, lambda: self._wake(at))

    def _wake(self, planned_at: float) -> None:
        if planned_at == self._wakes_at and not self.is_gone:
            self._wakes_at = math.inf
            self.driver.wake()

    def send_message(self, message: Message) -> None:
        """See ``Ports``."""
        raise AssertionError("leases are not simulated here")

    def notify_worker(self, worker: int) -> None:
        """See ``Ports``. A simulated sidecar is one process."""

    def send_quotas(self, message: QuotaMessage) -> None:
        """See ``Ports``."""
        self._awaited = message
        self.pool.carry(self, message)
        self.pool.clock.after(TIMEOUT_S, lambda: self._missed(message))

    def answered(self, message: QuotaMessage, answer: QuotaAnswer) -> None:
        """The answer arrived."""
        if message is self._awaited and not self.is_gone:
            self._awaited = None
            self.driver.quotas_answered(message, answer)

    def _missed(self, message: QuotaMessage) -> None:
        if message is self._awaited and not self.is_gone:
            self._awaited = None
            self.driver.quotas_failed(message)

    def ask(self, ask: PeerAsk) -> None:
        """See ``Ports``."""

    def cancel(self, ask: PeerAsk) -> None:
        """See ``Ports``."""

    def failed(self, what: str, error: Exception) -> None:
        """See ``Ports``. In a simulation a defect ends the run."""
        raise error


class QuotaPool:
    """The pool: sidecars, a lease store, a usage store and a leader in virtual time."""

    def __init__(self, setup: QuotaSetup) -> None:
        self.setup = setup
        self.chance = random.Random(setup.seed)
        self.clock = VirtualClock()
        self.figures = QuotaFigures()
        self.tenants = [f"t{number:02}" for number in range(setup.tenants)]
        self.store = ReferenceQuotaStore(LIFETIME_S)
        self._usage: dict[str, float] = defaultdict(float)
        """The usage store."""
        self._total = 0.0
        self._has_emptied = False
        self._sigma = 0.8
        self._sidecars = [_Sidecar(self, f"s{number}.0") for number in range(setup.sidecars)]

    def run(self) -> QuotaFigures:
        """Run to the end."""
        for sidecar in self._sidecars:
            sidecar.begin()
        for at in self.setup.kills:
            self.clock.after(at, self._kill)
        self._lead()
        self.clock.run_until(self.setup.seconds)
        return self.figures

    def output(self) -> int:
        """The output tokens of the next request."""
        mu = math.log(self.setup.output_tokens) - self._sigma**2 / 2
        return max(round(self.chance.lognormvariate(mu, self._sigma)), 1)

    def carry(self, sidecar: _Sidecar, message: QuotaMessage) -> None:
        """Bring a message to the lease store, and its answer back."""
        self.figures.messages += 1
        self.figures.rows += len(message.requests)
        self.clock.after(self._way(), lambda: self._exchange(sidecar, message))

    def _exchange(self, sidecar: _Sidecar, message: QuotaMessage) -> None:
        if not self._is_down:
            answer = self.store.exchange(message, self._epoch)
            self.clock.after(self._way(), lambda: sidecar.answered(message, answer))

    @property
    def _is_down(self) -> bool:
        down = self.setup.down
        return down is not None and down[0] <= self.clock.now < down[1]

    @property
    def _epoch(self) -> float:
        return self.setup.begins_at + self.clock.now

    def _way(self) -> float:
        return self.chance.uniform(0.5, 1.5) * self.setup.distance_s

    def _lead(self) -> None:
        """The leader restores what the store has lost."""
        if not self._is_down:
            for state in self.store.states(self._epoch):
                budget = parsed_key(state.key)
                if not state.is_restored and state.may_restore and budget is not None:
                    self.store.restore(state.key, state.start, self._usage[budget.name], self._epoch)
        self.clock.after(LEADER_S, self._lead)

    def _kill(self) -> None:
        number = self.chance.randrange(len(self._sidecars))
        self._sidecars[number].is_gone = True
        name, _, life = self._sidecars[number].name.partition(".")
        self._sidecars[number] = successor = _Sidecar(self, f"{name}.{int(life) + 1}")
        successor.begin()

    # --- figures ---

    def settled(self, tenant: str, tokens: float) -> None:
        """A request has ended: these tokens were spent."""
        figures, setup = self.figures, self.setup
        figures.ended += 1
        figures.spent[tenant] += tokens
        self._total += tokens
        if setup.usage_lag_s is not None:
            self.clock.after(setup.usage_lag_s, lambda: self._record(tenant, tokens))
        limit = setup.empties_at
        if limit is None or self._has_emptied:
            return
        if self._total >= limit * setup.quota.tokens * setup.tenants:
            self._has_emptied = True
            self.store = ReferenceQuotaStore(LIFETIME_S)

    def is_early(self, tenant: str) -> bool:
        """Whether less than ``EARLY`` of a tenant's quota is spent."""
        return self.figures.spent[tenant] < EARLY * self.setup.quota.tokens

    def _record(self, tenant: str, tokens: float) -> None:
        self._usage[tenant] += tokens

    def refused(self, tenant: str, shed: Shed) -> None:
        """A request was refused."""
        self.figures.refused[shed.reason] += 1
        self.figures.refused_early += self.is_early(tenant)


def simulate(setup: QuotaSetup) -> QuotaFigures:
    """Run one simulation to its end."""
    return QuotaPool(setup).run()


def setups(seed: int) -> Mapping[str, tuple[QuotaSetup, float]]:
    """The simulated pools, each with the largest deviation from a quota that it may have."""
    base = QuotaSetup(seed=seed)
    return {
        "no fault": (base, MOST_ERROR),
        "Redis emptied at half": (replace(base, empties_at=0.5), MOST_ERROR_EMPTIED),
        "emptied, three sidecars killed": (
            replace(base, empties_at=0.5, kills=(50.0, 60.0, 150.0)),
            MOST_ERROR_EMPTIED,
        ),
        "Redis away for a minute": (replace(base, down=(100.0, 160.0)), MOST_ERROR),
        "Redis 20 ms away": (replace(base, distance_s=0.02), MOST_ERROR),
    }


def main(seed: int) -> int:
    """Run all of them, print their figures, and return 1 if a tenant deviates too far."""
    print(f"{'':34}{'over':>9}{'under':>9}{'waits':>9}{'early':>9}{'messages/s':>12}")
    worst = 0.0
    for name, (setup, most) in setups(seed).items():
        figures = simulate(setup)
        found = figures.deviations(setup.quota.tokens)
        worst = max(worst, max(map(abs, found)) / most)
        rate = figures.messages / setup.sidecars / setup.seconds
        print(
            f"{name:34}{max(found):>9.2%}{min(found):>9.2%}{figures.waited / figures.ended:>9.2%}"
            f"{figures.refused_early:>9}{rate:>12.1f}",
            flush=True,
        )
    return 0 if worst <= 1 else 1
