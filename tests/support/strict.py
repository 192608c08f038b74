"""A strict parser of HTTP/1.1 that checks the sidecar's bytes to the engine and to clients.

It shares no code with the sidecar. Bytes that the RFCs let a recipient read in two ways, or forbid a gateway
to send, raise ``Ambiguous``. The framing corpus (``tests/support/framing``) and fuzzing use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Headers = tuple[tuple[bytes, bytes], ...]

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(%b) (/[\x21\x22\x24-\x7e]*|\*) HTTP/1\.1" % _TOKEN)
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [\t\x20-\x7e\x80-\xff]*")
_FIELD = re.compile(
    rb"(%b): ((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)" % _TOKEN
)
_SIZE_LINE = re.compile(rb"([0-9a-f]+)\r\n")
_NUMBER = re.compile(rb"0|[1-9][0-9]*")
_OF_ONE_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authorization te trailer transfer-encoding upgrade"
    b" http2-settings expect".split()
)
_END, _ID = b"\r\n\r\n", b"x-request-id"


class Ambiguous(AssertionError):
    """Bytes that can be read in more than one way, or in none."""


class Request(NamedTuple):
    """One request as the engine must read it."""

    method: bytes
    target: bytes
    headers: Headers
    """Without the id of the request, which the sidecar makes."""
    body: bytes


class Answer(NamedTuple):
    """One response as a client must read it."""

    status: int
    headers: Headers
    body: bytes
    interims: int = 0
    """Interim responses (1xx) before it."""

    def get(self, name: bytes) -> bytes | None:
        """The value of a header."""
        return dict(self.headers).get(name)


def requests(wire: bytes) -> list[Request]:
    """All requests in the bytes to the engine on one connection."""
    read = []
    while wire:
        head, end, rest = wire.partition(_END)
        line, *lines = head.split(b"\r\n")
        match = _REQUEST_LINE.fullmatch(line)
        if not end or match is None:
            raise Ambiguous(f"not a request head: {wire[:200]!r}")
        headers = _fields(lines)
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or any(name in _OF_ONE_HOP for name, _ in headers):
            raise Ambiguous(f"headers that must not go on, or not one host: {head!r}")
        if [name for name, _ in headers].count(_ID) != 1:
            raise Ambiguous(f"not one id: {head!r}")
        headers = tuple(field for field in headers if field[0] != _ID)
        length = _length(headers)
        if length is None and match[1] == b"POST":
            raise Ambiguous(f"a POST without a length: {head!r}")
        length = length or 0
        if len(rest) < length:
            raise Ambiguous(f"a body that is cut off: {wire[-200:]!r}")
        read.append(Request(match[1], match[2], headers, rest[:length]))
        wire = rest[length:]
    return read


def answers(
    wire: bytes, methods: Sequence[bytes] = (), *, is_closed: bool = True
) -> tuple[list[Answer], bytes]:
    """All complete responses in the bytes to a client, and the bytes of an incomplete one.

    ``methods`` are those of the requests, because the response to a HEAD has no body.
    """
    read: list[Answer] = []
    interims = 0
    left = wire
    while _END in wire:
        head, _, rest = wire.partition(_END)
        line, *lines = head.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise Ambiguous(f"not a status line: {line!r}")
        status, headers = int(match[1]), _fields(lines)
        if status < 200:
            if headers:
                raise Ambiguous(f"an interim response with headers: {head!r}")
            interims += 1
            wire = rest
            continue
        method = methods[len(read)] if len(read) < len(methods) else b"GET"
        whole = _body(rest, method, status, headers, is_closed)
        if whole is None:
            break
        body, size = whole
        read.append(Answer(status, headers, body, interims))
        interims = 0
        wire = left = rest[size:]
    return read, left


def _body(
    rest: bytes, method: bytes, status: int, headers: Headers, is_closed: bool
) -> tuple[bytes, int] | None:
    """The body, and the number of its bytes; ``None`` if it is incomplete."""
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    length = _length(headers)
    if codings and (codings != [b"chunked"] or length is not None):
        raise Ambiguous(f"two framings, or an unknown one: {headers!r}")
    if method == b"HEAD" or status in (204, 304):
        if codings or (status == 204 and length is not None):
            raise Ambiguous(f"framing where there is no body: {headers!r}")
        return b"", 0
    if codings:
        return _chunks(rest)
    if length is not None:
        return (rest[:length], length) if len(rest) >= length else None
    if (b"connection", b"close") not in headers:
        raise Ambiguous(f"a body without an end: {headers!r}")
    return (rest, len(rest)) if is_closed else None


def _chunks(rest: bytes) -> tuple[bytes, int] | None:
    parts = []
    at = 0
    while True:
        line = _SIZE_LINE.match(rest, at)
        if line is None:
            if re.fullmatch(rb"[0-9a-f]*\r?", rest[at:]) is None:
                raise Ambiguous(f"not a chunk: {rest[at : at + 50]!r}")
            return None
        size, at = int(line[1], 16), line.end()
        if len(rest) < at + size + 2:
            return None
        if rest[at + size : at + size + 2] != b"\r\n":
            raise Ambiguous(f"a chunk without its end: {rest[at : at + size + 9]!r}")
        parts.append(rest[at : at + size])
        at += size + 2
        if size == 0:
            return b"".join(parts), at


def _fields(lines: Iterable[bytes]) -> Headers:
    fields = []
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise Ambiguous(f"not a header: {line!r}")
        fields.append((match[1], match[2]))
    return tuple(fields)


def _length(headers: Headers) -> int | None:
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    if not lengths:
        return None
    if len(lengths) > 1 or _NUMBER.fullmatch(lengths[0]) is None:
        raise Ambiguous(f"lengths {lengths!r}")
    return int(lengths[0])
