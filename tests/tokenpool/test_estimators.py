"""What is learned is bounded, and right once there is something to learn from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpool.estimators import Average, OutputQuantile, TokenRatio


def test_a_ratio_starts_at_its_prior_and_finds_the_truth() -> None:
    ratio = TokenRatio()
    assert ratio.value == 0.25
    for _ in range(100):
        ratio.observe(1000, 400)
    assert ratio.value == pytest.approx(0.4, rel=0.01)


def test_a_ratio_follows_a_change_of_mix_within_fifty_requests() -> None:
    ratio = TokenRatio()
    for _ in range(200):
        ratio.observe(1000, 200)
    for _ in range(50):
        ratio.observe(1000, 600)
    assert ratio.value == pytest.approx(0.6, rel=0.1)


@given(st.lists(st.tuples(st.integers(-5, 10**7), st.integers(0, 10**7))))
def test_no_observation_moves_a_ratio_out_of_its_bounds(seen: list[tuple[int, int]]) -> None:
    ratio = TokenRatio()
    for text_bytes, tokens in seen:
        ratio.observe(text_bytes, tokens)
        assert TokenRatio.LOWEST <= ratio.value <= TokenRatio.HIGHEST


@given(st.lists(st.integers(0, 5000), max_size=600), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_the_quantile_is_that_of_the_last_window(outputs: list[int], quantile: float) -> None:
    estimator = OutputQuantile(quantile)
    for output in outputs:
        estimator.observe(output)
    window = sorted(outputs[-OutputQuantile.WINDOW :])
    if len(window) < OutputQuantile.ENOUGH:
        assert estimator.value == OutputQuantile.PRIOR
    else:
        assert estimator.value == window[min(int(len(window) * quantile), len(window) - 1)]


def test_an_average_forgets_its_prior_at_once_and_everything_else_slowly() -> None:
    average = Average(100.0, share=0.1)
    average.observe(10.0)
    assert average.value == 10.0
    average.observe(20.0)
    assert average.value == pytest.approx(11.0)
