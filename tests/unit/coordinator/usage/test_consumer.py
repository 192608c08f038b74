"""The consumer: from the stream to the usage store, each record once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec.structs import replace

from coordinator.usage.consumer import UsageConsumer
from coordinator.usage.database import database
from coordinator.usage.sql import SqlUsageStore
from coordinator.usage.store import UsageStoreDown
from tokenpool.store import StoreDown
from tokenpool.store.usage_stream import Received, ReceivedBatch
from tokenpool.usage.batch import joined
from tokenpool.usage.record import UsageRecord

AT = 1_790_000_000.0


class FakeStream:
    """Batches in memory."""

    def __init__(self, *batches: bytes) -> None:
        self.waiting = [ReceivedBatch(f"{n}-0", "s", n, content) for n, content in enumerate(batches)]
        self.told: list[int] = []
        self.owner = ""
        self.is_down = False

    async def receive(self, store: str, consumer: str, most: int) -> Received:
        if self.is_down:
            raise StoreDown("Redis: down")
        if self.owner:
            return Received(self.owner, [], len(self.waiting))
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        return Received(store, taken, len(taken) + len(self.waiting))

    async def stored(self, batches: Sequence[ReceivedBatch]) -> None:
        if self.is_down:
            raise StoreDown("Redis: down")
        self.told += [each.number for each in batches]


class DownStore(SqlUsageStore):
    """A usage store whose database is away at times."""

    is_down = False

    async def add(self, records: Sequence[UsageRecord]) -> int:
        if self.is_down:
            raise UsageStoreDown("the database is down")
        return await super().add(records)


def record(id_: str, **changes: object) -> UsageRecord:
    base = UsageRecord(id_, AT, "chat", "g", input_tokens=7, output_tokens=3)
    return replace(base, **changes)  # type: ignore[arg-type]


def batch(*ids: str) -> bytes:
    return joined([record(each).encode() for each in ids])


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[DownStore]:
    made = DownStore(database(str(tmp_path / "usage.db")))
    yield made
    await made.close()


def consumer(stream: FakeStream, store: SqlUsageStore) -> UsageConsumer:
    return UsageConsumer("chat", stream, store, "c1", lambda: 0.0)


async def stored(store: SqlUsageStore) -> int:
    found = await store.aggregate([], 0, 2 * AT)
    return found[0].requests if found else 0


async def test_batches_are_stored_and_then_removed(store: DownStore) -> None:
    stream = FakeStream(batch("a", "b"), batch("c"))
    carries = consumer(stream, store)

    assert await carries.step()
    assert not await carries.step()
    assert stream.told == [0, 1]
    assert await stored(store) == 3
    assert carries.records == {"stored": 3, "duplicate": 0}


async def test_a_batch_that_comes_twice_counts_once(store: DownStore) -> None:
    carries = consumer(FakeStream(batch("a", "b"), batch("b", "a", "c")), store)
    await carries.step()

    assert await stored(store) == 3
    assert carries.records == {"stored": 3, "duplicate": 2}


async def test_a_database_that_is_away_keeps_the_batches_in_the_stream(store: DownStore) -> None:
    stream = FakeStream(batch("a"))
    carries = consumer(stream, store)
    store.is_down = True
    for _ in range(3):
        with pytest.raises(UsageStoreDown):
            await carries.step()
    assert stream.told == []

    store.is_down = False
    await carries.step()
    assert stream.told == [0]
    assert await stored(store) == 1


async def test_a_notice_that_fails_is_repeated(store: DownStore) -> None:
    stream = FakeStream(batch("a"))
    carries = consumer(stream, store)
    await store.identity()
    received = stream.receive

    async def receive_then_down(name: str, by: str, most: int) -> Received:
        found = await received(name, by, most)
        stream.is_down = True
        return found

    stream.receive = receive_then_down  # type: ignore[method-assign]
    with pytest.raises(StoreDown):
        await carries.step()
    stream.is_down = False
    await carries.step()

    assert stream.told == [0]
    assert await stored(store) == 1


async def test_what_cannot_be_read_is_counted_and_removed(store: DownStore) -> None:
    stream = FakeStream(joined([b"\xc1", record("a").encode()]), b"no batch")
    carries = consumer(stream, store)
    await carries.step()

    assert await stored(store) == 1
    assert carries.records["unreadable"] == 2  # the record, and the rest of the second batch
    assert stream.told == [0, 1]


async def test_a_record_that_the_database_refuses_does_not_keep_the_others(store: DownStore) -> None:
    content = joined(
        [each.encode() for each in (record("a"), record("b", input_tokens=1 << 63), record("c"))]
    )
    stream = FakeStream(content)
    carries = consumer(stream, store)
    await carries.step()

    assert await stored(store) == 2
    assert carries.records == {"stored": 2, "duplicate": 0, "refused": 1}
    assert stream.told == [0]


async def test_the_stream_of_another_store_is_left_alone(store: DownStore) -> None:
    stream = FakeStream(batch("a"))
    stream.owner = "other"
    carries = consumer(stream, store)

    assert not await carries.step()
    assert carries.other_store == "other"
    assert await stored(store) == 0
    stream.owner = ""
    await carries.step()
    assert carries.other_store == ""
    assert await stored(store) == 1
