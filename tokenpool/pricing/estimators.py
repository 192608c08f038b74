"""Estimators: small online estimators of input tokens, output tokens and means, to price the next request.

Numbers in, numbers out. Each estimator starts from a documented prior and is bounded. So neither an unusual
first request nor a hostile one can move a price without limit. ``learned_costs`` owns the estimators.

They were measured on synthetic mixes, with seeds 0 to 7, on requests 201 to 400 of a mix. Prompts are
lognormal, the tokens of a text are spread by 5 %, and a chat template adds 23 tokens and 5 per message. This
table has the errors of input estimates, as the median of |estimate / actual - 1|:

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

A third coefficient, for messages, gained nothing, because the bytes include their template. A ratio for each
class of size gained nothing either (10 % on short prompts). Bytes cannot distinguish the two kinds of text in
the last row: 0.22 and 0.35 tokens per byte under one route and model. A real tokenizer (Mistral's, 131k) has
0.254 and 0.262 on slices of manuals and Python sources. Slices of different documents spread by 10 to 13 %. A
count of digits and blanks would reduce that to 6 %, but it would have to read the text of each request.

The next table has the percentage of outputs longer than the estimate, for 60 seeds. The first number is for
the 200 requests after a shift, the second for later requests. The third (±) is the root mean square distance
from 10 % over 200 requests:

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

With a hundred requests in flight, which teach only at their end, these become 9.5 and 11.0 % after a shift. A
tracked number without a window (steps of 10 %) needs hundreds of requests to follow a fall.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from typing import Final

LineSums = tuple[float, float, float, float, float]
"""The decayed sums of a fitted line: of the weights w, and of w x, w y, w x², w x y."""
NO_SUMS: Final = (0.0, 0.0, 0.0, 0.0, 0.0)


# Compiled code inlines constants of the module. Those of a class are objects, and are looked up.
_RIDGE: Final = 1.001
_MOST_OFFSET: Final = 1024.0
_LOWEST: Final = 0.02
_HIGHEST: Final = 2.0
_BAND: Final = 1.5
_BAND_TOKENS: Final = 16.0
_DECAY: Final = 0.97
_SMALL_BYTES: Final = 64.0
_SHARPNESS: Final = -1.75


class InputTokens:
    """The input tokens of a prompt: a line, ``offset + per_byte * bytes``, fitted to observed prompts.

    A ratio alone is wrong for short prompts, because the chat template adds most of their tokens. The fit is
    least squares over decayed sums. A prompt of x bytes has the weight (x + 64)^-1.75. With x^-2 (relative
    errors) long prompts would count too little, and with x^-1 one huge prompt would dominate. A ridge keeps
    the offset at 0 while all prompts have the same length.

    An observation further than ``BAND`` from the line counts as if it were at that distance. So hostile
    prompts hardly move the line, and a true change moves it a few requests later.

    The bounds for any observations are ``LOWEST`` to ``HIGHEST`` tokens per byte, and an offset from 0 to
    ``MOST_OFFSET`` tokens.
    """

    PRIOR: Final = 0.25
    PRIOR_BYTES: Final = 256.0
    """The prior has the weight of one prompt of this length."""
    LOWEST: Final = _LOWEST
    HIGHEST: Final = _HIGHEST
    MOST_OFFSET: Final = _MOST_OFFSET
    DECAY: Final = _DECAY
    """The factor of an observation's weight at each later one. About a hundred requests forget an old mix."""
    BAND: Final = _BAND
    BAND_TOKENS: Final = _BAND_TOKENS
    SHARPNESS: Final = _SHARPNESS
    SMALL_BYTES: Final = _SMALL_BYTES
    RIDGE: Final = _RIDGE

    __slots__ = ("_fade", "_lent", "_w", "_wx", "_wxx", "_wxy", "_wy", "observations", "offset", "per_byte")

    def __init__(self) -> None:
        size = self.PRIOR_BYTES
        weight = (size + _SMALL_BYTES) ** _SHARPNESS
        self._w = self._wx = self._wy = 0.0  # the prior has no opinion on the offset
        self._wxx = weight * size * size
        self._wxy = self._wxx * self.PRIOR
        self._lent: LineSums = self._sums()
        """The sums that are not its own observations: the prior, and the observations of others."""
        self._fade = 1.0
        """The decay of ``_lent`` since the start."""
        self.observations = 0
        """The number of its own observations."""
        self.offset = 0.0
        """Tokens of a prompt in addition to its text."""
        self.per_byte = self.PRIOR
        """Tokens per byte of text."""

    def copy(self, *, is_lent: bool = False) -> InputTokens:
        """A copy with the same knowledge. With ``is_lent``, none of it counts as the copy's own."""
        made = InputTokens()
        made._w, made._wx, made._wy = self._w, self._wx, self._wy
        made._wxx, made._wxy = self._wxx, self._wxy
        if is_lent:
            made._lent = self._sums()
        else:
            made._lent, made._fade, made.observations = self._lent, self._fade, self.observations
        made.offset, made.per_byte = self.offset, self.per_byte
        return made

    @property
    def own(self) -> LineSums:
        """The sums over its own observations, without the prior and the knowledge of others."""
        fade = self._fade
        w, wx, wy, wxx, wxy = self._sums()
        before = self._lent
        return (
            max(w - before[0] * fade, 0.0),
            max(wx - before[1] * fade, 0.0),
            max(wy - before[2] * fade, 0.0),
            max(wxx - before[3] * fade, 0.0),
            max(wxy - before[4] * fade, 0.0),
        )

    def lend(self, sums: LineSums) -> None:
        """Add the observations of others. They decay like its own. Raises ``ValueError`` for invalid sums."""
        if not all(0.0 <= each < math.inf for each in sums):
            raise ValueError("the sums of a line are finite and not negative")
        fade = self._fade
        self._w += sums[0] * fade
        self._wx += sums[1] * fade
        self._wy += sums[2] * fade
        self._wxx += sums[3] * fade
        self._wxy += sums[4] * fade
        before = self._lent
        self._lent = (
            before[0] + sums[0],
            before[1] + sums[1],
            before[2] + sums[2],
            before[3] + sums[3],
            before[4] + sums[4],
        )
        if self._w > 0:
            self._fit()

    def _sums(self) -> LineSums:
        return (self._w, self._wx, self._wy, self._wxx, self._wxy)

    def expect(self, text_bytes: int, prompts: int = 1) -> float:
        """Expected tokens of ``prompts`` with ``text_bytes`` in all; 0 without text."""
        return self.offset * prompts + self.per_byte * text_bytes if text_bytes > 0 else 0.0

    def observe(self, text_bytes: float, tokens: float) -> None:
        """Learn that a prompt of ``text_bytes`` had ``tokens`` tokens."""
        if text_bytes <= 0:
            return
        expected = self.offset + self.per_byte * text_bytes
        lowest = expected / _BAND - _BAND_TOKENS
        highest = expected * _BAND + _BAND_TOKENS
        if tokens < lowest:
            tokens = lowest
        elif tokens > highest:
            tokens = highest
        if tokens < 0.0:
            tokens = 0.0
        decay = _DECAY
        weight = math.pow(text_bytes + _SMALL_BYTES, _SHARPNESS)
        weighted = weight * text_bytes
        self._w = self._w * decay + weight
        self._wx = self._wx * decay + weighted
        self._wy = self._wy * decay + weight * tokens
        self._wxx = self._wxx * decay + weighted * text_bytes
        self._wxy = self._wxy * decay + weighted * tokens
        self._fade *= decay
        self.observations += 1
        self._fit()

    def _fit(self) -> None:
        w, wx, wy, wxx, wxy = self._w, self._wx, self._wy, self._wxx, self._wxy
        offset = (wy * wxx - wx * wxy) / (w * _RIDGE * wxx - wx * wx)
        if offset < 0.0:
            offset = 0.0
        elif offset > _MOST_OFFSET:
            offset = _MOST_OFFSET
        self.offset = offset
        per_byte = (wxy - offset * wx) / wxx
        if per_byte < _LOWEST:
            per_byte = _LOWEST
        elif per_byte > _HIGHEST:
            per_byte = _HIGHEST
        self.per_byte = per_byte


class Coverage:
    """The share of predictions that were not exceeded, among the last ``WINDOW``."""

    WINDOW: Final = 128
    _MASK: Final = (1 << 128) - 1

    __slots__ = ("_missed", "all_misses", "predictions")

    def __init__(self) -> None:
        self._missed = 0
        """A bit for each prediction, the latest one last; 1 if it was exceeded."""
        self.all_misses = 0
        """The number of exceeded predictions in the window."""
        self.predictions = 0
        """Predictions in the window."""

    def copy(self) -> Coverage:
        """A copy with the same predictions."""
        made = Coverage()
        made._missed, made.all_misses, made.predictions = self._missed, self.all_misses, self.predictions
        return made

    def observe(self, *, is_missed: bool) -> None:
        """Count one prediction."""
        missed = self._missed
        if missed or is_missed:
            missed = missed << 1 | is_missed
            if missed > self._MASK:
                missed &= self._MASK
                self.all_misses -= 1
            self.all_misses += is_missed
            self._missed = missed
        if self.predictions < self.WINDOW:
            self.predictions += 1

    def lend(self, predictions: int, misses: int, kept: int = 0) -> None:
        """Keep the last ``kept`` predictions, and put ``predictions`` of others in place of those before.

        The misses of others are spread evenly over their predictions.
        """
        room = self.WINDOW - kept
        predictions = max(predictions, 0)
        misses = max(min(misses, predictions), 0)
        if predictions > room:
            predictions, misses = room, -(-misses * room // predictions)
        self.predictions = kept + predictions
        self._missed &= (1 << kept) - 1
        for number in range(misses):
            self._missed |= 1 << kept + number * predictions // misses
        self.all_misses = self._missed.bit_count()

    def misses(self, last: int) -> int:
        """The number of exceeded predictions among the ``last``."""
        return (self._missed & ((1 << last) - 1)).bit_count()

    @property
    def share(self) -> float:
        """The covered share; 1 without predictions."""
        return 1.0 - self.all_misses / self.predictions if self.predictions else 1.0


class OutputQuantile:
    """An output length that a share ``quantile`` of the sequences does not exceed.

    It is a rank among the last ``WINDOW`` outputs, and errors correct the rank. An output above the value
    raises the rank by ``GAIN * quantile``. An output below it lowers the rank by ``GAIN * (1 - quantile)``.
    So the rank is stable only if the promised share of outputs exceeds the value. A window alone follows a
    change of mix late, and more outputs exceed it than promised. An output equal to the value does not move
    the rank, because with equal outputs no output exceeds the value.

    The errors of two values count: of the value at the pricing of the request, and of the value at its end.
    The first is the reservation that was made. Of requests that arrive together, the shortest ends first. So
    the longest ends last, and raises the rank just before the next ones are priced. With the value at the end
    alone, 92.5 % of the outputs of a trace with such arrivals were covered instead of 90 %. But while many
    requests run, all of them were priced before the rank could follow, and each of them would correct it once
    more. With 93 running requests, 85 % were covered. So the first weighs 64 / (64 + running requests).

    Until it has observed ``ENOUGH`` outputs, the value is ``PRIOR``. A small number admits rather too many
    requests, and a running request that exceeds its reservation extends it.

    The bounds for any observations are 1 to ``MOST`` tokens, and never above the longest output of the
    window.

    Each observation is first predicted, so the observed coverage is a certificate (``is_certified``). It has
    three conditions:

    - The promised rank lies within the n observed outputs: the next output exceeds all of them with a chance
      of 1 in n + 1.
    - At least one miss was expected so far. Before that, the absence of misses proves nothing.
    - The share of misses among the predictions is at most the promised one plus ``MARGIN``.
    """

    MANY_RUNNING: Final = 64
    """With so many running requests, the value at the pricing and the value at the end have equal weights."""
    MARGIN: Final = 0.02
    """The tolerance of the promised coverage. The tracked rank stays within 0.009 of it (see the table), so
    a steady workload keeps its certificate."""
    PRIOR: Final = 256
    ENOUGH: Final = 8
    WINDOW: Final = 128
    GAIN: Final = 0.02
    LEEWAY: Final = 0.3
    """The largest distance of the rank below the quantile. Above it, the rank may reach the longest
    output."""
    MOST: Final = 1 << 20
    _TURN: Final = (math.sqrt(5) - 1) / 2

    __slots__ = (
        "_lent",
        "_level",
        "_order",
        "_own_predictions",
        "_quantile",
        "_sorted",
        "_turn",
        "_window",
        "coverage",
        "is_certified",
        "observations",
        "value",
    )

    def __init__(self, quantile: float = 0.9, window: int = WINDOW) -> None:
        self._quantile = self._level = quantile
        self._window = window
        self._lent = 0
        """The number of outputs at the start of the window that others observed."""
        self._own_predictions = 0
        self.coverage = Coverage()
        """The last predictions."""
        self.is_certified = False
        """Whether the observed coverage keeps the promise."""
        self.observations = 0
        """The number of its own observations."""
        self._order: deque[int] = deque()
        self._sorted: list[int] = []
        self._turn = 0.0
        self.value = self.PRIOR
        """Output tokens to reserve for one sequence."""

    def copy(self, *, is_lent: bool = False) -> OutputQuantile:
        """A copy with the same knowledge. With ``is_lent``, none of it counts as the copy's own."""
        made = OutputQuantile(self._quantile, self._window)
        made._level, made.value, made._turn = self._level, self.value, self._turn
        made._order, made._sorted = self._order.copy(), self._sorted.copy()
        made.coverage, made.is_certified = self.coverage.copy(), self.is_certified
        if is_lent:
            made._lent = len(self._order)
        else:
            made._lent, made._own_predictions = self._lent, self._own_predictions
            made.observations = self.observations
        return made

    def set_quantile(self, quantile: float) -> None:
        """Change the quantile. The observed outputs stay, and the certificate ends."""
        self._quantile = self._level = quantile
        self.coverage, self._own_predictions, self.is_certified = Coverage(), 0, False
        self._rank()

    @property
    def is_known(self) -> bool:
        """Whether the value comes from observations."""
        return len(self._order) >= self.ENOUGH

    @property
    def own(self) -> list[int]:
        """Its own outputs in the window, in ascending order, without those of others."""
        if not self._lent:
            return self._sorted
        return sorted(list(self._order)[self._lent :])

    @property
    def own_coverage(self) -> tuple[int, int]:
        """The number of its own last predictions, and the number of exceeded ones among them."""
        return self._own_predictions, self.coverage.misses(self._own_predictions)

    @property
    def level(self) -> float:
        """The corrected quantile: the rank of the value, as a share of the outputs."""
        return self._level

    @property
    def room(self) -> int:
        """The outputs of the window that are not its own."""
        return self._window - len(self._order) + self._lent

    def lend(self, outputs: Sequence[int], predictions: int, misses: int, level: float) -> None:
        """Fill the ``room`` with the ``outputs`` of others, instead of earlier ones of others.

        The next own observations replace them. The own observations and predictions stay. Without own
        predictions, the rank starts at the ``level`` that the predictions of others corrected. From the
        quantile itself, equal outputs and whole ranks raised the coverage by up to 2 points. A level of 0
        is unknown.
        """
        room = self.room
        if not outputs or not room:
            return
        own = list(self._order)[self._lent :]
        known = [1 if each < 1 else min(each, self.MOST) for each in outputs[-room:]]
        # This order keeps the distribution while the oldest outputs are replaced.
        turns = sorted([((number * self._TURN) % 1.0, each) for number, each in enumerate(sorted(known))])
        self._order, self._lent = deque([each for _, each in turns] + own), len(known)
        self._sorted = sorted(self._order)
        self.coverage.lend(predictions, misses, self._own_predictions)
        if level > 0 and not self._own_predictions:
            self._level = max(min(level, 1.0), self._lowest())
        self._rank()
        self._certify()

    def observe(self, output_tokens: int, predicted: int = 0, running: int = 0) -> None:
        """Learn the length of one finished sequence.

        ``predicted`` is the value at its pricing; 0 if it is not known. ``running`` is the number of requests
        that were priced and have not ended.
        """
        order, ranked = self._order, self._sorted
        output_tokens = 1 if output_tokens < 1 else min(output_tokens, self.MOST)
        self.observations += 1
        if len(order) >= self.ENOUGH:
            self._correct(output_tokens, predicted, running)
        replaced = -1
        if len(order) == self._window:
            replaced = order.popleft()
            if self._lent:
                self._lent -= 1
        order.append(output_tokens)
        if replaced != output_tokens:
            if replaced >= 0:
                del ranked[bisect_left(ranked, replaced)]
            insort(ranked, output_tokens)
        self._rank()
        self._certify()

    def observe_cut(self, output_tokens: int) -> None:
        """Learn from a sequence that was cut short after ``output_tokens``, and would have continued.

        A third of lognormal outputs was cut at random, with a quantile of 0.9. Without the cut sequences,
        19.6 % of all outputs exceeded the value, because long sequences are cut more often. With their
        lengths at the cut, 20.1 % did. So a cut sequence counts as one of the longer outputs of the window,
        each of these in turn: 10.0 % (with 60 % of the sequences cut, 13 % instead of 32 %). If no output is
        longer, it counts only if it already exceeds the value.
        """
        ranked = self._sorted
        shorter = bisect_right(ranked, output_tokens)
        longer = len(ranked) - shorter
        if longer and len(ranked) >= self.ENOUGH:
            self._turn = (self._turn + self._TURN) % 1.0  # covers the outputs evenly, without randomness
            self.observe(ranked[shorter + int(self._turn * longer)])
        elif output_tokens > self.value:
            self.observe(output_tokens)

    def _correct(self, output_tokens: int, predicted: int, running: int) -> None:
        value = self.value
        if not predicted:
            predicted = value
        self.coverage.observe(is_missed=output_tokens > predicted)
        if self._own_predictions < Coverage.WINDOW:
            self._own_predictions += 1
        then = self.MANY_RUNNING / (self.MANY_RUNNING + running)
        move = then * self._error(output_tokens, predicted) + (1.0 - then) * self._error(output_tokens, value)
        level = self._level + self.GAIN * move
        self._level = min(max(level, self._lowest()), 1.0)

    def _error(self, output_tokens: int, value: int) -> float:
        """How far a prediction of ``value`` moves the rank: up if the output exceeds it, else down."""
        if output_tokens > value:
            return self._quantile
        return self._quantile - 1.0 if output_tokens < value else 0.0

    def _lowest(self) -> float:
        return max(self._quantile - self.LEEWAY, 0.0)

    def _certify(self) -> None:
        predictions, share = self.coverage.predictions, 1.0 - self._quantile + 1e-9
        self.is_certified = (
            predictions * share >= 1.0
            and (len(self._sorted) + 1) * share >= 1.0
            and self.coverage.all_misses <= predictions * (share + self.MARGIN)
        )

    def _rank(self) -> None:
        count = len(self._sorted)
        if count >= self.ENOUGH:
            rank = math.ceil(self._level * (count + 1)) - 1
            self.value = self._sorted[max(min(rank, count - 1), 0)]


class Average:
    """An exponentially weighted mean. The first observation replaces the prior."""

    __slots__ = ("_is_empty", "_share", "value")

    def __init__(self, prior: float, share: float = 0.1) -> None:
        self.value = prior
        """The mean of the observations; the prior before the first one."""
        self._share = share
        self._is_empty = True

    def observe(self, sample: float) -> None:
        """Move the mean towards ``sample`` by the weight of one observation."""
        if self._is_empty:
            self.value, self._is_empty = sample, False
        else:
            self.value += (sample - self.value) * self._share
