"""Price experts: the outputs of requests with the same prefix, in a bounded trie of prompt prefixes. Pure.

A path in the trie is a route and model, then the hashes of longer and longer prefixes. The root is the
learned costs of the route and model (``learned_costs``). A node starts as a *candidate*: a prefix that was
seen, with the tokens that the engine had in its cache. A candidate that is seen repeatedly becomes an
*expert*, with its own quantile of outputs. Every finished request teaches all nodes on its path.

**The expert that prices a request** is the deepest certified one (``OutputQuantile.is_certified``). Its
ancestors are the fall-back. An expert without a certificate may raise the price of its fall-back, and never
lower it. Only a lower reservation can break the promise, so only a lower one needs the certificate. If an
expert learns too little, or its requests have changed, it costs capacity, and coverage stays.

**Bounds.** Each entitlement has its own trie, so no tenant learns from another tenant, or displaces its
experts. At most ``MOST_CANDIDATES`` candidates are remembered. The least recently used one is removed first.
A candidate is small, and only served requests make one. ``REPEATED`` requests with the same prefix make an
expert, if its parent also sees other requests. Otherwise both would have the same quantile. If all places are
taken, a new expert replaces the least recently used one, if that was idle for ``IDLE_OBSERVATIONS``. So
random prefixes displace candidates, and no expert that is in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tokenpool.pricing.estimators import OutputQuantile
from tokenpool.pricing.statistics import OutputStatistics, combined_outputs, of_outputs

Target = tuple[str, str]
"""The route and the model of a request."""

IDLE_OBSERVATIONS: Final = 1000
"""The number of an entitlement's observations after which an unused place may be reused."""
MOST_CANDIDATES: Final = 256
"""The most prefixes of an entitlement that are remembered, besides those of experts."""
MOST_EXPERTS: Final = 128
"""The most experts of an entitlement: about 560 kB."""
WINDOW: Final = 64
"""The number of outputs that an expert remembers."""
REPEATED: Final = 4
"""The number of requests with the same prefix that make it an expert."""
REDUNDANT: Final = 0.95
"""A prefix with at least this share of its parent's requests gets no expert."""
MOST_SHARED: Final = 32
"""The most experts that are shared with other sidecars: those with the most observations. It takes 0.2 ms to
make their statistics."""


class Node:
    """One prefix of the prompts to one target: a candidate or an expert."""

    __slots__ = (
        "_above",
        "_above_count",
        "_sightings",
        "cached_tokens",
        "early",
        "is_certified",
        "last_observation",
        "output",
        "prefix",
        "reserve",
        "target",
    )

    def __init__(self, target: Target, prefix: int) -> None:
        self.target = target
        self.prefix = prefix
        self.cached_tokens = 0
        """Tokens of a prompt with this prefix that the engine had in its cache; 0 = not known."""
        self.output: OutputQuantile | None = None
        """The quantile of outputs; ``None`` for a candidate."""
        self.reserve = 0
        """Output tokens to reserve for one sequence; 0 = not known."""
        self.is_certified = False
        """Whether ``reserve`` may be below the reservation of its ancestors."""
        self.early: list[int] = []
        """The last outputs of a candidate."""
        self.last_observation = 0
        """The number of the last observation, in the order of all observations of the entitlement."""
        self._above: Node | None = None
        self._above_count = self._sightings = 0
        """The parent expert, and its observations before the first of these sightings."""

    def learn(self, output: int, predicted: int = 0, running: int = 0, *, is_cut: bool = False) -> None:
        """An expert learns the output of one sequence, or that a sequence was cut there.

        See ``OutputQuantile.observe`` for ``predicted`` and ``running``.
        """
        quantile = self.output
        assert quantile is not None
        if is_cut:
            quantile.observe_cut(output)
        else:
            quantile.observe(output, predicted, running)
        self.show()

    def show(self) -> None:
        """Set ``reserve`` and ``is_certified`` from the quantile."""
        quantile = self.output
        if quantile is not None:
            self.reserve = quantile.value if quantile.is_known else 0
            self.is_certified = quantile.is_certified

    def sighted(self, above: Node | None, above_count: int, output: int) -> bool:
        """A candidate was seen with an output. Returns whether it should become an expert.

        ``above`` is the nearest expert among its ancestors, with its number of observations, this one
        included.
        """
        self.early.append(output)
        if len(self.early) > REPEATED:
            del self.early[0]
        if self._above is not above or not self._sightings:
            self._above, self._above_count, self._sightings = above, above_count - 1, 0
        self._sightings += 1
        if self._sightings < REPEATED:
            return False
        if self._sightings < REDUNDANT * (above_count - self._above_count):
            return True
        self._sightings = 0
        return False


class PriceExperts:
    """The experts and candidates of one entitlement."""

    __slots__ = ("_candidates", "_experts", "_nodes", "_observations", "_quantile")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._nodes: dict[Target, dict[int, Node]] = {}
        """All nodes by target and prefix."""
        self._candidates: dict[Node, None] = {}
        self._experts: dict[Node, None] = {}
        """The candidates and the experts are in the order of use."""
        self._observations = 0

    def __len__(self) -> int:
        return len(self._experts)

    def __iter__(self) -> Iterator[Node]:
        """The experts, the least recently used one first."""
        return iter(self._experts)

    @property
    def candidates(self) -> int:
        """The number of candidates."""
        return len(self._candidates)

    @property
    def certified(self) -> int:
        """The number of certified experts."""
        return sum([node.is_certified for node in self._experts])

    @property
    def cached_prefixes(self) -> int:
        """The number of prefixes that the engine is known to have in its cache."""
        return sum([node.cached_tokens > 0 for nodes in self._nodes.values() for node in nodes.values()])

    def of(self, target: Target) -> dict[int, Node] | None:
        """The nodes of a target by prefix; ``None`` without any. Read-only."""
        return self._nodes.get(target)

    def set_quantile(self, quantile: float) -> None:
        """Change the quantile. The observed outputs stay."""
        self._quantile = quantile
        for node in self._experts:
            if node.output is not None:
                node.output.set_quantile(quantile)
                node.show()

    def observe(
        self,
        target: Target,
        prefixes: Sequence[int],
        target_count: int,
        output: int | None,
        cached_tokens: int | None,
        predicted: tuple[int, int] = (0, 0),
        running: int = 0,
    ) -> None:
        """Learn from a finished request: its output per sequence (``None`` without one) and cached tokens.

        ``cached_tokens`` is ``None`` if another engine served it, because that engine has another cache.
        ``target_count`` is the number of observations of its target, this one included. ``predicted`` is the
        depth of the expert that priced it, and the value of that expert then. ``running`` is the number of
        requests that have not ended.
        """
        self._observations += 1
        if not prefixes:
            return
        nodes = self._nodes.get(target)
        if nodes is None:
            nodes = self._nodes[target] = {}
        self._observe_cached(target, nodes, prefixes, cached_tokens)
        above: Node | None = None
        above_count = target_count
        for depth, prefix in enumerate(prefixes, 1):
            node = nodes[prefix]
            if node.output is None:
                del self._candidates[node]
                self._candidates[node] = None
                if output is None or not node.sighted(above, above_count, output) or not self._has_place():
                    continue
                del self._candidates[node]
                self._promote(node)
            else:
                del self._experts[node]
                self._experts[node] = None
                if output is not None:
                    node.learn(output, predicted[1] if depth == predicted[0] else 0, running)
            if node.output is not None:
                above, above_count = node, node.output.observations
        while len(self._candidates) > MOST_CANDIDATES:
            oldest = next(iter(self._candidates))
            del self._candidates[oldest]
            self._remove(oldest)

    def observe_cut(self, target: Target, prefixes: Sequence[int], output: int) -> None:
        """Learn from a request that was cut short after ``output`` tokens of each sequence."""
        nodes = self._nodes.get(target)
        if nodes is not None:
            for prefix in prefixes:
                node = nodes.get(prefix)
                if node is not None and node.output is not None:
                    node.learn(output, is_cut=True)

    def forget_cache(self) -> None:
        """The engine's cache is empty."""
        for nodes in self._nodes.values():
            for node in nodes.values():
                node.cached_tokens = 0

    def lend(self, target: Target, prefix: int, parts: Sequence[OutputStatistics]) -> None:
        """Fill the window of an expert with observations of other sidecars, and make it if it is missing.

        Its own observations stay. A window of own observations only stays as it is.
        """
        node = self._nodes.get(target, {}).get(prefix)
        quantile = node.output if node is not None else None
        if quantile is not None:
            room = quantile.room
        else:
            room = WINDOW - (len(node.early) if node is not None else 0)
        known = combined_outputs(parts, room)
        if not known.outputs:
            return
        if node is None or quantile is None:
            if not self._has_place():
                return
            if node is None:
                node = Node(target, prefix)
                nodes = self._nodes.get(target)
                if nodes is None:
                    nodes = self._nodes[target] = {}
                nodes[prefix] = node
            else:
                del self._candidates[node]
            node.last_observation = self._observations
            quantile = self._promote(node)
        quantile.lend(known.outputs, known.predictions, known.misses, known.level)
        node.show()

    def statistics(self) -> dict[Target, dict[int, OutputStatistics]]:
        """The statistics to share by target and prefix, of experts with enough own outputs."""
        found: list[tuple[int, Node, OutputQuantile]] = []
        for node in self._experts:
            output = node.output
            if output is not None and output.observations >= OutputQuantile.ENOUGH:
                found.append((-output.observations, node, output))
        found.sort(key=lambda each: each[0])
        shared: dict[Target, dict[int, OutputStatistics]] = {}
        for _, node, output in found[:MOST_SHARED]:
            shared.setdefault(node.target, {})[node.prefix] = of_outputs(output)
        return shared

    def _observe_cached(
        self, target: Target, nodes: dict[int, Node], prefixes: Sequence[int], cached_tokens: int | None
    ) -> None:
        """Learn the tokens that the engine found in its cache for a prompt with these prefixes.

        New prefixes become candidates.
        The longest known prefix learns the number, and longer prefixes start with it. Shorter prefixes also
        price other prompts, so they learn only a smaller number. A smaller number counts at once. A larger
        one moves the estimate by half of the difference. So the first request that had to compute an evicted
        prefix corrects its estimate.
        """
        is_longest = True
        for prefix in reversed(prefixes):
            node = nodes.get(prefix)
            if node is None:
                node = nodes[prefix] = Node(target, prefix)
                self._candidates[node] = None
            node.last_observation = self._observations
            if cached_tokens is None:
                continue
            believed = node.cached_tokens
            if not believed or cached_tokens < believed:
                node.cached_tokens = cached_tokens
            elif is_longest:
                node.cached_tokens = (believed + cached_tokens) // 2
            is_longest = is_longest and not believed

    def _promote(self, node: Node) -> OutputQuantile:
        """Make a candidate an expert that knows the outputs so far. Returns its quantile."""
        quantile = node.output = OutputQuantile(self._quantile, WINDOW)
        for output in node.early:
            node.learn(output)
        node.early = []
        self._experts[node] = None
        return quantile

    def _has_place(self) -> bool:
        """Whether there is a place for one more expert. Removes the least recently used one if it is idle."""
        if len(self._experts) < MOST_EXPERTS:
            return True
        oldest = next(iter(self._experts))
        if oldest.last_observation + IDLE_OBSERVATIONS > self._observations:
            return False
        del self._experts[oldest]
        self._remove(oldest)
        return True

    def _remove(self, node: Node) -> None:
        nodes = self._nodes[node.target]
        del nodes[node.prefix]
        if not nodes:
            del self._nodes[node.target]
