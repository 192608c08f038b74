"""The experiment about the coverage of intervals."""

from __future__ import annotations

import random

import pytest

from experiments.coverage import METHODS, SHARES, Count, main, measured, table
from toolbox.queue import sojourns, true_mean, true_percentile


def test_an_unknown_bound_counts_as_infinite_and_is_not_a_bound() -> None:
    count = Count()
    count.add((1.0, 3.0), 2.0)
    count.add((1.0, float("inf")), 2.0)
    count.add((3.0, 4.0), 2.0)
    assert (count.runs, count.hits, count.bounded, count.bounded_hits) == (3, 2, 2, 1)
    assert count.written == "67% (67%, 50%)"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_covers_independent_requests(method: str) -> None:
    counts = measured(METHODS[method], 0.0, 300, 10)
    assert len(counts) == len(SHARES) + 1
    assert all(count.runs == 10 for count in counts)
    assert counts[0].hits >= 8


def test_intervals_of_independent_requests_fail_behind_a_queue() -> None:
    theirs, ours = (measured(METHODS[name], 0.8, 1000, 60) for name in ("independent", "ours"))
    assert theirs[0].hits < 0.5 * 60
    assert all(count.hits >= 0.85 * 60 for count in ours)


def test_the_queue_has_its_known_distribution() -> None:
    times = sojourns(0.5, 50_000, random.Random(1))
    assert sum(times) / len(times) == pytest.approx(true_mean(0.5), rel=0.05)
    assert sorted(times)[45_000] == pytest.approx(true_percentile(0.5, 0.9), rel=0.05)
    assert sojourns(0.9, 1, random.Random(2), is_empty=True)[0] < 10


def test_the_table_has_the_coverage_and_the_share_with_both_bounds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "| none | 1,000 | 50% (100%) |" in table([(0.0, 1000, [Count(2, 1, 2)])])
    assert main(["--runs", "2", "--longest", "100"]) == 0
    assert "| 90% | 100 |" in capsys.readouterr().out
