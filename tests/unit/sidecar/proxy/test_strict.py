"""The strict reader is strict: all servers read an accepted message alike."""

from __future__ import annotations

import pytest

from tests.support.strict import Ambiguous, Answer, Request, answers, requests

GET = b"GET /a?b HTTP/1.1\r\nhost: t\r\nx-request-id: 1\r\nx: y\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nhost: t\r\nx-request-id: 2\r\ncontent-length: 5\r\n\r\nhello"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


def test_requests_are_read_one_after_the_other() -> None:
    assert requests(GET + POST) == [
        Request(b"GET", b"/a?b", ((b"host", b"t"), (b"x", b"y")), b""),
        Request(b"POST", b"/a", ((b"host", b"t"), (b"content-length", b"5")), b"hello"),
    ]


@pytest.mark.parametrize(
    "wire",
    [
        GET[:-1],
        POST[:-1],
        POST + b"x",
        b"\r\n" + GET,
        GET.replace(b"/a", b"a"),
        GET.replace(b"?b", b"#b"),
        GET.replace(b"GET ", b"GET  "),
        GET.replace(b"HTTP/1.1", b"HTTP/1.0"),
        GET.replace(b"\r\n", b"\n"),
        GET.replace(b"host: t\r\n", b""),
        GET.replace(b"x-request-id: 1\r\n", b""),
        GET.replace(b"x: y", b"x-request-id: 1"),
        GET.replace(b"x: y", b"host: u"),
        *(
            GET.replace(b"x: y", line)
            for line in (b"x:y", b"x : y", b" x: y", b"x: y ", b"x: \x00", b"x", b": y")
        ),
        *(GET.replace(b"x: y", b"%b: z" % name) for name in (b"te", b"connection", b"upgrade", b"expect")),
        GET.replace(b"x: y", b"x: y\rz"),
        GET.replace(b"x: y", b"x: y\r\n z"),
        POST.replace(b"content-length: 5\r\n", b""),
        *(POST.replace(b": 5", b": " + value) for value in (b"05", b"+5", b"5,5", b"", b"6")),
        POST.replace(b"host: t", b"host: t\r\ncontent-length: 5"),
        POST.replace(b"content-length: 5", b"transfer-encoding: chunked"),
    ],
)
def test_an_ambiguous_request_is_refused(wire: bytes) -> None:
    with pytest.raises(Ambiguous):
        requests(wire)


def test_answers_are_read_one_after_the_other_and_what_is_left_is_told() -> None:
    fields = (b"content-length", b"5"), (b"transfer-encoding", b"chunked"), (b"connection", b"close")
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
    closed = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nconnection: close\r\n\r\n!"
    assert answers(OK + CHUNKED + head + closed, [b"GET", b"GET", b"HEAD"]) == (
        [
            Answer(200, (fields[0],), b"hello"),
            Answer(200, (fields[1],), b"hello"),
            Answer(200, ((b"content-length", b"9"),), b""),
            Answer(200, (fields[2],), b"!", 1),
        ],
        b"",
    )
    for cut in range(len(OK)):
        assert answers(OK + OK[:cut]) == ([Answer(200, (fields[0],), b"hello")], OK[:cut])
    for cut in range(len(CHUNKED)):
        assert answers(CHUNKED[:cut]) == ([], CHUNKED[:cut])
    assert answers(closed, is_closed=False) == ([], closed)


@pytest.mark.parametrize(
    "wire",
    [
        OK.replace(b"200", b"600"),
        OK.replace(b"200", b"99"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        OK.replace(b"OK", b"O\x00K"),
        OK.replace(b"\r\n\r\n", b"\r\nx : y\r\n\r\n"),
        OK.replace(b": 5", b": +5"),
        OK.replace(b"content-length: 5", b"x: y"),
        OK.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n"),
        OK.replace(b"200", b"204"),
        CHUNKED.replace(b"200", b"304"),
        CHUNKED.replace(b"chunked", b"gzip"),
        CHUNKED.replace(b"5\r\n", b"05 \r\n"),
        CHUNKED.replace(b"hello", b"hello!"),
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
    ],
)
def test_an_ambiguous_answer_is_refused(wire: bytes) -> None:
    with pytest.raises(Ambiguous):
        answers(wire)
