"""CORS: the origins whose pages may read the engine's answers. The sidecar's own answers allow the same.

The engine decides (vLLM: ``--allowed-origins``), and the sidecar has no option for it. ``Cors`` learns from
the engine's answers to requests with an ``Origin``, preflights included, and to one request of the sidecar.
The sidecar's own answers have no CORS header for an origin that the engine was not seen to allow. A browser
hides such an answer from the page.
"""

from __future__ import annotations

from collections.abc import Sequence

PROBE_ORIGIN = b"https://origin.invalid"
"""An origin that does not exist (RFC 6761). An engine that allows it allows every origin."""
MOST_ORIGINS = 256
"""The number of origins that are remembered, if the engine allows each by name."""
LONGEST_ORIGIN = 256
"""Bytes of an origin. A longer one is not remembered."""
METHODS = (b"GET", b"POST", b"OPTIONS")
"""The methods of a route that the sidecar does not know."""
_EXPOSED = (
    b"access-control-expose-headers: retry-after, retry-after-ms, x-should-retry, x-tokenpool-reason"
    b", ratelimit, ratelimit-policy, x-request-id, request-id"
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
"""Listed by name, because ``*`` has no effect where credentials are allowed."""


class Cors:
    """The origins that one engine was seen to allow."""

    __slots__ = ("_all_origins", "_credentials", "_origins")

    def __init__(self) -> None:
        self._all_origins: bytes | None = None
        """``*`` if the engine allows every origin, ``PROBE_ORIGIN`` if it repeats names; else ``None``."""
        self._credentials = False
        self._origins: dict[bytes, bool] = {}
        """Origins that the engine allowed by name, the latest last, and whether with credentials."""

    def learn(self, origin: bytes, allowed: bytes | None, *, credentials: bool, succeeded: bool) -> None:
        """Learn from the engine's answer to this origin. ``allowed`` is its ``access-control-allow-origin``.

        Only a success without that header withdraws a permission. An error may come from a layer without
        CORS, such as vLLM's check of its own API key.
        """
        if allowed == b"*":
            self._all_origins, self._credentials = allowed, False
            self._origins.clear()
        elif allowed is not None and allowed == origin:
            if origin == PROBE_ORIGIN:
                self._all_origins, self._credentials = origin, credentials
            elif self._all_origins == b"*":
                self._all_origins = None
            if self._all_origins is None and len(origin) <= LONGEST_ORIGIN:
                self._origins.pop(origin, None)
                self._origins[origin] = credentials
                if len(self._origins) > MOST_ORIGINS:
                    del self._origins[next(iter(self._origins))]
        elif succeeded:
            self._all_origins = None
            self._origins.pop(origin, None)

    def relayed(self, origin: bytes, status: int, allowed: bytes | None, credentials: bytes | None) -> bytes:
        """Learn from the engine's answer to this origin: its status and ``access-control-allow-*`` headers.

        Returns header lines that let the page read the headers that the sidecar adds to the answer.
        """
        self.learn(origin, allowed, credentials=credentials == b"true", succeeded=200 <= status < 300)
        return _EXPOSED if allowed is not None else b""

    def lines(self, origin: bytes) -> bytes:
        """Header lines for the sidecar's own answer to this origin; none if the origin is not allowed."""
        if self._all_origins == b"*":
            allowed, credentials = b"*", False
        elif self._all_origins is not None:
            allowed, credentials = origin, self._credentials
        elif origin in self._origins:
            allowed, credentials = origin, self._origins[origin]
        else:
            return b""
        also = b"access-control-allow-credentials: true\r\n" if credentials else b""
        return b"access-control-allow-origin: %b\r\n%bvary: Origin\r\n%b" % (allowed, also, _EXPOSED)

    def preflight(self, origin: bytes, methods: Sequence[bytes], headers: Sequence[bytes]) -> bytes:
        """Header lines that answer a preflight; none for an origin that the engine does not allow.

        ``headers`` are the preflight's own ``access-control-request-headers``. All of them are allowed,
        because the engine decides about them. Without ``access-control-max-age`` no browser remembers the
        answer.
        """
        lines = self.lines(origin)
        if not lines:
            return b""
        lines += b"access-control-allow-methods: %b\r\n" % b", ".join(methods)
        return lines + (b"access-control-allow-headers: %b\r\n" % b", ".join(headers) if headers else b"")
