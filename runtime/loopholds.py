"""How long each periodic job holds the event loop at once. A request that arrives meanwhile waits as long.

A job is a name for tasks. A step of a task runs from one suspension to the
next, and nothing else runs during it. Each step is measured in CPU time of the thread. The time for which the
machine runs other processes is no property of a job; ``loopdelay`` shows it.
"""

from __future__ import annotations

import asyncio
import time
import types
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from functools import partial
from typing import Any, TypeVar

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from runtime.exposition import bound_labels

T = TypeVar("T")

WINDOW_S = 30.0
BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Job:
    """The steps of one job."""

    def __init__(self, name: str, cpu_clock: Callable[[], float]) -> None:
        self.name = name
        self.cpu_clock = cpu_clock
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total_s = 0.0
        self.longest_s = 0.0
        """The longest step of the current window."""
        self.longest_before_s = 0.0
        """The longest step of the window before."""

    @property
    def steps(self) -> int:
        """The number of steps."""
        return sum(self.counts)

    def observe(self, seconds: float) -> None:
        """A step took this CPU time."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total_s += seconds
        if seconds > self.longest_s:
            self.longest_s = seconds


_JOB: ContextVar[Job | None] = ContextVar("job", default=None)


class LoopHolds:
    """The jobs of one sidecar. Both clocks are in seconds."""

    def __init__(self, clock: Callable[[], float], cpu_clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._window_ends = clock() + WINDOW_S
        self.jobs: dict[str, Job] = {}

    @contextmanager
    def job(self, name: str) -> Iterator[None]:
        """Tasks that start in this context belong to this job, as do the tasks that they start.

        It needs a running loop without a task factory of another kind; with one, nothing is measured.
        """
        loop = asyncio.get_running_loop()
        if loop.get_task_factory() is None:
            loop.set_task_factory(_make_task)
        job = self.jobs.get(name)
        if job is None:
            job = self.jobs[name] = Job(name, self._cpu_clock)
        before = _JOB.set(job)
        try:
            yield
        finally:
            _JOB.reset(before)

    def metrics(self) -> Iterator[Metric]:
        """The metrics for Prometheus."""
        self._rotate()
        histogram = HistogramMetricFamily(
            "tokenpool_loop_hold_seconds",
            "CPU time for which a step of a background job held the event loop.",
            labels=("job",),
        )
        longest = GaugeMetricFamily(
            "tokenpool_loop_hold_max_seconds",
            "The longest such step within the last 30 to 60 s.",
            labels=("job",),
        )
        for name, job in sorted(self.jobs.items()):
            buckets, running = [], 0
            for le, count in zip(bound_labels(BOUNDS), job.counts, strict=True):
                running += count
                buckets.append((le, float(running)))
            histogram.add_metric((name,), buckets, job.total_s)
            longest.add_metric((name,), max(job.longest_s, job.longest_before_s))
        yield from (histogram, longest)

    def _rotate(self) -> None:
        now = self._clock()
        if now < self._window_ends:
            return
        is_recent = now < self._window_ends + WINDOW_S
        for job in self.jobs.values():
            job.longest_before_s = job.longest_s if is_recent else 0.0
            job.longest_s = 0.0
        self._window_ends = now + WINDOW_S


def _make_task(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, T] | Generator[Any, None, T],
    *,
    context: Context | None = None,
    **options: Any,
) -> asyncio.Task[T]:
    """The loop's task factory: the steps of a task count for the job in whose context it starts."""
    job = _JOB.get() if context is None else context.get(_JOB, None)
    if job is not None:
        work = _in_steps(work, job)
    return asyncio.Task(work, loop=loop, context=context, **options)


@types.coroutine
def _in_steps(work: Coroutine[Any, Any, T] | Generator[Any, None, T], job: Job) -> Generator[Any, None, T]:
    """Run a coroutine, and measure each step."""
    go_on: Callable[[], Any] = partial(work.send, None)
    step, clock = go_on, job.cpu_clock
    while True:
        began = clock()
        try:
            waits_for = step()
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            job.observe(clock() - began)
        try:
            yield waits_for
            step = go_on
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:
            step = partial(work.throw, error)
