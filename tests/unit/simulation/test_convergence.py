"""In lasting scarcity, weighted service converges to the fair share."""

from __future__ import annotations

from statistics import median

import pytest

from tests.unit.simulation.scarcity import Convergence, simulate
from tokenpool.planning.planner import PlannerSettings

pytestmark = pytest.mark.thorough
SEEDS = range(12)


@pytest.fixture(scope="module")
def with_debt() -> list[Convergence]:
    return [simulate(seed, PlannerSettings()) for seed in SEEDS]


@pytest.fixture(scope="module")
def without_debt() -> list[Convergence]:
    return [simulate(seed, PlannerSettings(debt_gain=0.0)) for seed in SEEDS[:5]]


def test_service_is_fair_within_twenty_seconds_of_a_loss(with_debt: list[Convergence]) -> None:
    assert median(run.jain_first_20s for run in with_debt) >= 0.98


def test_service_stays_fair(with_debt: list[Convergence]) -> None:
    assert median(run.jain_later for run in with_debt) >= 0.99


def test_each_tenant_is_near_its_fair_share(with_debt: list[Convergence]) -> None:
    deviations = [run.worst_deviation for run in with_debt]
    assert median(deviations) <= 0.05
    assert max(deviations) <= 0.10


def test_fairness_does_not_cost_throughput(with_debt: list[Convergence]) -> None:
    assert median(run.utilisation for run in with_debt) >= 0.95


def test_without_debt_service_stays_unfair(
    with_debt: list[Convergence], without_debt: list[Convergence]
) -> None:
    assert median(run.worst_deviation for run in without_debt) > 0.3
    assert median(run.jain_later for run in without_debt) < min(run.jain_later for run in with_debt)
