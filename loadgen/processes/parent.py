"""Performs a run in several processes, and merges their results. One Ctrl-C ends all of them.

The children are in a session of their own, so a terminal's Ctrl-C reaches the parent only. The parent ends
the children by closing their standard input, which works on its own end, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from dataclasses import replace

from loadgen.processes import link, merging
from loadgen.processes.child import folder
from loadgen.processes.link import Done, Reached, Ready
from loadgen.processes.part import Part
from loadgen.progress import Progress
from loadgen.records import Meta, Outcome
from loadgen.run import HEAD_START_S, Order
from loadgen.run import perform as perform_here

READY_S = 60.0
"""The time limit for a child to start, s: it imports the program, and reads its order."""


class ProcessFailed(Exception):
    """A process of a run ended before its part. The text names the process and the next step."""


class _Child:
    """One process."""

    def __init__(self, process: Process, part: Part) -> None:
        self.process = process
        self._name = f"process {part.index + 1} of {part.of}"
        self.reached = Reached(0, {})
        self._done: Done | None = None

    async def ready(self) -> None:
        """Wait until it has read its order. Raises ``ProcessFailed``."""
        try:
            async with asyncio.timeout(READY_S):
                if await self._next() != Ready():
                    raise await self._failed()
        except TimeoutError:
            raise ProcessFailed(
                f"{self._name} did not start within {READY_S:g} s; use fewer --processes"
            ) from None

    async def follow(self) -> None:
        """Wait for the end of its part. Raises ``ProcessFailed`` if it ends before."""
        while (message := await self._next()) is not None:
            if isinstance(message, Reached):
                self.reached = message
            elif isinstance(message, Done):
                self._done = message
        await self.process.wait()
        if self._done is None or self._done.error:
            raise await self._failed()

    def stop(self) -> None:
        """End its part early, with its measurements."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def _next(self) -> link.Message | None:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        return link.read(line) if line else None

    async def _failed(self) -> ProcessFailed:
        status = await self.process.wait()
        if self._done is not None and self._done.error:
            how = f"failed: {self._done.error}"
        elif status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        else:
            how = f"ended with exit status {status}"
        return ProcessFailed(
            f"{self._name} {how}, so the run is not complete and has no report; run the scenario again"
        )


async def perform(order: Order, processes: int) -> Meta:
    """Perform a run, or its beginning until SIGINT or SIGTERM. Raises ``ProcessFailed``."""
    if processes == 1:
        return await perform_here(order)
    async with contextlib.AsyncExitStack() as stack:
        children = [await _start(order, Part(index, processes), stack) for index in range(processes)]
        for child in children:
            await child.ready()
        zero_s = time.monotonic() + HEAD_START_S
        for child in children:
            assert child.process.stdin is not None
            child.process.stdin.write(link.start(zero_s))
        _end_on_signals(children)
        await _follow(children, order.scenario.duration_s, zero_s)
    parts = [folder(order.out, index) for index in range(processes)]
    meta = merging.merge(order.out, parts)
    shutil.rmtree(parts[0].parent)
    return meta


async def _start(order: Order, part: Part, stack: contextlib.AsyncExitStack) -> _Child:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen.processes.child", stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    stack.push_async_callback(_end, process)
    assert process.stdin is not None
    own = replace(order, part=part, out=folder(order.out, part.index))
    process.stdin.write(link.packed(own))
    return _Child(process, part)


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _end_on_signals(children: list[_Child]) -> None:
    """The first signal ends the parts with their measurements; a second ends all processes at once."""
    seen = 0

    def interrupted() -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    child.process.kill()
            os._exit(128 + signal.SIGINT)
        for child in children:
            child.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted)


async def _follow(children: list[_Child], duration_s: float, zero_s: float) -> None:
    """Show the progress of all until all have ended. Raises the first ``ProcessFailed``."""
    showing = asyncio.create_task(_show(children, duration_s, zero_s))
    try:
        async with asyncio.TaskGroup() as group:
            for child in children:
                group.create_task(child.follow())
    except* ProcessFailed as failed:
        raise failed.exceptions[0] from None
    finally:
        showing.cancel()
        await asyncio.wait([showing])


async def _show(children: list[_Child], duration_s: float, zero_s: float) -> None:
    progress = Progress(sys.stderr)
    try:
        while True:
            await asyncio.sleep(progress.interval_s)
            ended: Counter[Outcome] = Counter()
            for child in children:
                ended.update({Outcome(name): count for name, count in child.reached.ended.items()})
            in_flight = sum(child.reached.in_flight for child in children)
            progress.show(max(time.monotonic() - zero_s, 0.0), duration_s, in_flight, ended)
    finally:
        progress.clear()
