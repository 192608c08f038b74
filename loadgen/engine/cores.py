"""The engine cores behind one server: one, or several with data parallelism (``--data-parallel-size``).

Each core has a scheduler and a KV cache of its own. A sequence runs on the core with the least load, by
vLLM's measure: four times the waiting sequences and the running ones. The limits of the queue are the
server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sequential

from loadgen.engine.counters import REQUESTS, TOKENS
from loadgen.engine.model import Model
from loadgen.engine.pace import Late, Pace
from loadgen.engine.runner import Runner
from loadgen.engine.scheduler import Scheduler, limit_reached
from loadgen.engine.sequence import Sequence


def _print(late: Late) -> None:
    print(f"loadgen engine: {late}", file=sys.stderr, flush=True)


class Cores:
    """All engine cores of one server."""

    def __init__(
        self,
        model: Model,
        clock: Callable[[], float],
        chance: random.Random,
        told: Callable[[Late], None] = _print,
    ) -> None:
        """``told`` is called with each window of time in which the simulator did not keep up."""
        self.model = model
        self.clock = clock
        self.pace = Pace()
        self.runners = [
            Runner(Scheduler(model), clock, random.Random(chance.random()), self.pace, told)
            for _ in range(model.cores)
        ]
        self.rejections = {REQUESTS: 0, TOKENS: 0}
        """Refused requests by the limit of the queue that they exceed."""
        self._next = 0

    @property
    def schedulers(self) -> list[Scheduler]:
        """The scheduler of each core."""
        return [runner.scheduler for runner in self.runners]

    @property
    def unfinished(self) -> int:
        """Sequences that have not ended."""
        return sum(scheduler.unfinished for scheduler in self.schedulers)

    def limit_reached(self, sequences: int) -> str | None:
        """The limit of the queue that so many more sequences exceed, by vLLM's name. It is counted."""
        limit = limit_reached(self.schedulers, sequences)
        if limit is not None:
            self.rejections[limit] += 1
        return limit

    @contextlib.contextmanager
    def running(self, sequences: Sequential[Sequence], *, every_token: bool) -> Iterator[asyncio.Event]:
        """Compute sequences during the context. Unfinished sequences are aborted at its end.

        The event is set for every token, or only at the end of a sequence. The waiting task clears it.
        """
        event = asyncio.Event()
        chosen = []
        for sequence in sequences:
            runner = self._least_loaded()
            runner.add(sequence, event, every_token=every_token)
            chosen.append(runner)
        try:
            yield event
        finally:
            for runner, sequence in zip(chosen, sequences, strict=True):
                runner.remove(sequence)

    def stall(self, seconds: float) -> None:
        """Give no token for so many seconds from now, s."""
        for runner in self.runners:
            runner.stall(seconds)

    async def run(self) -> None:
        """Compute steps until cancelled."""
        async with asyncio.TaskGroup() as group:
            for runner in self.runners:
                group.create_task(runner.run())

    def _least_loaded(self) -> Runner:
        """The core with the least load; of equal ones each in turn."""
        count = len(self.runners)
        if count == 1:
            return self.runners[0]
        turns = [self.runners[(self._next + offset) % count] for offset in range(count)]
        self._next = (self._next + 1) % count
        return min(turns, key=lambda r: 4 * len(r.scheduler.waiting) + len(r.scheduler.running))
