"""Runs on a virtual clock: the arrivals of a scenario, served by the scheduler of the engine simulator."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from loadgen.arrivals import arrivals
from loadgen.engine.model import Costs, Model
from loadgen.engine.scheduler import Scheduler
from loadgen.engine.sequence import Sequence
from loadgen.records import Attempt, Outcome, Run, TenantMeta
from loadgen.run import Order
from loadgen.scenario import Scenario
from tests.support.loadgen_builders import meta


@dataclass
class VirtualEngine:
    """Performs orders without a server. ``seconds`` is the virtual time that the runs took."""

    slots: int
    step_s: float = 0.02
    seconds: float = 0.0
    complaints_from: float = float("inf")
    """The rate from which the generator does not keep up."""
    interrupts: Callable[[int], bool] = lambda run: False
    """Whether the run with this number, from 1, is interrupted."""
    runs: int = 0

    def perform(self, order: Order) -> Run:
        scenario = order.scenario
        self.runs += 1
        attempts = self._served(scenario)
        ended = max((attempt.end_s for attempt in attempts), default=0.0)
        self.seconds += max(ended, scenario.duration_s)
        rate = len(attempts) / scenario.duration_s
        made = meta(
            name=scenario.name, seed=scenario.seed, duration_s=scenario.duration_s, ended_s=ended, phases=[],
            warm_up_s=scenario.warm_up_s, cool_down_s=scenario.cool_down_s, label=order.label,
            tenants=[TenantMeta(tenant.name) for tenant in scenario.tenants],
            complaints=["was late"] if rate >= self.complaints_from else [],
            is_interrupted=self.interrupts(self.runs),
        )  # fmt: skip
        return Run(str(order.out), made, attempts, [])

    def clock(self) -> float:
        return self.seconds

    def _served(self, scenario: Scenario) -> list[Attempt]:
        model = Model(slots=self.slots, blocks=1 << 14, costs=Costs(self.step_s, 0.0, 0.0))
        scheduler, chance, numbers = Scheduler(model), random.Random(0), itertools.count()
        due = sorted(
            (
                (arrival.at_s, tenant.name, arrival.request)
                for tenant in scenario.tenants
                for arrival in arrivals(scenario, tenant, scenario.seed)
            ),
            key=lambda one: one[0],
        )
        found: dict[Sequence, Attempt] = {}
        now, index = 0.0, 0
        while index < len(due) or scheduler.unfinished:
            if not scheduler.unfinished:
                now = max(now, due[index][0])
            while index < len(due) and due[index][0] <= now:
                at, who, request = due[index]
                number = next(numbers)
                sequence = Sequence(
                    number, (number,) * request.input_tokens, request.output_tokens, arrived_at=at
                )
                scheduler.add(sequence)
                found[sequence] = Attempt(
                    who, str(number), at, at, at, at, request.input_tokens, request.output_tokens,
                    is_measured=scenario.is_measured(at),
                )  # fmt: skip
                index += 1
            plan = scheduler.plan(now)
            now += model.costs.seconds(
                decoding=plan.decoding, prefilled=plan.prefilled, started=plan.started, chance=chance
            )
            scheduler.complete(plan, now)
        for sequence, attempt in found.items():
            attempt.outcome, attempt.status, attempt.tokens = Outcome.SERVED, 200, sequence.produced
            attempt.first_s, attempt.end_s = sequence.first_token_at, sequence.last_token_at
        return list(found.values())
