"""What a sidecar learns about an entitlement's requests, so that it can price the next one.

Small online estimators: numbers in, numbers out. Each starts from a documented prior and is bounded,
so that neither an odd first request nor a hostile one can move a price without limit. Who has which of
them is ``experience``'s business.

Measured on synthetic mixes, seeds 0 to 7, requests 201 to 400 of a mix (prompts lognormal, tokens of a text
spread by 5 %, a chat template of 23 tokens and 5 per message). Input, median of |estimate / actual - 1|:

================================  =========  ======  =================  ==================
mix                               a ratio    a line  ... weights x^-1   ... weights x^-2
================================  =========  ======  =================  ==================
short prompts (90 bytes)          20.6 %     2.0 %   2.0 %              2.0 %
short (55 B) and long (8 kB)      11.9 %     2.4 %   2.4 %              2.4 %
1 to 20 messages                  4.4 %      2.8 %   2.9 %              2.8 %
prose, then code                  4.3 %      3.2 %   3.2 %              3.2 %
long, then short                  13.0 %     2.0 %   2.0 %              2.0 %
0.2, then 0.9 tokens per byte     3.5 %      3.4 %   3.4 %              3.4 %
short prose, long code            5.9 %      5.4 %   5.4 %              5.8 %
long prose, short code            13.2 %     5.2 %   5.0 %              6.2 %
2 % hostile (1 MB of any ratio)   86.8 %     3.8 %   17.7 %             3.4 %
prose and code of one size        20.9 %     20.5 %  20.7 %             20.6 %
================================  =========  ======  =================  ==================

A third coefficient, for messages, gained nothing (their template is in the bytes), nor did a ratio for each
class of size (10 % on short prompts). The last row is what bytes cannot tell: 0.22 and 0.35 tokens per byte
under one route and model. A real tokenizer (Mistral's, 131k) on slices of manuals and Python sources is at
0.254 and 0.262, and slices of unlike documents spread by 10 to 13 %; counting digits and blanks would take
that to 6 %, and costs each request a look at its text.

Output is the share of requests beyond the value, 60 seeds, in the 200 requests after a shift and later
(± its root mean square distance from 10 % over 200 requests):

=======================  ===================  ===================  ===================
outputs (lognormal)      exact, window 256    exact, window 64     tracked, window 128
=======================  ===================  ===================  ===================
steady                   9.8, 10.0 ± 1.7      9.2, 9.1 ± 1.5       10.0, 10.0 ± 0.9
three times as long      26.6, 10.2 ± 1.7     13.3, 9.2 ± 1.5      10.2, 9.9 ± 0.9
a third as long          1.3, 9.4 ± 1.9       7.0, 9.1 ± 1.5       9.3, 10.3 ± 1.0
ten times as long        38.6, 10.2 ± 1.7     16.6, 9.1 ± 1.5      10.4, 9.9 ± 0.9
a tenth as long          0.0, 8.7 ± 2.4       6.4, 9.0 ± 1.6       9.0, 10.4 ± 1.0
5 %, then 15 % are long  15.3, 10.3 ± 2.0     10.5, 9.1 ± 1.5      10.1, 10.0 ± 0.9
=======================  ===================  ===================  ===================

A hundred requests under way, of which none has taught yet, change that to 9.5 and 11.0 % after a shift. A
tracked number without a window (steps of 10 %) needs hundreds of requests after a fall.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import Final


class InputTokens:
    """Tokens of a prompt by its bytes of text: a line, ``offset + per_byte * bytes``, fitted as it goes.

    A ratio alone is wrong for short prompts, to which the chat template adds most of their tokens. Least
    squares over decayed sums; a prompt of x bytes has the weight (x + 64)^-1.75, between relative errors
    (x^-2: long prompts would count for too little) and absolute ones (x^-1: one huge prompt would rule). A
    ridge holds the offset at 0 while all prompts are equally long. What is further than ``BAND`` from the
    line counts as if it lay there: hostile prompts hardly move it, and a true change does so a few later.

    Bounds, whatever is observed: ``LOWEST`` to ``HIGHEST`` tokens per byte, and 0 to ``MOST_OFFSET`` more.
    """

    PRIOR: Final = 0.25
    PRIOR_BYTES: Final = 256.0
    """The prior counts like one prompt of that length."""
    LOWEST: Final = 0.02
    HIGHEST: Final = 2.0
    MOST_OFFSET: Final = 1024.0
    DECAY: Final = 0.97
    """Of each observation with every later one: a change of mix is forgotten within some hundred requests."""
    BAND: Final = 1.5
    BAND_TOKENS: Final = 16.0
    SHARPNESS: Final = -1.75
    SMALL_BYTES: Final = 64.0
    RIDGE: Final = 1.001

    __slots__ = ("_w", "_wx", "_wxx", "_wxy", "_wy", "offset", "per_byte")

    def __init__(self) -> None:
        size = self.PRIOR_BYTES
        weight = (size + self.SMALL_BYTES) ** self.SHARPNESS
        self._w = self._wx = self._wy = 0.0  # of the offset the prior knows nothing
        self._wxx = weight * size * size
        self._wxy = self._wxx * self.PRIOR
        self.offset = 0.0
        """Tokens of a prompt beside its text."""
        self.per_byte = self.PRIOR
        """Tokens per byte of text."""

    def copy(self) -> InputTokens:
        """One that begins with what this one knows."""
        made = InputTokens()
        made._w, made._wx, made._wy = self._w, self._wx, self._wy
        made._wxx, made._wxy = self._wxx, self._wxy
        made.offset, made.per_byte = self.offset, self.per_byte
        return made

    def expect(self, text_bytes: int, prompts: int = 1) -> float:
        """Tokens of so many prompts that have so many bytes of text together; 0 where there is no text."""
        return self.offset * prompts + self.per_byte * text_bytes if text_bytes > 0 else 0.0

    def observe(self, text_bytes: float, tokens: float) -> None:
        """Learn that a prompt with ``text_bytes`` was ``tokens`` long."""
        if text_bytes <= 0:
            return
        expected = self.offset + self.per_byte * text_bytes
        lowest = expected / self.BAND - self.BAND_TOKENS
        highest = expected * self.BAND + self.BAND_TOKENS
        tokens = max(lowest, 0.0) if tokens < lowest else highest if tokens > highest else max(tokens, 0)
        decay = self.DECAY
        weight = (text_bytes + self.SMALL_BYTES) ** self.SHARPNESS
        weighted = weight * text_bytes
        self._w = w = self._w * decay + weight
        self._wx = wx = self._wx * decay + weighted
        self._wy = wy = self._wy * decay + weight * tokens
        self._wxx = wxx = self._wxx * decay + weighted * text_bytes
        self._wxy = wxy = self._wxy * decay + weighted * tokens
        offset = (wy * wxx - wx * wxy) / (w * self.RIDGE * wxx - wx * wx)
        offset = 0.0 if offset < 0 else min(offset, self.MOST_OFFSET)
        self.offset = offset
        self.per_byte = min(max((wxy - offset * wx) / wxx, self.LOWEST), self.HIGHEST)


class OutputQuantile:
    """What a share ``quantile`` of the sequences does not outgrow: a rank among the last ``WINDOW``.

    The rank is corrected by what is missed: each output beyond the value raises it by ``GAIN * quantile``,
    each below it lowers it by ``GAIN * (1 - quantile)``, so that it comes to rest only where the promised
    share is missed. A window alone answers late after a change of mix, and promises less than it says. An
    output that is just the value teaches the rank nothing: where most are equal, there is nothing to miss.

    Until ``ENOUGH`` were seen it answers ``PRIOR``: a small fixed number errs on the side of admitting,
    and a running request that outgrows it extends its reservation.

    Bounds, whatever is observed: 1 to ``MOST``, and never beyond the longest output of the window.
    """

    PRIOR: Final = 256
    ENOUGH: Final = 8
    WINDOW: Final = 128
    GAIN: Final = 0.02
    LEEWAY: Final = 0.3
    """How far below the quantile the rank may fall; upwards it may reach the longest output."""
    MOST: Final = 1 << 20
    _TURN: Final = (math.sqrt(5) - 1) / 2

    __slots__ = ("_level", "_order", "_quantile", "_sorted", "_turn", "value")

    def __init__(self, quantile: float = 0.9) -> None:
        self._quantile = self._level = quantile
        self._order: deque[int] = deque()
        self._sorted: list[int] = []
        self._turn = 0.0
        self.value = self.PRIOR
        """Output tokens to reserve for a sequence."""

    def copy(self) -> OutputQuantile:
        """One that begins with what this one knows."""
        made = OutputQuantile(self._quantile)
        made._level, made.value, made._turn = self._level, self.value, self._turn
        made._order, made._sorted = self._order.copy(), self._sorted.copy()
        return made

    def aim(self, quantile: float) -> None:
        """Change the quantile; what was seen stays."""
        self._quantile = self._level = quantile
        self._rank()

    def observe(self, output_tokens: int) -> None:
        """Learn the length of one finished sequence."""
        order, ranked = self._order, self._sorted
        output_tokens = 1 if output_tokens < 1 else min(output_tokens, self.MOST)
        if len(order) >= self.ENOUGH:
            self._correct(output_tokens)
        if len(order) == self.WINDOW:
            del ranked[bisect_left(ranked, order.popleft())]
        order.append(output_tokens)
        insort(ranked, output_tokens)
        self._rank()

    def observe_cut(self, output_tokens: int) -> None:
        """Learn of a sequence that was ended from outside when it was so long, and would have gone on.

        Leaving those out would favour short ones, which are cut less often: with a third of lognormal
        outputs cut at random, 19.6 % of all would have outgrown the value, and 20.1 % with what was seen
        of them taken for whole. So it is taken to be as long as one of those of the window that are longer,
        each in its turn (10.0 %; with 60 % cut, 13 % instead of 32). Where none is, it teaches only
        if it has outgrown the value already.
        """
        ranked = self._sorted
        shorter = bisect_right(ranked, output_tokens)
        longer = len(ranked) - shorter
        if longer and len(ranked) >= self.ENOUGH:
            self._turn = (self._turn + self._TURN) % 1.0  # no randomness here: this covers evenly, too
            self.observe(ranked[shorter + int(self._turn * longer)])
        elif output_tokens > self.value:
            self.observe(output_tokens)

    def _correct(self, output_tokens: int) -> None:
        quantile = self._quantile
        if output_tokens > self.value:
            self._level = min(self._level + self.GAIN * quantile, 1.0)
        elif output_tokens < self.value:
            lowest = max(quantile - self.LEEWAY, 0.0)
            self._level = max(self._level - self.GAIN * (1 - quantile), lowest)

    def _rank(self) -> None:
        count = len(self._sorted)
        if count >= self.ENOUGH:
            rank = math.ceil(self._level * (count + 1)) - 1
            self.value = self._sorted[max(min(rank, count - 1), 0)]


class Average:
    """An exponentially weighted mean; the first observation replaces the prior."""

    __slots__ = ("_share", "_untaught", "value")

    def __init__(self, prior: float, share: float = 0.1) -> None:
        self.value = prior
        """The mean so far."""
        self._share = share
        self._untaught = True

    def observe(self, sample: float) -> None:
        """Move the mean towards ``sample`` by the share of one observation."""
        if self._untaught:
            self.value, self._untaught = sample, False
        else:
            self.value += (sample - self.value) * self._share
