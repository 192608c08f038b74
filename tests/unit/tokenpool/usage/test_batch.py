"""Batches of usage records."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenpool.usage.batch import joined, split

batches = st.lists(st.binary(min_size=1, max_size=40))


@given(batches, batches)
def test_two_batches_in_a_row_are_a_batch(first: list[bytes], second: list[bytes]) -> None:
    assert list(split(joined(first) + joined(second))) == first + second


@given(batches, st.integers(0, 500))
def test_a_truncated_batch_has_its_first_records(records: list[bytes], size: int) -> None:
    content = joined(records)[:size]
    found = list(split(content))

    assert found == records[: len(found)]
    assert len(joined(records[: len(found) + 1])) > len(content) or found == records


@given(batches)
def test_zeros_after_a_batch_are_no_records(records: list[bytes]) -> None:
    assert list(split(joined(records) + bytes(4096))) == records
