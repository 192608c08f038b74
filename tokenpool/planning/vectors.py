"""Vectors: plain tuples over the three dimensions, for the inner loops of a plan.

Most of a plan's time is spent on them, so they are tuples and not ``Amount`` objects.
"""

from __future__ import annotations

from collections.abc import Iterable

EPSILON = 1e-9
"""Relative slack of comparisons between sums of floats."""
DIMENSIONS = range(3)

Vector = tuple[float, float, float]
"""Tokens per second, KV tokens, sequences."""


def counted(vector: Vector) -> Vector:
    """The vector with 0 for every number too small to count, so that no quotient overflows."""
    a, b, c = vector
    return (a if a > EPSILON else 0.0, b if b > EPSILON else 0.0, c if c > EPSILON else 0.0)


def larger(one: Vector, other: Vector) -> Vector:
    """The larger number in each dimension."""
    (a, b, c), (x, y, z) = one, other
    return (a if a > x else x, b if b > y else y, c if c > z else z)


def smaller(one: Vector, other: Vector) -> Vector:
    """The smaller number in each dimension."""
    (a, b, c), (x, y, z) = one, other
    return (a if a < x else x, b if b < y else y, c if c < z else z)


def dominant_shares(vectors: Iterable[Vector], capacity: Vector) -> list[float]:
    """The largest share of capacity in each vector; 0 in a dimension without capacity."""
    tokens, cache, sequences = (1 / c if c > 0 else 0.0 for c in capacity)
    shares = []
    for vector in vectors:
        a, b, c = vector[0] * tokens, vector[1] * cache, vector[2] * sequences
        if b > a:
            a = b
        shares.append(c if c > a else a)
    return shares
