"""The replay of a trace with shared prefixes: its requests, its bound, and the router."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from experiments import prefix_caches
from experiments.prefix_caches import Request, Result, Router, best_hit_rate, body, goals, read, requests

EXCERPT = Path(__file__).parents[2] / "support" / "traces" / "mooncake-conversation-excerpt.jsonl"
ROWS = read(EXCERPT)
GOOD = Result("random", "", 10, 9, {"engine_full": 1}, 0.2, 0.3, 0.1, 0.5, 9, {}, {})


def test_the_rate_and_the_order_are_as_asked() -> None:
    made = requests(ROWS, len(ROWS), rate=8.0, seed=1)
    assert len(made) == len(ROWS)
    assert made[-1].at_s == pytest.approx(len(ROWS) / 8.0)
    assert all(before.at_s <= after.at_s for before, after in pairwise(made))
    assert made[0].input_tokens == ROWS[0].input_length // prefix_caches.SCALE


def test_conversations_are_kept_or_left_out_as_a_whole() -> None:
    made = requests(ROWS, len(ROWS) // 2, rate=8.0, seed=1)
    kept = {request.ids[1] for request in made if len(request.ids) > 1}
    every = [row.hash_ids[1] for row in ROWS if len(row.hash_ids) > 1]
    assert 0 < len(made) < len(ROWS)
    assert sum(second in kept for second in every) == sum(len(request.ids) > 1 for request in made)


def test_equal_ids_are_equal_tokens() -> None:
    first, second = (
        msgspec.json.decode(body(Request(0.0, ids, 80, 1)))["prompt"] for ids in ((0, 1, 2), (0, 1, 3))
    )
    assert len(first) == len(second) == 80
    assert first[:64] == second[:64]
    assert first[64:] != second[64:]


def test_the_best_hit_rate_counts_the_longest_known_beginning() -> None:
    made = [Request(0.0, ids, 96, 1) for ids in ((0, 1, 2), (0, 1, 3), (4, 1, 2), (0, 1, 2))]
    # The last token of a prompt is always computed, and with it its block of 16.
    assert best_hit_rate(made) == pytest.approx((64 + 80) / (4 * 96))


def test_the_router_follows_a_conversation() -> None:
    router = Router(4, random.Random(1))
    places = [router.place(Request(0.0, (0, 10 * n), 64, 1)) for n in range(1, 40)]
    assert set(places) == {0, 1, 2, 3}
    assert [router.place(Request(1.0, (0, 10 * n, 10 * n + 1), 96, 1)) for n in range(1, 40)] == places


@pytest.mark.parametrize(("finished", "is_reached"), [(9, True), (10, False), (8, False)])
def test_a_request_that_runs_twice_misses_the_goal(finished: int, is_reached: bool) -> None:
    result = replace(GOOD, finished=finished)
    assert [reached for _, reached in goals(result)] == [is_reached]
