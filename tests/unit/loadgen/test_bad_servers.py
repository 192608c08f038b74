"""What servers send that no LLM server sends: a failure with a reason, and never an error of loadgen."""

from __future__ import annotations

import pytest

from loadgen import causes, probe, sampling, sse
from loadgen.endpoints.table import DIALECTS
from loadgen.probe import Reply
from loadgen.run import backoff
from loadgen.scenario import LONGEST_WAIT_S, Endpoint, Retries

DEEP = b'{"x":' * 100_000


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize("content", [DEEP, b"[" * 100_000, b'{"error":' * 100_000, b'{"id":"\xff'])
def test_content_that_cannot_be_decoded_has_no_event(endpoint: Endpoint, content: bytes) -> None:
    assert DIALECTS[endpoint].event(content) is None
    assert DIALECTS[endpoint].whole(content) is None
    assert sse.decoded(content) is None


@pytest.mark.parametrize("content", [DEEP, b'{"error":' * 100_000, b'{"\xff":1}'])
def test_pages_that_cannot_be_decoded_are_empty(content: bytes) -> None:
    assert sampling.samples(content, 0.0, "http://h") == []
    assert probe.models(Reply(200, content=content)) == []
    assert causes.message(content).startswith('{"')


def test_an_event_without_an_end_is_too_long() -> None:
    reader = sse.Reader()
    assert reader.feed(b"data: " + b"x" * (sse.MOST_EVENT_BYTES - 10)) == []
    with pytest.raises(sse.TooLong, match="an event has more than 8 MiB"):
        reader.feed(b"x" * 10)


def test_lines_of_an_event_without_an_end_are_too_long() -> None:
    reader = sse.Reader()
    line = b"data: " + b"x" * (sse.MOST_EVENT_BYTES // 2) + b"\n"
    assert reader.feed(line) == []
    with pytest.raises(sse.TooLong):
        reader.feed(line)


def test_many_events_are_not_too_long() -> None:
    reader = sse.Reader()
    event = b"data: " + b"x" * (sse.MOST_EVENT_BYTES // 2) + b"\n\n"
    assert len(reader.feed(event * 3)) == 3
    assert len(reader.feed(event)) == 1


def test_a_reason_is_short_and_printable() -> None:
    assert causes.name("quota_\x1b[31mexceeded") == "quota_ [31mexceeded"
    assert len(causes.name("y" * 3000)) == causes.MOST_NAME


def test_the_wait_is_bounded_after_any_number_of_attempts() -> None:
    assert backoff(Retries(most=10_000, wait_s=0.5), 5000, None, 1.0) == LONGEST_WAIT_S
    assert backoff(Retries(most=10_000, wait_s=0.0), 5000, None, 1.0) == 0.0
