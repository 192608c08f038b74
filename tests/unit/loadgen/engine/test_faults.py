"""Faults: their fields, the choice for each request, and the bytes of a faulty stream."""

from __future__ import annotations

import json
import random
import zlib

import pytest

from loadgen.engine.faults import Drawn, Fault, FaultError, Faults, Kind, parse_fault, read_fault
from loadgen.engine.injection import Stream, without_usage

CHAT = "/v1/chat/completions"


def faults(*texts: str, seed: int = 1) -> Faults:
    made = Faults(random.Random(seed))
    for text in texts:
        made.add(parse_fault(text), now=10.0)
    return made


def test_a_fault_is_written_as_text_or_as_an_object() -> None:
    expected = Fault(Kind.STATUS, path="/metrics", share=0.5, status=503, at_s=2.0, for_s=3.0)

    assert parse_fault("status:path=/metrics,share=0.5,status=503,at_s=2,for_s=3") == expected
    assert read_fault(expected.shown()) == expected
    assert parse_fault("hang") == Fault(Kind.HANG)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fire", "kind is 'fire'; it must be one of status, delay"),
        ("", "kind is ''"),
        ("delay:status=500", "status is not a field of delay; its fields are at_s, for_s, path, seconds"),
        ("stall:path=/v1", "path is not a field of stall; its fields are at_s, seconds"),
        ("stall:seconds=1e999", "seconds is inf; it must be 1e+06 at most"),
        ("restart:at_s=2e6", "at_s is 2000000.0; it must be 1e+06 at most"),
        ("delay:seconds", "'seconds' in 'delay:seconds' is not name=value"),
        ("delay:seconds=soon", "seconds is 'soon'; it must be a number"),
        ("delay:seconds=-1", "seconds is -1.0; it must be 0 or more"),
        ("delay:seconds=nan", "seconds is nan; it must be 0 or more"),
        ("cut:share=0", "share is 0.0; it must be above 0, and 1 at most"),
        ("cut:share=2", "share is 2.0"),
        ("cut:tokens=-1", "tokens is -1; it must be 0 or more"),
        ("cut:tokens=1.5", "tokens is '1.5'; it must be a number"),
        ("status:status=200", "status is 200; it must be from 400 to 599"),
        ("hang:path=health", "path is 'health'; it must begin with /"),
    ],
)
def test_the_error_of_an_invalid_fault_names_the_field(text: str, words: str) -> None:
    with pytest.raises(FaultError) as caught:
        parse_fault(text)

    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "kind is missing; give one of status"),
        ({"kind": "cut", "tokens": 1.5}, "tokens is 1.5; it must be a whole number"),
        ({"kind": "cut", "share": True}, "share is True; it must be a number"),
        ({"kind": "cut", "share": [1]}, "share is [1]; it must be a number"),
    ],
)
def test_the_error_of_an_invalid_object_names_the_field(content: dict[str, object], words: str) -> None:
    with pytest.raises(FaultError) as caught:
        read_fault(content)

    assert words in str(caught.value)


def test_a_fault_concerns_its_paths_during_its_time() -> None:
    made = faults("status:path=/metrics,at_s=2,for_s=3")

    assert [made.drawn("/metrics", now) is not None for now in (11.9, 12.0, 14.9, 15.0)] == [
        False,
        True,
        True,
        False,
    ]
    assert made.drawn("/health", 13.0) is None


def test_a_share_of_the_requests_is_drawn_by_the_seed() -> None:
    one, same = faults("cut:share=0.3"), faults("cut:share=0.3")
    drawn = [one.drawn(CHAT, 10.0) is not None for _ in range(1000)]

    assert drawn == [same.drawn(CHAT, 10.0) is not None for _ in range(1000)]
    assert 250 < sum(drawn) < 350


def test_faults_of_the_whole_engine_are_due_once_and_concern_no_request() -> None:
    made = faults("stall:at_s=1,seconds=5", "restart:at_s=3")

    assert made.drawn(CHAT, 13.0) is None
    assert made.next_at() == 11.0
    assert [fault.kind for fault in made.due(12.0)] == [Kind.STALL]
    assert made.next_at() == 13.0
    assert made.due(12.0) == []
    assert [fault.kind for fault in made.due(13.0)] == [Kind.RESTART]
    assert made.next_at() is None


def test_faults_are_listed_and_removed_by_number() -> None:
    made = faults("hang:path=/health,for_s=5", "cut")
    drawn = made.drawn("/health", 11.0)

    assert list(made.shown(16.0)) == [
        {
            "id": 1,
            "active": False,
            "kind": "hang",
            "at_s": 0.0,
            "for_s": 5.0,
            "path": "/health",
            "share": 1.0,
        },
        {"id": 2, "active": True, "kind": "cut", "at_s": 0.0, "path": "/v1/", "share": 1.0, "tokens": 1},
    ]
    assert drawn is not None
    assert made.holds(drawn.faults[0], 14.9)
    assert not made.holds(drawn.faults[0], 15.0)
    assert made.remove(1)
    assert not made.remove(1)
    assert not made.holds(drawn.faults[0], 11.0)
    made.clear()
    assert list(made.shown(16.0)) == []


def stream(*texts: str) -> Stream:
    return Stream(Drawn(tuple(parse_fault(text) for text in texts)))


CHUNK = b'data: {"choices":[{"index":0}],"usage":{"prompt_tokens":1,"d":{"c":2}}}\n\n'
LAST = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\ndata: [DONE]\n\n'


def test_a_stream_without_faults_is_unchanged() -> None:
    assert Stream(None).changed(CHUNK) is CHUNK
    assert Stream(None).fails is None


def test_lines_end_in_crlf_and_comments_stand_between_events() -> None:
    assert stream("crlf").changed(b"data: a\n\n") == b"data: a\r\n\r\n"
    assert stream("comments").changed(b"data: a\n\n") == b": keep-alive\n\ndata: a\n\n"
    assert stream("comments", "crlf").changed(b"data: a\n\n") == b": keep-alive\r\n\r\ndata: a\r\n\r\n"


def test_a_compressed_stream_can_be_read_event_by_event() -> None:
    made, reader = stream("gzip"), zlib.decompressobj(wbits=31)

    assert made.is_compressed
    assert reader.decompress(made.changed(CHUNK)) == CHUNK
    assert reader.decompress(made.changed(LAST, is_last=True)) == LAST
    assert reader.eof


def test_usage_is_left_out_with_the_event_that_has_nothing_else() -> None:
    assert stream("no-usage").changed(CHUNK + LAST) == (
        b'data: {"choices":[{"index":0}]}\n\ndata: [DONE]\n\n'
    )


@pytest.mark.parametrize(
    "content",
    [
        {"usage": {"a": 1}, "b": 2},
        {"b": 2, "usage": {"a": {"c": 1}, "d": {}}},
        {"b": 2, "usage": {"a": 1}, "c": 3},
        {"usage": None},
        {"response": {"usage": {"a": {"b": 1}}, "c": 1}},
    ],
)
def test_json_without_usage_is_json(content: dict[str, object]) -> None:
    made = without_usage(json.dumps(content, separators=(",", ":")).encode())

    assert b"usage" not in made
    json.loads(made)


def test_a_messages_stream_can_split_its_usage() -> None:
    usage = b'"usage":{"input_tokens":8,"output_tokens":4}'
    start = b'event: message_start\ndata: {"type":"message_start",' + usage + b"}\n\n"
    end = b'event: message_delta\ndata: {"type":"message_delta",' + usage + b"}\n\n"

    made = stream("split-usage").changed(start + end)

    assert b'"message_start","usage":{"input_tokens":8}' in made
    assert b'"message_delta","usage":{"output_tokens":4}' in made


def test_a_stream_is_ended_by_an_error_or_a_cut() -> None:
    assert stream("crlf").fails is None
    assert stream("crlf", "error-event:tokens=3").fails == Fault(Kind.ERROR_EVENT, tokens=3)
    assert stream("cut").fails == Fault(Kind.CUT)
