"""The token bucket: the throughput that one entitlement may spend. ``now`` is in seconds of any clock."""

from __future__ import annotations

import math
from typing import Final

BUCKET_SECONDS: Final = 1.0
"""The least size of a bucket, as seconds at its rate. With less, tenants with rare requests lost their
share."""
BUCKET_REQUESTS: Final = 2.0
"""The least size of a bucket, as a number of typical requests."""


def bucket_depth(rate: float, typical_tokens: float) -> float:
    """The size of a bucket in tokens, for a rate in tokens/s and a typical request's cost in tokens."""
    return max(rate * BUCKET_SECONDS, typical_tokens * BUCKET_REQUESTS, 1.0)


class TokenBucket:
    """A bucket of throughput tokens. Its level may fall below zero.

    A request is admitted while the level is above zero, and the bucket is charged the whole cost. So a small
    bucket never starves a large request, and the long-run rate still holds.

    Its owner fills it in one of two ways: at a rate up to a depth (``resize``), or with the exact tokens of a
    lease (``hold``).
    """

    __slots__ = ("_filled_at", "depth", "level", "rate")

    def __init__(self, now: float) -> None:
        self.level = 0.0
        """The number of tokens at the last refill."""
        self.rate = 0.0
        """Tokens per second."""
        self.depth = 0.0
        """The highest level; 0 for a new bucket, infinite for a lease."""
        self._filled_at = now

    @property
    def holds_lease(self) -> bool:
        """Whether it holds the tokens of a lease, and does not refill."""
        return self.depth == math.inf

    def refill(self, now: float) -> float:
        """Bring the level up to date and return it, in tokens."""
        if now > self._filled_at:
            level = self.level + self.rate * (now - self._filled_at)
            self.level = level if level < self.depth else self.depth
            self._filled_at = now
        return self.level

    def resize(self, rate: float, depth: float, now: float) -> None:
        """Change the rate (tokens/s) and the depth (tokens). A new bucket starts full."""
        is_new = self.depth == 0.0
        self.refill(now)
        self.rate, self.depth = rate, depth
        self.level = depth if is_new else min(self.level, depth)

    def add(self, tokens: float) -> None:
        """Refund (positive) or charge (negative). The level never exceeds the depth."""
        level = self.level + tokens
        self.level = level if level < self.depth else self.depth

    def fill(self) -> None:
        """Raise the level to the depth."""
        self.level = self.depth

    def hold(self, tokens: float) -> None:
        """Hold exactly the tokens of a lease, which does not refill."""
        self.level, self.rate, self.depth = tokens, 0.0, math.inf

    def forget(self) -> None:
        """Return to the state of a new bucket: the next ``resize`` fills it."""
        self.level = self.rate = self.depth = 0.0
