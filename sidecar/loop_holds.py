"""How long each periodic job holds the event loop at once. A request that arrives meanwhile waits as long.

A job is a name for tasks. A step of a task runs from one suspension to the next, and nothing else runs during
it. Each step is measured in CPU time of the thread, so the time of other processes does not count.
``runtime.loopdelay`` shows that time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, TypeVar

from runtime.exposition import Family, number
from sidecar.histogram import Buckets, Histogram

T = TypeVar("T")

WINDOW_S = 30.0
_BUCKETS = Buckets((0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1))
_STEPS = Family(
    "tokenpool_loop_hold_seconds",
    "histogram",
    "CPU time for which a step of a background job held the event loop.",
    ("job",),
)
_LONGEST = Family(
    "tokenpool_loop_hold_max_seconds", "gauge", "The longest such step within the last 30 to 60 s.", ("job",)
)
FAMILIES = (_STEPS, _LONGEST)


class Job:
    """The steps of one job."""

    def __init__(self, name: str, cpu_clock: Callable[[], float]) -> None:
        self.name = name
        self.cpu_clock = cpu_clock
        self.steps = Histogram(_BUCKETS)
        """The CPU seconds of each step."""
        self.longest_s = 0.0
        """The longest step of the current window."""
        self.longest_before_s = 0.0
        """The longest step of the window before."""

    def observe(self, seconds: float) -> None:
        """A step took this CPU time."""
        self.steps.observe(seconds)
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

    def pieces(self, labels: str) -> Iterator[str]:
        """The metrics for Prometheus, a job at a time. ``labels`` is formatted, without braces."""
        self._rotate()
        jobs = sorted(self.jobs.values(), key=lambda job: job.name)
        yield _STEPS.head()
        for job in jobs:
            yield job.steps.lines(_STEPS.name, f'job="{job.name}",{labels}')
        yield _LONGEST.head()
        for job in jobs:
            longest = max(job.longest_s, job.longest_before_s)
            yield f'{_LONGEST.name}{{job="{job.name}",{labels}}} {number(longest)}\n'

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
        return asyncio.Task(_Steps(work, job), loop=loop, context=context, **options)
    return asyncio.Task(work, loop=loop, context=context, **options)


class _Steps(Coroutine[Any, Any, T]):
    """A coroutine whose steps are measured. It passes everything on, also before its first step."""

    __slots__ = ("_job", "_work")

    def __init__(self, work: Coroutine[Any, Any, T] | Generator[Any, None, T], job: Job) -> None:
        self._work = work
        self._job = job

    def send(self, value: Any) -> Any:
        """Run the next step."""
        began = self._job.cpu_clock()
        try:
            return self._work.send(value)
        finally:
            self._job.observe(self._job.cpu_clock() - began)

    def throw(self, *error: Any) -> Any:
        """Run the next step with an error, such as a cancellation."""
        began = self._job.cpu_clock()
        try:
            return self._work.throw(*error)
        finally:
            self._job.observe(self._job.cpu_clock() - began)

    def close(self) -> None:
        """End the work."""
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        """A task runs it; nothing else awaits it."""
        raise NotImplementedError
