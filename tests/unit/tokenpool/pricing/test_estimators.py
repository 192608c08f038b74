"""Estimators are bounded, and correct after enough observations."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
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
