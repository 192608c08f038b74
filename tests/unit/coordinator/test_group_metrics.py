"""Metrics of groups: limits, and the sums over their members."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from coordinator import group_metrics
from coordinator.group_metrics import FAMILIES
from tests.unit.coordinator.test_live import BUSY, POOL, UP, Pool
from tokenpool.poolfile.reading import parse

GROUPS = """groups:
  - {name: org, pool: chat, guarantee: {concurrency: 1}, ceiling: {concurrency: 6}}
  - {name: team, pool: chat, parent: org}
  - {name: quiet, pool: chat}
"""
MEMBERS = """
  - {name: a, pool: chat, tier: elastic, group: org, api_keys: [key-a]}
  - {name: b, pool: chat, tier: elastic, group: team, api_keys: [key-b]}
"""


async def busy(text: str, **busy: object) -> Pool:
    pool = Pool(parse(text).file)
    await pool.tick()
    for _ in range(10):
        await pool.say("s0", UP, **busy)  # type: ignore[arg-type]
        await pool.tick()
    return pool


def values(pool: Pool, most: int = 100) -> dict[tuple[str, str, str], float]:
    """By metric, group and dimension."""
    text = "".join(group_metrics.pieces({"chat": pool.leader}, most))
    return {
        (sample.name, sample.labels["group"], sample.labels.get("dimension", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_group_has_its_ceiling_and_the_sums_over_its_members() -> None:
    pool = await busy(POOL + MEMBERS + GROUPS, a=BUSY, b=BUSY)

    shown = values(pool)

    assert {name for name, _, _ in shown} == {family.name for family in FAMILIES}
    limits = {key: value for key, value in shown.items() if key[0] == "tokenpool_group_limit"}
    assert limits == {("tokenpool_group_limit", "org", "concurrency"): 6}
    in_use = {group: shown["tokenpool_group_in_use", group, "concurrency"] for group in ("org", "team")}
    assert in_use["team"] > 0
    assert in_use["org"] == 2 * in_use["team"]
    for metric in ("demand", "allocation"):
        name = f"tokenpool_group_{metric}"
        assert shown[name, "org", "concurrency"] >= shown[name, "team", "concurrency"] > 0
    assert shown["tokenpool_group_in_use", "quiet", "concurrency"] == 0
    assert ("tokenpool_group_debt", "org", "") in shown


async def test_the_number_of_groups_with_series_is_bounded() -> None:
    pool = await busy(POOL + MEMBERS + GROUPS, a=BUSY)

    assert {group for _, group, _ in values(pool, most=1)} == {"org"}


async def test_a_pool_without_groups_has_no_such_metrics() -> None:
    pool = await busy(POOL, g=BUSY)

    assert list(group_metrics.pieces({"chat": pool.leader}, 100)) == []
    assert "tokenpool_group" not in "".join(pool.telemetry.pieces())
