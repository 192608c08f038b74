"""The contract of the usage store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from msgspec.structs import replace

from coordinator.usage import sql
from coordinator.usage.database import Database
from coordinator.usage.sql import ROWS, SqlUsageStore
from coordinator.usage.statements import Statements
from coordinator.usage.store import PERIOD_S, START, By, Scope, UsageSum
from tokenpool.usage.record import LOST, UsageRecord

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
DAY_S = 86400.0


@pytest_asyncio.fixture
async def store(empty_database: Database) -> AsyncIterator[SqlUsageStore]:
    made = SqlUsageStore(empty_database)
    yield made
    await made.close()


def record(id_: str, **changes: object) -> UsageRecord:
    base = UsageRecord(
        id_,
        NOON,
        "chat",
        "checkout",
        "tiny",
        "/v1/completions",
        100,
        20,
        60,
        kv_token_seconds=240.5,
        sequence_seconds=2.5,
        queue_s=0.25,
        ttft_s=0.5,
        outcome="finished",
        replica="engine-1",
        group="shop",
        credential_id="k1",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


async def total(store: SqlUsageStore) -> UsageSum:
    (found,) = await store.aggregate([], 0, 2 * NOON)
    return found


async def test_a_record_is_added_up(store: SqlUsageStore) -> None:
    assert await store.add([record("a-1")]) == 1

    assert await total(store) == UsageSum((), 1, 0, 100, 20, 60, 240.5, 2.5, 0.25, 0.5, 1)


async def test_records_are_read_in_order_and_in_parts(
    store: SqlUsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "RECORDS_AT_ONCE", 2)
    records = [record(f"a-{number}", time=NOON + number // 2, ttft_s=None) for number in range(5)]
    await store.add([*records, record("b-1", pool="other")])

    read, after = [], START
    while part := await store.records(NOON, NOON + 2, pool="chat", after=after):
        read += [each for _, each in part]
        after = part[-1][0]

    assert read == records[:4]
    assert [each.id for _, each in await store.records(NOON + 2, 2 * NOON)] == ["a-4"]


async def test_a_late_record_is_found_by_the_time_at_which_it_was_stored(empty_database: Database) -> None:
    now = [NOON]
    store = SqlUsageStore(empty_database, lambda: now[0])
    try:
        await store.add([record("a-1")])
        now[0] += 3600
        await store.add([record("a-0", time=NOON - 60), record("a-1")])

        found = await store.records(NOON + 1, NOON + 7200, by_storage=True)
    finally:
        await store.close()

    assert [(at, each.id) for (at, _), each in found] == [(NOON + 3600, "a-0")]


async def test_an_empty_store_has_no_sum(store: SqlUsageStore) -> None:
    assert await store.aggregate([], 0, 2 * NOON) == []
    assert await store.aggregate([By.MODEL], 0, 2 * NOON) == []
    assert await store.spent(Scope.ENTITLEMENT, "checkout", "chat", 0, 2 * NOON) == 0


async def test_adding_nothing_changes_nothing(store: SqlUsageStore) -> None:
    assert await store.add([]) == 0


async def test_a_record_counts_once(store: SqlUsageStore) -> None:
    await store.add([record("a-1"), record("a-2"), record("a-2")])

    assert await store.add([record("a-1"), record("a-3"), record("a-2", input_tokens=7)]) == 1
    assert (await total(store)).requests == 3
    assert (await total(store)).input_tokens == 300


async def test_the_same_records_from_two_coordinators_count_once(
    store: SqlUsageStore, empty_database: Database
) -> None:
    await store.add([])
    other = SqlUsageStore(empty_database)
    records = [record(f"a-{number}") for number in range(200)]
    try:
        added = await asyncio.gather(
            *(store.add(records[first : first + 50]) for first in range(0, 200, 25)),
            *(other.add(records[first : first + 50][::-1]) for first in range(0, 200, 25)),
        )
    finally:
        await other.close()

    assert sum(added) == 200
    assert (await total(store)).requests == 200


async def test_more_records_than_one_transaction_takes(store: SqlUsageStore) -> None:
    assert await store.add([record(f"a-{number}") for number in range(2 * ROWS + 1)]) == 2 * ROWS + 1

    assert (await total(store)).input_tokens == 100 * (2 * ROWS + 1)


async def test_every_field_is_stored(store: SqlUsageStore) -> None:
    await store.add([record("a-1", outcome=LOST, ttft_s=None, is_estimated=True)])

    def read(statements: Statements) -> list[tuple[object, ...]]:
        return [row[:-1] for row in statements.run("SELECT * FROM usage_records")]

    assert await store._run(read) == [
        (
            *("a-1", NOON, "chat", "checkout", "tiny", "/v1/completions", 100, 20, 60, 240.5, 2.5, 0.25),
            *(None, "lost", "engine-1", "shop", "k1", True),
        )
    ]
    assert (await total(store)).estimated_requests == 1
    assert (await total(store)).ttft_requests == 0


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ([By.ENTITLEMENT], [("batch",), ("checkout",)]),
        ([By.GROUP], [("",), ("shop",)]),
        ([By.CREDENTIAL], [("k1",), ("k2",)]),
        ([By.POOL, By.MODEL], [("chat", "large"), ("chat", "tiny"), ("other", "tiny")]),
        ([By.MODEL, By.DAY], [("large", "2026-11-29"), ("tiny", "2026-11-28"), ("tiny", "2026-11-29")]),
        ([By.DAY], [("2026-11-28",), ("2026-11-29",)]),
    ],
)
async def test_usage_is_added_up_by_columns(
    store: SqlUsageStore, by: list[By], keys: list[tuple[str, ...]]
) -> None:
    await store.add(
        [
            record("a-1", time=NOON - DAY_S),
            record("a-2", entitlement="batch", group="", credential_id="k2"),
            record("a-3", pool="other"),
            record("a-4", model="large"),
        ]
    )

    found = await store.aggregate(by, NOON - 2 * DAY_S, NOON + DAY_S)

    assert [each.key for each in found] == keys
    assert sum(each.requests for each in found) == 4
    assert sum(each.output_tokens for each in found) == 80


async def test_usage_is_selected_by_values(store: SqlUsageStore) -> None:
    await store.add([record("a-1"), record("a-2", entitlement="batch"), record("a-3", model="large")])

    where = {By.ENTITLEMENT: "checkout", By.MODEL: "tiny"}
    (found,) = await store.aggregate([By.ENTITLEMENT], 0, 2 * NOON, where=where)

    assert (found.key, found.requests) == (("checkout",), 1)


async def test_days_are_those_of_a_time_zone(store: SqlUsageStore) -> None:
    # Kathmandu is 5 h 45 min ahead of UTC: its days begin at 18:15.
    await store.add([record("a-1", time=NOON + 6.2 * 3600), record("a-2", time=NOON + 6.3 * 3600)])

    found = await store.aggregate([By.DAY], NOON, NOON + DAY_S, timezone="Asia/Kathmandu")

    assert [(each.key, each.requests) for each in found] == [(("2026-11-29",), 1), (("2026-11-30",), 1)]


async def test_an_unknown_time_zone_is_an_error(store: SqlUsageStore) -> None:
    with pytest.raises(ValueError, match="Mars"):
        await store.aggregate([By.DAY], 0, NOON, timezone="Mars/Olympus")


async def test_a_day_is_selected_by_its_times(store: SqlUsageStore) -> None:
    with pytest.raises(ValueError, match="since and until"):
        await store.aggregate([By.DAY], 0, NOON, where={By.DAY: "2026-11-29"})


async def test_a_span_of_time_ends_before_its_end(store: SqlUsageStore) -> None:
    await store.add(
        [record("a-1", time=NOON - 1), record("a-2", time=NOON), record("a-3", time=NOON + PERIOD_S)]
    )

    (found,) = await store.aggregate([], NOON, NOON + PERIOD_S)

    assert found.requests == 1


async def test_spent_tokens_are_weighted_and_without_the_prefix_cache(store: SqlUsageStore) -> None:
    await store.add([record("a-1"), record("a-2", pool="other"), record("a-3", time=NOON + DAY_S)])

    spent = await store.spent(
        Scope.GROUP, "shop", "chat", NOON, NOON + DAY_S, input_weight=0.5, output_weight=4.0
    )

    assert spent == 0.5 * 40 + 4.0 * 20


async def test_spent_tokens_of_all_owners(store: SqlUsageStore) -> None:
    await store.add([record("a-1"), record("a-2", entitlement="batch"), record("a-3", credential_id="")])

    assert await store.spent_by_name(Scope.ENTITLEMENT, "chat", NOON, NOON + 1) == {
        "batch": 60,
        "checkout": 120,
    }
    assert await store.spent_by_name(Scope.CREDENTIAL, "chat", NOON, NOON + 1) == {"k1": 120}


async def test_forgotten_records_stay_in_the_sums(store: SqlUsageStore) -> None:
    await store.add([record("a-1", time=NOON - DAY_S), record("a-2")])

    assert await store.forget(NOON) == 1
    assert await store.add([record("a-2")]) == 0
    assert (await total(store)).requests == 2


async def test_texts_that_a_database_cannot_have_are_changed(store: SqlUsageStore) -> None:
    await store.add([record("a-1", model="a\0b"), record("a-2", model="\ud800")])

    assert [each.key for each in await store.aggregate([By.MODEL], 0, 2 * NOON)] == [("?",), ("ab",)]


async def test_a_store_that_is_opened_again_has_its_records(
    store: SqlUsageStore, empty_database: Database
) -> None:
    await store.add([record("a-1")])
    other = SqlUsageStore(empty_database)
    try:
        assert (await total(other)).requests == 1
        assert await other.identity() == await store.identity()
    finally:
        await other.close()


async def test_several_coordinators_migrate_at_once(empty_database: Database) -> None:
    stores = [SqlUsageStore(empty_database) for _ in range(4)]
    try:
        assert len({*await asyncio.gather(*(each.identity() for each in stores))}) == 1
    finally:
        await asyncio.gather(*(each.close() for each in stores))


async def test_a_refused_value_changes_nothing(store: SqlUsageStore) -> None:
    with pytest.raises(ValueError, match=r"sqlite|postgresql"):
        await store.add([record("a-1"), record("a-2", input_tokens=1 << 70)])

    assert await store.add([record("a-1")]) == 1
