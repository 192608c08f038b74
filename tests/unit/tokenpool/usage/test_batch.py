"""Batches of usage records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpool.usage.batch import joined, split
from tokenpool.usage.record import RecordInvalid, decode

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


@given(batches, batches, st.sampled_from([b"\x7f\xff\xff\xff", b"\0\0\0\0x", b"\0\x01\0\x01"]))
def test_the_rest_after_a_damaged_length_is_one_record_that_cannot_be_decoded(
    first: list[bytes], rest: list[bytes], length: bytes
) -> None:
    damaged = length + b"rest" + joined(rest)
    found = list(split(joined(first) + damaged))

    assert found == [*first, damaged]
    with pytest.raises(RecordInvalid):
        decode(found[-1])
