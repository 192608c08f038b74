"""Usage records and their encoding."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpool.usage.record import SCHEMA, RecordInvalid, UsageRecord, decode

TOKENS = st.integers(0, 2**40)
SECONDS = st.floats(0, 1e12)
records = st.builds(
    UsageRecord,
    id=st.text(),
    time=SECONDS,
    pool=st.text(),
    entitlement=st.text(),
    model=st.text(),
    route=st.text(),
    input_tokens=TOKENS,
    output_tokens=TOKENS,
    cached_tokens=TOKENS,
    kv_token_seconds=SECONDS,
    sequence_seconds=SECONDS,
    queue_s=SECONDS,
    ttft_s=st.none() | SECONDS,
    outcome=st.text(),
    replica=st.text(),
    group=st.text(),
    credential_id=st.text(),
    is_estimated=st.booleans(),
)


@given(records)
def test_a_record_is_decoded_as_it_was_encoded(record: UsageRecord) -> None:
    assert decode(record.encode()) == record


def test_an_encoded_record_is_compact() -> None:
    record = UsageRecord(
        "0f1e2d3c4b5a6978-123456",
        1_790_000_000.25,
        "chat",
        "checkout",
        "llama-3.1-8b",
        "/v1/chat/completions",
        1200,
        240,
        1024,
        9000.5,
        6.25,
        0.01,
        0.2,
        "finished",
        "engine-7",
    )
    assert len(record.encode()) < 160


def test_a_record_of_a_later_release_has_more_columns() -> None:
    columns = msgspec.msgpack.decode(UsageRecord("a-1", 1.0, "pool", "tenant", outcome="finished").encode())
    assert decode(msgspec.msgpack.encode([*columns, "new"])) == UsageRecord(
        "a-1", 1.0, "pool", "tenant", outcome="finished"
    )


def test_a_record_of_an_earlier_release_has_fewer_columns() -> None:
    assert decode(msgspec.msgpack.encode([SCHEMA, "a-1", 1.0, "pool", "tenant"])) == UsageRecord(
        "a-1", 1.0, "pool", "tenant"
    )


@pytest.mark.parametrize(
    "content", [b"", b"\xc1", b"\x93\x01\x02\x03", msgspec.msgpack.encode([2, "a-1", 1.0, "pool", "tenant"])]
)
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(RecordInvalid):
        decode(content)


@given(records, st.integers(0, 400))
def test_a_truncated_record_is_refused_or_whole(record: UsageRecord, size: int) -> None:
    content = record.encode()
    if size < len(content):
        with pytest.raises(RecordInvalid):
            decode(content[:size])


VERSION_1 = (
    "dc001301a6306631652d37cb41daac4ee0100000a463686174a8636865636b6f7574a56c6c616d61ac2f76312f6d65737361"
    "676573cd04b0ccf0cd0400cb40c1944000000000cb4019000000000000cb3f847ae147ae147bcb3fc999999999999aa86669"
    "6e6973686564a8656e67696e652d37a473686f70a26b31c3"
)
"""What the first release wrote."""


def test_a_record_of_version_1_is_read() -> None:
    tokens, seconds = (1200, 240, 1024), (9000.5, 6.25, 0.01, 0.2)
    texts = ("finished", "engine-7", "shop", "k1")
    assert decode(bytes.fromhex(VERSION_1)) == UsageRecord(
        *("0f1e-7", 1_790_000_000.25, "chat", "checkout", "llama", "/v1/messages"),
        *tokens,
        *seconds,
        *texts,
        is_estimated=True,
    )
