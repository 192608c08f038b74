"""Connections: when they end, and which headers are for one hop only. HTTP/1.0, and other versions."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.framing.cases import (
    HELLO,
    HIDDEN,
    HOST,
    KEY,
    REFUSED,
    Case,
    get,
    got,
    post,
    posted,
    sized,
)

_CLOSES = (
    ("close", "9112 9.6", "after 'close' nothing is read", b"Connection: close"),
    ("upper-case", "9110 7.6.1", "options have no case", b"Connection: CLOSE"),
    ("close-last", "9112 9.3", "'close' wins", b"Connection: keep-alive, close"),
    ("close-first", "9112 9.3", "... wherever it stands", b"Connection: close, keep-alive"),
    ("close-among", "9110 7.6.1", "... among others", b"Connection: x-y, close, x-z"),
    ("close-comma", "9110 5.6.1", "... beside empty elements", b"Connection: , close,"),
    ("close-tight", "9110 5.6.1", "... without white space", b"Connection:x,close"),
    ("close-padded", "9110 5.6.1", "... with much of it", b"Connection: \t x \t,\t close \t"),
    ("close-second-line", "9110 5.3", "... in a second line", b"Connection: x\r\nConnection: close"),
    ("close-first-line", "9110 5.3", "... in the first", b"Connection: close\r\nConnection: keep-alive"),
    ("proxy-connection", "9112 C.2.2", "honoured where it can do no harm", b"Proxy-Connection: close"),
)

_STAYS = (
    ("keep-alive", "9112 9.3", "the default of HTTP/1.1", b"Connection: keep-alive"),
    ("longer", "9110 7.6.1", "another option", b"Connection: closed"),
    ("shorter", "9110 7.6.1", "another option", b"Connection: clos"),
    ("hyphen", "9110 7.6.1", "another option", b"Connection: close-notify"),
    ("quoted", "9110 7.6.1", "an option is a token", b'Connection: "close"'),
    ("parameter", "9110 7.6.1", "options have no parameters", b"Connection: close;x"),
    ("empty", "9110 7.6.1", "no option", b"Connection:"),
    ("commas", "9110 5.6.1", "no option", b"Connection: ,,"),
    ("other-header", "9112 9.6", "the option is Connection's", b"X-A: close"),
)

_NOMINATED = (
    ("one", "what Connection names is of this hop", b"Connection: X-Hop\r\nX-Hop: 1", ()),
    ("case", "names have no case", b"Connection: x-HOP\r\nX-hop: 1", ()),
    ("before", "wherever the header stands", b"X-Hop: 1\r\nConnection: x-hop", ()),
    ("several", "as many as are named", b"Connection: x-a, x-b ,x-c\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3\r\nX-D: 4", ((b"x-d", b"4"),)),
    ("two-lines", "lines make one list", b"Connection: x-a\r\nConnection: x-b\r\nX-A: 1\r\nX-B: 2", ()),
    ("repeated", "every line of that name", b"Connection: x-a\r\nX-A: 1\r\nX-A: 2", ()),
    ("absent", "naming what is not there", b"Connection: x-none\r\nX-A: 1", ((b"x-a", b"1"),)),
    ("prefix", "only that very name", b"Connection: x-a\r\nX-Ab: 1", ((b"x-ab", b"1"),)),
    ("content-type", "even a header that is meant for the engine", b"Connection: content-type\r\nContent-Type: a/b", ()),
    ("length", "the framing is the sidecar's own: it cannot be dropped", b"Connection: content-length", ()),
    ("host", "nor can Host", b"Connection: host", ()),
    ("authorization", "nor who asks", b"Connection: authorization", ()),
)  # fmt: skip

_VERSIONS = (
    b"HTTP/0.9", b"HTTP/1.2", b"HTTP/1.9", b"HTTP/2.0", b"HTTP/2", b"HTTP/3.0", b"HTTP/1", b"HTTP/1.", b"HTTP/.1",
    b"HTTP/1.10", b"HTTP/11.1", b"HTTP/01.1", b"HTTP/1.01", b"HTTP/1.1.1", b"HTTP/1,1", b"HTTP/-1.1", b"HTTP/+1.1",
    b"HTTP/1.a", b"HTTP/\xff.1", b"HTTP/ 1.1", b"HTTP /1.1", b"HTTP 1.1", b"http/1.1", b"Http/1.1", b"HTTPS/1.1",
    b"XHTTP/1.1", b"HTT/1.1", b"HTTP\\1.1", b"HTTP/1.1\x00", b"HTTP/1.1;x", b"1.1", b"RTSP/2.0", b"ICE/1.0",
)  # fmt: skip

_OLD = (
    ("default", "9112 9.3", "HTTP/1.0 closes by itself", b"", True),
    ("keep-alive", "9112 9.3", "unless it asks for the connection to be kept", b"Connection: keep-alive\r\n", False),
    ("keep-alive-case", "9110 7.6.1", "options have no case", b"Connection: Keep-Alive\r\n", False),
    ("keep-alive-close", "9112 9.3", "'close' wins", b"Connection: keep-alive, close\r\n", True),
    ("close-keep-alive", "9112 9.3", "... wherever it stands", b"Connection: close, keep-alive\r\n", True),
    ("two-lines", "9112 9.3", "... in whatever line", b"Connection: keep-alive\r\nConnection: close\r\n", True),
    ("proxy-keep-alive", "9112 C.2.2", "a blind proxy may have passed this on: no", b"Proxy-Connection: keep-alive\r\n", True),
    ("keep-alive-header", "9112 C.2.2", "parameters of what was not asked for", b"Keep-Alive: timeout=5\r\n", True),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All cases."""
    for name, rfc, why, lines in _CLOSES:
        raw = get(lines=lines + b"\r\n") + HIDDEN
        yield Case(f"connection/{name}", rfc, why, raw, (got(closes=True),))
    for name, rfc, why, lines in _STAYS:
        kept = ((b"x-a", b"close"),) if name == "other-header" else ()
        yield Case(
            f"connection/stays-{name}", rfc, why, get(lines=lines + b"\r\n"), (got(b"/version", *kept),)
        )
    for name, why, lines, kept in _NOMINATED:
        raw = sized(HELLO, lines + b"\r\n")
        yield Case(f"connection/names-{name}", "9110 7.6.1", why, raw, (posted(HELLO, *kept),))
    raw = sized(HELLO, b"Connection: close\r\n") + HIDDEN
    why = "after 'close' nothing is read, body or not"
    yield Case("connection/close-body", "9112 9.6", why, raw, (posted(closes=True),))
    raw = get() + get(b"/version?2", b"Connection: close\r\n") + HIDDEN
    why = "a request that waits for its turn is not changed by what follows it"
    yield Case("connection/close-second", "9112 9.6", why, raw, (got(), got(b"/version?2", closes=True)))
    yield from _versions()


def _versions() -> Iterator[Case]:
    for version in _VERSIONS:
        why = "HTTP/1.1 and HTTP/1.0 are spoken, written exactly so; 505 is allowed, but clients retry 5xx"
        name = version.decode("latin-1").encode("unicode_escape").decode().replace(" ", "_").replace("/", "-")
        yield Case(f"version/{name}", "9112 2.3", why, get(version=version) + HIDDEN, REFUSED)
    for name, rfc, why, lines, closes in _OLD:
        raw = b"GET /version HTTP/1.0\r\n" + lines + b"\r\n" + (HIDDEN if closes else b"")
        yield Case(f"version/old-{name}", rfc, why, raw, (got(closes=closes),))
    raw = b"GET /version HTTP/1.0\r\n\r\nX-A: 1\r\n\r\n" + HIDDEN
    why = "a request that waits for its turn is not changed by what follows it"
    yield Case("version/old-then-headers", "9112 9.3", why, raw, (got(closes=True),))
    raw = b"GET /version?1 HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n"
    raw = get(b"/version?0") + raw + b"GET /version?2 HTTP/1.0\r\nX-A: 1\r\n\r\n"
    yield Case("version/old-closes-behind-another", "9112 9.3", why, raw, (got(b"/version?0"), got(b"/version?1", closes=True)))  # fmt: skip
    raw = post(b"Connection: keep-alive\r\nContent-Length: 5\r\n", HELLO, version=b"HTTP/1.0")
    yield Case("version/old-body", "9112 9.3", "a kept connection needs framed bodies", raw, (posted(),))
    raw = b"POST /tokenize HTTP/1.0\r\n" + HOST + KEY + b"Connection: keep-alive\r\n\r\n"
    why = "without framing there is no body in HTTP/1.0 either: a request never ends with the connection"
    yield Case("version/old-no-length", "9112 6.3", why, raw, (posted(b""),))
    raw = b"GET /version RTSP/1.0\r\n" + HOST + b"\r\n" + HIDDEN
    why = "the parser takes RTSP/1.0 for HTTP/1.0; the engine reads HTTP/1.1, and the connection ends"
    yield Case("version/rtsp", "9112 2.3", why, raw, (got(closes=True),))
