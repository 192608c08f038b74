"""The process of a worker: it is stopped while it starts or pauses, and it cannot be started."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sidecar.worker import Place
from sidecar.workers.processes import WorkerProcess

PLACE = Place(
    index=0, workers=1, pod="p", folder="/none", table=0, notifiers=(), listen=(("127.0.0.1", 0),), living=0
)
AT_ONCE_S = 5.0
SLEEPS = ("sleep", "60")


def ignored(index: int, start: int) -> None:
    """Nobody needs to know the end."""


async def test_a_worker_that_is_starting_is_stopped_too() -> None:
    worker = WorkerProcess(PLACE, SLEEPS, ignored)
    running = asyncio.ensure_future(worker.run())
    await asyncio.sleep(0)  # the start has begun, and there is no process yet
    assert worker.pid is None

    worker.stop()

    await asyncio.wait_for(running, AT_ONCE_S)


async def test_a_stop_does_not_wait_for_the_pause_before_a_start() -> None:
    ended = asyncio.Event()
    worker = WorkerProcess(PLACE, ("false",), lambda index, start: ended.set())
    for _ in range(8):
        worker.restarts.ended(0.0, 0.0)  # the next pause has 10 s
    running = asyncio.ensure_future(worker.run())
    await ended.wait()

    worker.stop()

    await asyncio.wait_for(running, AT_ONCE_S)


async def test_a_worker_that_cannot_be_started_again_now_is_started_later(tmp_path: Path) -> None:
    program = tmp_path / "worker"
    starts: list[int] = []
    program.symlink_to("/bin/false")
    started_again = asyncio.Event()

    def ended(index: int, start: int) -> None:
        starts.append(start)
        if len(starts) == 1:
            program.unlink()
        else:
            started_again.set()

    worker = WorkerProcess(PLACE, (str(program),), ended)
    running = asyncio.ensure_future(worker.run())
    while worker.restarts.count < 2:
        assert not running.done()
        await asyncio.sleep(0.01)
    program.symlink_to("/bin/false")

    await asyncio.wait_for(started_again.wait(), AT_ONCE_S)
    assert len(set(starts)) == len(starts)
    worker.stop()
    await asyncio.wait_for(running, AT_ONCE_S)
