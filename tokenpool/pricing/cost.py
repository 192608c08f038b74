"""Cost: the price of a request in the engine's own units, before it runs and after.

Which fields of which dialect make an ``Ask`` is the sidecar's dialects' business, what past requests taught
is ``experience``'s; what an ask costs is decided here. All token counts are whole tokens; throughput costs
are weighted tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tokenpool.entitlements import Entitlement, Pricing
from tokenpool.pricing.learned_costs import LearnedByPrefix, LearnedCosts, Prefixes, Target

WINDOW = -1
"""An input bound: the engine's context window, however long that is."""


class Ask(NamedTuple):
    """What a request asks for, as far as it can be read from the request alone."""

    text_bytes: int = 0
    """Bytes of prompt text and of tool definitions, over all prompts."""
    token_ids: int = 0
    """Input tokens that the client sent as token ids: known exactly, over all prompts."""
    images: int = 0
    audios: int = 0
    tools: int = 0
    prompts: int = 1
    sequences_per_prompt: int = 1
    output_bound: int | None = None
    """The bound per sequence that the engine will obey; ``None`` = up to the window, 0 = no output."""
    target: Target = ("", "")
    """Route and model: each has prices of its own."""
    prefixes: tuple[int, ...] = ()
    """Keyed hashes of the prompt's first ``experience.PREFIX_BYTES``, shortest first, as far as it goes."""
    input_bound: int | None = None
    """Tokens of one prompt's text that the engine keeps, or ``WINDOW``; ``None`` = it cuts nothing.

    Images and sounds come on top: the engine expands them after it has cut the text.
    """
    pads_input: bool = False
    """Whether the engine pads every prompt to the context window."""


class Cost(NamedTuple):
    """A request's price."""

    input_tokens: int
    """Over all prompts, each counted once: the sequences of one prompt share its prefill."""
    output_tokens: int
    """Expected, over all sequences."""
    sequences: int
    throughput: float
    """Weighted tokens that the bucket is charged."""
    kv_tokens: int
    """KV-cache tokens that all sequences hold at their end, in whole blocks."""
    cached_tokens: int = 0
    """Input tokens that the engine is expected to have in its cache: held, but not charged."""


class Usage(NamedTuple):
    """What the engine says that it spent."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """Input tokens that came from the prefix cache: not computed, so not charged."""


class EngineShape(NamedTuple):
    """What pricing needs to know of the engine."""

    block_size: int = 16
    context_window: int | None = None
    """Tokens per sequence, prompt included; ``None`` while the engine has not said."""


class Pricer:
    """Prices the requests of one entitlement, and learns from what they really cost."""

    __slots__ = ("_learned_by_prefix", "_prefixes", "_pricing", "_quantile", "_window")

    def __init__(self, entitlement: Entitlement, pricing: Pricing) -> None:
        self._pricing = pricing
        self._quantile = entitlement.output_estimate.quantile
        self._learned_by_prefix = LearnedByPrefix(self._quantile or 1.0)
        self._prefixes = Prefixes()
        self._window: int | None = None
        """The context window when a request with an input bound was last priced."""

    def reprice(self, entitlement: Entitlement, pricing: Pricing) -> None:
        """Take over changed prices; what was learned stays."""
        self._pricing = pricing
        if entitlement.output_estimate.quantile != self._quantile:
            self._quantile = entitlement.output_estimate.quantile
            self._learned_by_prefix.aim(self._quantile or 1.0)

    def price(self, ask: Ask, engine: EngineShape) -> Cost:
        """The price of a request before it runs."""
        pricing = self._pricing
        text_bytes, token_ids, images, audios, tools, prompts, per_prompt, bound, target, prefixes, _, _ = ask
        learned = self._learned_by_prefix.of(target)
        input_tokens = (
            math.ceil(learned.input.expect(text_bytes, prompts)) + token_ids + tools * pricing.tool_tokens
        )
        if ask.input_bound is not None or ask.pads_input:
            input_tokens = self._kept(input_tokens, ask, engine.context_window)
        input_tokens += images * pricing.image_tokens + audios * pricing.audio_tokens
        cached_tokens = 0
        if prefixes:
            # The engine always computes the last token.
            cached_tokens = min(self._prefixes.expect(prefixes), max(input_tokens - 1, 0))
        sequences = prompts * per_prompt
        # Prompts of one request are taken as equally long: the sum is right, and whole blocks nearly so.
        prompt_tokens = -(-input_tokens // prompts)
        output = self._output_tokens(bound, learned.output.value, prompt_tokens, engine)
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
        )

    def _kept(self, text_tokens: int, ask: Ask, window: int | None) -> int:
        """What is left of a request's text tokens once the engine has cut and padded its prompts."""
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
        """Expected output tokens of one sequence: the bound, or what experience makes of it."""
        window = engine.context_window
        if window is not None:
            left = window - prompt_tokens if window > prompt_tokens else 1
            if bound is None or left < bound:
                bound = left
        if bound is None or (expected < bound and self._quantile is not None):
            return expected
        return bound

    def throughput(self, usage: Usage) -> float:
        """Weighted tokens of what was really spent."""
        input_tokens, output_tokens, cached_tokens = usage
        uncached = input_tokens - cached_tokens if input_tokens > cached_tokens else 0
        return self._pricing.input_weight * uncached + self._pricing.output_weight * output_tokens

    def spent_so_far(self, cost: Cost, relayed_tokens: int) -> Usage:
        """The usage of a request that ended early: its prompt, and the output that was relayed."""
        return Usage(cost.input_tokens, relayed_tokens, cost.cached_tokens)

    def learn(self, ask: Ask, usage: Usage) -> None:
        """Learn from a request that the engine finished."""
        text_bytes, token_ids, images, audios, tools, prompts, per_prompt, bound, target, prefixes, _, _ = ask
        output = -(-usage.output_tokens // (prompts * per_prompt))
        is_text = not (images or audios or token_ids) and self._was_read_whole(ask, usage)
        text_tokens = usage.input_tokens - tools * self._pricing.tool_tokens
        for learned in self._learned_by_prefix.to_teach(target):
            if bound != 0:
                learned.output.observe(output)
            if is_text:
                learned.input.observe(text_bytes / prompts, text_tokens / prompts)
        if prefixes:
            self._prefixes.observe(prefixes, usage.cached_tokens)

    def _was_read_whole(self, ask: Ask, usage: Usage) -> bool:
        """Whether the tokens that the engine reports are those of the text that was sent.

        Twelve texts of 1,200 bytes cut to 100 tokens taught 0.085 tokens per byte where 1.0 was true. A
        bound of the request's own thus teaches nothing, even where nothing was cut: only texts with few
        tokens per byte stay below it. The window is different: nothing above it is served without a bound.
        """
        if ask.pads_input:
            return False
        if ask.input_bound is None:
            return True
        window = self._window
        # A generative prompt is cut to one token less than the window.
        return ask.input_bound == WINDOW and window is not None and usage.input_tokens < window - 1

    def learn_cut(self, ask: Ask, output_tokens: int) -> None:
        """Learn from a request that was ended from outside when so many tokens had been relayed.

        It tells how long its output was at least. Of its input nothing is known but the estimate.
        """
        if output_tokens > 0:
            output = -(-output_tokens // (ask.prompts * ask.sequences_per_prompt))
            for learned in self._learned_by_prefix.to_teach(ask.target):
                learned.output.observe_cut(output)

    def forget_cache(self) -> None:
        """The engine has restarted: its prefix cache is empty."""
        self._prefixes.forget()

    @property
    def overall(self) -> LearnedCosts:
        """What was learned of all requests together, for the pages."""
        return self._learned_by_prefix.overall

    @property
    def learned_by_prefix(self) -> LearnedByPrefix:
        """What was learned by route and model, for the pages."""
        return self._learned_by_prefix

    @property
    def known_prefixes(self) -> int:
        """How many beginnings of prompts are known to lie in the engine's cache, for the pages."""
        return len(self._prefixes)
