"""The request parser by itself: bytes and times in, events out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sidecar.proxy.request_parser
from sidecar.proxy.connection_state import Phase
from sidecar.proxy.events import (
    BadRequest,
    BodyOutgrew,
    ContinueExpected,
    Event,
    HeadReceived,
    NeedData,
    Paused,
    RequestReceived,
)
from sidecar.proxy.request_parser import ParserLimits, RequestParser
from tests.support.framing.cases import HELLO, chunked, get, sized
from tokenpool.outcomes import Reason

LIMITS = ParserLimits(max_head_bytes=1000, head_timeout=10.0, body_timeout=60.0)


def parser() -> RequestParser:
    return RequestParser(LIMITS)


def events(parser: RequestParser, data: bytes, now: float = 0.0) -> list[Event]:
    """All events of some bytes, up to a pause."""
    parser.receive(data, now)
    return left(parser)


def left(parser: RequestParser) -> list[Event]:
    found = []
    while not isinstance(event := parser.next_event(), NeedData | Paused):
        found.append(event)
    return found


def kinds(found: list[Event]) -> list[type]:
    return [type(event) for event in found]


def test_a_request_is_a_head_and_a_body() -> None:
    head, request = events(parser(), sized(HELLO))
    assert isinstance(head, HeadReceived)
    assert (head.head.method, head.head.path, head.length, head.is_chunked) == (
        b"POST",
        b"/tokenize",
        5,
        False,
    )
    assert head.is_as_sent
    assert isinstance(request, RequestReceived)
    assert (request.body, request.closes) == (HELLO, False)


def test_the_head_comes_before_more_than_a_piece_of_the_body_is_parsed() -> None:
    asked = parser()
    asked.receive(sized(bytes(100_000)), 0.0)
    assert isinstance(asked.next_event(), HeadReceived)
    assert asked.unread > 99_000


def test_nothing_comes_after_the_end() -> None:
    asked = parser()
    asked.receive(sized(HELLO) + get(), 0.0)
    assert isinstance(asked.next_event(), HeadReceived)
    asked.end()
    assert (left(asked), asked.unread, asked.has_ended) == ([], 0, True)
    assert events(asked, get()) == []


def test_an_error_comes_after_the_requests_before_it() -> None:
    found = events(parser(), get() + b"\x00")
    assert kinds(found) == [HeadReceived, RequestReceived, BadRequest]


def test_a_head_may_be_refused_though_its_body_is_in_error() -> None:
    """The connection decides in the order of the bytes."""
    asked = parser()
    asked.receive(chunked(b"x\r\n"), 0.0)
    assert isinstance(asked.next_event(), HeadReceived)
    asked.end()
    assert left(asked) == []


def test_a_chunked_body_asks_for_room_once_it_has_outgrown_it() -> None:
    asked = parser()
    asked.receive(chunked(b"5\r\nhello\r\n"), 0.0)
    assert isinstance(asked.next_event(), HeadReceived)
    asked.allow_body(8)
    found = left(asked) + events(asked, b"3\r\nabc\r\n")
    assert [event.size for event in found if isinstance(event, BodyOutgrew) and event.size > 8] == []
    [outgrew] = events(asked, b"1\r\nd\r\n")
    assert isinstance(outgrew, BodyOutgrew)
    assert outgrew.size == 9
    asked.allow_body(16)
    [request] = events(asked, b"1\r\ne\r\n0\r\n\r\n")
    assert isinstance(request, RequestReceived)
    assert request.body == b"helloabcde"


def test_room_for_a_complete_body_is_not_given_to_the_next() -> None:
    asked = parser()
    asked.receive(chunked(b"5\r\nhello\r\n0\r\n\r\n") + chunked(b""), 0.0)
    assert isinstance(asked.next_event(), HeadReceived)
    asked.allow_body(100)
    assert kinds(left(asked)) == [BodyOutgrew, RequestReceived, HeadReceived]
    assert kinds(events(asked, b"5\r\nhello\r\n")) == [BodyOutgrew]


def test_pipelined_requests_come_in_turns() -> None:
    asked = parser()
    asked.receive(get() * 100, 0.0)
    first = left(asked)
    assert 2 <= len(first) < 40
    assert isinstance(asked.next_event(), Paused)
    waiting = asked.unread
    asked.forget_parsed()
    assert asked.unread == waiting > 0
    found = first
    while asked.unread:
        asked.begin_turn(0.0)
        found += left(asked)
    assert kinds(found) == [HeadReceived, RequestReceived] * 100


def test_bytes_that_arrive_while_others_wait_are_parsed_behind_them() -> None:
    asked = parser()
    found = events(asked, get(b"/1") * 30) + events(asked, get(b"/2"))
    while asked.unread:
        asked.begin_turn(0.0)
        found += left(asked)
    assert [e.head.path for e in found if isinstance(e, HeadReceived)] == [b"/1"] * 30 + [b"/2"]


def test_a_head_and_a_body_have_their_time() -> None:
    asked = parser()
    assert asked.phase is Phase.IDLE
    events(asked, b"P", 5.0)
    assert (asked.phase, asked.deadline) == (Phase.HEAD, 15.0)
    events(asked, sized(HELLO)[1:-1], 7.0)
    assert (asked.phase, asked.deadline) == (Phase.BODY, 67.0)
    late = asked.time_out()
    assert (late.reason, late.message) == (
        Reason.REQUEST_TIMEOUT,
        "the request body took too long to arrive",
    )
    assert asked.phase is Phase.ENDED


def test_empty_lines_do_not_keep_a_connection_open() -> None:
    asked = parser()
    events(asked, b"\r\n", 1.0)
    events(asked, b"\r\n", 9.0)
    assert (asked.phase, asked.deadline) == (Phase.HEAD, 11.0)
    assert asked.time_out().message == "the request head took too long to arrive"


def test_a_client_that_was_kept_from_sending_has_the_time_of_a_head_again() -> None:
    asked = parser()
    events(asked, b"P", 0.0)
    asked.resumed(30.0)
    assert asked.deadline == 40.0


def test_an_expectation_is_told_until_the_body_comes() -> None:
    asked = parser()
    head, body = sized(HELLO, b"Expect: 100-continue\r\n").split(b"\r\n\r\n")
    found = events(asked, head + b"\r\n\r\n")
    assert kinds(found) == [HeadReceived, ContinueExpected]
    assert isinstance(found[0], HeadReceived)
    assert not found[0].is_as_sent
    assert asked.expects_continue
    asked.sent_continue(100.0)
    assert (asked.expects_continue, asked.deadline) == (False, 160.0)
    assert kinds(events(asked, body)) == [RequestReceived]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (get(lines=b"X-A: " + b"a" * 1001 + b"\r\n"), Reason.HEAD_TOO_LARGE),
        (get(lines=b"X:\r\n" * 128), Reason.HEAD_TOO_LARGE),
        (b"G" + b"E" * 1001, Reason.MALFORMED),
        (get()[:-2] + b"X-A: " + b"a" * 1001, Reason.HEAD_TOO_LARGE),
        (sized(HELLO, b"Expect: magic\r\n"), Reason.UNSUPPORTED_EXPECTATION),
    ],
)
@pytest.mark.parametrize("is_split", [False, True])
def test_limits_hold_however_the_bytes_arrive(raw: bytes, reason: Reason, is_split: bool) -> None:
    asked = parser()
    pieces = [raw[at : at + 1] for at in range(len(raw))] if is_split else [raw]
    found = [event for piece in pieces for event in events(asked, piece)]
    assert isinstance(found[-1], BadRequest)
    assert found[-1].reason is reason
    assert asked.has_ended


def test_a_target_that_is_too_long_is_refused_as_one_or_as_a_line() -> None:
    raw = get(b"/" + b"a" * 1001)
    assert [e.reason for e in events(parser(), raw) if isinstance(e, BadRequest)] == [Reason.TARGET_TOO_LONG]
    asked = parser()
    found = [event for byte in raw for event in events(asked, bytes((byte,)))]
    assert [e.reason for e in found if isinstance(e, BadRequest)] == [Reason.HEAD_TOO_LARGE]


def test_an_upgrade_is_declined_and_its_head_is_not_as_sent() -> None:
    head, request = events(parser(), sized(HELLO, b"Connection: Upgrade\r\nUpgrade: h2c\r\n"))
    assert isinstance(head, HeadReceived)
    assert not head.is_as_sent
    assert isinstance(request, RequestReceived)
    assert request.body == HELLO


def test_a_request_that_closes_is_the_last() -> None:
    asked = parser()
    found = events(asked, get(lines=b"Connection: close\r\n") + get())
    assert kinds(found) == [HeadReceived, RequestReceived]
    assert isinstance(found[1], RequestReceived)
    assert found[1].closes
    assert (asked.phase, asked.unread) == (Phase.ENDED, 0)


def test_the_parser_knows_no_transport_no_clock_and_no_admission() -> None:
    folder = Path(sidecar.proxy.request_parser.__file__).parents[2] / "sidecar" / "proxy"
    names = set()
    for module in ("request_parser", "events", "framing", "connection_state"):
        for node in ast.walk(ast.parse((folder / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    ours = {"connection_state", "events", "framing", "heads"}
    assert names <= {f"sidecar.proxy.{name}" for name in ours} | {
        "__future__", "enum", "httptools", "re", "tokenpool.outcomes", "typing",
    }  # fmt: skip
