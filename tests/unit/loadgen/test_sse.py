"""Server-sent events in chunks with all possible boundaries."""

from __future__ import annotations

import pytest

from loadgen.sse import DONE, Reader, decoded

STREAM = (
    b": a comment\n\n"
    b'data: {"choices": [{"text": "h\xc3\xa9"}]}\n\n'
    b'event: message\nid: 7\ndata:{"choices": []}\r\n\r\n'
    b'data: {"usage":\ndata: {"completion_tokens": 2}}\n\n'
    b"data: [DONE]\n\n"
    b"data: never ended"
)
EVENTS = [
    '{"choices": [{"text": "hé"}]}'.encode(),
    b'{"choices": []}',
    b'{"usage":\n{"completion_tokens": 2}}',
    DONE,
]


@pytest.mark.parametrize("at", range(len(STREAM) + 1))
def test_two_chunks_with_any_boundary_give_the_same_events(at: int) -> None:
    reader = Reader()
    assert reader.feed(STREAM[:at]) + reader.feed(STREAM[at:]) == EVENTS


def test_single_bytes_give_the_same_events() -> None:
    reader = Reader()
    assert [
        event for index in range(len(STREAM)) for event in reader.feed(STREAM[index : index + 1])
    ] == EVENTS


@pytest.mark.parametrize(
    ("data", "is_token"),
    [
        (b'{"choices": [{"text": "a"}]}', True),
        (b'{"choices": [{"text": ""}]}', True),  # a token with an incomplete character
        (b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}', False),
        (b'{"choices": [{"delta": {"role": "assistant", "content": "a"}}]}', True),
        (b'{"choices": [{"delta": {"content": ""}}]}', True),
        (b'{"choices": [{"delta": {"reasoning_content": "hm"}}]}', True),
        (b'{"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}', True),
        (b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}', False),
        (b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}', False),
    ],
)
def test_events_with_and_without_tokens_are_distinguished(data: bytes, is_token: bool) -> None:
    event = decoded(data)
    assert event is not None
    assert event.is_token is is_token


def test_usage_ends_and_errors_are_read() -> None:
    usage = decoded(b'{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "more": {}}}')
    assert usage is not None
    assert usage.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (1, 2)
    failed = decoded(b'{"error": {"message": "m", "type": "preempted", "code": null}}')
    assert failed is not None
    assert failed.error is not None
    assert failed.error.name == "preempted"
    ended = decoded(b'{"choices": [{"text": "", "finish_reason": "length"}]}')
    assert ended is not None
    assert ended.is_finish


@pytest.mark.parametrize("data", [b"", b"nonsense", b'{"choices": 3}', b'{"choices": [{"text": "\xff"}]}'])
def test_data_in_another_format_is_no_event(data: bytes) -> None:
    assert decoded(data) is None
