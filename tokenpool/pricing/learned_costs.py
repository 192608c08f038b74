"""LearnedCosts: what an entitlement's requests taught, by route and model, and by the prefix of the prompt.

Everything here is one entitlement's own, so that no tenant can learn of another's requests from its prices,
and bounded, so that no tenant can make it grow. How a single number is learned is in ``estimators``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tokenpool.pricing.estimators import InputTokens, OutputQuantile

Target = tuple[str, str]
"""What a request is for: route and model."""

MOST_TARGETS = 16
"""So many targets have an experience of their own."""
IDLE_LESSONS = 1000
"""One more takes the place of a target that had none of the last so many lessons; until there is one, it is
priced by what is known overall, and no rotation of names can push out what is in use."""
PREFIX_BYTES = (1024, 4096, 16384)
"""Lengths of the beginnings by which prompts are recognised."""
MOST_PREFIXES = 256
"""So many prefixes are known; one more takes the place of the one that was longest without a request."""


class LearnedCosts:
    """What was learned of one kind of requests."""

    __slots__ = ("input", "last_lesson", "output")

    def __init__(self, prompt: InputTokens, output: OutputQuantile) -> None:
        self.input = prompt
        self.output = output
        self.last_lesson = 0
        """The number of its last lesson, among all of the entitlement."""

    def copy(self) -> LearnedCosts:
        """One that begins with what this one knows."""
        return LearnedCosts(self.input.copy(), self.output.copy())


class LearnedByPrefix:
    """The experience with each target, and overall. A new target begins with what is known overall.

    A target counts from its first lesson, which only a request that the engine has served can give: names
    that nobody serves take no room. While there is one target, its experience and the overall one are one.
    """

    __slots__ = ("_lessons", "_own", "overall")

    def __init__(self, quantile: float) -> None:
        self.overall = LearnedCosts(InputTokens(), OutputQuantile(quantile))
        self._own: dict[Target, LearnedCosts] = {}
        self._lessons = 0

    def __iter__(self) -> Iterator[tuple[Target, LearnedCosts]]:
        return iter(self._own.items())

    def of(self, target: Target) -> LearnedCosts:
        """What to price a request for the target with."""
        return self._own.get(target, self.overall)

    def to_teach(self, target: Target) -> tuple[LearnedCosts, ...]:
        """Everything that learns from a request for the target."""
        self._lessons += 1
        own = self._own.get(target) or self._begin(target)
        own.last_lesson = self._lessons
        return (own,) if own is self.overall else (own, self.overall)

    def aim(self, quantile: float) -> None:
        """Change the quantile of outputs; what was learned stays."""
        for learned in (self.overall, *self._own.values()):
            learned.output.aim(quantile)

    def _begin(self, target: Target) -> LearnedCosts:
        """The experience of a target that has none yet; the overall one, where there is no place for it."""
        own = self._own
        if len(own) == 1:
            for first in own:
                own[first] = self.overall.copy()
        elif len(own) == MOST_TARGETS and not self._make_place():
            return self.overall
        own[target] = begun = self.overall.copy() if own else self.overall
        return begun

    def _make_place(self) -> bool:
        own = self._own
        idle = min(own, key=lambda target: own[target].last_lesson)
        if own[idle].last_lesson + IDLE_LESSONS > self._lessons:
            return False
        del own[idle]
        return True


class Prefixes:
    """How many tokens of a prompt the engine has in its cache, by how the prompt begins.

    Only what the engine reported is believed, and only the good news with hesitation: less than was believed
    counts at once, more by half of the difference. So a prefix that was evicted is not believed again
    after the first request that had to compute it. An engine that reports nothing leaves this empty.
    """

    __slots__ = ("_cached",)

    def __init__(self) -> None:
        self._cached: dict[int, int] = {}
        """Tokens by the hash of a prefix, in the order of use."""

    def __len__(self) -> int:
        return len(self._cached)

    def expect(self, prefixes: Sequence[int]) -> int:
        """Cached tokens of a prompt that begins so (shortest prefix first): the longest known one tells."""
        known = self._cached
        if known:
            for prefix in reversed(prefixes):
                if prefix in known:
                    return known[prefix]
        return 0

    def observe(self, prefixes: Sequence[int], cached_tokens: int) -> None:
        """Learn how many tokens the engine found in its cache for a prompt that begins so.

        That is what the longest known prefix is for. Longer ones are new; shorter ones, by which other
        prompts are priced, can only learn that there was less.
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
