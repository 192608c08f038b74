"""Statistics against values computed by hand, and properties that hold for all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.statistics import (
    Windows,
    gap_histogram,
    histogram_percentile,
    jain,
    merged,
    nice_width,
    percentile,
    rank_interval,
)

VALUES = st.lists(st.floats(0.0001, 100), min_size=1, max_size=300)


def test_percentiles_are_nearest_ranks() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    assert [percentile(values, share) for share in (0.01, 0.25, 0.5, 0.51, 0.75, 0.99, 1.0)] == [
        1,
        1,
        2,
        3,
        3,
        4,
        4,
    ]
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([7.0], 0.5) == 7.0


@given(VALUES, st.floats(0.01, 1))
def test_a_percentile_is_an_observed_value_that_is_not_less_than_the_share(
    values: list[float], share: float
) -> None:
    found = percentile(sorted(values), share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6


def test_rank_intervals_are_those_of_the_binomial() -> None:
    # Ten values: P(B <= 1) = 11/1024 = 1.1 %, P(B <= 2) = 5.5 %; so from the 2nd to the 9th value.
    assert rank_interval(10, 0.5) == (2, 9)
    assert rank_interval(3, 0.5) == (0, 4)  # too few for any bound of the median
    assert rank_interval(100, 0.99)[1] == 101  # and too few for an upper bound of the p99
    low, high = rank_interval(10_000, 0.5)
    assert (low, high) == (4902, 5099)


def test_jains_index_has_the_published_values() -> None:
    assert jain([1, 1, 1]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([1, 2, 3]) == pytest.approx(36 / 42)
    assert jain([]) == jain([0, 0]) == 1.0


def test_values_are_in_the_window_of_their_time() -> None:
    windows = Windows(3.0, 1.0)
    assert windows.middles == [0.5, 1.5, 2.5]
    assert windows.grouped([(0.0, 2.0), (0.9, 1.0), (2.0, 3.0), (3.0, 9.0), (-0.1, 9.0)]) == [
        [1.0, 2.0],
        [],
        [3.0],
    ]


def test_amounts_are_spread_over_the_windows_that_they_cross() -> None:
    windows = Windows(3.0, 1.0)
    assert windows.spread([(0.5, 2.5, 20.0)]) == pytest.approx([5.0, 10.0, 5.0])
    assert windows.spread([(1.0, 1.0, 7.0), (2.5, 4.5, 8.0), (9.0, 9.5, 1.0)]) == pytest.approx(
        [0.0, 7.0, 2.0]
    )


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.floats(0, 100)), max_size=30))
def test_spreading_keeps_the_sum(pieces: list[tuple[float, float, float]]) -> None:
    ordered = [(min(a, b), max(a, b), amount) for a, b, amount in pieces]
    total = sum(Windows(10.0, 0.7).spread(ordered))
    assert total == pytest.approx(sum(amount for _, _, amount in ordered), rel=1e-6, abs=1e-6)


def test_windows_are_round() -> None:
    assert [nice_width(seconds) for seconds in (1, 20, 60, 300, 3600, 1e9)] == [
        0.5,
        0.5,
        2.0,
        10.0,
        120.0,
        600.0,
    ]


@given(VALUES, st.floats(0.01, 1))
def test_percentiles_of_counted_gaps_have_an_error_of_at_most_one_percent(
    gaps: list[float], share: float
) -> None:
    half = len(gaps) // 2
    counted = merged([gap_histogram(gaps[:half]), gap_histogram(gaps[half:])])
    assert histogram_percentile(counted, share) == pytest.approx(percentile(sorted(gaps), share), rel=0.011)


def test_no_gaps_have_no_percentile() -> None:
    assert histogram_percentile({}, 0.5) is None
    assert histogram_percentile(gap_histogram([0.0]), 0.5) == pytest.approx(1e-5, rel=0.011)
