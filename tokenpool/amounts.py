"""Amounts: a vector over the three dimensions of capacity, with its arithmetic.

A plan of 1,000 entitlements creates about 15,000 amounts. A struct costs 60 ns, a frozen dataclass 430 ns.

The owner of an amount defines its meaning: a guarantee, a cost or a limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Self

import msgspec


class Dimension(StrEnum):
    """A unit of capacity."""

    TOKENS_PER_SECOND = "tokens_per_second"
    KV_TOKENS = "kv_tokens"
    CONCURRENCY = "concurrency"


NO_KV_BOUND = 1e11
"""The KV tokens of an engine without a KV bound: it has no KV cache, or nothing states the size of its cache.

It is finite, so that sums, quotients and JSON stay numbers. The largest real caches have about 10 million
tokens.
"""
NO_KV_BOUND_FROM = 1e9
"""KV tokens from this number on are no bound. A limit may be ``NO_KV_BOUND`` less some use, or a part of
it."""


class Amount(msgspec.Struct, frozen=True, gc=False):
    """A number for each dimension.

    ``tokens_per_second`` is a rate in tokens/s. ``kv_tokens`` is a number of KV-cache tokens, and
    ``concurrency`` a number of running sequences. ``math.inf`` represents an absent bound.
    """

    tokens_per_second: float = 0.0
    kv_tokens: float = 0.0
    concurrency: float = 0.0

    @classmethod
    def from_mapping(cls, values: Mapping[Dimension, float], default: float = 0.0) -> Self:
        """Build an amount from some dimensions. The other dimensions are ``default``."""
        return cls(*(float(values.get(dimension, default)) for dimension in Dimension))

    def get(self, dimension: Dimension) -> float:
        """The value in one dimension."""
        if dimension is Dimension.TOKENS_PER_SECOND:
            return self.tokens_per_second
        if dimension is Dimension.KV_TOKENS:
            return self.kv_tokens
        return self.concurrency

    def values(self) -> tuple[float, float, float]:
        """The three numbers, in the order of ``Dimension``."""
        return self.tokens_per_second, self.kv_tokens, self.concurrency

    def as_dict(self) -> dict[str, float | None]:
        """The numbers by dimension name; ``None`` for an absent bound, because JSON has no infinity."""
        shown = {d.value: v if math.isfinite(v := self.get(d)) else None for d in Dimension}
        if self.kv_tokens >= NO_KV_BOUND_FROM:
            shown[Dimension.KV_TOKENS.value] = None
        return shown

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.tokens_per_second + other.tokens_per_second,
            self.kv_tokens + other.kv_tokens,
            self.concurrency + other.concurrency,
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.tokens_per_second - other.tokens_per_second,
            self.kv_tokens - other.kv_tokens,
            self.concurrency - other.concurrency,
        )

    def __mul__(self, factor: float) -> Amount:
        return Amount(self.tokens_per_second * factor, self.kv_tokens * factor, self.concurrency * factor)

    def at_most(self, other: Amount) -> Amount:
        """The smaller value in each dimension."""
        a, b, c = self.tokens_per_second, self.kv_tokens, self.concurrency
        x, y, z = other.tokens_per_second, other.kv_tokens, other.concurrency
        return Amount(a if a < x else x, b if b < y else y, c if c < z else z)

    def at_least(self, other: Amount) -> Amount:
        """The larger value in each dimension."""
        a, b, c = self.tokens_per_second, self.kv_tokens, self.concurrency
        x, y, z = other.tokens_per_second, other.kv_tokens, other.concurrency
        return Amount(a if a > x else x, b if b > y else y, c if c > z else z)

    def fits(self, bound: Amount) -> bool:
        """Whether no dimension exceeds ``bound``."""
        return (
            self.tokens_per_second <= bound.tokens_per_second
            and self.kv_tokens <= bound.kv_tokens
            and self.concurrency <= bound.concurrency
        )


NOTHING = Amount()
UNBOUNDED = Amount(math.inf, math.inf, math.inf)
