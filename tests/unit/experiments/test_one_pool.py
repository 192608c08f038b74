"""The comparison of a pool with one queue: scenarios, counts, goals that can fail, and the bounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import one_pool, pool_guarantee
from experiments.fixed_pool import Case, Counts, pool_file
from experiments.one_pool import Point
from experiments.queues import Arrival, Bound, Placement, Shape, poisson, simulate
from loadgen.reading import parse
from loadgen.records import Outcome
from tests.support.loadgen_builders import attempt, run
from tokenpool.poolfile.reading import parse as parse_pool

SHAPE = Shape(replicas=4, slots=8, tokens=50, step_s=0.02)
CASE = Case(SHAPE, 60, 30.0, 1)
GOOD = Point(
    load=60,
    skew=None,
    seed=1,
    seconds=30.0,
    offered=600,
    served=600,
    refused={},
    ttft_p50_s=0.03,
    ttft_p99_s=0.1,
    served_in_all=640,
    finished=640,
    aborted=0,
    used=0.6,
    handovers={},
    one_queue=Bound(0.0, 0.03, 0.04),
    complaints=[],
)
TIMES = pool_guarantee.Times(90, 0, 0.03, 0.04, 0.3)
PROTECTED = pool_guarantee.Result(1, 0.9, TIMES, TIMES, {"elastic": 1.0}, 10, 0.9, {}, [])


def missed(goals: list[tuple[str, bool]]) -> int:
    return [is_reached for _, is_reached in goals].count(False)


def test_a_point_that_is_as_good_as_one_queue_reaches_every_goal() -> None:
    assert missed(one_pool.goals(GOOD)) == 0


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, served=598),
        replace(GOOD, load=80, served=593),
        replace(GOOD, load=95, served=575),
        replace(GOOD, ttft_p99_s=0.16),
        replace(GOOD, ttft_p99_s=float("nan")),
        replace(GOOD, load=80, ttft_p99_s=0.51),
        replace(GOOD, finished=641),
        replace(GOOD, finished=639),
        replace(GOOD, offered=0, served=0),
        replace(GOOD, finished=0, served_in_all=0),
    ],
)
def test_each_shortcoming_misses_a_goal(bad: Point) -> None:
    assert missed(one_pool.goals(bad)) == 1


@pytest.mark.parametrize(
    "bad",
    [
        replace(PROTECTED, floods=replace(TIMES, ttft_p99_s=0.061)),
        replace(PROTECTED, floods=replace(TIMES, total_p99_s=0.46)),
        replace(PROTECTED, floods=replace(TIMES, refused=1)),
    ],
)
def test_each_harm_to_a_guarantee_misses_a_goal(bad: pool_guarantee.Result) -> None:
    assert missed(pool_guarantee.goals([PROTECTED])) == 0
    assert missed(pool_guarantee.goals([bad])) == 1


@pytest.mark.parametrize("load", [60, 95])
def test_the_arrivals_use_the_stated_share_of_all_slots(load: int, tmp_path: Path) -> None:
    made = parse(one_pool.scenario(CASE._replace(load=load)), "scenario.yaml", {}, tmp_path)
    rate = sum(getattr(tenant.process, "rate", 0.0) for tenant in made.tenants)
    assert rate * SHAPE.service_s == pytest.approx(load / 100 * 32)
    assert made.spread == (0.25, 0.25, 0.25, 0.25)


def test_a_skewed_case_sends_its_share_to_the_first_replica(tmp_path: Path) -> None:
    case = CASE._replace(shape=SHAPE._replace(skew=0.7))
    for text in (one_pool.scenario(case), pool_guarantee.scenario(case)):
        made = parse(text, "scenario.yaml", {}, tmp_path)
        assert made.spread == pytest.approx((0.7, 0.1, 0.1, 0.1))


def test_the_pool_files_are_valid() -> None:
    for terms in ({"a": "tier: elastic"}, pool_guarantee.terms()):
        made = parse_pool(pool_file(SHAPE, terms)).file
        assert {entitlement.name for entitlement in made.entitlements} == set(terms)


def test_the_counts_of_a_point_add_up() -> None:
    made = run(
        attempt(0.5, 0.1),
        attempt(3.0, 0.4),
        attempt(4.0, None, outcome=Outcome.SHED, reason="engine_full"),
        attempt(5.0, None, outcome=Outcome.BROKEN),
    )
    counts = Counts(Counter({"length": 2, "abort": 1}), 3200.0, Counter({"taken": 1, "refused": 4}))
    point = one_pool.point_of(made, CASE, counts)
    assert (point.offered, point.served, point.refused) == (3, 1, {"engine_full": 1, "broken": 1})
    assert (point.served_in_all, point.finished, point.aborted) == (2, 2, 1)
    assert point.ttft_p99_s == pytest.approx(0.4)
    assert point.used == pytest.approx(64 / (32 * 32))
    assert point.handovers_per_request == pytest.approx(1 / 3)


def test_the_phases_of_a_guarantee_are_counted_apart() -> None:
    name = pool_guarantee.GUARANTEED
    made = run(
        attempt(1.0, 0.1, lasts_s=0.3, tenant=name),
        attempt(40.0, 0.2, lasts_s=0.5, tenant=name),
        attempt(41.0, None, tenant=name, outcome=Outcome.SHED),
        attempt(42.0, 0.2, tenant="spot", outcome=Outcome.PREEMPTED),
    )
    result = pool_guarantee.result_of(made, CASE, Counts(Counter(), 0.0, Counter()))
    assert (result.alone.requests, result.floods.requests, result.floods.refused) == (1, 2, 1)
    assert result.ttft_ratio == pytest.approx(2.0)
    assert result.total_ratio == pytest.approx(0.5 / 0.3)
    assert result.preempted == 1


def bound(placement: Placement, load: float, queue_s: float = 0.0, shape: Shape = SHAPE) -> Bound:
    return simulate(placement, shape, poisson(shape, load, requests=20_000, seed=1), queue_s)


def erlang_b(slots: int, offered: float) -> float:
    """The share of lost arrivals without a queue."""
    lost = 1.0
    for number in range(1, slots + 1):
        lost = offered * lost / (number + offered * lost)
    return lost


@pytest.mark.parametrize("load", [0.6, 0.8, 0.95])
def test_without_a_queue_the_bounds_are_those_of_erlang(load: float) -> None:
    # A request holds its slot for half a step longer on average.
    offered = load * 1.01
    assert bound(Placement.SEPARATE, load).refused == pytest.approx(erlang_b(8, 8 * offered), abs=0.015)
    assert bound(Placement.CENTRAL, load).refused == pytest.approx(erlang_b(32, 32 * offered), abs=0.015)


@pytest.mark.parametrize("queue_s", [0.0, 1.0])
@pytest.mark.parametrize("load", [0.6, 0.8, 0.95])
def test_one_central_queue_is_the_best(load: float, queue_s: float) -> None:
    central, retries, separate = (
        bound(placement, load, queue_s)
        for placement in (Placement.CENTRAL, Placement.RETRIES, Placement.SEPARATE)
    )
    assert central.refused <= retries.refused <= separate.refused
    assert central.ttft_p99_s <= separate.ttft_p99_s + 0.001


def test_a_request_that_would_wait_too_long_is_refused_at_once() -> None:
    shape = Shape(replicas=2, slots=1, tokens=100, step_s=0.01)
    arrivals = [Arrival(0.0, 0), Arrival(0.1, 0), Arrival(0.2, 0), Arrival(0.5, 0), Arrival(5.0, 0)]
    separate, central = (
        simulate(placement, shape, arrivals, 0.6) for placement in (Placement.SEPARATE, Placement.CENTRAL)
    )
    # Alone, the replica refuses at 0.1 and 0.2 s, and lets the request at 0.5 s wait for half a second.
    assert separate.refused == pytest.approx(2 / 5)
    assert separate.ttft_p99_s == pytest.approx(0.51, abs=0.021)
    assert central.refused == pytest.approx(1 / 5)


def test_only_arrivals_after_the_warm_up_count() -> None:
    shape = Shape(replicas=1, slots=1, tokens=100, step_s=0.01)
    arrivals = [Arrival(0.0, 0), Arrival(0.1, 0), Arrival(0.2, 0), Arrival(5.0, 0)]
    assert simulate(Placement.SEPARATE, shape, arrivals, 0.0, from_s=0.2).refused == pytest.approx(1 / 2)


def test_skew_harms_separate_queues_only() -> None:
    skewed = SHAPE._replace(skew=0.9)
    assert bound(Placement.CENTRAL, 0.6, 1.0, skewed).refused == bound(Placement.CENTRAL, 0.6, 1.0).refused
    assert bound(Placement.SEPARATE, 0.6, 1.0, skewed).refused > 0.4
