"""The short form of the experiment of usage records, with every fault once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.usage import Result, Sizes, goals, run

EXACT = Result(
    requests=100,
    records=101,
    summed=101,
    finished=100,
    lost=1,
    engine_tokens=(10_000, 5_000),
    stored_tokens=(10_005, 4_996),
    summed_tokens=(10_005, 4_996),
)


def test_records_that_agree_reach_every_goal() -> None:
    assert all(is_reached for _, is_reached in goals(EXACT))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(EXACT, engine_tokens=(10_020, 5_000)),
        replace(EXACT, engine_tokens=(10_000, 4_990)),
        replace(EXACT, summed=102),
        replace(EXACT, summed_tokens=(10_006, 4_996)),
        replace(EXACT, requests=102),
        replace(EXACT, dropped=1),
    ],
)
def test_each_error_misses_a_goal(wrong: Result) -> None:
    assert [is_reached for _, is_reached in goals(wrong)].count(False) == 1


def test_every_record_is_stored_once_whatever_fails(tmp_path: Path) -> None:
    result = run(Sizes(requests=1000, rounds=1, away_s=0.5, database_away_s=3.0), 1, tmp_path)
    print(result)

    assert result.faults == 5
    assert result.requests > 500
    # Of some hundred requests, those that ran at the kill are more than a thousandth.
    stored, counted = result.stored_tokens, result.engine_tokens
    estimated = [max(tokens, 1) for tokens in result.lost_tokens]
    assert abs(stored[0] - counted[0]) <= 0.001 * counted[0] + estimated[0]
    assert abs(stored[1] - counted[1]) <= 0.001 * counted[1] + 2 * estimated[1]
    assert all(is_reached for _, is_reached in goals(result)[1:])
