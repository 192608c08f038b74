"""The write batch: events are written at the end of the turn, in order, and none is lost or overtaken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.proxy.connection_manager import ConnectionManager
from sidecar.proxy.receiving import MOST_UNSENT
from sidecar.proxy.write_batch import MOST
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import STREAM, is_whole, request, sidecar_for
from tests.support.memory import Transport, connect

EVENT = b"data: x\n\n"


class Recorder(Transport):
    """Records when a connection writes."""

    def __init__(self, log: list[str], name: str, *, fails: bool = False) -> None:
        super().__init__()
        self._log = log
        self._name = name
        self._fails = fails

    def write(self, data: bytes) -> None:
        self._log.append(self._name)
        if self._fails:
            raise ValueError("a defect")


@pytest.fixture
async def manager(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[ConnectionManager]:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        yield sidecar.manager


async def test_a_batch_is_written_at_the_end_of_the_turn_in_its_order(manager: ConnectionManager) -> None:
    log = list[str]()
    for name in ("a", "b", "c"):
        connect(manager, Recorder(log, name))[0].write_soon(EVENT)
    assert not log
    assert not manager.batch.is_empty

    await asyncio.sleep(0)

    assert log == ["a", "b", "c"]
    assert manager.batch.is_empty


async def test_a_full_batch_is_written_at_once(manager: ConnectionManager) -> None:
    log = list[str]()
    for number in range(MOST + 1):
        connect(manager, Recorder(log, str(number)))[0].write_soon(EVENT)

    assert log == [str(number) for number in range(MOST)]
    manager.batch.write()
    assert log[MOST:] == [str(MOST)]
    await asyncio.sleep(0)
    assert len(log) == MOST + 1


async def test_a_defect_of_one_connection_delays_no_other(
    manager: ConnectionManager, caplog: pytest.LogCaptureFixture
) -> None:
    log = list[str]()
    connect(manager, Recorder(log, "a", fails=True))[0].write_soon(EVENT)
    connect(manager, Recorder(log, "b"))[0].write_soon(EVENT)

    manager.batch.write()

    assert log == ["a", "b"]
    assert "a part of an answer could not be written" in caplog.text


async def test_later_bytes_follow_earlier_ones(manager: ConnectionManager) -> None:
    connection, transport = connect(manager)
    other, others = connect(manager)
    other.write_soon(b"0")
    connection.write_soon(b"1")
    assert transport.written == others.written == b""

    connection.write(b"2")

    assert transport.written == b"12"
    assert others.written == b"0"
    connection.write_soon(b"3")
    connection.write_soon(b"4")
    assert transport.written == b"1234"
    await asyncio.sleep(0)
    assert transport.written == b"1234"


async def test_nothing_is_written_for_an_event_without_bytes(manager: ConnectionManager) -> None:
    connection, transport = connect(manager)
    connection.write_soon(b"")

    assert manager.batch.is_empty
    assert transport.written == b""


async def test_many_bytes_are_not_kept(manager: ConnectionManager) -> None:
    connection, transport = connect(manager)
    connection.write_soon(b"x" * (MOST_UNSENT + 1))

    assert len(transport.written) == MOST_UNSENT + 1


async def test_a_request_is_read_after_the_batch_is_written(manager: ConnectionManager) -> None:
    connection, transport = connect(manager)
    other, _ = connect(manager)
    connection.write_soon(EVENT)

    other.data_received(b"GET /")

    assert transport.written == EVENT


async def test_bytes_are_written_before_a_connection_is_closed(manager: ConnectionManager) -> None:
    closed, transport = connect(manager)
    closed.write_soon(EVENT)
    closed.close_if_idle()
    assert transport.written == EVENT
    assert transport.is_closing()


async def test_a_lost_connection_drops_its_bytes(manager: ConnectionManager) -> None:
    connection, transport = connect(manager)
    connection.write_soon(EVENT)
    connection.connection_lost(None)
    await asyncio.sleep(0)

    assert transport.written == b""
    assert manager.batch.is_empty


async def test_an_answer_that_breaks_off_is_relayed_to_its_last_event(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """The engine's last event and the end of its connection may be read in one turn."""
    count = 7

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD)
        for _ in range(count):
            writer.write(fake.chunk(fake.token_event()))
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.listens_on.port)
        writer.write(request("/v1/chat/completions", STREAM))
        received = await reader.read()
        writer.close()
        assert is_whole(sidecar)

    assert received.count(fake.token_event()) == count
    assert not received.endswith(b"0\r\n\r\n")
