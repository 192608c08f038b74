"""The hostile tenant in its short form: every attack for a moment, on a machine that may be busy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.attacks import KINDS, Target
from experiments.hostile import MEMORY_MB, Suffered, goals

SUFFERED = Suffered(
    attack="cancels",
    did={"cancelled": 900},
    p50_s=0.02,
    p99_s=0.033,
    usual_p99_s=0.03,
    requests=300,
    not_served=0,
    knocked=50,
    unanswered=0,
    knock_p50_s=0.011,
    usual_knock_p50_s=0.01,
    seconds=1.0,
    memory_mb=90.0,
    cpu=0.7,
)


def test_who_is_not_harmed_reaches_every_goal() -> None:
    assert all(is_reached for _, is_reached in goals([SUFFERED]))


@pytest.mark.parametrize(
    "harmed",
    [
        replace(SUFFERED, p99_s=0.037),
        replace(SUFFERED, p99_s=float("nan")),
        replace(SUFFERED, not_served=1),
        replace(SUFFERED, unanswered=2),
        replace(SUFFERED, knocked=0),
        replace(SUFFERED, memory_mb=MEMORY_MB + 1),
        replace(SUFFERED, memory_mb=0.0),
        replace(SUFFERED, knock_p50_s=0.26),
        replace(SUFFERED, did={"cancelled": 499}),
    ],
)
def test_each_harm_misses_a_goal(harmed: Suffered) -> None:
    assert [is_reached for _, is_reached in goals([harmed])].count(False) == 1


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1:80", "http://localhost.example:80", "http://[2001:db8::1]:80"]
)
def test_attacks_go_to_loopback_alone(url: str) -> None:
    with pytest.raises(ValueError, match=r"loopback|address"):
        Target(url, "key", 1.0)


@pytest.mark.exclusive
def test_another_tenant_is_served_under_every_attack(tmp_path: Path) -> None:
    main(["hostile", "--engine", "simulator", "--short", "--out", str(tmp_path)])
    suffered = json.loads((tmp_path / "hostile" / "results.json").read_text())
    assert [one["attack"] for one in suffered] == list(KINDS)
    assert sum(sum(one["did"].values()) for one in suffered) > 1000
    for one in suffered:
        assert one["not_served"] == 0 < one["requests"], one
        assert one["unanswered"] <= 1, one
        assert 0 < one["memory_mb"] < MEMORY_MB
        assert one["p99_s"] < 5.0, one
