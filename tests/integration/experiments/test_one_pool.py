"""Short forms of the comparison of a pool with one queue: counts add up, and goals can fail.

``python -m experiments one-pool`` measures whether the goals are reached.
"""

from __future__ import annotations

from pathlib import Path

from experiments import one_pool, pool_guarantee
from experiments.fixed_pool import Case
from experiments.queues import Shape

SHAPE = Shape(replicas=2, slots=4, tokens=25, step_s=0.02)
NO_QUEUE = ("--queue-timeout-elastic", "0")


def test_every_request_is_counted_and_runs_once(tmp_path: Path) -> None:
    point = one_pool.measure(Case(SHAPE._replace(skew=0.9), 60, 5.0, 1), tmp_path)
    print(point)
    assert point.offered == point.served + sum(point.refused.values()) > 20
    assert point.finished == point.served_in_all >= point.served > 0
    assert 0.1 < point.used < 0.9


def test_a_pool_without_a_queue_misses_the_goal_of_refusals(tmp_path: Path) -> None:
    # Erlang's formula gives 22 % lost requests for 8 slots.
    point = one_pool.measure(Case(SHAPE, 95, 8.0, 1, options=NO_QUEUE), tmp_path)
    print(point)
    assert point.refused_share > one_pool.MOST_REFUSED[95]
    assert not all(is_reached for _, is_reached in one_pool.goals(point))


def test_floods_are_refused_and_a_guarantee_is_not(tmp_path: Path) -> None:
    result = pool_guarantee.measure(Case(SHAPE._replace(skew=0.9), 0, 6.0, 1), tmp_path)
    print(result)
    assert result.alone.requests > 5 < result.floods.requests
    assert result.alone.refused == 0 == result.floods.refused
    assert result.served["spot"] < 0.9
