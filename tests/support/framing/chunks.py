"""Chunked bodies: sizes, extensions, ends, trailers."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.framing.cases import HELLO, HIDDEN, REFUSED, Case, Refused, chunked, got, posted

_LAST = b"0\r\n\r\n"
_FIVE = b"5\r\nhello\r\n"

_VALID = (
    ("one", "9112 7.1", "one chunk", _FIVE + _LAST, HELLO),
    ("two", "9112 7.1", "two make one body", b"2\r\nhe\r\n3\r\nllo\r\n" + _LAST, HELLO),
    ("single-bytes", "9112 7.1", "as many as there are bytes", b"".join(b"1\r\n%c\r\n" % c for c in HELLO) + _LAST, HELLO),
    ("empty", "9112 7.1", "no chunk but the last", _LAST, b""),
    ("lower-case-size", "9112 7.1", "sizes are hexadecimal", b"a\r\n0123456789\r\n" + _LAST, b"0123456789"),
    ("upper-case-size", "9112 7.1", "... of either case", b"A\r\n0123456789\r\n" + _LAST, b"0123456789"),
    ("ten-is-sixteen", "9112 7.1", "... and not decimal", b"10\r\n0123456789abcdef\r\n" + _LAST, b"0123456789abcdef"),
    ("zeros-in-front", "9112 7.1", "zeros in front mean nothing", b"0005\r\nhello\r\n" + _LAST, HELLO),
    ("many-zeros", "9112 7.1", "... however many", b"0" * 40 + _FIVE + _LAST, HELLO),
    ("long-last", "9112 7.1", "the last chunk is any number of zeros", _FIVE + b"00000\r\n\r\n", HELLO),
    ("extension", "9112 7.1.1", "unknown extensions are ignored", b"5;a\r\nhello\r\n" + _LAST, HELLO),
    ("extension-value", "9112 7.1.1", "... with a value", b"5;a=b\r\nhello\r\n" + _LAST, HELLO),
    ("extensions", "9112 7.1.1", "... several", b"5;a;b=c;d=e\r\nhello\r\n" + _LAST, HELLO),
    ("extension-quoted", "9112 7.1.1", "... quoted, with what would end it elsewhere", b'5;a="b;c=\\"d"\r\nhello\r\n' + _LAST, HELLO),
    ("extension-8-bit", "9110 5.6.4", "... quoted, with 8-bit text", b'5;a="\xe9"\r\nhello\r\n' + _LAST, HELLO),
    ("extension-no-name", "9112 7.1.1", "... without a name: the line ends all the same", b"5;=b\r\nhello\r\n" + _LAST, HELLO),
    ("extension-two-semicolons", "9112 7.1.1", "... or with nothing between two", b"5;;a\r\nhello\r\n" + _LAST, HELLO),
    ("extension-size", "9112 7.1.1", "... that looks like a size", b"5;6\r\nhello\r\n" + _LAST, HELLO),
    ("extension-last", "9112 7.1.1", "... of the last chunk", _FIVE + b"0;a=b\r\n\r\n", HELLO),
    ("ends-inside", "9112 7.1", "an end inside of a chunk is data", b"5\r\n0\r\n\r\n\r\n" + _LAST, b"0\r\n\r\n"),
    ("request-inside", "9112 7.1", "so is a request", b"%x\r\n%b\r\n" % (len(HIDDEN), HIDDEN) + _LAST, HIDDEN),
    ("line-end-inside", "9112 7.1", "so are line ends", b"2\r\n\r\n\r\n" + _LAST, b"\r\n"),
    ("every-byte", "9112 7.1", "chunks hold any bytes", b"100\r\n" + bytes(range(256)) + b"\r\n" + _LAST, bytes(range(256))),
)  # fmt: skip

_SIZES = (
    ("empty", b""),
    ("word", b"zz"),
    ("g", b"5g"),
    ("negative", b"-5"),
    ("plus", b"+5"),
    ("prefix", b"0x5"),
    ("prefix-upper", b"0X5"),
    ("suffix", b"5h"),
    ("underscore", b"0_5"),
    ("fraction", b"5.0"),
    ("comma", b"5,"),
    ("leading-space", b" 5"),
    ("trailing-space", b"5 "),
    ("trailing-tab", b"5\t"),
    ("vertical-tab", b"5\x0b"),
    ("form-feed", b"5\x0c"),
    ("nul", b"5\x00"),
    ("nbsp", b"5\xa0"),
    ("8-bit", b"\xff"),
    ("wide-digit", "\uff15".encode()),
    ("two", b"5 5"),
    ("line-end", b"\r\n5"),
    ("wraps-64", b"10000000000000005"),
    ("beyond-64", b"f" * 40),
)

_EXTENSIONS = (
    ("nothing", b"5;"),
    ("space", b"5 ;a"),
    ("space-behind", b"5; a"),
    ("tab", b"5\t;a"),
    ("space-in-name", b"5;a b"),
    ("open-quote", b'5;a="b'),
    ("behind-quote", b'5;a="b"c'),
    ("nul", b"5;a\x00"),
    ("control", b"5;a=\x01"),
    ("8-bit-name", b"5;\xe9"),
    ("cr", b"5;a\rb"),
    ("lf", b"5;a\nb"),
    ("lf-quoted", b'5;a="\n"'),
    ("cr-quoted", b'5;a="\r"'),
    ("escaped-line-end", b'5;a="\\\r\n"'),
)

_BROKEN = (
    ("lf-after-size", "9112 2.2", "a bare LF ends no line here", b"5\nhello\r\n" + _LAST),
    ("cr-after-size", "9112 2.2", "nor does a bare CR", b"5\rhello\r\n" + _LAST),
    ("cr-cr-lf", "9112 2.2", "nor CR CR LF", b"5\r\r\nhello\r\n" + _LAST),
    ("lf-after-data", "9112 7.1", "nor behind the data", b"5\r\nhello\n" + _LAST),
    ("cr-after-data", "9112 7.1", "nor behind the data", b"5\r\nhello\r" + _LAST),
    ("no-line-end", "9112 7.1", "data ends with CRLF", b"5\r\nhello" + _LAST),
    ("too-much-data", "9112 7.1", "more data than was said", b"4\r\nhello\r\n" + _LAST),
    ("too-little-data", "9112 7.1", "less data than was said", b"7\r\nhello\r\n" + _LAST),
    ("blank-line", "9112 7.1", "nothing between chunks", _FIVE + b"\r\n" + _LAST),
    ("lf-everywhere", "9112 2.2", "a body in bare LFs", b"5\nhello\n0\n\n"),
    ("last-lf", "9112 7.1", "the end is CRLF CRLF", _FIVE + b"0\n\r\n"),
    ("last-lf-lf", "9112 7.1", "the end is CRLF CRLF", _FIVE + b"0\r\n\n"),
    ("last-cr-cr", "9112 7.1", "the end is CRLF CRLF", _FIVE + b"0\r\n\r\r\n"),
    ("minus-zero", "9112 7.1", "zero has no sign", _FIVE + b"-0\r\n\r\n"),
)

_TRAILERS = (
    ("one", "a trailer is read and dropped", b"X-T: 1"),
    ("two", "so are two", b"X-T: 1\r\nX-U: 2"),
    ("empty", "so is an empty one", b"X-T:"),
    ("8-bit", "so is 8-bit text", b"X-T: \xff"),
    ("content-type", "it must not pass for a header", b"Content-Type: text/evil"),
    ("authorization", "nor change who asks", b"Authorization: Bearer s-key"),
    ("identity", "nor name an entitlement", b"X-Tokenpool-Entitlement: s"),
    ("host", "nor be a second Host", b"Host: evil"),
    ("connection", "nor say what is dropped", b"Connection: content-type"),
    ("expect", "nor ask for 100 Continue", b"Expect: 100-continue"),
    ("upgrade", "nor offer another protocol", b"Connection: upgrade\r\nUpgrade: h2c"),
)

_BAD_TRAILERS = (
    ("no-colon", b"bad trailer"),
    ("empty-name", b": y"),
    ("space-before-colon", b"X-T : y"),
    ("leading-space", b" X-T: y"),
    ("folded", b"X-T: a\r\n b"),
    ("nul", b"X-T: a\x00"),
    ("control", b"X-T: a\x01"),
    ("cr", b"X-T: a\rb"),
    ("lf", b"X-T: a\nX-U: b"),
    ("8-bit-name", b"X\xffT: a"),
    ("length", b"Content-Length: 9"),
)


def cases() -> Iterator[Case]:
    """All cases."""
    for name, rfc, why, chunks, body in _VALID:
        yield Case(f"chunk/{name}", rfc, why, chunked(chunks), (posted(body),))
    for name, size in _SIZES:
        why = "a size is hexadecimal digits, without a sign, a prefix or white space, and never wraps"
        raw = chunked(size + b"\r\nhello\r\n" + _LAST + HIDDEN)
        yield Case(f"chunk/size-{name}", "9112 7.1", why, raw, REFUSED)
    for name, line in _EXTENSIONS:
        why = "an extension that is not well-formed hides a line end from some readers; white space is refused too"
        raw = chunked(line + b"\r\nhello\r\n" + _LAST + HIDDEN)
        yield Case(f"chunk/extension-{name}", "9112 7.1.1", why, raw, REFUSED)
    for name, rfc, why, chunks in _BROKEN:
        yield Case(f"chunk/{name}", rfc, why, chunked(chunks + HIDDEN), REFUSED)
    for name, why, lines in _TRAILERS:
        raw = chunked(_FIVE + b"0\r\n" + lines + b"\r\n\r\n", b"Trailer: x-t\r\n")
        yield Case(f"trailer/{name}", "9110 6.5.1", why, raw, (posted(),))
    for name, lines in _BAD_TRAILERS:
        why = "trailers have the grammar of headers, and no effect on framing"
        raw = chunked(_FIVE + b"0\r\n" + lines + b"\r\n\r\n" + HIDDEN)
        yield Case(f"trailer/bad-{name}", "9112 7.1.2", why, raw, REFUSED)
    raw = chunked(_FIVE + b"0\r\nConnection: close\r\n\r\n") + HIDDEN
    why = "the parser obeys 'close' even there: later requests are not served"
    yield Case("trailer/close", "9110 6.5.1", why, raw, (posted(), Refused()))
    raw = chunked(_FIVE + b"0\r\nX-T: 1\r\n\r\n") + b"GET /version?next HTTP/1.1\r\nHost: t\r\nX-A: 2\r\n\r\n"
    why = "a trailer is not the next request's header either"
    yield Case("trailer/next", "9110 6.5.1", why, raw, (posted(), got(b"/version?next", (b"x-a", b"2"))))
