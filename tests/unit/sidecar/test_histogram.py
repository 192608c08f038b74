"""Histograms whose buckets become finer: no count is lost, and none goes down."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from sidecar.histogram import MOST_PROMISES, Buckets, Histogram

DEFAULT = Buckets((0.1, 1.0, 10.0))
SECONDS = st.floats(0.001, 100)


def test_a_promised_value_gets_a_bucket_of_its_own() -> None:
    buckets = DEFAULT.with_promises([0.3, 0.1], DEFAULT)

    assert buckets.bounds == (0.1, 0.3, 1.0, 10.0)
    assert buckets.labels == ("0.1", "0.3", "1.0", "10.0", "+Inf")
    assert buckets.with_promises([0.3], DEFAULT) is buckets


def test_the_first_promises_have_precedence_and_the_number_is_bounded() -> None:
    many = [0.2 + number / 1000 for number in range(40)]

    buckets = DEFAULT.with_promises(many, DEFAULT)

    assert set(buckets.bounds) == set(DEFAULT.bounds) | set(many[:MOST_PROMISES])
    assert buckets.with_promises([5.0], DEFAULT) is buckets


@given(st.lists(SECONDS), st.lists(SECONDS, max_size=5), st.lists(SECONDS))
def test_finer_buckets_keep_every_count(
    before: list[float], promised: list[float], after: list[float]
) -> None:
    histogram = Histogram(DEFAULT)
    for value in before:
        histogram.observe(value)
    known = dict(zip(DEFAULT.bounds, accumulate(histogram.counts), strict=False))

    buckets = DEFAULT.with_promises(promised, DEFAULT)
    histogram.refine(buckets)

    finer = dict(zip(buckets.bounds, accumulate(histogram.counts), strict=False))
    assert {bound: finer[bound] for bound in known} == known
    for value in after:
        histogram.observe(value)
    assert sum(histogram.counts) == len(before) + len(after)
    coarse = [0] * 4
    for value in (*before, *after):
        coarse[bisect_left(DEFAULT.bounds, value)] += 1
    assert histogram.by(DEFAULT.bounds) == tuple(coarse)


@given(st.lists(SECONDS | st.sampled_from([*DEFAULT.bounds, 0.3])), st.integers(0, 30))
def test_a_value_is_counted_in_its_bucket_after_any_other(values: list[float], refined_at: int) -> None:
    histogram, finer = Histogram(DEFAULT), DEFAULT.with_promises([0.3], DEFAULT)
    after = Histogram(finer)
    for number, value in enumerate(values):
        if number == refined_at:
            histogram.refine(finer)
        histogram.observe(value)
        if number >= refined_at:
            after.counts[bisect_left(finer.bounds, value)] += 1
    before = Histogram(DEFAULT)
    for value in values[:refined_at]:
        before.counts[bisect_left(DEFAULT.bounds, value)] += 1
    if refined_at < len(values):
        before.refine(finer)
        assert histogram.counts == [a + b for a, b in zip(before.counts, after.counts, strict=True)]
    else:
        assert histogram.counts == before.counts
