"""The short form of the comparison of ``tokenpool simulate`` with a live replay of a real trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.what_if import Result, Sizes, run, table, trace

TRACES = Path(__file__).parents[2] / "support" / "traces"
SIZES = Sizes(seconds=20.0, rate=3.0)
MOST_ERROR = 0.25
"""More than in the whole form: about 100 sheds. It was 0.13 on a machine with a load of 17 on two cores."""


def test_the_trace_keeps_its_order_and_its_ratios() -> None:
    requests = list(trace(TRACES, SIZES, 1))

    assert {each.tenant for each in requests} == {"premium", "chat", "batch", "code"}
    conversation = [each.at_s for each in requests if each.tenant != "code"]
    assert conversation == sorted(conversation)
    assert conversation[-1] < SIZES.seconds


def test_the_error_is_relative_to_the_live_run() -> None:
    result = Result(100, {"premium": 0, "chat": 20, "batch": 30, "code": 0}, {"chat": 25, "batch": 20})

    assert result.error == pytest.approx(0.1)
    assert "| 1 | all of 100 | 50 | 45 (10.0%) |" in table([(1, result)])


@pytest.mark.exclusive
def test_the_simulation_predicts_the_sheds_of_a_live_replay(tmp_path: Path) -> None:
    result = run(TRACES, SIZES, 1, tmp_path)

    assert sum(result.live.values()) > 50
    assert result.error <= MOST_ERROR, result
