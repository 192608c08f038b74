"""The stream of usage records in Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
import redis.asyncio

from tests.integration.tokenpool.store.servers import redis_server
from tokenpool.store import StoreDown, usage_stream
from tokenpool.store.address import open_store
from tokenpool.store.redis import RedisStore
from tokenpool.store.usage_stream import MOST_ENTRIES, UsageStream


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with redis_server(tmp_path_factory.mktemp("redis")) as (port, _):
        yield port


@pytest_asyncio.fixture
async def admin(port: int) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis(port=port) as client:
        await client.flushall()
        yield client


@pytest_asyncio.fixture
async def store(port: int, admin: redis.asyncio.Redis) -> AsyncIterator[RedisStore]:
    made = open_store(f"redis://127.0.0.1:{port}", "chat", 1.5, 2.0)
    yield made
    await made.close()


@pytest.fixture
def stream(store: RedisStore) -> UsageStream:
    return UsageStream(store)


async def test_a_batch_is_received_as_it_was_sent(stream: UsageStream) -> None:
    sent = await stream.send("s1", [(1, b"\x00\xff")], {})
    received = await stream.receive("db", "c1", 10)

    assert sent.stored == sent.missing == []
    assert received.owner == "db"
    assert [(each.entry, each.spool, each.number, each.records) for each in received.batches] == [
        (sent.entries[0], "s1", 1, b"\x00\xff")
    ]
    assert received.entries == 1


async def test_a_batch_is_received_by_one_coordinator(stream: UsageStream) -> None:
    await stream.send("s1", [(1, b"a"), (2, b"b"), (3, b"c")], {})

    first = await stream.receive("db", "c1", 2)
    second = await stream.receive("db", "c2", 2)

    assert [each.records for each in (*first.batches, *second.batches)] == [b"a", b"b", b"c"]


async def test_a_stored_batch_leaves_the_stream_and_its_sidecar_knows(stream: UsageStream) -> None:
    sent = await stream.send("s1", [(1, b"a"), (2, b"b")], {})
    received = await stream.receive("db", "c1", 10)
    await stream.stored(received.batches[:1])

    told = await stream.send("s1", [], {1: sent.entries[0], 2: sent.entries[1]})
    assert (told.stored, told.missing) == ([1], [])
    assert (await stream.receive("db", "c1", 10)).entries == 1
    again = await stream.send("s1", [], {2: sent.entries[1]})
    assert (again.stored, again.missing) == ([], [])


async def test_another_sidecar_does_not_see_the_notice(stream: UsageStream) -> None:
    await stream.send("s1", [(1, b"a")], {})
    await stream.stored((await stream.receive("db", "c1", 10)).batches)

    assert (await stream.send("s2", [], {})).stored == []
    assert (await stream.send("s1", [], {})).stored == [1]


async def test_batches_that_redis_loses_are_named(stream: UsageStream, admin: redis.asyncio.Redis) -> None:
    sent = await stream.send("s1", [(7, b"a")], {})
    await admin.flushall()

    assert (await stream.send("s1", [], {7: sent.entries[0]})).missing == [7]


async def test_an_emptied_redis_is_used_as_a_new_one(stream: UsageStream, admin: redis.asyncio.Redis) -> None:
    await stream.send("s1", [(1, b"a")], {})
    received = await stream.receive("db", "c1", 10)
    await admin.flushall()
    await stream.stored(received.batches)
    await stream.send("s1", [(2, b"b")], {})

    assert [each.records for each in (await stream.receive("db", "c1", 10)).batches] == [b"b"]


async def test_the_stream_has_a_bound(stream: UsageStream, admin: redis.asyncio.Redis) -> None:
    for number in range(0, MOST_ENTRIES + 300, 100):
        await stream.send("s1", [(number + each, b"a") for each in range(100)], {})

    # Redis removes whole nodes of 100 entries.
    assert await admin.xlen("tokenpool:{chat}:usage") <= MOST_ENTRIES + 100


async def test_a_stream_belongs_to_one_usage_store(stream: UsageStream) -> None:
    await stream.send("s1", [(1, b"a")], {})
    await stream.receive("db", "c1", 10)
    await stream.send("s1", [(2, b"b")], {})

    other = await stream.receive("other", "c2", 10)

    assert (other.owner, other.batches, other.entries) == ("db", [], 2)
    assert [each.number for each in (await stream.receive("db", "c1", 10)).batches] == [2]


async def test_all_keys_expire_and_share_the_hash_tag(
    stream: UsageStream, admin: redis.asyncio.Redis
) -> None:
    await stream.send("s1", [(1, b"a"), (2, b"b")], {})
    await stream.stored((await stream.receive("db", "c1", 1)).batches)

    keys = [key.decode() for key in await admin.keys()]
    assert sorted(keys) == [
        "tokenpool:{chat}:usage",
        "tokenpool:{chat}:usage:owner",
        "tokenpool:{chat}:usage:stored:s1",
    ]
    assert all([await admin.pttl(key) > 0 for key in keys])


async def test_a_batch_of_a_coordinator_that_ended_is_received_by_another(
    stream: UsageStream, admin: redis.asyncio.Redis
) -> None:
    await stream.send("s1", [(1, b"a")], {})
    await stream.receive("db", "c1", 10)
    assert (await stream.receive("db", "c2", 10)).batches == []
    # As if the batch had been read long ago.
    [pending] = await admin.xpending_range("tokenpool:{chat}:usage", "usage", "-", "+", 1)
    await admin.execute_command(
        *("XCLAIM", "tokenpool:{chat}:usage", "usage", "c1", "0", pending["message_id"], "IDLE", "200000")
    )

    assert [each.records for each in (await stream.receive("db", "c2", 10)).batches] == [b"a"]


async def test_the_names_of_coordinators_that_ended_are_forgotten(
    stream: UsageStream, admin: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator has another name after each restart."""
    await stream.send("s1", [(1, b"a"), (2, b"b")], {})
    done = await stream.receive("db", "has ended", 1)
    await stream.stored(done.batches)
    await stream.receive("db", "has a batch", 1)

    async def names() -> set[str]:
        found = await admin.xinfo_consumers("tokenpool:{chat}:usage", "usage")
        return {each["name"].decode() for each in found}

    await stream.receive("db", "now", 1)
    assert await names() >= {"has ended", "has a batch"}
    monkeypatch.setattr(usage_stream, "CLAIM_AFTER_S", 0.0)
    for _ in range(1000):  # some milliseconds pass
        await stream.receive("db", "has a batch", 1)
        if "has ended" not in await names():
            break

    assert "has ended" not in await names()
    assert "has a batch" in await names()


async def test_a_server_that_does_not_answer_is_an_error() -> None:
    store = open_store("redis://127.0.0.1:1", "chat", 1.5, 0.2)
    with pytest.raises(StoreDown):
        await UsageStream(store).send("s1", [(1, b"a")], {})
    await store.close()
