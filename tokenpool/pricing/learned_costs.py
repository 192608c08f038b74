"""Learned costs: the estimates of one entitlement by route and model.

Each entitlement has its own, so no tenant can infer another tenant's requests from prices. All of them are
bounded, so no tenant can make them grow. ``experts`` has the estimates by the prefix of the prompt, and
``estimators`` the rules by which a single number is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tokenpool.pricing.estimators import InputTokens, OutputQuantile
from tokenpool.pricing.experts import IDLE_OBSERVATIONS, Target
from tokenpool.pricing.statistics import TargetStatistics, combined_lines, combined_outputs

MOST_TARGETS: Final = 16
"""The most targets with their own learned costs. A new target replaces one that was idle for
``IDLE_OBSERVATIONS``. Without such a target, it is priced by the overall costs. So no rotation of names can
displace a target in use."""
PREFIX_BYTES: Final = (1024, 4096, 16384)
"""The prefix lengths by which prompts are recognised, in bytes."""


class LearnedCosts:
    """The estimates of one kind of request."""

    __slots__ = ("input", "last_observation", "observations", "output")

    def __init__(self, prompt: InputTokens, output: OutputQuantile) -> None:
        self.input = prompt
        self.output = output
        self.observations = 0
        self.last_observation = 0
        """The number of its last observation, in the order of all observations of the entitlement."""

    def copy(self) -> LearnedCosts:
        """A copy with the same knowledge."""
        made = LearnedCosts(self.input.copy(), self.output.copy())
        made.observations, made.last_observation = self.observations, self.last_observation
        return made

    def lent(self) -> LearnedCosts:
        """A copy with the same knowledge. None of it counts as the copy's own."""
        return LearnedCosts(self.input.copy(is_lent=True), self.output.copy(is_lent=True))


class LearnedByTarget:
    """The learned costs of each target, and of all requests together. A new target begins with the latter.

    A target gets its own costs at its first observation. Only a request that the engine served is observed,
    so names that no engine serves take no memory. The first target shares one object with the overall costs.
    """

    __slots__ = ("_observations", "_own", "_quantile", "overall")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self.overall = LearnedCosts(InputTokens(), OutputQuantile(quantile))
        """The costs learned from all requests together."""
        self._own: dict[Target, LearnedCosts] = {}
        self._observations = 0

    def __iter__(self) -> Iterator[tuple[Target, LearnedCosts]]:
        return iter(self._own.items())

    def of(self, target: Target) -> LearnedCosts:
        """The learned costs for a request to the target."""
        return self._own.get(target, self.overall)

    def learners_of(self, target: Target) -> tuple[LearnedCosts, ...]:
        """All learned costs that observe a request to the target. Counts one observation."""
        self._observations += 1
        own = self._own.get(target) or self._begin(target)
        own.last_observation = self._observations
        own.observations += 1
        return (own,) if own is self.overall else (own, self.overall)

    def set_quantile(self, quantile: float) -> None:
        """Change the quantile of outputs. The observed outputs stay."""
        self._quantile = quantile
        for learned in (self.overall, *self._own.values()):
            learned.output.set_quantile(quantile)

    def _begin(self, target: Target) -> LearnedCosts:
        """Make a target's own learned costs; returns the overall ones if there is no place for it."""
        own = self._own
        if len(own) == 1:
            for first in own:
                own[first] = self.overall.copy()
        elif len(own) == MOST_TARGETS and not self._remove_idle_target():
            return self.overall
        own[target] = made = self.overall.lent() if own else self.overall
        return made

    def lend(self, known: Mapping[Target, Sequence[TargetStatistics]]) -> None:
        """Start from the observations of other sidecars. Targets with own costs stay as they are.

        Raises ``ValueError`` for invalid statistics.
        """
        own = self._own
        if not known:
            return
        if not self._observations:
            own.clear()
            self.overall = LearnedCosts(InputTokens(), OutputQuantile(self._quantile))
            self._lend(self.overall, [part for parts in known.values() for part in parts])
        new = [target for target in known if target not in own]
        new.sort(key=lambda target: -sum([part.prompts for part in known[target]]))
        is_alone = not own and len(new) == 1
        for target in new[: MOST_TARGETS - len(own)]:
            if is_alone:
                own[target] = self.overall
                continue
            if len(own) == 1:
                for first in own:
                    if own[first] is self.overall:
                        own[first] = self.overall.copy()
            made = LearnedCosts(InputTokens(), OutputQuantile(self._quantile))
            self._lend(made, known[target])
            made.last_observation = self._observations
            own[target] = made

    def _lend(self, made: LearnedCosts, parts: Sequence[TargetStatistics]) -> None:
        made.input.lend(combined_lines(parts))
        output = combined_outputs([part.output for part in parts])
        made.output.lend(output.outputs, output.predictions, output.misses, output.level)

    def _remove_idle_target(self) -> bool:
        own = self._own
        idle = min(own, key=lambda target: own[target].last_observation)
        if own[idle].last_observation + IDLE_OBSERVATIONS > self._observations:
            return False
        del own[idle]
        return True
