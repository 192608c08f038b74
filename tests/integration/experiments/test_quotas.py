"""The short form of the experiment of quotas, with an emptied Redis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.quotas import Result, Sizes, goals, pool_file, run
from tokenpool.poolfile.reading import parse

EXACT = Result(1000, {"t0": 996, "t1": 1004}, requests=5)


def test_spending_close_to_the_quota_reaches_every_goal() -> None:
    assert all(is_reached for _, is_reached in goals(EXACT))
    wider = replace(EXACT, spent={"t0": 991, "t1": 1009}, was_emptied=True)
    assert all(is_reached for _, is_reached in goals(wider))


@pytest.mark.parametrize(
    "wrong",
    [
        replace(EXACT, spent={"t0": 994, "t1": 1000}),
        replace(EXACT, spent={"t0": 1000, "t1": 1006}),
        replace(EXACT, spent={"t0": 1000, "t1": 1011}, was_emptied=True),
        replace(EXACT, failed=1),
    ],
)
def test_each_error_misses_a_goal(wrong: Result) -> None:
    assert [is_reached for _, is_reached in goals(wrong)].count(False) == 1


def test_the_pool_file_is_valid() -> None:
    file = parse(pool_file(Sizes(tenants=3))).file
    assert len(file.entitlements) == 3
    assert file.entitlements[0].quotas[0].tokens == Sizes.quota


def test_every_tenant_stops_at_its_quota_although_redis_is_emptied(tmp_path: Path) -> None:
    sizes = Sizes(sidecars=2, tenants=2, clients=2, quota=8_000, longest_s=120.0)
    result = run(sizes, 1, tmp_path, empties=True)
    print(result)

    assert result.was_emptied
    assert result.failed == 0
    # One request costs up to a twelfth of this small quota, and four may outgrow their reservation.
    assert all(-0.03 < deviation < 0.04 for deviation in result.deviations)
    assert result.refused["insufficient_quota"] >= 2
