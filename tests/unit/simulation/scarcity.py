"""Scarcity on a virtual clock: real accounts, buckets and planner, a simple engine, persistent demand.

Four elastic tenants with different weights, SLOs and request sizes keep an engine busy in closed loop. Its
capacity is cut to less than half. The clock is virtual: an hour takes seconds.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenpool.accounting.account import Account
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.rules import admit
from tokenpool.amounts import Amount
from tokenpool.capacity.room import EngineRoom
from tokenpool.entitlements import Entitlement, Pricing, Slo, Tier
from tokenpool.outcomes import Ending
from tokenpool.planning.planner import PlanInput, PlannerSettings, plan
from tokenpool.planning.profiles import Profile
from tokenpool.pricing.cost import Ask, EngineShape, Usage
from toolbox.fairness import deviation, jain_by_weight

TICK_S = 0.25
TOKENS_PER_SEQUENCE_S = 100.0
CUT_AT_S = 20.0
END_S = 160.0
WARM = 4.0


@dataclass(frozen=True, slots=True)
class Convergence:
    """The fairness of a run after the capacity was cut."""

    jain_first_20s: float
    jain_later: float
    """The lowest index over any later 60 s."""
    worst_deviation: float
    """The largest relative deviation from the fair share over any later 60 s."""
    utilisation: float


@dataclass(slots=True)
class _Worker:
    tenant: int
    size: int


def simulate(seed: int, settings: PlannerSettings, slots: int = 32) -> Convergence:
    """One run. The seed decides the request sizes around each tenant's mean, and the start of each worker."""
    chance = random.Random(seed)
    weights = [1.0, 2.0, 1.0, 2.0]
    slos = [Slo(ttft_ms=250), Slo(ttft_ms=500), Slo(), Slo(ttft_ms=330)]
    sizes = [40, 400, 120, 200]
    chance.shuffle(slos)
    chance.shuffle(sizes)
    tenants = [
        Entitlement(f"t{i}", "p", Tier.ELASTIC, weight=weights[i], slo=slos[i]) for i in range(len(weights))
    ]
    return _Run(tenants, sizes, slots, settings, chance).run()


class _Run:
    def __init__(
        self,
        tenants: Sequence[Entitlement],
        sizes: Sequence[int],
        slots: int,
        settings: PlannerSettings,
        chance: random.Random,
    ) -> None:
        self.settings, self.chance, self.slots = settings, chance, slots
        self.ledger = Ledger()
        self.profiles: Mapping[str, Profile] = {}
        self.accounts = [Account(t, Pricing(), 0.0) for t in tenants]
        self.events: list[tuple[float, int, _Worker, Ticket | None]] = []
        self.order = 0
        for tenant, size in enumerate(sizes):
            for _ in range(slots):
                self._push(chance.random(), _Worker(tenant, size), None)
        self.served: list[tuple[float, int, float]] = []
        self.shape = EngineShape(16, None)

    def _push(self, at: float, worker: _Worker, ticket: Ticket | None) -> None:
        self.order += 1
        heapq.heappush(self.events, (at, self.order, worker, ticket))

    def capacity(self, now: float) -> Amount:
        slots = self.slots if now < CUT_AT_S else self.slots * 0.4
        slots = math.floor(slots)
        return Amount(slots * TOKENS_PER_SEQUENCE_S, slots * 4096.0, float(slots))

    def run(self) -> Convergence:
        tick, now = 0.0, 0.0
        while now < END_S:
            if not self.events or tick <= self.events[0][0]:
                now = tick
                self._plan(now)
                tick += TICK_S
                continue
            now, _, worker, ticket = heapq.heappop(self.events)
            if ticket is None:
                self._offer(worker, now)
            else:
                self._finish(worker, ticket, now)
        return self._judge()

    def _plan(self, now: float) -> None:
        made = plan(
            PlanInput(
                self.capacity(now),
                [a.entitlement for a in self.accounts],
                {a.entitlement.name: a.report(now) for a in self.accounts},
                {a.entitlement.name: a.debt for a in self.accounts},
                TICK_S,
                self.settings,
                self.profiles,
            )
        )
        self.profiles = made.profiles
        for account in self.accounts:
            share = made.entitlements[account.entitlement.name]
            account.set_limits(share.limit, share.assured, share.debt, now)

    def _offer(self, worker: _Worker, now: float) -> None:
        account = self.accounts[worker.tenant]
        size = max(round(worker.size * self.chance.uniform(0.7, 1.3)), 1)
        ask = Ask(token_ids=size // 4, output_bound=size - size // 4)
        cost = account.pricer.price(ask, self.shape)
        capacity = self.capacity(now)
        decision = admit(
            self.ledger, account, ask, cost, EngineRoom(capacity.concurrency, capacity.kv_tokens), now
        )
        if isinstance(decision, Ticket):
            self._push(now + size / TOKENS_PER_SEQUENCE_S, worker, decision)
        else:
            wait = min(decision.retry_after_s, 1.0) * self.chance.uniform(1.0, 1.25)
            self._push(now + wait, worker, None)

    def _finish(self, worker: _Worker, ticket: Ticket, now: float) -> None:
        usage = Usage(ticket.cost.input_tokens, ticket.ask.output_bound or 0)
        self.ledger.settle(ticket, usage, Ending.FINISHED, now)
        began = ticket.admitted_at
        self.served.append((began, worker.tenant, (now - began) * TOKENS_PER_SEQUENCE_S))
        self._push(now, worker, None)

    def _service(self, start: float, end: float) -> dict[int, float]:
        """Tokens of each tenant in a window. A request counts by the part of its time inside the window."""
        totals = dict.fromkeys(range(len(self.accounts)), 0.0)
        for began, tenant, tokens in self.served:
            lasted = tokens / TOKENS_PER_SEQUENCE_S
            inside = min(began + lasted, end) - max(began, start)
            if inside > 0:
                totals[tenant] += tokens * inside / lasted
        return totals

    def _judge(self) -> Convergence:
        weights = {number: a.entitlement.weight for number, a in enumerate(self.accounts)}
        windows = [
            self._service(CUT_AT_S + 20 + offset, CUT_AT_S + 80 + offset)
            for offset in range(0, int(END_S - CUT_AT_S - 85), 5)
        ]
        possible = 60 * self.capacity(END_S).tokens_per_second
        return Convergence(
            jain_by_weight(self._service(CUT_AT_S, CUT_AT_S + 20), weights),
            min(jain_by_weight(window, weights) for window in windows),
            max(deviation(window, weights) for window in windows),
            sum(windows[-1].values()) / possible,
        )
