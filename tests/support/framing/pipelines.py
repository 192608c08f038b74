"""Several requests on one connection: their order, and bytes that are no requests."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.framing.cases import (
    HELLO,
    HIDDEN,
    HOST,
    KEY,
    REFUSED,
    Case,
    Refused,
    Relayed,
    chunked,
    get,
    got,
    posted,
    sized,
)
from tests.support.framing.codings import CHUNKS

_ONE, _TWO = get(b"/version?1"), get(b"/version?2")
_GOT_ONE, _GOT_TWO = got(b"/version?1"), got(b"/version?2")
_UNKNOWN = Refused(404, closes=False)
_HEAD = b"HEAD" + get(b"/version?h")[3:]

_SOUND = (
    ("two", "9112 9.3.2", "requests are answered in order", _ONE + _TWO, (_GOT_ONE, _GOT_TWO)),
    ("bodies", "9112 6.3", "each body ends where it says", sized(b"a") + sized(b"") + sized(b"bc"), (posted(b"a"), posted(b""), posted(b"bc"))),
    ("framings", "9112 6.3", "in either framing", sized(HELLO) + chunked(CHUNKS) + sized(HELLO), (posted(),) * 3),
    ("twenty", "9112 9.3.2", "more than are read ahead", b"".join(get(b"/version?%d" % i) for i in range(20)), tuple(got(b"/version?%d" % i) for i in range(20))),
    ("head", "9110 9.3.2", "a HEAD's answer has no body, and the next is not taken for one", _HEAD + _TWO, (Relayed(b"HEAD", b"/version?h"), _GOT_TWO)),
    ("options", "9110 9.3.7", "nor does OPTIONS disturb", b"OPTIONS" + _ONE[3:] + _TWO, (Relayed(b"OPTIONS", b"/version?1"), _GOT_TWO)),
    ("unknown-between", "9112 9.3", "a refusal of a sound request ends nothing", _ONE + get(b"/x") + _TWO, (_GOT_ONE, _UNKNOWN, _GOT_TWO)),
    ("body-is-request", "9112 6.3", "a body that looks like a request is a body", sized(HIDDEN) + _TWO, (posted(HIDDEN), _GOT_TWO)),
    ("body-is-chunks", "9112 6.3", "one that looks like chunks is a body, too", sized(CHUNKS) + _TWO, (posted(CHUNKS), _GOT_TWO)),
    ("chunks-are-request", "9112 7.1", "the same in chunks", chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)) + _TWO, (posted(HIDDEN), _GOT_TWO)),
)  # fmt: skip


def _with_hidden(line: bytes, *, in_chunks: bool = False, lines: bytes = b"") -> bytes:
    """A request with a body that looks like another request."""
    if in_chunks:
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
        return line + b" HTTP/1.1\r\n" + HOST + lines + b"Transfer-Encoding: chunked\r\n\r\n" + body
    return line + b" HTTP/1.1\r\n" + HOST + lines + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN


_REFUSED_WITH_BODY = (
    ("unknown", 404, b"POST /x", b""),
    ("wrong-method", 405, b"PUT /version", b""),
    ("no-key", 401, b"POST /tokenize", b""),
    ("wrong-key", 401, b"POST /tokenize", b"Authorization: Bearer x\r\n"),
    ("malformed-body", 400, b"POST /v1/completions", KEY),
)

_JUNK = (
    ("text", "bytes that are no request end the connection", b"hello\r\n\r\n"),
    ("tls", "TLS on a port for plain HTTP", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"\x00" * 40),
    ("http2", "HTTP/2 without having agreed on it", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 9),
    ("nul", "NUL", b"\x00"),
    ("8-bit", "8-bit bytes", b"\xff\xfe\xfd\xfc"),
    ("utf-16", "a request in UTF-16", "GET / HTTP/1.1\r\n\r\n".encode("utf-16-le")),
    ("socks", "SOCKS", b"\x05\x01\x00"),
    ("proxy-protocol", "the binary PROXY protocol", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + b"\x00" * 12),
    ("last-chunk", "an end of chunks that no chunks began", b"0\r\n\r\n"),
    ("headers", "headers that no request line began", b"X-A: 1\r\n\r\n"),
)


def cases() -> Iterator[Case]:
    """All cases."""
    for name, rfc, why, raw, outcomes in _SOUND:
        yield Case(f"pipeline/{name}", rfc, why, raw, outcomes)
    for name, status, line, lines in _REFUSED_WITH_BODY:
        for in_chunks in (False, True):
            why = "the body of what is refused is not the next request"
            raw = _with_hidden(line, in_chunks=in_chunks, lines=lines) + _TWO
            # What the head decides is answered without the body, and the connection ends.
            is_read = status == 400
            outcomes = (Refused(status, closes=not is_read), *([_GOT_TWO] if is_read else []))
            framing = "chunks" if in_chunks else "length"
            yield Case(f"pipeline/{name}-{framing}", "9112 9.3", why, raw, outcomes)
    for name, why, junk in _JUNK:
        yield Case(f"pipeline/junk-{name}", "9112 2.1", why, junk + HIDDEN, REFUSED)
        yield Case(f"pipeline/then-{name}", "9112 2.1", why, _ONE + junk + HIDDEN, (_GOT_ONE, Refused()))
    why = "after a framing that is not believed nothing is"
    for name, bad in (
        ("length", b"POST /tokenize HTTP/1.1\r\n" + HOST + KEY + b"Content-Length: x\r\n\r\n"),
        ("chunk", chunked(b"x\r\n")),
        ("header", get(lines=b"X : 1\r\n")),
    ):
        raw = _ONE + sized(HELLO) + bad + HIDDEN + _TWO
        yield Case(f"pipeline/bad-{name}", "9112 11.2", why, raw, (_GOT_ONE, posted(), Refused()))
