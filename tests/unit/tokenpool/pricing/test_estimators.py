"""Estimators are bounded, and correct after enough observations."""

from __future__ import annotations

import heapq
import random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpool.pricing.estimators import Average, InputTokens, OutputQuantile

numbers = st.integers(-5, 10**9)


def test_input_starts_as_a_ratio_and_finds_ratio_and_offset() -> None:
    learned = InputTokens()
    assert (learned.expect(1000), learned.expect(0)) == (250, 0)
    for size in range(100, 2100, 10):
        learned.observe(size, 23 + 0.4 * size)
    assert learned.offset == pytest.approx(23, rel=0.05)
    assert learned.per_byte == pytest.approx(0.4, rel=0.01)
    assert learned.expect(2000, prompts=2) == pytest.approx(2 * learned.expect(1000))


def test_prompts_of_one_length_are_a_ratio() -> None:
    learned = InputTokens()
    for _ in range(1000):
        learned.observe(1000, 300)
    assert learned.expect(1000) == pytest.approx(300, rel=0.01)
    assert learned.expect(100) == pytest.approx(30, rel=0.1)


def test_input_follows_a_change_of_mix_and_not_an_outlier() -> None:
    learned = InputTokens()
    for _ in range(200):
        learned.observe(1000, 200)
    learned.observe(1_000_000, 1_900_000)
    assert learned.expect(1000) == pytest.approx(200, rel=0.1)
    learned.observe(1000, 0)
    assert learned.expect(1000) == pytest.approx(200, rel=0.1)
    for _ in range(200):
        learned.observe(1000, 600)
    assert learned.expect(1000) == pytest.approx(600, rel=0.05)


def test_a_copy_has_the_same_knowledge_and_learns_separately() -> None:
    line, quantile = InputTokens(), OutputQuantile()
    for size in range(1, 100):
        line.observe(size, 2 * size)
        quantile.observe(size)
    twin, other = line.copy(), quantile.copy()
    assert (twin.expect(1000), other.value) == (line.expect(1000), quantile.value)
    for size in range(1, 100):
        twin.observe(size, size)
        other.observe(1)
    assert line.expect(1000) == pytest.approx(2000, rel=0.05)
    assert quantile.value > 80


@given(st.lists(st.tuples(numbers, st.one_of(numbers, st.just(10**40)))))
def test_no_observation_moves_the_price_of_input_out_of_its_bounds(seen: list[tuple[int, int]]) -> None:
    learned = InputTokens()
    for text_bytes, tokens in seen:
        learned.observe(text_bytes, tokens)
        for size in (1, 1000, 10**6):
            least, most = size * InputTokens.LOWEST, size * InputTokens.HIGHEST + InputTokens.MOST_OFFSET
            assert least <= learned.expect(size) <= most


@given(st.lists(st.tuples(numbers, st.booleans()), max_size=300), st.sampled_from([0.05, 0.5, 0.9, 1.0]))
def test_no_observation_moves_the_price_of_output_out_of_its_bounds(
    seen: list[tuple[int, bool]], quantile: float
) -> None:
    learned = OutputQuantile(quantile)
    longest = 1
    for output, is_cut in seen:
        longest = max(longest, output)
        if is_cut:
            learned.observe_cut(output)
        else:
            learned.observe(output)
        most = OutputQuantile.PRIOR if learned.value == OutputQuantile.PRIOR else longest
        assert 1 <= learned.value <= min(most, OutputQuantile.MOST)
        assert len(learned._order) == len(learned._sorted) <= OutputQuantile.WINDOW


def test_a_quantile_is_its_prior_until_it_has_enough_observations() -> None:
    learned = OutputQuantile()
    for _ in range(OutputQuantile.ENOUGH - 1):
        learned.observe(10)
        assert learned.value == OutputQuantile.PRIOR
    learned.observe(10)
    assert learned.value == 10


def test_with_equal_outputs_no_output_exceeds_the_value() -> None:
    learned = OutputQuantile()
    for _ in range(1000):
        learned.observe(100)
    assert learned.value == 100


def test_a_changed_quantile_uses_the_same_outputs() -> None:
    learned = OutputQuantile(0.9)
    for output in range(1, 101):
        learned.observe(output)
    learned.set_quantile(0.5)
    assert learned.value == 51


def test_a_cut_output_teaches_nothing_before_there_are_other_outputs() -> None:
    learned = OutputQuantile()
    for _ in range(20):
        learned.observe_cut(3)
    assert learned.value == OutputQuantile.PRIOR
    for _ in range(20):
        learned.observe_cut(300)  # above the value: it counts, for any length of the whole output
    assert learned.value == 300


@pytest.mark.parametrize("mean_life", [1000.0, 400.0])
def test_sequences_that_are_cut_do_not_bias_the_quantile(mean_life: float) -> None:
    """A sixth and a third of the sequences are cut at random; a tenth of all would exceed the value."""
    chance, learned = random.Random(1), OutputQuantile()
    beyond = 0
    for index in range(8000):
        output, life = round(chance.lognormvariate(5, 0.8)) + 1, chance.expovariate(1 / mean_life)
        beyond += index >= 500 and output > learned.value
        if life < output:
            learned.observe_cut(int(life))
        else:
            learned.observe(output)
    assert beyond / 7500 == pytest.approx(0.1, abs=0.01)


def test_the_first_observation_replaces_the_prior_of_an_average() -> None:
    average = Average(100.0, share=0.1)
    average.observe(10.0)
    assert average.value == 10.0
    average.observe(20.0)
    assert average.value == pytest.approx(11.0)


def coverage_of(arrivals: list[tuple[float, int]], quantile: float, *, knows_value: bool = True) -> float:
    """The share of outputs inside the value at their pricing. Each ends a time after its arrival that grows
    with its output. The first 200 do not count."""
    learned = OutputQuantile(quantile)
    running: list[tuple[float, int, int, int]] = []
    covered = []
    for number, (at, output) in enumerate(arrivals):
        while running and running[0][0] <= at:
            _, _, ended, predicted = heapq.heappop(running)
            learned.observe(ended, predicted if knows_value else 0, len(running))
        covered.append(output <= learned.value)
        heapq.heappush(running, (at + 0.01 * output, number, output, learned.value))
    return fmean(covered[200:])


def lognormal(chance: random.Random, count: int) -> list[int]:
    return [max(round(chance.lognormvariate(4.0, 0.8)), 1) for _ in range(count)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 24), st.sampled_from((0.8, 0.9, 0.95)))
def test_requests_that_arrive_together_keep_the_promised_coverage(
    seed: int, together: int, quantile: float
) -> None:
    """Each batch ends before the next one arrives, its shortest output first."""
    outputs = lognormal(random.Random(seed), 4000)
    arrivals = [(1000.0 * (number // together), output) for number, output in enumerate(outputs)]
    assert coverage_of(arrivals, quantile) == pytest.approx(quantile, abs=0.02)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.005, 2.0))
def test_requests_that_overlap_keep_the_promised_coverage(seed: int, gap_s: float) -> None:
    """From 0.4 to 150 requests run at once."""
    chance = random.Random(seed)
    at, arrivals = 0.0, []
    for output in lognormal(chance, 6000):
        at += chance.expovariate(1 / gap_s)
        arrivals.append((at, output))
    assert coverage_of(arrivals, 0.9) == pytest.approx(0.9, abs=0.02)


def test_without_the_value_at_the_pricing_batches_are_covered_too_often() -> None:
    """The reason for it: the longest output of a batch ends last, and raises the rank for the next batch."""
    outputs = lognormal(random.Random(1), 4000)
    arrivals = [(1000.0 * (number // 10), output) for number, output in enumerate(outputs)]
    assert coverage_of(arrivals, 0.9, knows_value=False) > 0.92
    assert coverage_of(arrivals, 0.9) == pytest.approx(0.9, abs=0.01)


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 1000)), max_size=60))
def test_the_value_now_as_prediction_changes_nothing(seen: list[tuple[int, int]]) -> None:
    plain, told = OutputQuantile(), OutputQuantile()
    for output, running in seen:
        told.observe(output, told.value, running)
        plain.observe(output)
        assert told.level == pytest.approx(plain.level)
        assert told.own_coverage == plain.own_coverage


@given(st.lists(st.tuples(numbers, st.integers(0, 1 << 20), st.integers(0, 10**6)), max_size=80))
def test_no_prediction_moves_the_rank_out_of_its_bounds(seen: list[tuple[int, int, int]]) -> None:
    learned = OutputQuantile(0.9)
    for output, predicted, running in seen:
        learned.observe(output, predicted, running)
        assert 0.9 - OutputQuantile.LEEWAY <= learned.level <= 1.0
        assert 1 <= learned.value <= OutputQuantile.MOST
