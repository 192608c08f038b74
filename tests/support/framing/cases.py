"""The cases of the framing corpus, and the shorthand of its tables.

A ``Case`` has the bytes of a client and the outcome of each request in them: the engine reads exactly this
request, or the sidecar refuses it. A ``Reply`` has the bytes of an engine and the result for the client.
Sections are those of RFC 9112 (HTTP/1.1), 9110 (semantics) and 3986 (URIs), written "9112 6.3".
"""

from __future__ import annotations

from typing import NamedTuple

HOST = b"Host: t\r\n"
KEY = b"Authorization: Bearer g-key\r\n"
HELLO = b"hello"
HIDDEN = b"GET /version?hidden HTTP/1.1\r\nHost: t\r\n\r\n"
"""A request that an attacker hides in a place where none may be read."""


class Relayed(NamedTuple):
    """The engine reads this request: these headers, besides ``host`` and ``content-length``, and this body."""

    method: bytes = b"POST"
    target: bytes = b"/tokenize"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    closes: bool = False
    """Whether the client's connection ends with the response, and no later request is read."""
    continues: bool | None = False
    """Whether the body was invited by a ``100 Continue``; ``None`` where that is a matter of timing."""


class Refused(NamedTuple):
    """The sidecar refuses the request itself, and the engine receives nothing."""

    status: int = 400
    closes: bool = True
    """Whether the connection ends. It stays open after a refusal of a request with valid framing."""
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
    """The ``content-length`` of a response without a body: to HEAD, and of 304."""


class Broken(NamedTuple):
    """The client sees an error: a 502, or an incomplete response if a part of it was already sent."""

    may_have_begun: bool = False


class Reply(NamedTuple):
    """The bytes of an engine's response to one request."""

    id: str
    rfc: str
    why: str
    raw: bytes
    outcome: Gets | Broken
    method: bytes = b"GET"
    ends: bool = False
    """Whether the engine closes the connection after them."""
    reuses: bool | None = False
    """Whether that connection serves the next request; ``None`` where that is a matter of timing."""
    reads: tuple[bytes, ...] = ()
    """The same bytes, split into the reads of the case."""


REFUSED = (Refused(),)
UNKNOWN = (Refused(404, closes=False),)


def get(target: bytes = b"/version", lines: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """A GET. ``lines`` are whole header lines."""
    return b"GET " + target + b" " + version + b"\r\n" + HOST + lines + b"\r\n"


def post(lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """A POST with the framing of its header lines."""
    return b"POST /tokenize " + version + b"\r\n" + HOST + KEY + lines + b"\r\n" + body


def sized(body: bytes, lines: bytes = b"") -> bytes:
    """A POST with a ``content-length``."""
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
