"""The thread that runs blocking calls."""

from __future__ import annotations

import asyncio
import threading

import pytest

from coordinator.usage.worker import Busy, Worker


def fail() -> None:
    raise ValueError("no")


async def test_calls_run_in_one_thread_in_turn() -> None:
    worker = Worker()
    found = await asyncio.gather(*(worker.run(threading.get_ident) for _ in range(5)))
    await worker.stop(lambda: None, 5)

    assert len({*found}) == 1
    assert found[0] != threading.get_ident()


async def test_an_error_is_the_callers() -> None:
    worker = Worker()
    with pytest.raises(ValueError, match="no"):
        await worker.run(fail)
    assert await worker.run(lambda: 1) == 1
    await worker.stop(lambda: None, 5)


async def test_a_call_that_hangs_makes_further_calls_fail_until_it_ends() -> None:
    worker, goes_on, began = Worker(), threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        goes_on.wait()

    hanging = asyncio.ensure_future(worker.run(hang))
    waiting = asyncio.ensure_future(worker.run(lambda: "never"))
    await asyncio.to_thread(began.wait)
    hanging.cancel()
    waiting.cancel()
    assert all(
        isinstance(each, asyncio.CancelledError)
        for each in await asyncio.gather(hanging, waiting, return_exceptions=True)
    )
    with pytest.raises(Busy):
        await worker.run(lambda: 1)
    goes_on.set()
    while True:
        try:
            assert await worker.run(lambda: 2) == 2
            break
        except Busy:
            await asyncio.sleep(0)
    await worker.stop(lambda: None, 5)


async def test_a_worker_that_never_ran_stops_at_once() -> None:
    await Worker().stop(fail, 5)


async def test_the_last_call_runs_before_the_end() -> None:
    worker, calls = Worker(), list[str]()
    await worker.run(lambda: calls.append("first"))
    await worker.stop(lambda: calls.append("last"), 5)

    assert calls == ["first", "last"]
