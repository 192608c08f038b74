"""What makes a request head ambiguous or invalid, and what it says of its body and its connection.

A head that could be read in two ways must not reach the engine. Functions of a head only: what is received,
and from whom, is not known here. ``tests/support/framing`` has what is refused, case by case.
"""

from __future__ import annotations

import re

from sidecar.proxy.heads import HOP_BY_HOP, RequestHead, canonical, nominated, oddly_named

_AUTHORITY = rb"(?:\[[0-9A-Za-z:.]+\]|(?:[\w.~!$&'()*+,;=-]|%%[0-9A-Fa-f]{2})%b)(?::[0-9]*)?"
_HOST = re.compile(_AUTHORITY % b"*")
"""RFC 3986 section 3.2 without user information. It may be empty (RFC 9110 section 7.2)."""
_ABSOLUTE = re.compile(rb"https?://%b(/[^?]*)?(\?.*)?" % (_AUTHORITY % b"+"), re.IGNORECASE)


_FRAMING = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
"""What says where a message ends or what becomes of its connection, and what this hop takes out."""


def framing_flaw(head: RequestHead) -> str | None:
    """What makes the framing of a request ambiguous, or ``None``. RFC 9112 sections 3 and 6."""
    lengths, codings, hosts = (
        head.all(b"content-length"),
        head.all(b"transfer-encoding"),
        head.all(b"host"),
    )
    for name, _ in oddly_named(head.headers):
        read_as = canonical(name)
        if read_as in _FRAMING:
            written = name.decode("ascii", "replace")
            return f"the header {written} could be read as {read_as.decode()}; leave it out, or write that"
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
    """What makes a request target invalid, or ``None`` and the path. RFC 9112 section 3.2."""
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


def content_length(head: RequestHead) -> int:
    """How long the body is, of a head without a flaw; 0 if it does not say."""
    lengths = head.all(b"content-length")
    return int(lengths[0].lstrip(b"0") or b"0") if lengths else 0


def without_offer(head: RequestHead) -> bytes:
    """A head as if it offered no upgrade: RFC 9110 section 7.8 allows it.

    The parser would have no body follow, so the request is parsed anew. Other connection options stay:
    they say which headers go no further.
    """
    options = nominated(head.headers) - {b"upgrade", b"http2-settings"}
    lines = [b"%b %b HTTP/1.%d\r\n" % (head.method, head.target, not head.is_http10)]
    lines += [
        b"%b: %b\r\n" % (name, value)
        for name, value in head.headers
        if name not in (b"connection", b"upgrade", b"http2-settings")
    ]
    return b"".join(lines) + b"connection: %b\r\n\r\n" % b", ".join(sorted(options))
