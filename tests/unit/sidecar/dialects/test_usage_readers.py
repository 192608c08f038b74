"""The usage readers: the same result whatever the split of the bytes, and never a failure."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dialects.stream_reader import FingerprintField, StreamReader
from sidecar.dialects.usage_readers import BodyReader, OtherBodyReader, ResponseReader
from tests.fakes.scripted_engine import DONE, FINISH_EVENT, token_event, usage_event
from tokenpool.pricing.cost import Usage

NESTED = (
    b'{"choices":[{"text":"a } { b"}],"usage":{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}},"x":{"y":1}}'
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def run(reader: BodyReader | ResponseReader | StreamReader, parts: list[bytes]) -> bytes:
    return b"".join([*(reader.feed(part) for part in parts if part), reader.end()])


@pytest.mark.parametrize("cut", range(len(NESTED)))
def test_a_body_is_read_across_any_split(cut: int) -> None:
    reader = BodyReader()
    assert run(reader, [NESTED[:cut], NESTED[cut:]]) == NESTED
    assert reader.usage == Usage(7, 2, 4)


@pytest.mark.parametrize(
    ("block", "usage"),
    [
        (b'{"completion_tokens": 1.5, "total_tokens": 2}', Usage(1, 1, 0)),
        (b'{"prompt_tokens": 0.5, "input_tokens": 3}', Usage(3, 0, 0)),
        (b'{"completion_tokens": 0.5, "output_tokens": 2.5, "input_tokens": 1}', Usage(1, 2, 0)),
    ],
)
def test_fractional_counts_are_whole_tokens(block: bytes, usage: Usage) -> None:
    for reader in (BodyReader(), BodyReader(longest=0)):
        run(reader, [b'{"usage": ' + block + b"}"])
        assert reader.usage == usage


@given(st.lists(st.integers(0, len(NESTED)), max_size=10))
def test_a_body_is_read_in_any_number_of_pieces(cuts: list[int]) -> None:
    reader = BodyReader()
    assert run(reader, pieces(NESTED, cuts)) == NESTED
    assert reader.usage == Usage(7, 2, 4)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"usage":null}',
        b'{"usage":7}',
        b'{"usage":{"prompt_tokens":"x"}}',
        b'{"usage":{"prompt_tokens":1',
        b'{"usage":{' + b'"a":1,' * 2000 + b"}}",
    ],
)
def test_a_body_without_a_usage_that_can_be_read_has_none(body: bytes) -> None:
    reader = BodyReader()
    assert run(reader, [body]) == body
    assert reader.usage is None


def test_a_text_that_talks_of_usage_is_not_taken_for_it() -> None:
    body = b'{"choices":[{"text":"\\"usage\\":{\\"prompt_tokens\\":9}"}],"usage":{"prompt_tokens":1}}'
    reader = BodyReader()
    run(reader, [body])
    assert reader.usage == Usage(1, 0)


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_no_bytes_make_a_reader_fail_or_change_what_it_must_not(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    assert run(BodyReader(), parts) == whole
    assert run(StreamReader(None), parts) == whole
    run(StreamReader(FingerprintField()), parts)


STREAM = token_event() * 3 + FINISH_EVENT + usage_event(11, 3) + DONE
STAMPED = FINISH_EVENT.replace(b"}\n\n", b',"system_fingerprint":"fp"}\n\n')
SHOWN = token_event() * 3 + STAMPED + DONE


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.booleans())
def test_a_hidden_usage_event_leaves_what_the_engine_would_have_sent(cuts: list[int], knows: bool) -> None:
    fingerprint = FingerprintField()
    if knows:
        fingerprint.learn("fp")
    reader = StreamReader(fingerprint)
    assert run(reader, pieces(STREAM, cuts)) == SHOWN
    assert (reader.usage, reader.events) == (Usage(11, 3), 6)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_a_usage_that_was_asked_for_is_shown(cuts: list[int]) -> None:
    reader = StreamReader(None)
    assert run(reader, pieces(STREAM, cuts)) == STREAM
    assert reader.usage == Usage(11, 3)


def test_events_leave_at_once_unless_they_might_be_the_hidden_one() -> None:
    reader = StreamReader(FingerprintField())
    assert reader.feed(token_event()) == token_event()
    assert reader.feed(token_event()[:10]) == b""
    assert reader.feed(token_event()[10:]) == token_event()
    assert reader.feed(FINISH_EVENT) == b""  # until the fingerprint is known
    assert reader.feed(usage_event()) == STAMPED


def test_an_engine_without_fingerprints_gets_none_added() -> None:
    fingerprint = FingerprintField()
    reader = StreamReader(fingerprint)
    shown = run(reader, [FINISH_EVENT + usage_event(fingerprint=None) + DONE])
    assert shown == FINISH_EVENT + DONE
    assert fingerprint.text == b""


def test_a_stream_that_ends_without_its_usage_event_loses_nothing() -> None:
    reader = StreamReader(FingerprintField())
    assert run(reader, [token_event() + FINISH_EVENT + DONE]) == token_event() + FINISH_EVENT + DONE
    assert reader.usage is None


def test_usage_in_every_event_is_read_and_the_events_kept() -> None:
    event = (
        b'data: {"choices":[{"index":0,"delta":{}}],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
    )
    reader = StreamReader(FingerprintField())
    assert run(reader, [event * 2]) == event * 2
    assert reader.usage == Usage(5, 2)


def test_delayed_bytes_are_bounded() -> None:
    reader = StreamReader(FingerprintField())
    sent = sum(len(reader.feed(b"x" * 65536)) for _ in range(64))
    assert sent >= 2 << 20


def test_events_that_wait_for_the_fingerprint_are_bounded() -> None:
    reader, event = StreamReader(FingerprintField()), token_event()
    assert reader.feed(FINISH_EVENT) == b""
    events = 2 * (1 << 20) // len(event)
    sent = sum(len(reader.feed(event)) for _ in range(events))
    assert 0 <= events * len(event) + len(FINISH_EVENT) - sent <= 1 << 20


PIECES = [
    *(b"a", b" ", b"\\", b'\\"', b'"', b"\n", b"\n\n", b"\r\n", b"\r\r", b"}", b"\\u00e9", b"error"),
    *(
        b'","error":{"code":5},"x":"',
        b'"}}],"usage":{"prompt_tokens":7,"completion_tokens":2},"x":[{"y":{"z":"',
    ),
    *(b"\n\nevent: error\ndata: no\n\n", b'"finish_reason":"stop', b'\n\ndata: {"error":1}\n\n'),
]


@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join), max_size=6),
    st.sampled_from([None, False, True]),
)
def test_an_event_like_the_one_before_is_read_as_if_it_came_byte_by_byte(
    texts: list[bytes], knows: bool | None
) -> None:
    def made() -> StreamReader:
        fingerprint = None if knows is None else FingerprintField()
        if fingerprint is not None and knows:
            fingerprint.learn("fp")
        return StreamReader(fingerprint)

    events = [token_event()] * 3 + [token_event().replace(b'"x"', b'"' + text + b'"') for text in texts]
    by_event, by_byte = made(), made()
    given = run(by_event, events)
    assert given == run(by_byte, [bytes([byte]) for byte in b"".join(events)])
    assert (by_event.usage, by_event.has_failed) == (by_byte.usage, by_byte.has_failed)
    assert knows is not None or given == b"".join(events)


def test_events_of_two_choices_and_of_one_read_are_counted() -> None:
    reader = StreamReader(None)
    for count in (1, 1, 1, 3, 1, 2):
        for index in (0, 1):
            events = token_event(index) * count
            assert reader.feed(events) == events
    assert reader.events == 18


RESPONSE = (
    b'{"id":"resp_1","tools":[{"usage":{"input_tokens":0,"output_tokens":0}}],"usage":{"input_tokens":7,'
    b'"input_tokens_details":{"cached_tokens":4},"output_tokens":2},"user":"{\\"usage\\":{}}"}'
)


@given(st.lists(st.integers(0, len(RESPONSE)), max_size=10))
def test_a_response_is_read_by_its_structure_across_any_split(cuts: list[int]) -> None:
    reader = ResponseReader()
    assert run(reader, pieces(RESPONSE, cuts)) == RESPONSE
    assert reader.usage == Usage(7, 2, 4)
    assert reader.response == "resp_1"


def test_a_response_that_is_too_long_to_keep_is_passed_on_unread() -> None:
    reader = ResponseReader()
    part = b" " * (1 << 20)
    assert len(run(reader, [part] * 4)) == 4 * len(part)
    assert reader.usage is None
    assert reader._parts == []


def test_a_response_that_is_no_json_has_no_usage() -> None:
    reader = ResponseReader()
    assert run(reader, [b"[" * 5000]) == b"[" * 5000
    assert reader.usage is None


@given(st.lists(st.integers(0, 400), max_size=10))
def test_events_with_names_are_read_across_any_split(cuts: list[int]) -> None:
    """A message's beginning has its usage too, but not of the output."""
    stream = (
        b'event: message_start\ndata: {"message":{"usage":{"input_tokens":9,"output_tokens":0}}}\n\n'
        b'event: content_block_delta\ndata: {"delta":{"text":"\\"usage\\""}}\n\n'
        b'event: message_delta\ndata: {"usage":{"input_tokens":3,"cache_read_input_tokens":6,'
        b'"output_tokens":5}}\n\n'
    )
    reader = StreamReader(None)
    assert run(reader, pieces(stream, cuts)) == stream
    assert reader.usage == Usage(9, 5, 6)
    assert reader.events == 3


COUNTS = st.none() | st.integers(-2, 1000) | st.floats(0, 100) | st.booleans() | st.just("7")
DETAILS = st.none() | st.fixed_dictionaries({}, optional={"cached_tokens": COUNTS, "audio_tokens": COUNTS})
USAGES = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "prompt_tokens": COUNTS,
        "completion_tokens": COUNTS,
        "total_tokens": COUNTS,
        "input_tokens": COUNTS,
        "prompt_tokens_details": DETAILS,
        "completion_tokens_details": DETAILS,
    },
)
ANSWERS = st.fixed_dictionaries(
    {"usage": USAGES},
    optional={
        "object": st.sampled_from(["chat.completion", "list", "error", "new", None]),
        "error": st.sampled_from([None, False, {"message": "x"}]),
        "type": st.sampled_from([None, "message", "error"]),
        "status": st.sampled_from([None, "completed", "failed"]),
        "choices": st.just([{"usage": {"prompt_tokens": 1}}]),
    },
)


@given(answer=ANSWERS)
def test_the_usual_form_is_read_as_any_other_form(answer: dict[str, object]) -> None:
    body = json.dumps(answer).encode()
    usual, any_form = BodyReader(), OtherBodyReader()
    run(usual, [body])
    run(any_form, [body])

    assert usual.usage == any_form.usage
    assert (usual.has_failed, usual.has_begun) == (any_form.has_failed, any_form.has_begun)
