"""The token bucket: the throughput that one entitlement may still spend. ``now`` is seconds on any clock."""

from __future__ import annotations

import math

BUCKET_SECONDS = 1.0
"""A bucket holds at least the tokens of this time at its rate. With less, sparse tenants lost their share."""
BUCKET_REQUESTS = 2.0
"""A bucket also holds at least this many typical requests."""


def bucket_depth(rate: float, typical_tokens: float) -> float:
    """The tokens that a bucket holds, for a rate in tokens/s and the cost of a typical request in tokens."""
    return max(rate * BUCKET_SECONDS, typical_tokens * BUCKET_REQUESTS, 1.0)


class TokenBucket:
    """A bucket of throughput tokens whose level may go below zero.

    It admits while the level is above zero and is charged the whole cost. So a small bucket never starves a
    large request, and the long-run rate still holds.

    Its owner chooses between two ways to fill it: at a rate up to a depth (``resize``), or with the exact
    tokens of a lease (``hold``).
    """

    __slots__ = ("_filled_at", "depth", "level", "rate")

    def __init__(self, now: float) -> None:
        self.level = 0.0
        """Tokens, as of the last refill."""
        self.rate = 0.0
        """Tokens per second."""
        self.depth = 0.0
        """The most tokens; 0 for a new bucket, infinite for a lease."""
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
        """Refund (positive) or charge (negative); the level never exceeds the depth."""
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
