"""The comparison of recorded workloads with the simulated engine: its cases, goals and table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.workloads import UNBOUNDED, Result, cases, line, talks

GOOD = Result("Mooncake", 4096, False, 10, 10, 0, 900, 300, 302)


def test_each_format_and_several_cache_sizes_are_tried() -> None:
    made = list(cases(Path("/t"), 10.0))
    assert {each.trace.partition(":")[0] for each in made} == {"{azure", "{sharegpt", "{mooncake"}
    assert len({each.blocks for each in made}) >= 3


def test_the_data_set_follows_the_seed() -> None:
    assert talks(1) == talks(1) != talks(2)


@pytest.mark.parametrize(
    ("changes", "is_reached"),
    [
        ({}, True),
        ({"hits": 290}, False),
        ({"hits": 290, "overlaps": True}, True),
        ({"hits": 290, "overlaps": True, "blocks": UNBOUNDED}, False),
        ({"served": 9}, False),
        ({"wrong_lengths": 1}, False),
        ({"expected": None}, True),
        ({"requests": 0, "served": 0}, False),
    ],
)
def test_the_goals_are_served_requests_exact_lengths_and_expected_hits(
    changes: dict[str, int], is_reached: bool
) -> None:
    assert replace(GOOD, **changes).is_reached is is_reached


def test_a_row_has_the_numbers() -> None:
    assert line(GOOD) == "| Mooncake | 4,096 | 10 | 0 | 900 | 300 | 302 | 0.66% |"
    assert (
        line(replace(GOOD, blocks=UNBOUNDED, expected=None))
        == "| Mooncake | no bound | 10 | 0 | 900 | 300 | | |"
    )
