"""The short form of the hostile tenant: every attack for a short time, on a machine that may be busy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.attacks import KINDS, Target
from experiments.hostile import MEMORY_MB, AttackResult, goals

UNHARMED = AttackResult(
    attack="cancels",
    actions={"cancelled": 900},
    p50_s=0.02,
    p99_s=0.033,
    ordinary_p99_s=0.03,
    requests=300,
    not_served=0,
    on_new_connections=50,
    unanswered=0,
    new_connection_p50_s=0.011,
    ordinary_new_connection_p50_s=0.01,
    seconds=1.0,
    memory_mb=90.0,
    cpu=0.7,
)


def test_a_result_without_harm_reaches_every_goal() -> None:
    assert all(is_reached for _, is_reached in goals([UNHARMED]))


@pytest.mark.parametrize(
    "harmed",
    [
        replace(UNHARMED, p99_s=0.037),
        replace(UNHARMED, p99_s=float("nan")),
        replace(UNHARMED, not_served=1),
        replace(UNHARMED, unanswered=2),
        replace(UNHARMED, on_new_connections=0),
        replace(UNHARMED, memory_mb=MEMORY_MB + 1),
        replace(UNHARMED, memory_mb=0.0),
        replace(UNHARMED, new_connection_p50_s=0.26),
        replace(UNHARMED, actions={"cancelled": 499}),
    ],
)
def test_each_harm_misses_a_goal(harmed: AttackResult) -> None:
    assert [is_reached for _, is_reached in goals([harmed])].count(False) == 1


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1:80", "http://localhost.example:80", "http://[2001:db8::1]:80"]
)
def test_attacks_accept_loopback_addresses_only(url: str) -> None:
    with pytest.raises(ValueError, match=r"loopback|address"):
        Target(url, "key", 1.0)


@pytest.mark.exclusive
def test_another_tenant_is_served_under_every_attack(tmp_path: Path) -> None:
    main(["hostile", "--engine", "simulator", "--short", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "hostile" / "results.json").read_text())
    assert [one["attack"] for one in results] == list(KINDS)
    assert sum(sum(one["actions"].values()) for one in results) > 1000
    for one in results:
        assert one["not_served"] == 0 < one["requests"], one
        assert one["unanswered"] <= 1, one
        assert 0 < one["memory_mb"] < MEMORY_MB
        assert one["p99_s"] < 5.0, one
