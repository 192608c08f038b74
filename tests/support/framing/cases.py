"""What a case of the framing corpus is, and the shorthand that its tables are written in.

``Case`` is bytes of a client and how each request in them must end: the engine reads it, exactly so, or the
sidecar refuses it. ``Reply`` is bytes of an engine and what the client must make of them. Sections are those
of RFC 9112 (HTTP/1.1), 9110 (semantics) and 3986 (URIs), written "9112 6.3".
"""

from __future__ import annotations

from typing import NamedTuple

HOST = b"Host: t\r\n"
KEY = b"Authorization: Bearer g-key\r\n"
HELLO = b"hello"
HIDDEN = b"GET /version?hidden HTTP/1.1\r\nHost: t\r\n\r\n"
"""A request that somebody tries to get past the sidecar, in a place where none may be read."""


class Relayed(NamedTuple):
    """The engine reads this request: these headers, besides ``host`` and ``content-length``, and this body."""

    method: bytes = b"POST"
    target: bytes = b"/tokenize"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    closes: bool = False
    """Whether the client's connection ends with the answer, and nothing after this request is read."""
    continues: bool | None = False
    """Whether the body was invited by a ``100 Continue``; ``None`` where that is a matter of timing."""


class Refused(NamedTuple):
    """The sidecar answers itself, and the engine hears nothing of it."""

    status: int = 400
    closes: bool = True
    """Whether nothing after it is read. Where the framing is sound the connection lives on."""
    is_head: bool = False


class Case(NamedTuple):
    """Bytes of one client connection."""

    id: str
    rfc: str
    why: str
    raw: bytes
    outcomes: tuple[Relayed | Refused, ...]


class Gets(NamedTuple):
    """The client gets this answer, with these headers besides the framing's."""

    status: int = 200
    body: bytes = HELLO
    headers: tuple[tuple[bytes, bytes], ...] = ()
    length: bytes | None = None
    """What ``content-length`` says where there is no body: in answers to HEAD, and in 304."""


class Broken(NamedTuple):
    """The client must not take it for whole: 502, or an answer that is cut off where some of it had gone out."""

    may_have_begun: bool = False


class Reply(NamedTuple):
    """Bytes with which an engine answers one request."""

    id: str
    rfc: str
    why: str
    raw: bytes
    outcome: Gets | Broken
    method: bytes = b"GET"
    ends: bool = False
    """Whether the engine closes the connection behind them."""
    reuses: bool | None = False
    """Whether that connection serves the next request; ``None`` where that is a matter of timing."""
    reads: tuple[bytes, ...] = ()
    """The same bytes in the reads that the case is about."""


REFUSED = (Refused(),)
UNKNOWN = (Refused(404, closes=False),)


def get(target: bytes = b"/version", lines: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """A GET. ``lines`` are whole header lines."""
    return b"GET " + target + b" " + version + b"\r\n" + HOST + lines + b"\r\n"


def post(lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """A POST with whatever framing the lines give it."""
    return b"POST /tokenize " + version + b"\r\n" + HOST + KEY + lines + b"\r\n" + body


def sized(body: bytes, lines: bytes = b"") -> bytes:
    """A POST in plain framing."""
    return post(b"Content-Length: %d\r\n" % len(body) + lines, body)


def chunked(chunks: bytes, lines: bytes = b"") -> bytes:
    """A POST with this chunked body."""
    return post(b"Transfer-Encoding: chunked\r\n" + lines, chunks)


def got(target: bytes = b"/version", *headers: tuple[bytes, bytes], closes: bool = False) -> Relayed:
    """A GET as the engine must read it."""
    return Relayed(b"GET", target, headers, closes=closes)


def posted(body: bytes = HELLO, *headers: tuple[bytes, bytes], closes: bool = False) -> Relayed:
    """A POST as the engine must read it."""
    return Relayed(headers=headers, body=body, closes=closes)
