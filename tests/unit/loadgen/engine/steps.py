"""A scheduler with a virtual clock, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from loadgen.engine.model import Model
from loadgen.engine.scheduler import Plan, Scheduler
from loadgen.engine.sequence import Sequence

STEP_S = 1.0


class Engine:
    """A scheduler with steps of one second."""

    def __init__(self, **model: Any) -> None:
        given: dict[str, Any] = {
            "window": 64,
            "blocks": 64,
            "block_size": 4,
            "slots": 4,
            "batched_tokens": 64,
        }
        self.scheduler = Scheduler(Model(**given | model))
        self.now = 0.0
        self.tokens: list[Sequence] = []
        """The sequences that got tokens, in order."""
        self._numbers = itertools.count(1)

    def add(
        self, prompt: int | Iterable[int], bound: int = 4, *, priority: int = 0, natural: int | None = None
    ) -> Sequence:
        """Add a new sequence. A number as the prompt stands for so many tokens that no other prompt has."""
        number = next(self._numbers)
        tokens = range(number * 1000, number * 1000 + prompt) if isinstance(prompt, int) else prompt
        sequence = Sequence(
            number, tuple(tokens), bound, natural=natural, priority=priority, arrived_at=self.now
        )
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Plan:
        """Compute one step."""
        plan = self.scheduler.plan(self.now)
        self.now += STEP_S
        self.tokens += self.scheduler.complete(plan, self.now)
        return plan

    def run(self, steps: int = 1000) -> list[Plan]:
        """Compute steps until all sequences have ended."""
        plans = []
        while self.scheduler.unfinished:
            assert len(plans) < steps, "the scheduler does not finish"
            plans.append(self.step())
        return plans

    def abort(self, sequence: Sequence) -> bool:
        return self.scheduler.abort(sequence, self.now)
