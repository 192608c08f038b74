"""CORS: which origins the engine lets read its answers, so that answers of the sidecar's own say the same.

The engine decides (vLLM: ``--allowed-origins``), and nothing is configured here. What it allows is learned
from its answers to requests with an ``Origin``, preflights among them, and to one of the sidecar's own. An
origin that the engine was not seen to allow gets no header: a browser shows its page nothing.
"""

from __future__ import annotations

from sidecar.proxy.heads import RequestHead, ResponseHead

STRANGER = b"https://origin.invalid"
"""An origin that nobody has (RFC 6761): an engine that allows it allows all."""
MOST_ORIGINS = 256
LONGEST_ORIGIN = 256
_METHODS = b"GET, POST, OPTIONS"
_EXPOSED = (
    b"access-control-expose-headers: retry-after, retry-after-ms, x-should-retry, x-tokenpool-reason"
    + b"".join(
        b", x-ratelimit-%b-%b" % (what, of)
        for of in (b"requests", b"tokens")
        for what in (b"limit", b"remaining", b"reset")
    )
    + b"".join(
        b", anthropic-ratelimit-%b-%b" % (of, what)
        for of in (b"requests", b"tokens")
        for what in (b"limit", b"remaining", b"reset")
    )
    + b"\r\n"
)
"""By name: ``*`` means nothing where credentials are allowed."""


class Cors:
    """What one engine was seen to allow."""

    __slots__ = ("_credentials", "_everybody", "_origins")

    def __init__(self) -> None:
        self._everybody: bytes | None = None
        """How all origins are allowed: by ``*``, or each by its own name (then this is ``STRANGER``)."""
        self._credentials = False
        self._origins: dict[bytes, bool] = {}
        """Origins that were allowed by name, the latest last, and whether with credentials."""

    def learn(self, origin: bytes, allowed: bytes | None, *, credentials: bool, succeeded: bool) -> None:
        """The engine has answered a request from an origin.

        Only a success without the header takes back what was allowed: errors may come from a layer that knows
        nothing of CORS, such as vLLM's check of its own API key.
        """
        if allowed == b"*":
            self._everybody, self._credentials = allowed, False
            self._origins.clear()
        elif allowed is not None and allowed == origin:
            if origin == STRANGER:
                self._everybody, self._credentials = origin, credentials
            elif self._everybody == b"*":
                self._everybody = None
            if self._everybody is None and len(origin) <= LONGEST_ORIGIN:
                self._origins.pop(origin, None)
                self._origins[origin] = credentials
                if len(self._origins) > MOST_ORIGINS:
                    del self._origins[next(iter(self._origins))]
        elif succeeded:
            self._everybody = None
            self._origins.pop(origin, None)

    def relayed(self, origin: bytes, answer: ResponseHead) -> bytes:
        """Learn from an answer of the engine; header lines that let a page read what we add to it."""
        allowed = answer.find(b"access-control-allow-origin")
        credentials = answer.find(b"access-control-allow-credentials") == b"true"
        self.learn(origin, allowed, credentials=credentials, succeeded=200 <= answer.status < 300)
        return _EXPOSED if allowed is not None else b""

    def lines(self, origin: bytes) -> bytes:
        """Header lines for an answer of the sidecar's own; none for an origin that is not allowed."""
        if self._everybody == b"*":
            allowed, credentials = b"*", False
        elif self._everybody is not None:
            allowed, credentials = origin, self._credentials
        elif origin in self._origins:
            allowed, credentials = origin, self._origins[origin]
        else:
            return b""
        also = b"access-control-allow-credentials: true\r\n" if credentials else b""
        return b"access-control-allow-origin: %b\r\n%bvary: Origin\r\n%b" % (allowed, also, _EXPOSED)

    def preflight(self, head: RequestHead) -> bytes:
        """Header lines that answer a preflight in the engine's place; none for an origin that is not allowed.

        Which headers may be sent is repeated: nothing is kept from an origin that is allowed, and no
        ``access-control-max-age`` has a browser remember it.
        """
        lines = self.lines(head.origin) if head.origin is not None else b""
        if not lines or head.method != b"OPTIONS" or not head.all(b"access-control-request-method"):
            return b""
        methods = b", ".join(head.route.methods) if head.route is not None else _METHODS
        lines += b"access-control-allow-methods: %b\r\n" % methods
        asked = b", ".join(head.all(b"access-control-request-headers"))
        return lines + (b"access-control-allow-headers: %b\r\n" % asked if asked else b"")
