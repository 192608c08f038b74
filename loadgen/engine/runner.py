"""Runs a scheduler in real time, step after step, and wakes the tasks that wait for tokens.

Only this module uses the real clock. All uses of the scheduler are in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sequential

from loadgen.engine.scheduler import Scheduler
from loadgen.engine.sequence import Sequence

CATCH_UP_S = 0.05
"""After a late step, the next one begins earlier by at most this. A paused process does not catch up."""


class Runner:
    """One running engine."""

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float], chance: random.Random) -> None:
        self.scheduler = scheduler
        self.clock = clock
        self._chance = chance
        self._has_work = asyncio.Event()
        self._listeners: dict[Sequence, tuple[asyncio.Event, bool]] = {}

    @contextlib.contextmanager
    def running(self, sequences: Sequential[Sequence], *, every_token: bool) -> Iterator[asyncio.Event]:
        """Compute sequences during the context. Unfinished sequences are aborted at its end.

        The event is set for every token, or only at the end of a sequence. The waiting task clears it.
        """
        event = asyncio.Event()
        for sequence in sequences:
            self._listeners[sequence] = event, every_token
            self.scheduler.add(sequence)
        self._has_work.set()
        try:
            yield event
        finally:
            for sequence in sequences:
                del self._listeners[sequence]
                self.scheduler.abort(sequence, self.clock())

    async def run(self) -> None:
        """Compute steps until cancelled."""
        due = self.clock()
        while True:
            if not self.scheduler.unfinished:
                self._has_work.clear()
                await self._has_work.wait()
                due = self.clock()
            due = await self._step(due)

    async def _step(self, due: float) -> float:
        """Compute the step due at ``due``. Returns the due time of the next one."""
        now = self.clock()
        plan = self.scheduler.plan(now)
        begin = max(due, now - CATCH_UP_S)
        self.scheduler.statistics.lost_s += begin - due
        end = begin + self.scheduler.model.costs.seconds(
            decoding=plan.decoding, prefilled=plan.prefilled, started=plan.started, chance=self._chance
        )
        await asyncio.sleep(end - now)
        for sequence in self.scheduler.complete(plan, self.clock()):
            event, every_token = self._listeners[sequence]
            if every_token or sequence.ending is not None:
                event.set()
        # The tasks that were just woken write their tokens before this call.
        asyncio.get_running_loop().call_soon(self._delivered, end)
        return end

    def _delivered(self, planned_end: float) -> None:
        self.scheduler.statistics.step_delay.observe(max(self.clock() - planned_end, 0.0))
