"""The holds of the event loop by job: each step of each task of a job counts, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sidecar.loop_holds import WINDOW_S, LoopHolds


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Cpu(Clock):
    """The CPU time, which passes by ``spend`` only."""

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
async def cpu() -> AsyncIterator[Cpu]:
    yield Cpu()
    asyncio.get_running_loop().set_task_factory(None)


async def test_each_step_of_a_job_counts_by_its_time(cpu: Cpu) -> None:
    holds = LoopHolds(Clock(), cpu)

    async def work() -> str:
        for seconds in (0.00005, 0.002, 0.0002):
            cpu.spend(seconds)
            await asyncio.sleep(0)
        return "done"

    with holds.job("leases"):
        task = asyncio.get_running_loop().create_task(work())

    assert await task == "done"
    job = holds.jobs["leases"]
    assert sum(job.steps.counts) == 4
    assert job.longest_s == pytest.approx(0.002)
    page = "".join(holds.pieces('pool="p"'))
    assert 'tokenpool_loop_hold_seconds_bucket{job="leases",pool="p",le="0.0001"} 2.0' in page
    assert 'tokenpool_loop_hold_seconds_bucket{job="leases",pool="p",le="0.0003"} 3.0' in page
    assert 'tokenpool_loop_hold_seconds_count{job="leases",pool="p"} 4.0' in page
    assert 'tokenpool_loop_hold_max_seconds{job="leases",pool="p"} 0.00' in page


async def test_tasks_that_a_job_starts_belong_to_it_and_others_to_none(cpu: Cpu) -> None:
    holds = LoopHolds(Clock(), cpu)

    async def child() -> None:
        cpu.spend(0.01)

    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    with holds.job("engine"):
        task = asyncio.get_running_loop().create_task(parent())
    other = asyncio.get_running_loop().create_task(child())
    await asyncio.gather(task, other)

    assert set(holds.jobs) == {"engine"}
    assert holds.jobs["engine"].steps.total == pytest.approx(0.01)


async def test_a_task_is_cancelled_and_fails_as_without_a_job(cpu: Cpu) -> None:
    holds, seen = LoopHolds(Clock(), cpu), list[str]()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
            seen.append("cleaned up")
            raise

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("a defect")

    with holds.job("sweep"):
        waiting = asyncio.get_running_loop().create_task(waits())
        failing = asyncio.get_running_loop().create_task(fails())
    await asyncio.sleep(0)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(ValueError, match="a defect"):
        await failing
    assert seen == ["cancelled", "cleaned up"]


async def test_an_error_reaches_the_place_that_waits(cpu: Cpu) -> None:
    holds = LoopHolds(Clock(), cpu)

    async def works() -> str:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, KeyError("x"))
        try:
            await future
        except KeyError:
            return "handled"
        return "not raised"

    with holds.job("quotas"):
        task = asyncio.get_running_loop().create_task(works())

    assert await task == "handled"


async def test_the_longest_step_is_forgotten_after_a_while(cpu: Cpu) -> None:
    clock = Clock()
    holds = LoopHolds(clock, cpu)

    async def work() -> None:
        cpu.spend(0.5)

    with holds.job("prices"):
        await asyncio.get_running_loop().create_task(work())
    line = 'tokenpool_loop_hold_max_seconds{job="prices",pool="p"} %s'
    assert line % "0.5" in "".join(holds.pieces('pool="p"'))
    clock.now += WINDOW_S + 1
    assert line % "0.5" in "".join(holds.pieces('pool="p"'))
    clock.now += WINDOW_S + 1
    assert line % "0.0" in "".join(holds.pieces('pool="p"'))


async def test_another_task_factory_stays(cpu: Cpu) -> None:
    loop, holds = asyncio.get_running_loop(), LoopHolds(Clock(), cpu)

    def factory(loop: asyncio.AbstractEventLoop, work: object, **options: object) -> asyncio.Task[None]:
        return asyncio.Task(work, loop=loop)  # type: ignore[arg-type]

    loop.set_task_factory(factory)

    async def work() -> None:
        cpu.spend(0.1)

    with holds.job("cors"):
        await loop.create_task(work())

    assert loop.get_task_factory() is factory
    assert sum(holds.jobs["cors"].steps.counts) == 0


async def test_a_task_that_is_cancelled_before_its_first_step_leaves_nothing_behind(cpu: Cpu) -> None:
    holds, began = LoopHolds(Clock(), cpu), list[str]()

    async def work() -> None:
        began.append("work")

    with holds.job("sweep"):
        coroutine = work()
        task = asyncio.get_running_loop().create_task(coroutine)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not began
    assert coroutine.cr_frame is None  # it has ended, so nothing warns that it was never awaited
