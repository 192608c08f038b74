"""Runs of one scenario at several rates, each in a folder of its own.

Every run has its own seed. With one seed, all runs would send the same prompts, and an engine that caches
prefixes would compute them only once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from loadgen.arrivals import offered_rate
from loadgen.fields import ScenarioError
from loadgen.rates.points import Point, point
from loadgen.records import Run
from loadgen.run import Order
from loadgen.scenario import Replay, Scenario, faster, unmeasured


def traced(scenario: Scenario) -> Scenario:
    """The scenario, not longer than the traces that it replays. Raises ``ScenarioError``.

    At twice the rate, a trace ends after half its time. The idle time after it would lower the rate, and hide
    a backlog.
    """
    traces = [
        (tenant.trace.requests[-1].at_s, tenant.starts_s, tenant.name)
        for tenant in scenario.tenants
        if isinstance(tenant.process, Replay) and tenant.trace is not None
    ]
    if not traces:
        return scenario
    lasts, starts, name = min(traces, key=lambda each: each[0] + each[1])
    until = starts + lasts
    duration_s = min(math.nextafter(until, math.inf), scenario.duration_s)
    problem = unmeasured(duration_s, scenario.warm_up_s, scenario.cool_down_s)
    if problem or not lasts:
        raise ScenarioError(
            f"the trace of {name} ends after {until:.4g} s at this rate, so nothing is measured; use "
            "lower rates or a longer trace, or give the tenant arrivals such as {poisson: {rate: 1}}"
        )
    return replace(scenario, duration_s=duration_s)


def own_rate(scenario: Scenario) -> float:
    """The scenario's own requests per second. Raises ``ScenarioError`` if it has none."""
    found = offered_rate(traced(scenario))
    if not found > 0:
        raise ScenarioError(
            f"{scenario.name} has no tenant whose requests have a rate, so it cannot run at several rates; "
            "give one of them arrivals such as {poisson: {rate: 1}}"
        )
    return found


@dataclass(slots=True)
class Steps:
    """The runs so far. ``order`` is the run at the scenario's own rate."""

    order: Order
    perform: Callable[[Order], Run]
    clock: Callable[[], float] = time.monotonic
    runs: dict[float, list[Run]] = field(default_factory=dict)
    points: dict[float, Point] = field(default_factory=dict)
    is_interrupted: bool = False
    """Whether the last run was interrupted. It is in no point, because its measured time differs."""
    _started_s: float = 0.0
    _longest_s: float = 0.0

    def __post_init__(self) -> None:
        self._started_s = self.clock()

    def step(self, rate: float) -> Point | None:
        """Run once at a rate, and return the point of all its runs; ``None`` if the run was interrupted.

        A run in which the generator did not keep up is left out if there is another.
        """
        began = self.clock()
        run = self.perform(self._order_of(rate))
        self._longest_s = max(self._longest_s, self.clock() - began)
        if run.meta.is_interrupted:
            self.is_interrupted = True
            return None
        self.runs.setdefault(rate, []).append(run)
        reliable = [each for each in self.runs[rate] if not each.meta.complaints]
        self.points[rate] = point(rate, reliable or self.runs[rate])
        return self.points[rate]

    def has_time(self, most_s: float) -> bool:
        """Whether another run as long as the longest so far ends within ``most_s`` from the start."""
        expected_s = self._longest_s or self.order.scenario.duration_s
        return self.clock() - self._started_s + expected_s <= most_s

    @property
    def count(self) -> int:
        """The number of runs."""
        return sum(len(runs) for runs in self.runs.values())

    def _order_of(self, rate: float) -> Order:
        order = self.order
        scenario = traced(faster(order.scenario, rate / own_rate(order.scenario)))
        number = len(self.runs.get(rate, ())) + 1
        name = f"{rate:.4g}-run{number}"
        return replace(
            order,
            scenario=replace(scenario, seed=order.scenario.seed + self.count),
            out=order.out / f"rate-{name}",
            label=f"{order.label} {name}",
        )
