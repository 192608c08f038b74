"""Arithmetic on amounts."""

from __future__ import annotations

import math

from tokenpool.amounts import NO_KV_BOUND, NOTHING, UNBOUNDED, Amount, Dimension


def test_arithmetic_is_by_dimension() -> None:
    assert Amount(1, 2, 3) + Amount(10, 20, 30) == Amount(11, 22, 33)
    assert Amount(10, 20, 30) - Amount(1, 2, 3) == Amount(9, 18, 27)
    assert Amount(1, 2, 3) * 2 == Amount(2, 4, 6)
    assert Amount(1, 5, 3).at_most(Amount(2, 2, 2)) == Amount(1, 2, 2)
    assert Amount(1, 5, 3).at_least(Amount(2, 2, 2)) == Amount(2, 5, 3)


def test_an_amount_fits_only_if_every_dimension_does() -> None:
    assert Amount(1, 1, 1).fits(Amount(1, 1, 1))
    assert Amount(9e9, 9e9, 9e9).fits(UNBOUNDED)
    for over in (Amount(2, 1, 1), Amount(1, 2, 1), Amount(1, 1, 2)):
        assert not over.fits(Amount(1, 1, 1))


def test_dimensions_are_found_by_name_and_the_rest_is_default() -> None:
    amount = Amount.from_mapping({Dimension.KV_TOKENS: 5}, default=math.inf)
    assert [amount.get(d) for d in Dimension] == [math.inf, 5, math.inf]


def test_an_absent_bound_is_null_in_json() -> None:
    assert UNBOUNDED.as_dict() == {"tokens_per_second": None, "kv_tokens": None, "concurrency": None}
    almost = Amount(1e9, 2 * NO_KV_BOUND - 1234, 8)
    assert almost.as_dict() == {"tokens_per_second": 1e9, "kv_tokens": None, "concurrency": 8}
    assert NOTHING.as_dict() == {"tokens_per_second": 0, "kv_tokens": 0, "concurrency": 0}
