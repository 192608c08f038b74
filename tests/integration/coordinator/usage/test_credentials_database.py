"""Issued credentials in the usage store's database: SQLite and PostgreSQL behave in the same way."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest_asyncio

from coordinator.credentials.database import SqlCredentials, StoredCredential, Sums
from coordinator.usage.database import Database
from tokenpool.credentials import Change, CredentialRecord
from tokenpool.leases.credential_feed import CHECK_MODULUS

MS = 1_764_430_000_000


@pytest_asyncio.fixture
async def kept(empty_database: Database) -> AsyncIterator[SqlCredentials]:
    made = SqlCredentials(empty_database)
    yield made
    await made.close()


def stored(
    name: str, version: int, pool: str = "chat", entitlement: str = "a", note: str = ""
) -> StoredCredential:
    digest = hashlib.sha256(name.encode()).digest()
    record = CredentialRecord(
        id=name,
        entitlement=entitlement,
        digest=digest,
        created_at=1.5,
        note=note,
        changed_at=version / 1000,
        changed_by="alice",
        change=Change.ISSUED,
    )
    return StoredCredential(pool, version, record)


async def test_a_record_is_found_by_id_and_by_digest(kept: SqlCredentials) -> None:
    made = stored("k", MS, note="é '?; -- %s")
    await kept.write([made])

    assert await kept.get("k") == made
    assert await kept.of_digest(made.record.digest) == made
    assert await kept.get("l") is None
    assert await kept.of_digest(bytes(32)) is None
    await kept.write([])


async def test_the_later_version_stays_and_every_change_is_a_row(kept: SqlCredentials) -> None:
    first, second = stored("k", MS), stored("k", MS + 1, note="new")

    for each in (second, first, second):
        await kept.write([each])

    assert await kept.get("k") == second
    rows = await kept.changes((0, ""), 10)
    assert [(row.version, row.at, row.administrator, row.change) for row in rows] == [
        (MS, MS / 1000, "alice", "issued"),
        (MS + 1, (MS + 1) / 1000, "alice", "issued"),
    ]
    assert await kept.changes((MS, "k"), 10) == rows[1:]
    assert await kept.changes((0, ""), 1) == rows[:1]


async def test_the_sums_are_those_of_the_feed(kept: SqlCredentials) -> None:
    assert await kept.sums("chat") == Sums()
    await kept.write([stored(f"k{number}", MS + number) for number in range(250)])
    await kept.write([stored("other", MS, pool="code")])

    assert await kept.sums("chat") == Sums(250, sum(range(MS, MS + 250)) % CHECK_MODULUS)


async def test_pages_are_in_the_order_of_ids(kept: SqlCredentials) -> None:
    await kept.write([stored(name, MS, entitlement="ab"[name == "c"]) for name in ("c", "a", "d", "b")])
    await kept.write([stored("e", MS, pool="code")])

    assert [each.record.id for each in await kept.page("", 3)] == ["a", "b", "c"]
    assert [each.record.id for each in await kept.page("c", 3)] == ["d", "e"]
    assert [each.record.id for each in await kept.page("", 9, pool="chat", entitlement="a")] == [
        "a",
        "b",
        "d",
    ]


async def test_two_coordinators_share_one_database(empty_database: Database) -> None:
    both = [SqlCredentials(empty_database) for _ in range(2)]
    parts = [[stored(f"k{number}", MS + who) for number in range(40)] for who in range(2)]

    for _ in range(3):
        await asyncio.gather(*(each.write(part) for each, part in zip(both, parts, strict=True)))

    for each in both:
        assert await each.sums("chat") == Sums(40, 40 * (MS + 1) % CHECK_MODULUS)
        assert len(await each.changes((0, ""), 500)) == 80
        await each.close()
