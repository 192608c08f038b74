"""Vectors: tuples over the three dimensions, for the inner loops of a plan.

A plan spends most of its time on them, so they are tuples and not ``Amount`` objects.
"""

from __future__ import annotations

from collections.abc import Iterable

EPSILON = 1e-9
"""Relative tolerance of comparisons between sums of floats."""
DIMENSIONS = range(3)

Vector = tuple[float, float, float]
"""Tokens per second, KV tokens, sequences."""
ZERO: Vector = (0.0, 0.0, 0.0)


def counted(vector: Vector) -> Vector:
    """The vector with 0 for every number below ``EPSILON``, so that no quotient overflows."""
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
    """The largest share of capacity in each vector. A dimension without capacity counts as 0."""
    tokens, cache, sequences = (1 / c if c > 0 else 0.0 for c in capacity)
    shares = []
    for vector in vectors:
        a, b, c = vector[0] * tokens, vector[1] * cache, vector[2] * sequences
        if b > a:
            a = b
        shares.append(c if c > a else a)
    return shares
