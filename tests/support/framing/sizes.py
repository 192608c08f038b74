"""Long messages, below and above the limits of the test: heads of 32 KiB, bodies of 1 MiB."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.framing.cases import HELLO, HIDDEN, Case, Refused, chunked, get, got, post, posted, sized

MOST_HEAD = 32 << 10
MOST_HEADERS = 128
"""Included in the limit: the Host header."""
MOST_BODY = 1 << 20
_LONG, _TOO_LONG = b"a" * 20_000, b"a" * 40_000
_ENDLESS = b"a" * 300_000
"""More than the sidecar reads at once."""
_FIVE = b"5\r\nhello\r\n"
_HALVES = (MOST_BODY >> 1, MOST_BODY >> 1)

_TOO_LARGE = (
    ("target", "9112 3", "a target that is too long is 414", get(b"/version?" + _TOO_LONG), 414),
    ("target-absolute", "9112 3", "in any form", get(b"http://t/version?" + _TOO_LONG), 414),
    ("target-endless", "9112 3", "before it ends", b"GET /" + _TOO_LONG, 414),
    ("method", "9110 9.1", "no method is that long", _TOO_LONG.upper() + b" / HTTP/1.1\r\n\r\n", 400),
    ("value", "9110 5.4", "a header that is too long is 431", get(lines=b"X-A: " + _TOO_LONG + b"\r\n"), 431),
    ("value-endless", "9110 5.4", "before it ends", get()[:-2] + b"X-A: " + _TOO_LONG, 431),
    ("name", "9110 5.4", "so is a name", get(lines=_TOO_LONG + b": 1\r\n"), 431),
    ("headers", "9110 5.4", "so are many small ones", get(lines=b"X-A: 1\r\n" * 5000), 431),
    ("header-too-many", "9110 5.4", "so is one more than 128", get(lines=b"X-A: 1\r\n" * MOST_HEADERS), 431),
    ("empty-headers", "9110 5.4", "so are many empty ones", get(lines=b"X:\r\n" * 10_000), 431),
    ("body", "9110 15.5.14", "a body that is too long is 413, before it comes", post(b"Content-Length: %d\r\n" % (MOST_BODY + 1), HELLO), 413),
    ("chunks", "9110 15.5.14", "in chunks, once it is", chunked(b"20000\r\n" + b"a" * 0x20000 + b"\r\n" * 1) + (b"20000\r\n" + b"a" * 0x20000 + b"\r\n") * 8, 413),
    ("extension", "9112 7.1.1", "extensions are bounded", chunked(b"5;" + _ENDLESS + b"\r\nhello\r\n0\r\n\r\n"), 431),
    ("trailer", "9112 7.1.2", "trailers are bounded", chunked(_FIVE + b"0\r\nX-T: " + _TOO_LONG + b"\r\n\r\n"), 431),
    ("trailer-endless", "9112 7.1.2", "... before they end", chunked(_FIVE + b"0\r\nX-T: " + _TOO_LONG), 431),
    ("trailers", "9112 7.1.2", "... in number", chunked(_FIVE + b"0\r\n" + b"X-T: 1\r\n" * 5000 + b"\r\n"), 431),
    ("chunk-zeros", "9112 7.1", "so are zeros before a size", chunked(b"0" * len(_ENDLESS) + b"5\r\nhello\r\n0\r\n\r\n"), 431),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All cases."""
    for name, rfc, why, raw, status in _TOO_LARGE:
        yield Case(f"size/too-long-{name}", rfc, why, raw + HIDDEN, (Refused(status),))
    value = (b"x-a", _LONG)
    line = b"X-A: " + _LONG + b"\r\n"
    parts = tuple((b"x-a", _LONG[:9000]) for _ in range(3))
    many = tuple((b"x-a", b"%d" % i) for i in range(MOST_HEADERS - 1))
    body = bytes(range(256)) * (MOST_BODY >> 8)
    small = b"".join(b"1\r\n%c\r\n" % c for c in body[:500])
    halves = b"".join(b"%x\r\n%b\r\n" % (half, body[:half]) for half in _HALVES)
    for name, rfc, why, raw, outcomes in (
        ("target", "9112 3", "a long target, however it arrives", get(b"/version?" + _LONG), (got(b"/version?" + _LONG),)),
        ("value", "9110 5.4", "a long header, however it arrives", get(lines=line), (got(b"/version", value),)),
        ("values", "9110 5.4", "three of them", get(lines=b"".join(b"%b: %b\r\n" % part for part in parts)), (got(b"/version", *parts),)),
        ("headers", "9110 5.4", "many small headers", get(lines=b"".join(b"%b: %b\r\n" % one for one in many)), (got(b"/version", *many),)),
        ("body", "9112 6.2", "the largest body", sized(body), (posted(body),)),
        ("small-chunks", "9112 7.1", "a body of small chunks", chunked(small + b"0\r\n\r\n"), (posted(body[:500]),)),
        ("large-chunks", "9112 7.1", "the largest body in large ones", chunked(halves + b"0\r\n\r\n"), (posted(body[: _HALVES[0]] * 2),)),
        ("extension", "9112 7.1.1", "a long extension is ignored", chunked(b"5;" + _LONG + b"\r\nhello\r\n0\r\n\r\n"), (posted(),)),
        ("trailer", "9112 7.1.2", "a long trailer is dropped", chunked(_FIVE + b"0\r\nX-T: " + _LONG + b"\r\n\r\n"), (posted(),)),
        ("head-behind-body", "9110 5.4", "a head is not charged with the body before it", sized(_LONG * 5) + get(lines=line), (posted(_LONG * 5), got(b"/version", value))),
        ("heads", "9110 5.4", "nor with the head before it", get(lines=line) * 4, (got(b"/version", value),) * 4),
    ):  # fmt: skip
        yield Case(f"size/long-{name}", rfc, why, raw, outcomes)
