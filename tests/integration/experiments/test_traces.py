"""The short form of the replay of real traces: an excerpt, on the simulator."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments import recorded, traces
from experiments.traces import MOST_INPUT_ERROR, Point, Sizes, run
from loadgen.engine.model import Costs

TRACES = Path(__file__).parents[2] / "support" / "traces"
SIZES = Sizes(engines=2, slots=8, loads=(0.5, 3.0), seconds=8.0, from_s=0.0)


@pytest.mark.exclusive
def test_an_excerpt_is_priced_and_served_by_tier(tmp_path: Path) -> None:
    like = tmp_path / "engine.json"
    like.write_text(json.dumps(asdict(Costs(0.012, 0.0005, 0.0001, 0.003))))
    result, found = run(recorded.read(TRACES), "simulator", SIZES, like, 1, tmp_path)

    assert all(point.requests for point in result.points if point.load == 3.0)
    # Each request that an engine began left a span with its price.
    begun = sum(point.served + point.preempted for point in result.points)
    assert begun > 100
    assert sum(each.requests for each in result.tenants.values()) == pytest.approx(begun, abs=3)
    assert sum(each.ending == "finished" for each in found) == pytest.approx(
        sum(point.served for point in result.points), abs=3
    )
    assert all(each.input_error <= MOST_INPUT_ERROR for each in result.tenants.values())
    code, conversation, mooncake = (point for point in result.points if point.load == 3.0)
    assert _refused(code) < _refused(conversation)
    assert _refused(code) < _refused(mooncake)
    assert result.used["3x"] > 2 * result.used["0.5x"]
    assert traces.picture(result).panels


def _refused(point: Point) -> float:
    return sum(point.refused.values()) / point.requests
