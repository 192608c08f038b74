"""Heads of requests and responses: the headers that are relayed, and the framing of the body.

Every relayed request gets a new framing: one ``content-length``, no ``transfer-encoding``, no hop-by-hop
header. So the engine cannot read it differently from the sidecar. RFC 9110 section 7.6.1 and RFC 9112
section 6.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final

from sidecar.decisions import Identity
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.openai import OPENAI
from sidecar.dialects.routes import Route
from sidecar.identity import KEY_HEADERS, Credential
from sidecar.proxy.request_ids import RequestIds, is_valid
from sidecar.tracing.interface import TRACE_HEADERS, Trace
from tokenpool.accounting.account import Account

Headers = list[tuple[bytes, bytes]]
"""Names and values in the order of the message. A request's names are in lower case."""

FAIRNESS_HEADERS: Final = (b"x-llm-d-inference-fairness-id", b"x-gateway-inference-fairness-id")
"""The request headers by which llm-d's router and the Gateway API's inference extension tell flows apart. The
second is the older name. Both are sent, because the extension's endpoint picker reads only the older one."""
OBJECTIVE_HEADERS: Final = (b"x-llm-d-inference-objective", b"x-gateway-inference-objective")
"""The headers that name the InferenceObjective, from which those routers take a request's priority."""

HOP_BY_HOP: Final = frozenset(
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
_NOT_RELAYED: Final = HOP_BY_HOP | {b"x-request-id"}
"""Headers of an answer that its client does not get. The sidecar states the id itself."""
_NOT_FORWARDED: Final = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    # Credentials are for the sidecar, not for the engine.
    b"authorization",
    *KEY_HEADERS,
    # The sidecar states the id of every request (``with_length``).
    b"x-request-id",
    # The entitlement decides them. A client that chose a new flow for each request would evade fairness.
    *FAIRNESS_HEADERS,
    *OBJECTIVE_HEADERS,
    # Usage in a compressed answer cannot be read. The engine is on the same machine: compression saves
    # nothing.
    b"accept-encoding",
}
_NO_COMPRESSION: Final = b"accept-encoding: identity\r\n"
"""Without this header a server may compress (RFC 9110 section 12.5.3), and some proxies do."""
_OWN_PREFIX: Final = b"x-tokenpool-"

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
} | {529: b"HTTP/1.1 529 Overloaded\r\n"}


_DELIMITERS: Final = re.compile(rb"[-_]+")


def canonical(name: bytes) -> bytes:
    """A header name as some servers read it: CGI reads ``_`` as ``-``, others merge delimiters."""
    return _DELIMITERS.sub(b"-", name).strip(b"-")


def oddly_named(headers: Headers) -> Headers:
    """The headers whose names are not canonical. There are usually none, so one search covers all names."""
    names = b"-\n-".join([name for name, _ in headers])
    # The delimiter at either end of each name doubles one that the name has there.
    if b"_" not in names and b"--" not in names and not names.startswith(b"-") and not names.endswith(b"-"):
        return []
    return [header for header in headers if canonical(header[0]) != header[0]]


class RequestHead:
    """The head of one request, as parsed."""

    __slots__ = (
        "_given_id",
        "credential",
        "framed",
        "framed_for",
        "framed_with",
        "headers",
        "id",
        "identity",
        "is_http10",
        "keeps_alive",
        "method",
        "origin",
        "path",
        "route",
        "target",
        "trace",
    )

    def __init__(self) -> None:
        self.framed: bytes | None = None
        """This head as the engine receives it, without the framing of the body; ``None`` until needed."""
        self.framed_with = b""
        """The framer's own headers in ``framed``."""
        self.framed_for: Account | None = None
        """The account that ``framed`` names."""
        self.identity: Identity | None = None
        """What is known of the caller beyond its account; ``None`` for most requests."""
        self.method = b""
        self.target = b""
        self.path = b""
        """The target without its query, as sent: nothing is decoded, so nothing is ambiguous."""
        self.origin: bytes | None = None
        """The origin of the web page that made a browser send the request; set when the head is complete."""
        self.route: Route | None = None
        """The route of the path; ``None`` until it was looked up, or if there is none."""
        self.credential: Credential | None = None
        """The credential of the caller; ``None`` until it was identified, or without one."""
        self.headers: Headers = []
        self.is_http10 = False
        self.keeps_alive = True
        self.id = b""
        """The id of the request that is served. A cached head serves one request after the other."""
        self._given_id: bytes | None = None
        """The client's own id; empty without a valid one, ``None`` until it was looked up."""
        self.trace: Trace | None = None
        """The trace of the request that is served; ``None`` without tracing."""

    def identify(self, ids: RequestIds) -> None:
        """Set the id for the next request with this head."""
        given = self._given_id
        if given is None:
            found = self.all(b"x-request-id")
            given = self._given_id = found[0] if len(found) == 1 and is_valid(found[0]) else b""
        self.id = given or ids.next()

    @property
    def credential_id(self) -> str:
        """The id of the caller's credential; empty without one."""
        return "" if self.credential is None else self.credential.id

    @property
    def dialect(self) -> Dialect:
        """The API whose errors the client understands."""
        return self.route.dialect if self.route is not None else OPENAI

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


def with_length(framed: bytes, request_id: bytes, body_length: int) -> bytes:
    """A framed head with the id of its request and the length of its body."""
    return b"%bx-request-id: %b\r\n%b\r\n" % (framed, request_id, length_line(body_length))


def length_line(length: int) -> bytes:
    """The header line with the length of a body. Compiled, text is formatted in half the time of bytes."""
    return f"content-length: {length}\r\n".encode()


class RequestFramer:
    """Writes the heads of relayed requests to one engine."""

    __slots__ = ("_dropped", "_fixed", "_host")

    def __init__(
        self, host: str, engine_key: str | None, identity_header: str | None, *, is_traced: bool = False
    ) -> None:
        """``is_traced``: each request has a trace, which states its own headers."""
        self._host = host.encode()
        self._fixed = b""
        self.use_key(engine_key)
        self._dropped = _NOT_FORWARDED | TRACE_HEADERS if is_traced else _NOT_FORWARDED
        if identity_header:
            name = identity_header.lower().encode()
            self._dropped = self._dropped | {name, canonical(name)}

    def use_key(self, engine_key: str | None) -> None:
        """Send this API key to the engine from now on, also with heads that were written before."""
        self._fixed = b"host: " + self._host + b"\r\n" + _NO_COMPRESSION
        if engine_key:
            self._fixed += b"authorization: Bearer " + engine_key.encode() + b"\r\n"

    def frame(self, head: RequestHead, body_length: int, account: Account | None) -> bytes:
        """The head of the request to the engine. It names the account."""
        framed = head.framed
        if framed is None or head.framed_with is not self._fixed or head.framed_for is not account:
            framed = head.framed = self._without_framing(head, account)
            head.framed_with = self._fixed
            head.framed_for = account
        if head.trace is not None:
            framed += head.trace.headers()
        if body_length or head.method == b"POST":
            return with_length(framed, head.id, body_length)
        return b"%bx-request-id: %b\r\n\r\n" % (framed, head.id)

    def _without_framing(self, head: RequestHead, account: Account | None) -> bytes:
        dropped = self._dropped
        hop_by_hop = nominated(head.headers)
        if hop_by_hop:
            dropped = dropped | hop_by_hop
        read_as = {name: canonical(name) for name, _ in oddly_named(head.headers)}
        if read_as:
            dropped = dropped | {name for name, other in read_as.items() if _stays(other, dropped)}
        lines = [head.method, b" ", head.target, b" HTTP/1.1\r\n", self._fixed]
        if account is not None:
            entitlement = account.entitlement
            name, tier = entitlement.name.encode(), entitlement.tier.value.encode()
            for header in FAIRNESS_HEADERS:
                lines += (header, b": ", name, b"\r\n")
            for header in OBJECTIVE_HEADERS:
                lines += (header, b": ", tier, b"\r\n")
        for name, value in head.headers:
            if name not in dropped and not name.startswith(_OWN_PREFIX):
                lines += (name, b": ", value, b"\r\n")
        return b"".join(lines)


def _stays(name: bytes, dropped: frozenset[bytes]) -> bool:
    return name in dropped or name.startswith(_OWN_PREFIX)


class ResponseHead:
    """The head of the engine's response: the headers for the client, and the framing of the body."""

    __slots__ = (
        "_lines",
        "codings",
        "content_length",
        "ends_at_close",
        "is_compressed",
        "is_event_stream",
        "status",
    )

    def __init__(self, status: int, reason: bytes, headers: Headers) -> None:
        self.status = status
        self.content_length: int | None = None
        self.codings: list[bytes] = []
        """The values of ``Transfer-Encoding``."""
        self.is_event_stream = self.is_compressed = False
        line = _STATUS_LINES.get(status)
        if line is None or reason not in line:
            line = b"HTTP/1.1 %d %b\r\n" % (status, reason)
        lines = [line]
        lowered = [(name.lower(), value) for name, value in headers]
        dropped = _NOT_RELAYED | nominated(lowered)
        for (name, value), (original, _) in zip(lowered, headers, strict=True):
            if name == b"content-type":
                self.is_event_stream = value[:17].lower() == b"text/event-stream"
            elif name == b"content-encoding" and value.lower() not in (b"", b"identity"):
                self.is_compressed = True
            if name == b"content-length":
                self.content_length = int(value.lstrip(b"0") or b"0")
            elif name == b"transfer-encoding":
                self.codings.append(value.lower())
            elif name not in dropped:
                lines += (original, b": ", value, b"\r\n")
        self._lines = b"".join(lines)
        self.ends_at_close = self.content_length is None and not self.codings
        """Whether the body ends with the connection."""

    def find(self, name: bytes) -> bytes | None:
        """The value of a header that is relayed to the client (name in lower case), or ``None``."""
        start = self._lines.lower().find(b"\r\n" + name + b":")
        if start < 0:
            return None
        start += len(name) + 3
        return self._lines[start : self._lines.index(b"\r\n", start)].strip()

    def frame(self, extra: bytes, framing: bytes, connection: bytes) -> bytes:
        """The head for the client: headers of the engine and of the sidecar (``extra``), and the framing."""
        return b"%b%b%b%b\r\n" % (self._lines, extra, framing, connection)


def frame_answer(status: int, headers: bytes, body: bytes, *, closes: bool) -> bytes:
    """A whole answer of the sidecar itself. ``headers`` are lines, each with its line end."""
    connection = b"connection: close\r\n" if closes else b""
    return b"%bcontent-type: application/json\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
        _STATUS_LINES[status],
        len(body),
        headers,
        connection,
        body,
    )
