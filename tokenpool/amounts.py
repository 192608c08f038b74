"""Amounts: a vector over the three dimensions in which capacity is counted.

A plan of 1,000 entitlements makes some 15,000 amounts: as structs they cost 60 ns each, as frozen dataclasses
430.

Only arithmetic lives here. What an amount means (a guarantee, a cost, a limit) is its owner's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Self

import msgspec


class Dimension(StrEnum):
    """What capacity is counted in."""

    TOKENS_PER_SECOND = "tokens_per_second"
    KV_TOKENS = "kv_tokens"
    CONCURRENCY = "concurrency"


NO_KV_BOUND = 1e11
"""Stands for the KV tokens of an engine without a KV bound: it has no KV cache, or nothing says how large.

Finite, so that sums, quotients and JSON stay numbers. The largest real caches have some 10 million tokens.
"""
NO_KV_BOUND_FROM = 1e9
"""From here on KV tokens are no bound: limits are ``NO_KV_BOUND`` less what others use, or a part of it."""


class Amount(msgspec.Struct, frozen=True, gc=False):
    """How much of each dimension.

    ``tokens_per_second`` is a rate (tokens/s), ``kv_tokens`` the KV-cache tokens resident and
    ``concurrency`` the sequences running. A value may be ``math.inf`` where it is a bound that is absent.
    """

    tokens_per_second: float = 0.0
    kv_tokens: float = 0.0
    concurrency: float = 0.0

    @classmethod
    def from_mapping(cls, values: Mapping[Dimension, float], default: float = 0.0) -> Self:
        """Build an amount from some dimensions; the others are ``default``."""
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
        """By dimension name; ``None`` where there is no bound, since JSON has no infinity."""
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
