"""What a sidecar learns about an entitlement's requests, so that it can price the next one.

Small online estimators: numbers in, numbers out. Each starts from a documented prior and is bounded,
so that neither an odd first request nor a hostile one can move a price without limit.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque


class TokenRatio:
    """Tokens per byte of prompt text: a ratio of decayed sums, so that large prompts count for more.

    The prior counts like one prompt of ``PRIOR_BYTES``; each observation fades by ``DECAY`` with every
    later one, which forgets a change of mix within some fifty requests.
    """

    PRIOR = 0.25
    PRIOR_BYTES = 256.0
    LOWEST, HIGHEST = 0.02, 2.0
    DECAY = 0.95

    __slots__ = ("_bytes", "_tokens", "value")

    def __init__(self) -> None:
        self._bytes = self.PRIOR_BYTES
        self._tokens = self.PRIOR_BYTES * self.PRIOR
        self.value = self.PRIOR
        """The ratio to price with, in tokens per byte."""

    def observe(self, text_bytes: int, tokens: int) -> None:
        """Learn that a prompt of ``text_bytes`` was ``tokens`` long."""
        if text_bytes <= 0:
            return
        self._bytes = total = self._bytes * self.DECAY + text_bytes
        self._tokens = counted = self._tokens * self.DECAY + tokens
        ratio = counted / total
        if ratio < self.LOWEST:
            ratio = self.LOWEST
        elif ratio > self.HIGHEST:
            ratio = self.HIGHEST
        self.value = ratio


class OutputQuantile:
    """A quantile of the output tokens per sequence among the last ``WINDOW`` sequences, exactly.

    Until ``ENOUGH`` were seen it answers ``PRIOR``: a small fixed number errs on the side of admitting,
    and a running request that outgrows it extends its reservation.
    """

    PRIOR = 256
    ENOUGH = 8
    WINDOW = 256

    __slots__ = ("_order", "_quantile", "_sorted", "value")

    def __init__(self, quantile: float = 0.9) -> None:
        self._quantile = quantile
        self._order: deque[int] = deque()
        self._sorted: list[int] = []
        self.value = self.PRIOR
        """Output tokens that a share ``quantile`` of the sequences did not exceed."""

    def observe(self, output_tokens: int) -> None:
        """Learn the length of one finished sequence."""
        order, ranked = self._order, self._sorted
        if len(order) == self.WINDOW:
            del ranked[bisect_left(ranked, order.popleft())]
        order.append(output_tokens)
        insort(ranked, output_tokens)
        count = len(ranked)
        if count >= self.ENOUGH:
            self.value = ranked[min(int(count * self._quantile), count - 1)]


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
