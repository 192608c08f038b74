"""Intervals of dependent observations: their coverage in a queue of a known distribution, and their edges."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.intervals import LEAST, Series, across, rate, share, student
from loadgen.statistics import Estimate
from toolbox.queue import sojourns, true_mean, true_percentile

RUNS = 150
"""With a true coverage of 95 %, fewer than 87 % of so many hits have a probability of 0.01 %."""


@pytest.mark.parametrize(("load", "count"), [(0.0, 100), (0.0, 1000), (0.5, 1000), (0.8, 2000), (0.9, 2000)])
def test_intervals_cover_the_truth_behind_a_queue(load: float, count: int) -> None:
    hits = dict.fromkeys((0.5, 0.9, 0.99, "mean"), 0)
    for seed in range(RUNS):
        series = Series(sojourns(load, count, random.Random(f"{load} {count} {seed}")))
        for at, made in zip((0.5, 0.9, 0.99), series.percentiles((0.5, 0.9, 0.99)), strict=True):
            hits[at] += covers(made, true_percentile(load, at))
        hits["mean"] += covers(series.mean(), true_mean(load))
    assert {name: count for name, count in hits.items() if count < 0.87 * RUNS} == {}


def covers(made: Estimate | None, truth: float) -> bool:
    """Whether an interval contains the truth. An unknown bound is infinite."""
    assert made is not None
    return (
        (made.low if made.low is not None else -math.inf)
        <= truth
        <= (made.high if made.high is not None else math.inf)
    )


def test_requests_behind_a_queue_are_worth_fewer_independent_ones() -> None:
    worth = [Series(sojourns(load, 5000, random.Random(1))).independent for load in (0.0, 0.5, 0.8, 0.9)]
    assert worth[0] > 2000
    assert worth == sorted(worth, reverse=True)
    assert worth[3] < 100


def test_a_trend_has_no_interval_and_the_reason_is_told() -> None:
    made = Series([float(each) for each in range(100)]).percentiles((0.5,))[0]
    assert made == Estimate(
        49.0, reason="the run counts as about 1 independent request; a bound of the P50 needs 6"
    )


def test_a_mean_that_is_not_bounded_has_no_interval() -> None:
    made = Series([0.001] * 90 + [10.0] * 10).mean()
    assert made is not None
    assert (made.low, made.high) == (None, None)
    assert "they do not bound the mean" in made.reason


@pytest.mark.parametrize("count", [1, LEAST - 1])
def test_few_observations_have_no_interval(count: int) -> None:
    series = Series([1.0] * count)
    for made in (*series.percentiles(), series.mean(), share([True] * count), rate([1.0] * count, 1.0)):
        assert made is not None
        assert (made.low, made.high) == (None, None)
        assert f"{count} " in made.reason
        assert f"fewer than {LEAST}" in made.reason


def test_without_observations_there_is_no_estimate() -> None:
    assert Series([]).percentiles((0.5, 0.99)) == [None, None]
    assert Series([]).mean() is share([]) is rate([], 1.0) is across([]) is None


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=300))
def test_an_estimate_lies_in_its_interval(values: list[float]) -> None:
    series = Series(values)
    for made in (*series.percentiles(), series.mean()):
        assert made is not None
        assert made.low is None or made.low <= made.value + 1e-9
        assert made.high is None or made.high >= made.value - 1e-9


def test_equal_observations_have_a_narrow_interval() -> None:
    series = Series([2.0] * 1000)
    assert series.percentiles((0.5, 0.9)) == [Estimate(2.0, 2.0, 2.0)] * 2
    assert series.mean() == Estimate(2.0, 2.0, 2.0)
    assert Series([0.0] * 100).mean() == Estimate(0.0, 0.0, 0.0)


@pytest.mark.parametrize(("count", "true"), [(100, 0.5), (1000, 0.95)])
def test_shares_cover_the_truth(count: int, true: float) -> None:
    hits = 0
    for seed in range(RUNS):
        source = random.Random(f"{count} {seed}")
        hits += covers(share([source.random() < true for _ in range(count)]), true)
    assert hits >= 0.9 * RUNS


def test_a_share_of_all_or_none_has_an_interval() -> None:
    every, none = share([True] * 1000), share([False] * 1000)
    assert every is not None
    assert none is not None
    assert (every.value, every.high) == (1.0, pytest.approx(1.0))
    assert every.low is not None
    assert 0.99 < every.low < 1.0
    assert none.high == pytest.approx(1 - every.low)


def test_the_rate_of_a_queue_covers_its_arrivals() -> None:
    hits = 0
    for seed in range(RUNS):
        source = random.Random(seed)
        counts = [float(sum(source.random() < 0.1 for _ in range(40))) for _ in range(100)]
        hits += covers(rate(counts, 0.5), 8.0)
    assert hits >= 0.9 * RUNS
    assert rate([0.0] * 100, 1.0) == Estimate(0.0, 0.0, 0.0)


def test_students_distribution_has_the_published_quantiles() -> None:
    assert [student(freedom) for freedom in (2, 9, 10, 20, 60)] == pytest.approx(
        [4.3027, 2.2622, 2.2281, 2.0860, 2.0003], abs=1e-3
    )


def test_runs_of_several_seeds_have_an_interval_across_them() -> None:
    one = Estimate(1.0, 0.9, 1.1)
    assert across([one]) is one
    two = across([one, Estimate(2.0)])
    assert two == Estimate(1.5, reason="2 runs are fewer than 3")
    three = across([one, Estimate(2.0), Estimate(4.0)])
    assert three is not None
    assert (three.value, three.low, three.high) == (
        2.0,
        pytest.approx(0.3575, rel=1e-3),
        pytest.approx(11.19, rel=1e-3),
    )
    zero = across([Estimate(0.0), Estimate(0.0), Estimate(3.0)])
    assert zero is not None
    assert (zero.value, zero.low, zero.high) == (
        0.0,
        pytest.approx(-3.303, rel=1e-3),
        pytest.approx(5.303, rel=1e-3),
    )


def test_an_interval_across_runs_covers_the_typical_run() -> None:
    """The number of a run is skewed, as the P99 of a short run behind a queue is."""
    hits = 0
    for seed in range(400):
        source = random.Random(seed)
        hits += covers(across([Estimate(source.lognormvariate(0.0, 1.0)) for _ in range(5)]), 1.0)
    assert 0.9 <= hits / 400 <= 0.98
