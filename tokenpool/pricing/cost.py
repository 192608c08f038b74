"""Cost: the price of a request in the engine's own units, before and after it runs.

The sidecar's dialects read an ``Ask`` from a request. ``learned_costs`` keeps the estimates from past
requests. This module computes the cost of an ask. All token counts are whole tokens. Throughput costs are
weighted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from tokenpool.entitlements import Entitlement, Pricing
from tokenpool.pricing.estimators import Coverage
from tokenpool.pricing.experts import MOST_EXPERTS, PriceExperts, Target
from tokenpool.pricing.learned_costs import LearnedByTarget, LearnedCosts
from tokenpool.pricing.statistics import EntitlementStatistics, TargetStatistics, combined
from tokenpool.pricing.statistics import of_outputs as output_statistics

WINDOW: Final = -1
"""An input bound that stands for the engine's context window, of any length."""
RATIO_DECAY: Final = 0.99
"""Each later request multiplies a request's weight in the ratio of reserved to produced tokens by this."""


_ASK: Final = (
    "text_bytes",
    "token_ids",
    "images",
    "audios",
    "tools",
    "prompts",
    "sequences_per_prompt",
    "output_bound",
    "target",
    "prefixes",
    "input_bound",
    "pads_input",
)


class Ask:
    """The fields of a request that determine its cost, read from the request alone."""

    __slots__ = _ASK

    def __init__(
        self,
        text_bytes: int = 0,
        token_ids: int = 0,
        images: int = 0,
        audios: int = 0,
        tools: int = 0,
        prompts: int = 1,
        sequences_per_prompt: int = 1,
        output_bound: int | None = None,
        target: Target = ("", ""),
        prefixes: tuple[int, ...] = (),
        input_bound: int | None = None,
        pads_input: bool = False,
    ) -> None:
        self.text_bytes = text_bytes
        """Bytes of prompt text and tool definitions, over all prompts."""
        self.token_ids = token_ids
        """Input tokens that the client sent as token ids, over all prompts. This number is exact."""
        self.images = images
        self.audios = audios
        self.tools = tools
        self.prompts = prompts
        self.sequences_per_prompt = sequences_per_prompt
        self.output_bound = output_bound
        """The output bound per sequence that the engine obeys; ``None`` = up to the window, 0 = no output."""
        self.target = target
        """Route and model. Each target has its own learned costs."""
        self.prefixes = prefixes
        """Keyed hashes of the prompt's first ``learned_costs.PREFIX_BYTES``, shortest first. A short prompt
        has fewer of them."""
        self.input_bound = input_bound
        """Tokens of one prompt's text that the engine keeps, or ``WINDOW``; ``None`` = the engine cuts
        nothing. Images and audio parts are not part of this bound: the engine expands them after it cuts the
        text."""
        self.pads_input = pads_input
        """Whether the engine pads every prompt to the context window."""

    def _key(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in _ASK])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ask) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Ask{self._key()}"

    def changed(self, **changes: Any) -> Ask:
        """The same ask with other values of some fields."""
        return Ask(**({name: getattr(self, name) for name in _ASK} | changes))


_COST: Final = (
    "input_tokens",
    "output_tokens",
    "sequences",
    "throughput",
    "kv_tokens",
    "cached_tokens",
    "expert",
    "predicted",
)


class Cost:
    """A request's price."""

    __slots__ = _COST

    def __init__(
        self,
        input_tokens: int,
        output_tokens: int,
        sequences: int,
        throughput: float,
        kv_tokens: int,
        cached_tokens: int = 0,
        expert: int = 0,
        predicted: int = 0,
    ) -> None:
        self.input_tokens = input_tokens
        """Input tokens over all prompts. Each prompt counts once, because its sequences share the prefill."""
        self.output_tokens = output_tokens
        """Expected output tokens, over all sequences."""
        self.sequences = sequences
        self.throughput = throughput
        """The charge to the token bucket, in weighted tokens."""
        self.kv_tokens = kv_tokens
        """KV-cache tokens that all sequences hold at their end, in whole blocks."""
        self.cached_tokens = cached_tokens
        """Input tokens that the engine is expected to have in its prefix cache. They are held, but not
        charged."""
        self.expert = expert
        """The depth of the expert that estimated the output: the number of the request's prefixes on its
        path. 0 means the learned costs of the route and model. ``Ask.target`` and ``Ask.prefixes`` complete
        the path."""
        self.predicted = predicted
        """The output of one sequence that this expert predicted, before the request's bound. 0: not known."""

    def _key(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in _COST])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cost) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Cost{self._key()}"

    def changed(self, **changes: Any) -> Cost:
        """The same cost with other values of some fields."""
        return Cost(**({name: getattr(self, name) for name in _COST} | changes))


class Usage(NamedTuple):
    """The token counts that the engine reports for one request."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """Input tokens that came from the prefix cache. They are not computed, so they are not charged."""


class EngineShape(NamedTuple):
    """The properties of the engine that pricing needs."""

    block_size: int = 16
    """Tokens in one block of the KV cache."""
    context_window: int | None = None
    """Tokens per sequence, prompt included; ``None`` while the engine has not stated it."""


class Pricer:
    """Prices the requests of one entitlement, and learns from their actual usage."""

    __slots__ = (
        "_experts",
        "_learned_by_target",
        "_pricing",
        "_produced",
        "_quantile",
        "_reserved",
        "_window",
        "coverage",
    )

    def __init__(self, entitlement: Entitlement, pricing: Pricing) -> None:
        self._pricing = pricing
        self._quantile = entitlement.output_estimate.quantile
        self._learned_by_target = LearnedByTarget(self._quantile or 1.0)
        self._experts = PriceExperts(self._quantile or 1.0)
        self._window: int | None = None
        """The context window at the last pricing of a request with an input bound."""
        self.coverage = Coverage()
        """The share of the last finished requests that did not outgrow their reservation of output."""
        self._reserved = self._produced = 0.0
        """Decayed sums over finished requests, in output tokens."""

    def reprice(self, entitlement: Entitlement, pricing: Pricing) -> None:
        """Use changed prices from now on. The learned costs stay."""
        self._pricing = pricing
        if entitlement.output_estimate.quantile != self._quantile:
            self._quantile = entitlement.output_estimate.quantile
            self._learned_by_target.set_quantile(self._quantile or 1.0)
            self._experts.set_quantile(self._quantile or 1.0)
            self.coverage = Coverage()

    def price(self, ask: Ask, engine: EngineShape) -> Cost:
        """The cost of a request before it runs."""
        pricing, prompts, prefixes = self._pricing, ask.prompts, ask.prefixes
        learned = self._learned_by_target.of(ask.target)
        input_tokens = math.ceil(learned.input.expect(ask.text_bytes, prompts)) + ask.token_ids
        input_tokens += ask.tools * pricing.tool_tokens if ask.tools else 0
        if ask.input_bound is not None or ask.pads_input:
            input_tokens = self._kept(input_tokens, ask, engine.context_window)
        if ask.images or ask.audios:
            input_tokens += ask.images * pricing.image_tokens + ask.audios * pricing.audio_tokens
        cached_tokens = depth = 0
        expected = predicted = learned.output.value
        if prefixes:
            nodes = self._experts.of(ask.target)
            if nodes is not None:
                raised = 0
                for depth in range(len(prefixes), 0, -1):
                    node = nodes.get(prefixes[depth - 1])
                    if node is not None:
                        if not cached_tokens:
                            cached_tokens = node.cached_tokens
                        if node.is_certified:
                            expected = predicted = node.reserve
                            break
                        if node.reserve > raised:
                            raised = node.reserve
                else:
                    depth = 0
                if raised > expected:
                    expected = raised
                # The engine always computes the last token.
                if cached_tokens >= input_tokens:
                    cached_tokens = input_tokens - 1 if input_tokens > 0 else 0
        sequences = prompts * ask.sequences_per_prompt
        # This assumes prompts of equal length. The sum is exact, and the number of whole blocks nearly exact.
        prompt_tokens = -(-input_tokens // prompts)
        output = self._output_tokens(ask.output_bound, expected, prompt_tokens, engine)
        block_size = engine.block_size
        blocks = -(-(prompt_tokens + output) // block_size)
        output_tokens = output * sequences
        return Cost(
            input_tokens,
            output_tokens,
            sequences,
            pricing.input_weight * (input_tokens - cached_tokens) + pricing.output_weight * output_tokens,
            blocks * block_size * sequences,
            cached_tokens,
            depth,
            predicted,
        )

    def _kept(self, text_tokens: int, ask: Ask, window: int | None) -> int:
        """The text tokens of a request after the engine has cut and padded its prompts."""
        bound = self._window = window
        if ask.input_bound is not None and ask.input_bound != WINDOW:
            bound = ask.input_bound
        if bound is not None and text_tokens > bound * ask.prompts:
            text_tokens = bound * ask.prompts
        if ask.pads_input and window is not None and text_tokens < window * ask.prompts:
            text_tokens = window * ask.prompts
        return text_tokens

    def _output_tokens(
        self, bound: int | None, expected: int, prompt_tokens: int, engine: EngineShape
    ) -> int:
        """Expected output tokens of one sequence: the smaller of its bound and the learned quantile."""
        window = engine.context_window
        if window is not None:
            left = window - prompt_tokens if window > prompt_tokens else 1
            if bound is None or left < bound:
                bound = left
        if bound is None or (expected < bound and self._quantile is not None):
            return expected
        return bound

    def throughput(self, usage: Usage) -> float:
        """The throughput cost of actual usage, in weighted tokens."""
        input_tokens, output_tokens, cached_tokens = usage
        uncached = input_tokens - cached_tokens if input_tokens > cached_tokens else 0
        return self._pricing.input_weight * uncached + self._pricing.output_weight * output_tokens

    def spent_so_far(self, cost: Cost, relayed_tokens: int) -> Usage:
        """The usage of a request that ended early: its input, and the output tokens that were relayed."""
        return Usage(cost.input_tokens, relayed_tokens, cost.cached_tokens)

    def learn(
        self, ask: Ask, usage: Usage, cost: Cost | None = None, *, ran_here: bool = True, running: int = 0
    ) -> None:
        """Learn from a request that an engine finished, and that was priced at ``cost``.

        ``running`` is the number of sequences of the entitlement that were priced and have not ended.

        The learned costs of its route and model learn from it. So do all experts on the path of its prefixes.
        The engines of a pool run the same model, so input and output of all of them count. The cached tokens
        of another engine (``ran_here`` is false) do not count: it has another cache.
        """
        target, prompts, bound = ask.target, ask.prompts, ask.output_bound
        input_tokens, output_tokens, cached = usage
        output = -(-output_tokens // (prompts * ask.sequences_per_prompt))
        is_text = not (ask.images or ask.audios or ask.token_ids) and self._was_read_whole(ask, input_tokens)
        text_tokens = input_tokens
        if ask.tools:
            text_tokens -= ask.tools * self._pricing.tool_tokens
        learners = self._learned_by_target.learners_of(target)
        depth, predicted = (cost.expert, cost.predicted) if cost is not None else (0, 0)
        for learned in learners:
            if bound != 0:
                own = learned is learners[0] and depth == 0
                learned.output.observe(output, predicted if own else 0, running)
            if is_text:
                learned.input.observe(ask.text_bytes / prompts, text_tokens / prompts)
        expert_output = output if bound != 0 else None
        count = learners[0].observations
        cached_tokens = cached if ran_here else None
        priced_by = (depth, predicted)
        self._experts.observe(target, ask.prefixes, count, expert_output, cached_tokens, priced_by, running)
        if cost is not None and bound != 0:
            self.coverage.observe(is_missed=output_tokens > cost.output_tokens)
            self._reserved = self._reserved * RATIO_DECAY + cost.output_tokens
            self._produced = self._produced * RATIO_DECAY + output_tokens

    def _was_read_whole(self, ask: Ask, input_tokens: int) -> bool:
        """Whether the input tokens that the engine reports cover the whole text of the request.

        Twelve texts of 1,200 bytes cut to 100 tokens taught 0.085 tokens per byte; the true ratio was 1.0. So
        a request with its own input bound teaches nothing. This holds even if nothing was cut, because only
        texts with few tokens per byte stay below the bound. The window is different: without a bound, the
        engine serves nothing above it.
        """
        if ask.pads_input:
            return False
        if ask.input_bound is None:
            return True
        window = self._window
        # The engine cuts a generative prompt to one token less than the window.
        return ask.input_bound == WINDOW and window is not None and input_tokens < window - 1

    def learn_cut(self, ask: Ask, output_tokens: int) -> None:
        """Learn from a request that was cut short after ``output_tokens`` were relayed.

        It shows the least length of its output. It shows nothing about its input.
        """
        if output_tokens > 0:
            output = -(-output_tokens // (ask.prompts * ask.sequences_per_prompt))
            for learned in self._learned_by_target.learners_of(ask.target):
                learned.output.observe_cut(output)
            self._experts.observe_cut(ask.target, ask.prefixes, output)

    def forget_cache(self) -> None:
        """The engine has restarted: its prefix cache is empty."""
        self._experts.forget_cache()

    # --- sharing ---

    def statistics(self) -> EntitlementStatistics:
        """The own observations of this pricer, for other sidecars."""
        experts = self._experts.statistics()
        targets = [
            TargetStatistics(
                target[0],
                target[1],
                learned.input.own,
                learned.input.observations,
                output_statistics(learned.output),
                experts.get(target, {}),
            )
            for target, learned in self._learned_by_target
            if learned.observations
        ]
        return EntitlementStatistics(self._quantile or 0.0, tuple(targets))

    def lend(self, parts: Sequence[EntitlementStatistics]) -> Iterator[None]:
        """Start from the observations of other sidecars, in short steps.

        Own observations stay. Raises ``ValueError`` for invalid statistics.
        """
        known = combined(parts, self._quantile or 0.0)
        self._learned_by_target.lend(known)
        yield
        for target, statistics in known.items():
            prefixes = sorted({prefix for one in statistics for prefix in one.experts})
            for prefix in prefixes[:MOST_EXPERTS]:
                found = [one.experts[prefix] for one in statistics if prefix in one.experts]
                self._experts.lend(target, prefix, found)
                yield

    @property
    def overall(self) -> LearnedCosts:
        """The costs learned from all requests together, for the debug page."""
        return self._learned_by_target.overall

    @property
    def learned_by_target(self) -> LearnedByTarget:
        """The costs learned by route and model, for the debug page."""
        return self._learned_by_target

    @property
    def experts(self) -> PriceExperts:
        """The price experts by prefix, for the debug page."""
        return self._experts

    @property
    def reserved_ratio(self) -> float:
        """Reserved divided by produced output tokens over the last finished requests; 0 before the first."""
        return self._reserved / self._produced if self._produced > 0 else 0.0
