"""The shortcuts past the parser take only what the parser would have read the same way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.known import KnownHead, only_chunk

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: y\r\n\r\n"
MESSAGE = HEAD + b"hello"


def known() -> KnownHead:
    head = KnownHead.of(MESSAGE)
    assert head is not None
    return head


def test_the_same_head_is_known_whatever_the_length_of_its_body() -> None:
    assert known().body_of(MESSAGE) == b"hello"
    longer = MESSAGE.replace(b": 5", b": 11") + b" world"
    assert known().body_of(longer) == b"hello world"


@pytest.mark.parametrize(
    "data",
    [
        MESSAGE[:-1],  # not all of the body
        MESSAGE + b"x",  # more than the body
        MESSAGE + MESSAGE,
        HEAD,
        b"",
        MESSAGE.replace(b"X: y", b"X: z"),
        MESSAGE.replace(b"Host: a", b"Host: b"),
        MESSAGE.replace(b": 5", b": -5"),
        MESSAGE.replace(b": 5", b": 5 "),
        MESSAGE.replace(b": 5", b": 5,5"),
        MESSAGE.replace(b": 5", b": 0x5"),
        MESSAGE.replace(b": 5", b": "),
        MESSAGE.replace(b": 5\r\n", b": 5\r\nTransfer-Encoding: chunked\r\n"),
        MESSAGE.replace(b": 5", b": 00000000005"),
        MESSAGE.replace(b"\r\n", b"\n"),
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert known().body_of(data) is None


@pytest.mark.parametrize(
    "message",
    [
        b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
        MESSAGE[:-1],
        MESSAGE + b"x",
        b"POST /x HTTP/1.1\r\nContent-Length: 5\r\nX: " + b"y" * 5000 + b"\r\n\r\nhello",
        b"no head at all",
        b"",
    ],
)
def test_what_is_not_one_whole_message_is_not_remembered(message: bytes) -> None:
    assert KnownHead.of(message) is None


@given(st.binary(max_size=60), st.integers(0, len(MESSAGE)), st.integers(0, 6))
def test_a_damaged_message_is_known_only_if_its_damage_is_in_the_body_or_its_length(
    junk: bytes, at: int, cut: int
) -> None:
    data = MESSAGE[:at] + junk + MESSAGE[at + cut :]
    body = known().body_of(data)
    if body is not None:
        head, _, rest = data.partition(b"\r\n\r\n")
        assert rest == body
        assert head == HEAD[:-4].replace(b": 5", b": " + head.split(b"Content-Length: ")[1].split(b"\r")[0])
        assert int(head.split(b"Content-Length: ")[1].split(b"\r")[0]) == len(body)


@given(st.binary(min_size=1, max_size=5000))
def test_one_plain_chunk_is_taken(inside: bytes) -> None:
    assert only_chunk(b"%x\r\n%b\r\n" % (len(inside), inside)) == inside


@pytest.mark.parametrize(
    "data",
    [
        b"0\r\n\r\n",
        b"5\r\nhello",
        b"5\r\nhello\r\n5\r\nhello\r\n",
        b"6\r\nhello\r\n",
        b"05\r\nhello\r\n",
        b"A\r\n0123456789\r\n",
        b"5;x=y\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"hello",
        b"",
        b"\r\n",
    ],
)
def test_any_other_chunk_is_left_to_the_parser(data: bytes) -> None:
    assert only_chunk(data) is None
