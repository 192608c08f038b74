"""Heads of requests and responses: which headers cross the proxy, and how they are framed.

Every relayed request is framed anew (one ``content-length``, no ``transfer-encoding``, no hop-by-hop
header), so the engine cannot read it differently from us. RFC 9110 section 7.6.1 and RFC 9112 section 6.
"""

from __future__ import annotations

from http import HTTPStatus

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, in the order of the message."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
_NOT_FORWARDED = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    # Who the tenant is concerns the sidecar alone.
    b"authorization",
    b"x-api-key",
    # A compressed answer would hide the usage; the engine is next door, so nothing is lost.
    b"accept-encoding",
}
_NOT_RETURNED = HOP_BY_HOP | {b"content-length"}
_OWN_PREFIX = b"x-tokenpool-"

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class RequestHead:
    """The head of one request, as parsed."""

    __slots__ = ("headers", "is_http10", "keeps_alive", "method", "path", "target")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.path = b""
        """The target without its query, as sent: nothing is decoded, so nothing is ambiguous."""
        self.headers: Headers = []
        self.is_http10 = False
        self.keeps_alive = True

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name]


def nominated(headers: Headers) -> frozenset[bytes]:
    """Header names that ``Connection`` makes hop-by-hop."""
    for name, _ in headers:
        if name == b"connection":
            break
    else:
        return frozenset()
    return frozenset(
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    )


class RequestFramer:
    """Writes the heads of relayed requests to one engine."""

    __slots__ = ("_dropped", "_fixed")

    def __init__(self, host: str, engine_key: str | None, identity_header: str | None) -> None:
        self._fixed = b"host: " + host.encode() + b"\r\n"
        if engine_key:
            self._fixed += b"authorization: Bearer " + engine_key.encode() + b"\r\n"
        self._dropped = _NOT_FORWARDED
        if identity_header:
            self._dropped = self._dropped | {identity_header.lower().encode()}

    def frame(self, head: RequestHead, body_length: int) -> bytes:
        """The head of the request to the engine."""
        dropped = self._dropped
        hop_by_hop = nominated(head.headers)
        if hop_by_hop:
            dropped = dropped | hop_by_hop
        lines = [head.method, b" ", head.target, b" HTTP/1.1\r\n", self._fixed]
        for name, value in head.headers:
            if name not in dropped and not name.startswith(_OWN_PREFIX):
                lines += (name, b": ", value, b"\r\n")
        if body_length or head.method == b"POST":
            lines.append(b"content-length: %d\r\n" % body_length)
        lines.append(b"\r\n")
        return b"".join(lines)


class ResponseHead:
    """The head of the engine's response, as parsed."""

    __slots__ = ("content_length", "headers", "is_event_stream", "reason", "status")

    def __init__(self) -> None:
        self.status = 0
        self.reason = b""
        self.headers: Headers = []
        self.content_length: bytes | None = None
        self.is_event_stream = False

    def add(self, name: bytes, value: bytes) -> None:
        """Take in one header."""
        name = name.lower()
        self.headers.append((name, value))
        if name == b"content-length":
            self.content_length = value
        elif name == b"content-type":
            self.is_event_stream = value.startswith(b"text/event-stream")


def frame_response(head: ResponseHead, extra: bytes, framing: bytes, connection: bytes) -> bytes:
    """The head for the client: the engine's own, with our headers and this hop's framing."""
    line = _STATUS_LINES.get(head.status)
    if line is None or head.reason not in line:
        line = b"HTTP/1.1 %d %s\r\n" % (head.status, head.reason)
    lines = [line]
    for name, value in head.headers:
        if name not in _NOT_RETURNED:
            lines += (name, b": ", value, b"\r\n")
    lines += (extra, framing, connection, b"\r\n")
    return b"".join(lines)


def frame_answer(status: int, headers: bytes, body: bytes, *, closes: bool) -> bytes:
    """A whole answer of the sidecar's own. ``headers`` are lines, each with its line end."""
    connection = b"connection: close\r\n" if closes else b""
    return b"%scontent-type: application/json\r\ncontent-length: %d\r\n%s%s\r\n%s" % (
        _STATUS_LINES[status],
        len(body),
        headers,
        connection,
        body,
    )
