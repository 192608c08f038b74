"""Flaws of a request head, and its statements about the body and the connection.

A head that could be read in two ways must not reach the engine. All functions here depend on the head alone.
The tables in ``tests/support/framing`` list the refused heads, case by case.
"""

from __future__ import annotations

import re
from typing import Final

from sidecar.proxy.heads import HOP_BY_HOP, Headers, RequestHead, canonical, nominated, oddly_named

_AUTHORITY: Final = rb"(?:\[[0-9A-Za-z:.]+\]|(?:[\w.~!$&'()*+,;=-]|%%[0-9A-Fa-f]{2})%b)(?::[0-9]*)?"
_HOST: Final = re.compile(_AUTHORITY % b"*")
"""An authority by RFC 3986 section 3.2, without user information. It may be empty (RFC 9110 section 7.2)."""
_ABSOLUTE: Final = re.compile(rb"https?://%b(/[^?]*)?(\?.*)?" % (_AUTHORITY % b"+"), re.IGNORECASE)


_FRAMING: Final = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
"""Headers that define the end of a message or the use of its connection, and hop-by-hop headers."""


class Framing:
    """The values of the headers that the parser acts on, collected in one pass over the head."""

    __slots__ = ("codings", "expectations", "hosts", "lengths", "origins")

    def __init__(self, headers: Headers) -> None:
        self.lengths: list[bytes] = []
        self.codings: list[bytes] = []
        self.hosts: list[bytes] = []
        self.expectations: list[bytes] = []
        self.origins: list[bytes] = []
        for name, value in headers:
            if name in _COLLECTED:
                if name == b"host":
                    self.hosts.append(value)
                elif name == b"content-length":
                    self.lengths.append(value)
                elif name == b"transfer-encoding":
                    self.codings.append(value)
                elif name == b"expect":
                    self.expectations.append(value)
                else:
                    self.origins.append(value)

    @property
    def content_length(self) -> int:
        """The length of the body, 0 if it is not stated. The head must have no flaw."""
        return int(self.lengths[0].lstrip(b"0") or b"0") if self.lengths else 0


_COLLECTED: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"origin"})


def framing_flaw(head: RequestHead, framing: Framing) -> str | None:
    """The reason why the framing of a request is ambiguous, or ``None``. RFC 9112 sections 3 and 6."""
    lengths, codings, hosts = framing.lengths, framing.codings, framing.hosts
    for name, _ in oddly_named(head.headers):
        read_as = canonical(name)
        if read_as in _FRAMING:
            written = name.decode("ascii", "replace")
            return f"the header {written} could be read as {read_as.decode()}; remove it, or correct its name"
    if head.method == b"CONNECT":
        return "CONNECT is not served here"
    if len(hosts) > 1 or (not hosts and not head.is_http10):
        return "there must be exactly one Host header"
    if hosts and not _HOST.fullmatch(hosts[0]):
        return "the Host header must be a name or an address, and perhaps a port"
    if codings and lengths:
        return "Content-Length and Transfer-Encoding exclude each other"
    if codings and (head.is_http10 or [c.strip().lower() for c in codings] != [b"chunked"]):
        return "the only Transfer-Encoding is chunked, once, in HTTP/1.1"
    if len(lengths) > 1 or (lengths and not lengths[0].isdigit()):
        return "there must be one Content-Length, a whole number"
    return _target_flaw(head)


def _target_flaw(head: RequestHead) -> str | None:
    """The reason why a target is invalid, or ``None`` after setting the path. RFC 9112 section 3.2."""
    if b"#" in head.target:
        return "the request target must have no fragment: leave out '#' and what follows"
    if not head.target.startswith(b"/") and head.target != b"*":
        absolute = _ABSOLUTE.fullmatch(head.target)
        if absolute is None:
            return "the request target must be a path, or an http URI with a host and no user"
        head.target = (absolute[1] or b"/") + (absolute[2] or b"")
    head.path = head.target.partition(b"?")[0]
    return None


def keeps_alive_10(head: RequestHead) -> bool:
    """Whether an HTTP/1.0 client asks for its connection to be kept. RFC 9112 section 9.3."""
    options = nominated(head.headers)
    return b"keep-alive" in options and b"close" not in options


def without_offer(head: RequestHead) -> bytes:
    """The same head without its offer of an upgrade: RFC 9110 section 7.8 allows a server to ignore it.

    httptools expects no body after an offer, so the request is parsed again. Other connection options stay,
    because they name headers that are not relayed.
    """
    options = nominated(head.headers) - {b"upgrade", b"http2-settings"}
    lines = [b"%b %b HTTP/1.%d\r\n" % (head.method, head.target, not head.is_http10)]
    lines += [
        b"%b: %b\r\n" % (name, value)
        for name, value in head.headers
        if name not in (b"connection", b"upgrade", b"http2-settings")
    ]
    return b"".join(lines) + b"connection: %b\r\n\r\n" % b", ".join(sorted(options))
