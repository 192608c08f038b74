"""A coordinator's pages with many entitlements: valid, bounded, and made in pieces."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coordinator.state_page import pieces
from coordinator.telemetry import OTHER, Telemetry
from tests.unit.coordinator.test_live import BUSY, POOL, UP, Pool
from tokenpool.poolfile.reading import parse

MANY = POOL + "".join(
    f"  - {{name: t{i}, pool: chat, tier: elastic, api_keys: [key-{i}]}}\n" for i in range(300)
)


async def busy(*names: str) -> Pool:
    pool = Pool(parse(MANY).file)
    await pool.tick()
    for _ in range(10):
        await pool.say("s0", UP, **dict.fromkeys(names, BUSY))
        await pool.tick()
    return pool


def values(telemetry: Telemetry) -> dict[tuple[str, str, str], float]:
    """By metric, entitlement and dimension."""
    families = list(text_string_to_metric_families("".join(telemetry.pieces())))
    assert len({family.name for family in families}) == len(families)
    found: dict[tuple[str, str, str], float] = {}
    for family in families:
        for sample in family.samples:
            if "entitlement" in sample.labels:
                key = (sample.name, sample.labels["entitlement"], sample.labels.get("dimension", ""))
                assert key not in found
                found[key] = sample.value
    return found


async def test_only_entitlements_that_were_active_have_series() -> None:
    pool = await busy("g", "t7")

    shown = values(pool.telemetry)

    assert {name for _, name, _ in shown} == {"g", "t7"}
    assert shown["tokenpool_pool_demand", "t7", "concurrency"] > 0
    assert shown["tokenpool_pool_limit", "g", "concurrency"] >= 2
    assert ("tokenpool_pool_debt", "g", "") in shown


async def test_others_are_added_up() -> None:
    pool = await busy("g", "t7", "t8", "t9")
    telemetry = Telemetry(lambda: {"chat": pool.leader}, most_series=2)

    shown = values(telemetry)

    names = {name for _, name, _ in shown}
    assert len(names) == 3
    assert {"g", OTHER} < names  # for a guaranteed one room is kept
    everything = values(pool.telemetry)
    for metric in ("tokenpool_pool_demand", "tokenpool_pool_held"):
        assert sum(v for (m, _, d), v in shown.items() if (m, d) == (metric, "concurrency")) == pytest.approx(
            sum(v for (m, _, d), v in everything.items() if (m, d) == (metric, "concurrency"))
        )
    assert ("tokenpool_pool_limit", OTHER, "concurrency") not in shown
    assert values(telemetry) == shown  # the same ones, the next time


async def test_pieces_cover_a_few_entitlements_each() -> None:
    pool = await busy(*(f"t{number}" for number in range(200)))
    assert len(list(pool.telemetry.pieces())) > 200 / 20


async def test_the_state_page_shows_groups() -> None:
    groups = "groups: [{name: org, pool: chat, ceiling: {concurrency: 3}, weight: 2}]\n"
    text = groups + MANY.replace("{name: t7,", "{name: t7, group: org,")
    pool = Pool(parse(text).file)
    await pool.tick()
    for _ in range(4):
        await pool.say("s0", UP, t7=BUSY)
        await pool.tick()

    made = pieces({"chat": pool.leader}, 0.0, lambda name, _: name == "t7", config_is_current=True)
    shown = json.loads("".join(made))["pools"]["chat"]

    assert shown["entitlements"]["t7"]["group"] == "org"
    org = shown["groups"]["org"]
    assert (org["ceiling"]["concurrency"], org["weight"], org["parent"]) == (3, 2, None)
    assert 0 < org["allocation"]["concurrency"] <= 3
    assert org["demand"]["concurrency"] > 0
