"""The request line: method, target, version, one space between them."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.framing.cases import HOST, KEY, REFUSED, Case, Refused, Relayed, get, got

_INVALID = (
    ("no-version", "9112 3", "HTTP/0.9 had no version; it is not spoken", b"GET /version"),
    ("method-only", "9112 3", "no target", b"GET"),
    ("target-only", "9112 3", "no method", b"/version HTTP/1.1"),
    ("empty-method", "9112 3.1", "a method has at least one character", b" /version HTTP/1.1"),
    ("leading-space", "9112 2.2", "white space in front may hide a request from a stricter reader", b" GET /version HTTP/1.1"),
    ("leading-tab", "9112 2.2", "the same with a tab", b"\tGET /version HTTP/1.1"),
    ("tab-after-method", "9112 3", "the separator is a space", b"GET\t/version HTTP/1.1"),
    ("tab-after-target", "9112 3", "a tab could be part of the target to others", b"GET /version\tHTTP/1.1"),
    ("vt-after-target", "9112 3", "so could a vertical tab", b"GET /version\x0bHTTP/1.1"),
    ("ff-after-target", "9112 3", "and a form feed", b"GET /version\x0cHTTP/1.1"),
    ("nbsp-after-target", "9112 3", "and a non-breaking space of Latin-1", b"GET /version\xa0HTTP/1.1"),
    ("trailing-space", "9112 3", "nothing follows the version", b"GET /version HTTP/1.1 "),
    ("trailing-tab", "9112 3", "nothing follows the version", b"GET /version HTTP/1.1\t"),
    ("trailing-word", "9112 3", "nothing follows the version", b"GET /version HTTP/1.1 x"),
    ("space-in-target", "9112 3.2", "no white space is allowed in a target", b"GET /ver sion HTTP/1.1"),
    ("lower-case-method", "9110 9.1", "methods are case-sensitive: this is another one", b"get /version HTTP/1.1"),
    ("mixed-case-method", "9110 9.1", "methods are case-sensitive", b"Get /version HTTP/1.1"),
    ("unknown-method", "9110 9.1", "501 is advised, but clients retry 5xx; 400 is as true", b"FOO /version HTTP/1.1"),
    ("method-with-prefix", "9110 9.1", "what a smuggled prefix makes of GET", b"GGET /version HTTP/1.1"),
    ("nul-in-method", "9110 5.6.2", "a method is a token", b"G\x00ET /version HTTP/1.1"),
    ("at-in-method", "9110 5.6.2", "a method is a token", b"G@T /version HTTP/1.1"),
    ("colon-in-method", "9110 5.6.2", "a header where a request line should be", b"GET: /version HTTP/1.1"),
    ("quoted-method", "9110 5.6.2", "a method is a token", b'"GET" /version HTTP/1.1'),
    ("8-bit-method", "9110 5.6.2", "a method is a token", b"G\xc9T /version HTTP/1.1"),
    ("byte-order-mark", "9112 2.2", "messages are octets, not Unicode", b"\xef\xbb\xbfGET /version HTTP/1.1"),
    ("status-line", "9112 2.1", "a response where a request should be", b"HTTP/1.1 200 OK"),
    ("header-first", "9112 2.1", "a header where a request line should be", b"X-A: 1"),
    ("http2-header-block", "9112 3", "pseudo-headers are HTTP/2's", b":method: GET"),
    ("proxy-protocol", "9112 2.1", "a load balancer's preamble is not expected here", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2"),
    ("smtp", "9112 2.1", "another protocol", b"EHLO example.com"),
)  # fmt: skip

_SPACED = (
    ("two-spaces-before-target", b"GET  /version HTTP/1.1"),
    ("two-spaces-before-version", b"GET /version  HTTP/1.1"),
)

_METHODS = (
    b"PUT",
    b"DELETE",
    b"PATCH",
    b"TRACE",
    b"POST",
    b"PROPFIND",
    b"QUERY",
    b"PURGE",
    b"SOURCE",
    b"M-SEARCH",
)


def cases() -> Iterator[Case]:
    """All cases."""
    for name, rfc, why, line in _INVALID:
        yield Case(f"request-line/{name}", rfc, why, line + b"\r\n" + HOST + b"\r\n", REFUSED)
    for name, line in _SPACED:
        why = "a recipient may split at any white space; the engine gets one space"
        yield Case(f"request-line/{name}", "9112 3", why, line + b"\r\n" + HOST + b"\r\n", (got(),))
    for method in _METHODS:
        why = "known methods that the route does not have are refused, and the connection lives on"
        raw = method + b" /version HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n"
        yield Case(f"request-line/{method.decode()}", "9110 15.5.6", why, raw, (Refused(405, closes=False),))
    for method in (b"HEAD", b"OPTIONS"):
        raw = method + get()[3:]
        why = "relayed as what it is"
        yield Case(f"request-line/{method.decode()}", "9110 9.1", why, raw, (Relayed(method, b"/version"),))
    raw = b"GET /v1/models HTTP/1.1\r\n" + HOST + KEY + b"\r\n"
    yield Case("request-line/with-key", "9110 11.6.2", "the key stays here", raw, (got(b"/v1/models"),))
