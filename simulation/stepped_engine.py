"""An engine with steps: the scheduler of ``loadgen engine``, driven by the virtual clock.

A step takes the time of its model. So speeds depend on the batch and on the prompts, as on a real engine.
"""

from __future__ import annotations

import random
from itertools import count

from loadgen.engine.model import Model
from loadgen.engine.scheduler import Plan, Scheduler
from loadgen.engine.sequence import Sequence, State
from simulation.clock import VirtualClock
from simulation.engine import RoomWatch, Work
from tokenpool.capacity.model import EngineObservation


class SteppedEngine:
    """One engine of a simulated replica: see ``AnyEngine``."""

    def __init__(self, clock: VirtualClock, model: Model, watch: RoomWatch, number: int, seed: int) -> None:
        self.number = number
        self.is_gone = False
        self._clock, self._watch = clock, watch
        self._scheduler = Scheduler(model)
        self._chance = random.Random(f"steps {seed} {number}")
        self._numbers = count()
        self._sequences: dict[Work, Sequence] = {}
        self._works: dict[Sequence, Work] = {}
        self._is_stepping = False
        watch.changed(self)

    @property
    def prompt_tokens(self) -> int:
        """See ``AnyEngine``."""
        return self._scheduler.statistics.prompt_tokens

    @property
    def found_tokens(self) -> int:
        """See ``AnyEngine``."""
        return self._scheduler.statistics.cached_tokens

    @property
    def has_room(self) -> bool:
        """See ``AnyEngine``."""
        return not self.is_gone and self._scheduler.unfinished < self._scheduler.model.slots

    @property
    def running(self) -> int:
        """See ``AnyEngine``."""
        return len(self._scheduler.running)

    def lose(self) -> None:
        """See ``AnyEngine``."""
        self.is_gone = True
        self._watch.changed(self)

    def add(self, work: Work) -> None:
        """See ``AnyEngine``. The request must fit into the model's window."""
        prompt = work.prompt
        assert prompt is not None, "an engine with steps needs the prompts of its requests"
        # The numbers identify tokens for the prefix cache: those of a family are shared.
        ids = (-1 - prompt.family,) * prompt.shared + (prompt.conversation,) * (prompt.tokens - prompt.shared)
        sequence = Sequence(next(self._numbers), ids, work.size, arrived_at=self._clock.now)
        self._sequences[work], self._works[sequence] = sequence, work
        self._scheduler.add(sequence)
        self._watch.changed(self)
        if not self._is_stepping:
            self._step()

    def stop(self, work: Work) -> int:
        """See ``AnyEngine``."""
        sequence = self._sequences.pop(work, None)
        if sequence is None:
            return 0
        del self._works[sequence]
        self._scheduler.abort(sequence, self._clock.now)
        self._watch.changed(self)
        return sequence.produced

    def observation(self) -> EngineObservation:
        """The content of its metrics page, now."""
        scheduler = self._scheduler
        model, statistics = scheduler.model, scheduler.statistics
        return EngineObservation(
            at=self._clock.now,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_usage=scheduler.kv_usage,
            kv_tokens=model.blocks * model.block_size,
            block_size=model.block_size,
            prompt_tokens=statistics.prompt_tokens,
            generation_tokens=statistics.generation_tokens,
            cached_tokens=statistics.cached_tokens,
            is_vllm=True,
        )

    def _step(self) -> None:
        """Begin the next step, if there is work."""
        self._is_stepping = not self.is_gone and self._scheduler.unfinished > 0
        if not self._is_stepping:
            return
        plan = self._scheduler.plan(self._clock.now)
        seconds = self._scheduler.model.costs.seconds(
            decoding=plan.decoding, prefilled=plan.prefilled, started=plan.started, chance=self._chance
        )
        self._clock.after(seconds, lambda: self._complete(plan))

    def _complete(self, plan: Plan) -> None:
        """End a step: requests begin with their first token, and end with their last."""
        if self.is_gone:
            return
        served = self._scheduler.complete(plan, self._clock.now)
        # A request that ends lets others begin. They join the next step, as in the runner.
        for sequence in served:
            work = self._works.get(sequence)
            if work is None:
                continue  # it was stopped by another one that ended in this step
            if sequence.produced == 1:
                work.found(sequence.cached)
                work.began()
            if sequence.state is State.ENDED:
                del self._works[sequence], self._sequences[work]
                self._watch.changed(self)
                work.finished()
        self._step()
