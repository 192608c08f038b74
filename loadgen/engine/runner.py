"""Runs a scheduler in real time, step after step, and wakes the tasks that wait for tokens.

Only this module uses the real clock. All uses of the scheduler are in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from loadgen.engine.pace import Late, Pace
from loadgen.engine.scheduler import Scheduler
from loadgen.engine.sequence import Sequence

CATCH_UP_S = 0.05
"""After a late step, the next one begins earlier by at most this. A paused process does not catch up."""


class Runner:
    """One running engine core."""

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Callable[[], float],
        chance: random.Random,
        pace: Pace,
        told: Callable[[Late], None],
    ) -> None:
        """``told`` is called with each window of time in which the steps were late."""
        self.scheduler = scheduler
        self._pace, self._told = pace, told
        self.clock = clock
        self._chance = chance
        self._has_work = asyncio.Event()
        self._stalled_until = 0.0
        self._listeners: dict[Sequence, tuple[asyncio.Event, bool]] = {}

    def add(self, sequence: Sequence, event: asyncio.Event, *, every_token: bool) -> None:
        """Compute a sequence. The event is set for every token, or only at the end."""
        self._listeners[sequence] = event, every_token
        self.scheduler.add(sequence)
        self._has_work.set()

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence of ``add``. An unfinished one is aborted."""
        del self._listeners[sequence]
        self.scheduler.abort(sequence, self.clock())

    def stall(self, seconds: float) -> None:
        """Give no token for so many seconds from now, s. The step under way ends after them."""
        self._stalled_until = max(self._stalled_until, self.clock() + seconds)

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
        seconds = self.scheduler.model.costs.seconds(
            decoding=plan.decoding, prefilled=plan.prefilled, started=plan.started, chance=self._chance
        )
        begin = max(due, now - CATCH_UP_S)
        self.scheduler.statistics.lost_s += begin - due
        end = begin + seconds
        await asyncio.sleep(end - now)
        done = self.clock()
        late = self._pace.step(seconds, max(done - end, 0.0), begin - due, done)
        if late is not None:
            self._told(late)
        while self._stalled_until > self.clock():
            await asyncio.sleep(self._stalled_until - self.clock())
            end = self.clock()
        for sequence in self.scheduler.complete(plan, self.clock()):
            event, every_token = self._listeners[sequence]
            if every_token or sequence.ending is not None:
                event.set()
        # The tasks that were just woken write their tokens before this call.
        asyncio.get_running_loop().call_soon(self._delivered, end)
        return end

    def _delivered(self, planned_end: float) -> None:
        self.scheduler.statistics.step_delay.observe(max(self.clock() - planned_end, 0.0))
