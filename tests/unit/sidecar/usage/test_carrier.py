"""The carrier: from the recorder to the spool, and to the stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sidecar.usage.carrier import (
    IN_FLIGHT,
    MANY,
    OPEN_AGAIN_S,
    RETRY_S,
    SEND_EVERY_S,
    WRITE_EVERY_S,
    UsageCarrier,
)
from sidecar.usage.recorder import UsageRecorder
from sidecar.usage.spool import BATCH_BYTES, Spool
from tests.unit.sidecar.usage.test_spool import killed
from tokenpool.store import StoreDown
from tokenpool.store.usage_stream import Sent
from tokenpool.usage.batch import split
from tokenpool.usage.record import UsageRecord


class FakeStream:
    """A stream in memory, which may be down, and may lose what it has."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[int, bytes]] = {}
        self.stored: list[int] = []
        """Numbers that the next message tells."""
        self.calls = 0
        self.is_down = False
        self.loses_answers = False

    async def send(self, spool: str, batches: Sequence[tuple[int, bytes]], in_flight: dict[int, str]) -> Sent:
        self.calls += 1
        if self.is_down:
            raise StoreDown("Redis: down")
        missing = [n for n, entry in in_flight.items() if entry not in self.entries and n not in self.stored]
        entries = [f"{self.calls}-{number}" for number, _ in batches]
        self.entries |= dict(zip(entries, batches, strict=True))
        if self.loses_answers:
            raise StoreDown("Redis: timeout")
        stored, self.stored = self.stored, []
        return Sent(entries, stored, missing)

    def store(self) -> list[bytes]:
        """Store all batches. Returns their records."""
        records = [record for _, content in self.entries.values() for record in split(content)]
        self.stored += [number for number, _ in self.entries.values()]
        self.entries.clear()
        return records


class World:
    """A carrier with a clock that stands still between steps."""

    def __init__(self, folder: Path, most: int = 1 << 20) -> None:
        self.now = 0.0
        self.stream = FakeStream()
        self.recorder = UsageRecorder("p", "engine", self.clock, self.clock)
        self.spool = Spool(folder, most, "a" * 16)
        self.carrier = UsageCarrier(self.recorder, self.spool, self.stream, "a" * 16, self.clock)

    def clock(self) -> float:
        return self.now

    def record(self, *contents: bytes) -> None:
        self.recorder._pending += contents

    async def step(self, seconds: float = SEND_EVERY_S) -> None:
        self.now += seconds
        await self.carrier.step()


@pytest.fixture
async def world(tmp_path: Path) -> World:
    made = World(tmp_path / "spool")
    await made.carrier.open()
    return made


async def test_records_reach_the_stream_and_leave_the_spool_once_stored(world: World) -> None:
    world.record(b"a", b"b")
    await world.step()
    assert world.spool.size == 10
    assert world.stream.store() == [b"a", b"b"]

    await world.step()
    await world.step()
    assert world.spool.size == 0
    assert world.carrier.stored_batches == 1
    assert world.stream.entries == {}


async def test_many_records_are_written_early(world: World) -> None:
    await world.step()
    world.record(*[b"a"] * (MANY - 1))
    assert not world.carrier.is_write_due
    world.record(b"a")
    assert world.carrier.is_write_due
    await world.step(0.0)
    assert not world.carrier.is_write_due
    world.now += WRITE_EVERY_S
    assert world.carrier.is_write_due


async def test_nothing_is_sent_without_records(world: World) -> None:
    await world.step()
    await world.step()

    assert world.stream.calls == 0


async def test_records_are_written_at_once_and_sent_together(world: World) -> None:
    await world.step()
    world.record(b"a")
    await world.step(SEND_EVERY_S)
    world.record(b"b")
    await world.step(SEND_EVERY_S / 4)
    assert world.spool.size == 10
    world.record(b"c")
    await world.step(SEND_EVERY_S / 4)
    assert world.stream.store() == [b"a"]

    await world.step(SEND_EVERY_S)
    assert world.stream.store() == [b"b", b"c"]


async def test_a_full_batch_is_sent_at_once(world: World) -> None:
    world.record(b"a")
    await world.step()
    world.record(b"b" * BATCH_BYTES)
    await world.step(0.01)
    await world.step(0.01)

    assert [len(each) for each in world.stream.store()] == [1, BATCH_BYTES]


async def test_an_absent_redis_loses_nothing(world: World) -> None:
    world.stream.is_down = True
    for number in range(5):
        world.record(b"%d" % number)
        await world.step()
    assert world.carrier.error == "Redis: down"
    assert world.stream.calls < 5

    world.stream.is_down = False
    for _ in range(3):
        await world.step(RETRY_S)
    assert world.stream.store() == [b"0", b"1", b"2", b"3", b"4"]
    assert world.carrier.error == ""


async def test_batches_that_redis_lost_are_sent_again(world: World) -> None:
    world.record(b"a")
    await world.step()
    world.stream.entries.clear()
    for _ in range(2):
        await world.step()

    assert world.carrier.sent_again == 1
    assert world.stream.store() == [b"a"]


async def test_a_lost_answer_sends_a_batch_twice(world: World) -> None:
    world.stream.loses_answers = True
    world.record(b"a")
    await world.step()
    world.stream.loses_answers = False
    await world.step(RETRY_S)

    assert world.stream.store() == [b"a", b"a"]


async def test_few_batches_are_in_flight_while_nothing_is_stored(world: World) -> None:
    for _ in range(IN_FLIGHT + 5):
        world.record(b"a")
        await world.step()
    assert len(world.stream.entries) == IN_FLIGHT

    world.stream.store()
    await world.step()
    await world.step()
    assert sum(len(list(split(content))) for _, content in world.stream.entries.values()) == 5


async def test_records_beyond_the_spool_are_dropped_and_counted(tmp_path: Path) -> None:
    world = World(tmp_path, most=300)
    await world.carrier.open()
    world.stream.is_down = True
    record = UsageRecord("p-1", 1.0, "chat", "g", input_tokens=7, output_tokens=3).encode()
    for _ in range(10):
        world.record(record)
        await world.step()

    kept = 300 // (len(record) + 4)
    assert world.carrier.dropped == 10 - kept
    assert world.carrier.dropped_tokens == 10 * (10 - kept)
    assert world.carrier.degraded() == [f"{10 - kept} usage records were dropped"]
    values = {
        (sample.name, sample.labels.get("result")): sample.value
        for metric in world.carrier.metrics()
        for sample in metric.samples
    }
    assert values["tokenpool_usage_records_total", "dropped"] == 10 - kept
    assert values["tokenpool_usage_dropped_tokens_total", None] == 10 * (10 - kept)
    assert values["tokenpool_usage_spool_bytes", None] == kept * (len(record) + 4)


async def test_a_sidecar_continues_with_what_a_killed_one_left(tmp_path: Path) -> None:
    first = World(tmp_path)
    await first.carrier.open()
    first.stream.is_down = True
    first.record(b"a")
    await first.step()
    assert first.recorder.open_requests is not None
    first.recorder.open_requests.take(b"running")
    killed(first.recorder.open_requests)

    second = World(tmp_path)
    second.spool._process = "b" * 16
    await second.carrier.open()
    await second.step()
    assert second.stream.store() == [b"a", b"running"]
    assert second.carrier.recovered == 1


async def test_a_folder_that_does_not_work_is_tried_again(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    world = World(blocker / "spool")
    await world.carrier.open()
    assert world.carrier.degraded()[0].startswith("usage records are kept in memory only")
    world.record(b"a")
    await world.step()
    assert world.stream.store() == [b"a"]

    blocker.unlink()
    await world.step(OPEN_AGAIN_S)
    assert world.carrier.degraded() == []
    assert world.recorder.open_requests is not None


async def test_a_stop_waits_until_all_records_are_stored(world: World) -> None:
    world.record(b"a")
    stopped = False
    stream = world.stream
    original = stream.send

    async def send_and_store(
        spool: str, batches: Sequence[tuple[int, bytes]], in_flight: dict[int, str]
    ) -> Sent:
        sent = await original(spool, batches, in_flight)
        stream.store()
        return sent

    stream.send = send_and_store  # type: ignore[method-assign]
    await world.carrier.stop()
    assert world.spool.size == 0
    assert not stopped


async def test_a_stop_without_redis_leaves_the_records(world: World, tmp_path: Path) -> None:
    world.stream.is_down = True
    world.record(b"a")
    await world.carrier.stop()

    later = World(tmp_path / "spool")
    later.spool._process = "b" * 16
    await later.carrier.open()
    await later.step()
    assert later.stream.store() == [b"a"]
