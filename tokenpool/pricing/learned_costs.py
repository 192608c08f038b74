"""Learned costs: the estimates of one entitlement, by route and model, and by the prefix of the prompt.

Each entitlement has its own, so no tenant can infer another tenant's requests from prices. All of them are
bounded, so no tenant can make them grow. ``estimators`` has the rules by which a single number is learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenpool.pricing.estimators import InputTokens, OutputQuantile

Target = tuple[str, str]
"""The route and the model of a request."""

MOST_TARGETS = 16
"""The most targets with their own learned costs."""
IDLE_OBSERVATIONS = 1000
"""A new target replaces a target that had none of the entitlement's last ``IDLE_OBSERVATIONS`` observations.
Without such a target, it is priced by the overall costs. So no rotation of names can displace a target in
use."""
PREFIX_BYTES = (1024, 4096, 16384)
"""The prefix lengths by which prompts are recognised, in bytes."""
MOST_PREFIXES = 256
"""The most prefixes that are remembered. A new one replaces the least recently used one."""


class LearnedCosts:
    """The estimates of one kind of request."""

    __slots__ = ("input", "last_observation", "output")

    def __init__(self, prompt: InputTokens, output: OutputQuantile) -> None:
        self.input = prompt
        self.output = output
        self.last_observation = 0
        """The number of its last observation, in the order of all observations of the entitlement."""

    def copy(self) -> LearnedCosts:
        """A copy with the same knowledge."""
        return LearnedCosts(self.input.copy(), self.output.copy())


class LearnedByTarget:
    """The learned costs of each target, and of all requests together. A new target begins with the latter.

    A target gets its own costs at its first observation. Only a request that the engine served is observed,
    so names that no engine serves take no memory. The first target shares one object with the overall costs.
    """

    __slots__ = ("_observations", "_own", "overall")

    def __init__(self, quantile: float) -> None:
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
        return (own,) if own is self.overall else (own, self.overall)

    def set_quantile(self, quantile: float) -> None:
        """Change the quantile of outputs. The observed outputs stay."""
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
        own[target] = made = self.overall.copy() if own else self.overall
        return made

    def _remove_idle_target(self) -> bool:
        own = self._own
        idle = min(own, key=lambda target: own[target].last_observation)
        if own[idle].last_observation + IDLE_OBSERVATIONS > self._observations:
            return False
        del own[idle]
        return True


class Prefixes:
    """The number of prompt tokens that the engine has in its cache, by the prefix of the prompt.

    The numbers come from the engine's reports. A smaller number counts at once. A larger one moves the
    estimate by half of the difference. So the first request that had to compute an evicted prefix corrects
    its estimate. Without reports from the engine there are no estimates.
    """

    __slots__ = ("_cached",)

    def __init__(self) -> None:
        self._cached: dict[int, int] = {}
        """Tokens by the hash of a prefix, in the order of use."""

    def __len__(self) -> int:
        return len(self._cached)

    def expect(self, prefixes: Sequence[int]) -> int:
        """The expected cached tokens of a prompt with these prefixes (shortest first)."""
        known = self._cached
        if known:
            for prefix in reversed(prefixes):
                if prefix in known:
                    return known[prefix]
        return 0

    def observe(self, prefixes: Sequence[int], cached_tokens: int) -> None:
        """Learn the number of tokens that the engine found in its cache for a prompt with these prefixes.

        The longest known prefix learns the number, and longer prefixes start with it. Shorter prefixes also
        price other prompts, so they learn only a smaller number.
        """
        known, is_longest = self._cached, True
        for prefix in reversed(prefixes):
            believed = known.pop(prefix, None)
            if believed is None or cached_tokens < believed:
                value = cached_tokens
            else:
                value = (believed + cached_tokens) // 2 if is_longest else believed
            is_longest = is_longest and believed is None
            if value > 0:
                known[prefix] = value
        while len(known) > MOST_PREFIXES:
            del known[next(iter(known))]

    def forget(self) -> None:
        """The engine's cache is empty."""
        self._cached.clear()
