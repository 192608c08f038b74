"""Line ends and white space: bare CR, bare LF, folding, blank lines."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.framing.cases import HELLO, HIDDEN, REFUSED, Case, get, got, posted, sized

_LINE = b"GET /version HTTP/1.1"

_INVALID = (
    ("lf-request-line", "9112 2.2", "a bare LF may end a line, and is refused", _LINE + b"\nHost: t\r\n\r\n"),
    ("lf-header", "9112 2.2", "... behind a header", _LINE + b"\r\nHost: t\nX-A: 1\r\n\r\n"),
    ("lf-last-header", "9112 2.2", "... behind the last one", _LINE + b"\r\nHost: t\n\r\n"),
    ("lf-head-end", "9112 2.2", "... as the end of the head", _LINE + b"\r\nHost: t\r\n\n"),
    ("lf-only", "9112 2.2", "... everywhere", _LINE + b"\nHost: t\n\n"),
    ("lf-lf", "9112 2.2", "... as two line ends at once", _LINE + b"\r\nHost: t\n\n" + HIDDEN),
    ("lf-cr", "9112 2.2", "... in the wrong order", _LINE + b"\n\rHost: t\n\r\n\r"),
    ("cr-request-line", "9112 2.2", "a bare CR must not end a line", _LINE + b"\rHost: t\r\n\r\n"),
    ("cr-header", "9112 2.2", "... nor a header", _LINE + b"\r\nHost: t\rX-A: 1\r\n\r\n"),
    ("cr-only", "9112 2.2", "... nor anything", _LINE + b"\rHost: t\r\r" + HIDDEN),
    ("cr-cr-lf", "9112 2.2", "... not even before CRLF", _LINE + b"\r\nHost: t\r\r\n\r\n"),
    ("cr-cr-lf-line", "9112 2.2", "... in the request line", _LINE + b"\r\r\nHost: t\r\n\r\n"),
    ("cr-head-end", "9112 2.2", "... in the end of the head", _LINE + b"\r\nHost: t\r\n\r\r\n"),
    ("cr-in-name", "9112 2.2", "... in a name", _LINE + b"\r\nHost: t\r\nX\r-A: 1\r\n\r\n"),
    ("cr-before-colon", "9112 2.2", "... before a colon", _LINE + b"\r\nHost: t\r\nX-A\r: 1\r\n\r\n"),
    ("cr-after-colon", "9112 2.2", "... after it", _LINE + b"\r\nHost: t\r\nX-A:\r 1\r\n\r\n"),
    ("cr-in-method", "9112 2.2", "... in a method", b"G\rET /version HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("cr-in-version", "9112 2.2", "... in a version", b"GET /version HTTP/1.\r1\r\nHost: t\r\n\r\n"),
    ("nul-line-end", "9112 2.2", "NUL ends no line", _LINE + b"\x00\r\nHost: t\r\n\r\n"),
    ("vt-line-end", "9112 2.2", "a vertical tab ends no line", _LINE + b"\x0bHost: t\r\n\r\n"),
    ("ff-line-end", "9112 2.2", "nor does a form feed", _LINE + b"\x0cHost: t\r\n\r\n"),
    ("nel-line-end", "9112 2.2", "nor does NEL", _LINE + b"\x85Host: t\r\n\r\n"),
    ("ls-line-end", "9112 2.2", "nor does U+2028", _LINE + b"\xe2\x80\xa8Host: t\r\n\r\n"),
    ("folded-space", "9112 5.2", "a folded line must be refused or unfolded; it is refused", get(lines=b"X-A: a\r\n b\r\n")),
    ("folded-tab", "9112 5.2", "... with a tab", get(lines=b"X-A: a\r\n\tb\r\n")),
    ("folded-twice", "9112 5.2", "... twice", get(lines=b"X-A: a\r\n b\r\n c\r\n")),
    ("folded-empty", "9112 5.2", "... behind nothing", get(lines=b"X-A:\r\n b\r\n")),
    ("folded-header", "9112 5.2", "... what looks like a header of its own", get(lines=b"X-A: a\r\n X-B: b\r\n")),
    ("folded-blank", "9112 5.2", "... a blank line", get(lines=b"X-A: a\r\n \r\n")),
    ("space-first-header", "9112 2.2", "white space between the request line and the first header", _LINE + b"\r\n Host: t\r\n\r\n"),
    ("tab-first-header", "9112 2.2", "... or a tab", _LINE + b"\r\n\tHost: t\r\n\r\n"),
    ("blank-first-header", "9112 2.2", "... or a blank line", _LINE + b"\r\n \r\nHost: t\r\n\r\n"),
    ("blank-head-end", "9112 2.2", "an end of the head that is blank and not empty", _LINE + b"\r\nHost: t\r\n \r\n" + HIDDEN),
    ("space-before-empty", "9112 2.2", "a blank line before the request", b" \r\n" + get()),
)  # fmt: skip

_EMPTY_LINES = (
    ("one-empty-line", "a server should skip an empty line before a request", b"\r\n"),
    ("two-empty-lines", "... or two", b"\r\n\r\n"),
    ("many-empty-lines", "... or many", b"\r\n" * 50),
    ("bare-lf-first", "... in bare LFs: nothing of them goes on", b"\n\n"),
)


def cases() -> Iterator[Case]:
    """All cases."""
    for name, rfc, why, raw in _INVALID:
        yield Case(f"line/{name}", rfc, why, raw, REFUSED)
    for name, why, lines in _EMPTY_LINES:
        yield Case(f"line/{name}", "9112 2.2", why, lines + get(), (got(),))
        raw = sized(HELLO) + lines + get(b"/version?next")
        yield Case(f"line/{name}-between", "9112 2.2", why, raw, (posted(), got(b"/version?next")))
