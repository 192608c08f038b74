"""The ports of the driver: the alarm, and messages that each come back with an answer or a failure."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from sidecar.ports import LoopPorts, Result
from sidecar.report import Reporter
from sidecar.telemetry import Telemetry
from tests.support.sidecar_builders import reporter
from tokenpool.leases.messages import Answer, LeaseRequest, Message
from tokenpool.leases.wire import decode_report
from tokenpool.store import StoreDown
from tokenpool.store.memory import MemoryStore


class Scripted(MemoryStore):
    """A lease store that fails and answers as the test says."""

    def __init__(self) -> None:
        super().__init__(1.5, time.monotonic)
        self.error: Exception | None = None
        self.heard: list[Message] = []
        self.go = asyncio.Event()
        self.go.set()

    async def exchange(self, message: Message) -> Answer:
        self.heard.append(message)
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return await super().exchange(message)


def message(number: int, *, is_complete: bool = False, renews: bool = False) -> Message:
    return Message("s1", number, {"e": LeaseRequest()}, is_complete, renews=renews)


def ports_to(store: Scripted) -> LoopPorts:
    return LoopPorts(time.monotonic, store, reporter(Telemetry(10)))


async def result_of(ports: LoopPorts) -> Result:
    return await asyncio.wait_for(ports.results.get(), 5)


async def test_a_message_comes_back_with_its_answer() -> None:
    store = Scripted()
    ports = ports_to(store)

    ports.send_message(message(1, is_complete=True))

    sent, answer = await result_of(ports)
    assert isinstance(answer, Answer)
    assert (sent.number, answer.is_known) == (1, True)


async def test_only_messages_that_begin_or_renew_a_lifetime_carry_the_report() -> None:
    store = Scripted()
    ports = ports_to(store)
    for each in (message(1, is_complete=True), message(2), message(3, renews=True)):
        ports.send_message(each)
        await result_of(ports)

    assert [bool(heard.report) for heard in store.heard] == [True, False, True]
    assert decode_report(store.heard[0].report).replica.concurrency == 8


async def test_no_message_waits_for_the_answer_to_another() -> None:
    store = Scripted()
    ports = ports_to(store)
    store.go.clear()
    for number in (1, 2, 3):
        ports.send_message(message(number))
    while len(store.heard) < 3:
        await asyncio.sleep(0)
    assert ports.results.empty()

    store.go.set()

    assert sorted([(await result_of(ports))[0].number for _ in range(3)]) == [1, 2, 3]


async def test_a_store_that_fails_is_the_message_s_result() -> None:
    store = Scripted()
    ports = ports_to(store)
    store.error = error = StoreDown("the store is stopped")

    ports.send_message(message(1))

    assert await result_of(ports) == (message(1), error)


async def test_a_defect_in_the_exchange_is_a_failure_of_the_message() -> None:
    """Waiting requests are decided from the current lease, as if the store were down."""
    store = Scripted()
    ports = ports_to(store)
    store.error = ValueError("not foreseen")

    ports.send_message(message(1))

    sent, failure = await result_of(ports)
    assert isinstance(failure, StoreDown)
    assert (sent.number, "not foreseen" in str(failure)) == (1, True)


class Broken(Reporter):
    """A reporter with a defect."""

    def report(self, now: float) -> bytes:
        raise ZeroDivisionError


async def test_a_defect_in_the_report_is_a_failure_of_the_message_and_not_of_the_request() -> None:
    """Messages are sent while a request is decided: its decision goes on."""
    whole = reporter(Telemetry(10))
    broken = Broken(whole._engine, whole._leases, whole._telemetry, whole._lifecycle)
    store = Scripted()
    ports = LoopPorts(time.monotonic, store, broken)

    ports.send_message(message(1, is_complete=True))

    _, failure = await result_of(ports)
    assert isinstance(failure, StoreDown)
    assert store.heard == []


async def test_a_message_that_is_cancelled_has_a_result() -> None:
    store = Scripted()
    store.go.clear()
    ports = ports_to(store)
    ports.send_message(message(1))
    while not store.heard:
        await asyncio.sleep(0)

    landing = asyncio.ensure_future(ports.wait_for_results())
    await asyncio.sleep(0)
    landing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await landing

    _, failure = await result_of(ports)
    assert isinstance(failure, StoreDown)
    assert ports._calls == set()


async def test_the_alarm_goes_off_at_the_last_time_that_was_set() -> None:
    now = 100.0
    ports = LoopPorts(lambda: now)
    alarms = ports.alarms()
    ports.wake_at(now + 3600.0)
    ports.wake_at(now - 1.0)  # already over: at once

    await asyncio.wait_for(anext(alarms), 5)

    ports.wake_at(now)
    ports.wake_at(math.inf)
    await the_timer_ended(ports)
    assert not ports._alarm.is_set()
    await alarms.aclose()


async def test_a_timer_that_is_set_for_an_earlier_time_is_set_again() -> None:
    now = 100.0
    ports = LoopPorts(lambda: now)
    ports.wake_at(now)
    ports.wake_at(now + 3600.0)
    first = ports._timer
    await the_timer_ended(ports)
    assert not ports._alarm.is_set()
    assert ports._timer is not first
    ports.wake_at(math.inf)
    ports.wake_at(now)
    ports.wake_at(now + 1.0)
    ports.wake_at(now)
    await asyncio.wait_for(ports._alarm.wait(), 5)
    assert ports._timer is None


async def the_timer_ended(ports: LoopPorts) -> None:
    """Wait until a timer that is due has gone off."""
    first = ports._timer
    while ports._timer is first:
        await asyncio.sleep(0)


async def test_a_failed_delivery_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    LoopPorts(time.monotonic).failed("a decision could not be delivered", ValueError("why"))

    record = caplog.records[-1]
    assert (record.levelname, record.getMessage()) == ("CRITICAL", "a decision could not be delivered")
    assert record.exc_info is not None
