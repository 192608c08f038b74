"""The replay of a trace with shared prefixes: its requests, its bound, and the router."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from experiments import prefix_caches
from experiments.prefix_caches import Result, Router, body, goals, requests
from loadgen.scenario import Traced
from loadgen.workloads import mooncake

EXCERPT = Path(__file__).parents[2] / "support" / "traces" / "mooncake-conversation-excerpt.jsonl"
ROWS = list(mooncake.read(EXCERPT))
GOOD = Result("random", "", 10, 9, {"engine_full": 1}, 0.2, 0.3, 0.1, 0.5, 9, {}, {})


def test_the_rate_and_the_order_are_as_asked() -> None:
    made = requests(ROWS, len(ROWS), rate=8.0, seed=1)
    assert len(made) == len(ROWS)
    assert made[-1].at_s == pytest.approx(len(ROWS) / 8.0)
    assert all(before.at_s <= after.at_s for before, after in pairwise(made))
    assert made[0].input_tokens == ROWS[0].input_tokens // prefix_caches.SCALE


def test_conversations_are_kept_or_left_out_as_a_whole() -> None:
    made = requests(ROWS, len(ROWS) // 2, rate=8.0, seed=1)
    kept = {request.blocks[1] for request in made if len(request.blocks) > 1}
    every = [row.blocks[1] for row in ROWS if len(row.blocks) > 1]
    assert 0 < len(made) < len(ROWS)
    assert sum(second in kept for second in every) == sum(len(request.blocks) > 1 for request in made)


def test_equal_ids_are_equal_tokens() -> None:
    first, second = (
        msgspec.json.decode(body(Traced(0.0, 80, 1, ids)))["prompt"] for ids in ((0, 1, 2), (0, 1, 3))
    )
    assert len(first) == len(second) == 80
    assert first[:64] == second[:64]
    assert first[64:] != second[64:]


def test_the_router_follows_a_conversation() -> None:
    router = Router(4, random.Random(1))
    places = [router.place(Traced(0.0, 64, 1, (0, 10 * n))) for n in range(1, 40)]
    assert set(places) == {0, 1, 2, 3}
    assert [router.place(Traced(1.0, 96, 1, (0, 10 * n, 10 * n + 1))) for n in range(1, 40)] == places


@pytest.mark.parametrize(("finished", "is_reached"), [(9, True), (10, False), (8, False)])
def test_a_request_that_runs_twice_misses_the_goal(finished: int, is_reached: bool) -> None:
    result = replace(GOOD, finished=finished)
    assert [reached for _, reached in goals(result)] == [is_reached]
