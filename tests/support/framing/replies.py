"""The engine's side: odd and hostile responses."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.framing.cases import HELLO, Broken, Gets, Reply

_OK = b"HTTP/1.1 200 OK\r\n"
_SIZED = _OK + b"Content-Length: 5\r\n\r\nhello"
_CHUNKED = _OK + b"Transfer-Encoding: chunked\r\n\r\n"
_LAST = b"0\r\n\r\n"
_FIVE = b"5\r\nhello\r\n"
_OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"
_FAILS, _CUT = Broken(), Broken(may_have_begun=True)
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENTS = ((b"Content-Type", b"text/event-stream"),)

_WHOLE = (
    ("sized", "9112 6.3", "a length", _SIZED, Gets()),
    ("sized-zero", "9112 6.3", "no body", _OK + b"Content-Length: 0\r\n\r\n", Gets(body=b"")),
    ("sized-zero-padded", "9110 8.6", "zeros in front mean nothing", _OK + b"Content-Length: 0005\r\n\r\nhello", Gets()),
    ("sized-padded", "9110 5.5", "nor does white space", _OK + b"Content-Length: \t5 \r\n\r\nhello", Gets()),
    ("chunked", "9112 7.1", "chunks", _CHUNKED + _FIVE + _LAST, Gets()),
    ("chunked-case", "9112 7", "codings have no case", _OK + b"transfer-encoding: Chunked\r\n\r\n" + _FIVE + _LAST, Gets()),
    ("chunked-empty", "9112 7.1", "no chunk but the last", _CHUNKED + _LAST, Gets(body=b"")),
    ("chunked-upper-case", "9112 7.1", "sizes are hexadecimal", _CHUNKED + b"A\r\n0123456789\r\n" + _LAST, Gets(body=b"0123456789")),
    ("chunked-extension", "9112 7.1.1", "extensions are for one hop", _CHUNKED + b"5;a=b\r\nhello\r\n0;c\r\n\r\n", Gets()),
    ("chunked-trailer", "9110 6.5.1", "trailers may be dropped", _CHUNKED + _FIVE + b"0\r\nX-T: 1\r\nX-U: 2\r\n\r\n", Gets()),
    ("chunked-nested", "9112 7.1", "chunks inside of a chunk are data", _CHUNKED + b"f\r\n" + _FIVE + _LAST + b"\r\n" + _LAST, Gets(body=_FIVE + _LAST)),
    ("chunked-single-bytes", "9112 7.1", "many chunks", _CHUNKED + b"".join(b"1\r\n%c\r\n" % c for c in HELLO * 40) + _LAST, Gets(body=HELLO * 40)),
    ("no-reason", "9112 4", "the reason may be empty", b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello", Gets()),
    ("no-reason-no-space", "9112 4", "... and its space missing", b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", Gets()),
    ("reason", "9112 4", "any text", b"HTTP/1.1 200 Quite: f\xefne\t!\r\nContent-Length: 5\r\n\r\nhello", Gets()),
    ("status-299", "9110 15", "an unknown status is of its class", b"HTTP/1.1 299 X\r\nContent-Length: 5\r\n\r\nhello", Gets(299)),
    ("status-418", "9110 15.5", "a client's error", b"HTTP/1.1 418 Teapot\r\nContent-Length: 5\r\n\r\nhello", Gets(418)),
    ("status-599", "9110 15.6", "the last of the servers' errors", b"HTTP/1.1 599 X\r\nContent-Length: 5\r\n\r\nhello", Gets(599)),
    ("status-301", "9110 15.4", "a redirection is the client's to follow", b"HTTP/1.1 301 Moved\r\nLocation: /x\r\nContent-Length: 5\r\n\r\nhello", Gets(301, headers=((b"Location", b"/x"),))),
    ("status-426", "9110 15.5.22", "an offer of this hop is not passed on", b"HTTP/1.1 426 U\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nhello", Gets(426)),
    ("status-205", "9110 15.3.6", "no body", b"HTTP/1.1 205 R\r\nContent-Length: 0\r\n\r\n", Gets(205, b"")),
    ("empty-lines-first", "9112 2.2", "empty lines in front", b"\r\n\r\n" + _SIZED, Gets()),
    ("continue-first", "9110 15.2", "an interim response that was not asked for is passed over", b"HTTP/1.1 100 Continue\r\n\r\n" + _SIZED, Gets()),
    ("hints-first", "9110 15.2.2", "a gateway may drop hints, and headers of theirs are not the answer's", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + _SIZED, Gets()),
    ("processing-first", "9110 15.2", "any number of interim responses", b"HTTP/1.1 102 P\r\n\r\n" * 9 + b"HTTP/1.1 199 X\r\n\r\n" + _SIZED, Gets()),
    ("interim-length", "9110 15.2", "an interim response has no body, whatever it says", b"HTTP/1.1 103 X\r\nContent-Length: %d\r\n\r\n" % len(_SIZED) + _SIZED, Gets()),
    ("interim-chunked", "9112 6.1", "... in chunks neither", b"HTTP/1.1 100 X\r\nTransfer-Encoding: chunked\r\n\r\n" + _SIZED, Gets()),
    ("no-content", "9110 15.3.5", "204 has no body", b"HTTP/1.1 204 No Content\r\n\r\n", Gets(204, b"")),
    ("no-content-length", "9110 8.6", "... nor a length, though the engine writes one", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", Gets(204, b"")),
    ("no-content-five", "9112 6.3", "... whatever it says", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", Gets(204, b"")),
    ("no-content-chunked", "9112 6.1", "... in chunks neither", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", Gets(204, b"")),
    ("not-modified", "9110 15.4.5", "304 has no body", b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", Gets(304, b"", ((b"ETag", b'"a"'),))),
    ("not-modified-length", "9110 8.6", "... though it may say how long one would be", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Gets(304, b"", length=b"5")),
    ("not-modified-chunked", "9112 6.1", "... or how it would be framed", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", Gets(304, b"")),
    ("keep-alive", "9110 7.6.1", "of this hop", _OK + b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nContent-Length: 5\r\n\r\nhello", Gets()),
    ("nominated", "9110 7.6.1", "what Connection names goes no further", _OK + b"connection: X-Hop, x-b\r\nx-hop: 1\r\nX-B: 2\r\nX-C: 3\r\nContent-Length: 5\r\n\r\nhello", Gets(headers=((b"X-C", b"3"),))),
    ("nominated-length", "9110 7.6.1", "the framing is read before it is dropped", _OK + b"Connection: content-length\r\nContent-Length: 5\r\n\r\nhello", Gets()),
    ("hop-by-hop", "9110 7.6.1", "nor do these", _OK + b"Proxy-Authenticate: Basic\r\nProxy-Connection: x\r\nTrailer: x\r\nTE: x\r\nContent-Length: 5\r\n\r\nhello", Gets()),
    ("upgrade-ignored", "9110 7.8", "nor an offer to upgrade", _OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nhello", Gets()),
    ("repeated", "9110 5.3", "lines of one name keep their order", _OK + b"Set-Cookie: a\r\nX: y\r\nSet-Cookie: b\r\nContent-Length: 5\r\n\r\nhello", Gets(headers=((b"Set-Cookie", b"a"), (b"X", b"y"), (b"Set-Cookie", b"b")))),
    ("8-bit", "9110 5.5", "8-bit text is opaque", _OK + b"X: \xe9\xff\r\nContent-Length: 5\r\n\r\nhello", Gets(headers=((b"X", b"\xe9\xff"),))),
    ("empty-value", "9110 5.5", "a value may be empty", _OK + b"X:\r\nContent-Length: 5\r\n\r\nhello", Gets(headers=((b"X", b""),))),
    ("padded-value", "9110 5.5", "white space around a value is not part of it", _OK + b"X: \t a b \t\r\nContent-Length: 5\r\n\r\nhello", Gets(headers=((b"X", b"a b"),))),
    ("long-header", "9110 5.4", "a long header", _OK + b"X: " + b"a" * 60_000 + b"\r\nContent-Length: 5\r\n\r\nhello", Gets(headers=((b"X", b"a" * 60_000),))),
    ("large-body", "9112 6.3", "a large body", _OK + b"Content-Length: 300000\r\n\r\n" + b"ab" * 150_000, Gets(body=b"ab" * 150_000)),
    ("every-byte", "9112 6.3", "a body is any bytes", _OK + b"Content-Length: 256\r\n\r\n" + bytes(range(256)), Gets(body=bytes(range(256)))),
    ("stream", "9112 7.1", "events", _STREAM + b"9\r\ndata: 1\n\n\r\n" + _LAST, Gets(body=b"data: 1\n\n", headers=_EVENTS)),
    ("stream-sized", "9112 6.3", "events of a known length get new framing", _OK + b"Content-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: 1\n\n", Gets(body=b"data: 1\n\n", headers=_EVENTS)),
)  # fmt: skip

_CLOSING = (
    ("closed-body", "9112 6.3", "without framing the body ends with the connection", _OK + b"\r\nhello", Gets()),
    ("closed-empty", "9112 6.3", "... also an empty one", _OK + b"\r\n", Gets(body=b"")),
    ("closed-keep-alive", "9112 6.3", "... whatever is said of keeping it", _OK + b"Connection: keep-alive\r\n\r\nhello", Gets()),
    ("closed-response-inside", "9112 6.3", "... and a response inside of it is data", _OK + b"\r\n" + _OTHER, Gets(body=_OTHER)),
    ("closed-chunks-inside", "9112 6.3", "... and so are chunks", _OK + b"\r\n" + _FIVE + _LAST, Gets(body=_FIVE + _LAST)),
    ("old-closed", "9112 9.3", "HTTP/1.0's way", b"HTTP/1.0 200 OK\r\n\r\nhello", Gets()),
    ("reset-without-length", "9110 15.3.6", "205 without a length ends with the connection", b"HTTP/1.1 205 R\r\n\r\n", Gets(205, b"")),
)  # fmt: skip

_NOT_REUSED = (
    ("close", "9112 9.6", "the engine will close", _OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", Gets()),
    ("close-case", "9110 7.6.1", "options have no case", _OK + b"connection: x, CLOSE\r\nContent-Length: 5\r\n\r\nhello", Gets()),
    ("close-trailer", "9110 6.5.1", "the parser obeys 'close' even in a trailer", _CHUNKED + _FIVE + b"0\r\nConnection: close\r\n\r\n", Gets()),
    ("old", "9112 9.3", "HTTP/1.0 closes by itself", b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", Gets()),
    ("longer", "9112 6.3", "more than was stated: the rest belongs to no response", _OK + b"Content-Length: 4\r\n\r\nhello", Gets(body=b"hell")),
    ("second", "9112 9.3.2", "a second response was not asked for", _SIZED + _OTHER, Gets()),
    ("second-begun", "9112 9.3.2", "nor was the beginning of one", _SIZED + b"HTTP/1.1 20", Gets()),
    ("second-chunked", "9112 9.3.2", "nor behind chunks", _CHUNKED + _FIVE + _LAST + _OTHER, Gets()),
    ("second-interim", "9112 9.3.2", "nor an interim one", _SIZED + b"HTTP/1.1 100 Continue\r\n\r\n", Gets()),
    ("junk-behind", "9112 9.3.2", "nor junk", _SIZED + b"\x00\xff", Gets()),
    ("chunk-behind", "9112 7.1", "nor another chunk behind the last", _CHUNKED + _FIVE + _LAST + _FIVE, Gets()),
    ("no-content-body", "9112 6.3", "a body behind 204 belongs to no response", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello", Gets(204, b"")),
    ("no-content-chunks", "9112 6.3", "... in chunks neither", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n" + _FIVE + _LAST, Gets(204, b"")),
    ("no-content-response", "9112 9.3.2", "... nor if it is a response", b"HTTP/1.1 204 No Content\r\nContent-Length: %d\r\n\r\n" % len(_OTHER) + _OTHER, Gets(204, b"")),
    ("not-modified-body", "9112 6.3", "nor is one behind 304", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello", Gets(304, b"", length=b"5")),
)  # fmt: skip

_LENGTHS = (
    ("empty", b""), ("negative", b"-5"), ("plus", b"+5"), ("hexadecimal", b"0x5"), ("word", b"5x"), ("list", b"5, 5"),
    ("unequal-list", b"5, 6"), ("fraction", b"5.0"), ("wraps-64", b"18446744073709551621"), ("wide", "\uff15".encode()),
    ("two-equal", b"5\r\nContent-Length: 5"), ("two-unequal", b"5\r\nContent-Length: 4"), ("both", b"5\r\nTransfer-Encoding: chunked"),
)  # fmt: skip

_CODINGS = (
    ("gzip", b"gzip"), ("gzip-chunked", b"gzip, chunked"), ("chunked-gzip", b"chunked, gzip"), ("identity", b"identity"),
    ("unknown", b"cow"), ("empty", b""), ("prefix", b"xchunked"), ("parameter", b"chunked;a"), ("comma", b",chunked"),
    ("twice", b"chunked\r\nTransfer-Encoding: chunked"), ("both", b"chunked\r\nContent-Length: 5"),
)  # fmt: skip

_STATUS_LINES = (
    ("version-2", "9112 2.3", b"HTTP/2.0 200 OK"), ("version-09", "9112 2.3", b"HTTP/0.9 200 OK"),
    ("version-12", "9112 2.3", b"HTTP/1.2 200 OK"), ("lower-case", "9112 2.3", b"http/1.1 200 OK"),
    ("icy", "9112 2.3", b"ICY 200 OK"), ("no-status", "9112 4", b"HTTP/1.1 OK"),
    ("two-spaces", "9112 4", b"HTTP/1.1  200 OK"), ("leading-space", "9112 4", b" HTTP/1.1 200 OK"),
    ("status-000", "9110 15", b"HTTP/1.1 000 X"), ("status-099", "9110 15", b"HTTP/1.1 099 X"),
    ("status-600", "9110 15", b"HTTP/1.1 600 X"), ("status-999", "9110 15", b"HTTP/1.1 999 X"),
    ("status-20", "9112 4", b"HTTP/1.1 20 X"), ("status-2000", "9112 4", b"HTTP/1.1 2000 X"),
    ("status-word", "9112 4", b"HTTP/1.1 2x0 X"), ("status-negative", "9112 4", b"HTTP/1.1 -200 X"),
    ("reason-nul", "9112 4", b"HTTP/1.1 200 O\x00K"), ("reason-control", "9112 4", b"HTTP/1.1 200 O\x1bK"),
    ("reason-cr", "9112 2.2", b"HTTP/1.1 200 O\rK"), ("reason-lf", "9112 2.2", b"HTTP/1.1 200 OK\nX: y"),
    ("request", "9112 2.1", b"GET / HTTP/1.1"), ("tls", "9112 2.1", b"\x15\x03\x01\x00\x02\x02\x28"),
)  # fmt: skip

_HEADERS = (
    ("folded", "9112 5.2", "a gateway must refuse or unfold a folded line", b"X: a\r\n b"),
    ("space-before-colon", "9112 5.1", "a name is a token", b"X : a"),
    ("leading-space", "9112 5.2", "nothing to continue", b" X: a"),
    ("no-colon", "9112 5", "a header has a colon", b"X"),
    ("empty-name", "9112 5", "a header has a name", b": a"),
    ("name-nul", "9110 5.6.2", "a name is a token", b"X\x00: a"),
    ("name-bracket", "9110 5.6.2", "a name is a token", b"X(): a"),
    ("name-8-bit", "9110 5.6.2", "a name is a token", b"X\xff: a"),
    ("value-nul", "9110 5.5", "controls end or hide text", b"X: a\x00"),
    ("value-control", "9110 5.5", "controls end or hide text", b"X: a\x1b"),
    ("value-cr", "9112 2.2", "a bare CR would split the response for others", b"X: a\rSet-Cookie: b"),
    ("value-lf", "9112 2.2", "so would a bare LF", b"X: a\nSet-Cookie: b"),
    ("value-delete", "9110 5.5", "controls end or hide text", b"X: a\x7f"),
)

_CHUNKS = (
    ("word", b"zz\r\nhello\r\n"), ("negative", b"-5\r\nhello\r\n"), ("prefix", b"0x5\r\nhello\r\n"), ("space", b"5 \r\nhello\r\n"),
    ("empty", b"\r\nhello\r\n"), ("wraps-64", b"10000000000000005\r\nhello\r\n"), ("lf", b"5\nhello\r\n"),
    ("extension-lf", b"5;a\nb\r\nhello\r\n"), ("extension-cr", b"5;a\rb\r\nhello\r\n"), ("open-quote", b'5;a="\r\nhello\r\n'),
)  # fmt: skip

_DATA = (
    ("too-long", b"4\r\nhello\r\n"), ("no-line-end", b"5\r\nhello5\r\n"), ("lf-behind", b"5\r\nhello\n"), ("blank-line", _FIVE + b"\r\n"),
    ("bad-second", _FIVE + b"x\r\n"), ("bad-trailer", _FIVE + b"0\r\nX : y\r\n\r\n"), ("folded-trailer", _FIVE + b"0\r\nX: y\r\n z\r\n\r\n"),
    ("trailer-length", _FIVE + b"0\r\nContent-Length: 5\r\n\r\n"),
)  # fmt: skip

_ENDS = (
    ("nothing", "9112 8", "closed without any byte", b"", _FAILS),
    ("half-status", "9112 8", "closed in the status line", b"HTTP/1.1 20", _FAILS),
    ("half-head", "9112 8", "closed in the head", _OK + b"Content-Len", _FAILS),
    ("head-only", "9112 8", "closed before the body", _OK + b"Content-Length: 5\r\n\r\n", _FAILS),
    ("half-body", "9112 8", "closed in the body", _OK + b"Content-Length: 5\r\n\r\nhel", _CUT),
    ("chunked-head", "9112 8", "closed before the first chunk", _CHUNKED, _FAILS),
    ("half-size", "9112 8", "closed in a size", _CHUNKED + b"5", _FAILS),
    ("half-chunk", "9112 8", "closed in a chunk", _CHUNKED + b"5\r\nhel", _CUT),
    ("no-last-chunk", "9112 8", "closed between chunks", _CHUNKED + _FIVE, _CUT),
    ("half-last-chunk", "9112 8", "closed in the last chunk", _CHUNKED + _FIVE + b"0\r\n", _CUT),
    ("half-trailer", "9112 8", "closed in a trailer", _CHUNKED + _FIVE + b"0\r\nX: y\r\n", _CUT),
    (
        "interim-only",
        "9110 15.2",
        "closed after an interim response",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        _FAILS,
    ),
    ("half-stream", "9112 8", "closed in a stream", _STREAM + b"9\r\ndata: 1\n\n\r\n", _CUT),
)

_HEADS = (
    ("length", "9110 9.3.2", "the length of a body that does not follow", _OK + b"Content-Length: 5\r\n\r\n", Gets(body=b"", length=b"5")),
    ("zero", "9110 9.3.2", "... of none", _OK + b"Content-Length: 0\r\n\r\n", Gets(body=b"", length=b"0")),
    ("chunked", "9110 9.3.2", "the framing of one", _CHUNKED, Gets(body=b"")),
    ("nothing", "9110 9.3.2", "no framing", _OK + b"\r\n", Gets(body=b"")),
    ("body", "9110 9.3.2", "a body all the same", _SIZED, Gets(body=b"", length=b"5")),
    ("chunks", "9110 9.3.2", "... in chunks", _CHUNKED + _FIVE + _LAST, Gets(body=b"")),
    ("response", "9110 9.3.2", "... that is a response", _OK + b"Content-Length: %d\r\n\r\n" % len(_OTHER) + _OTHER, Gets(body=b"", length=b"%d" % len(_OTHER))),
    ("not-found", "9110 9.3.2", "of an error", b"HTTP/1.1 404 X\r\nContent-Length: 5\r\n\r\n", Gets(404, b"", length=b"5")),
    ("no-content", "9110 15.3.5", "of nothing", b"HTTP/1.1 204 X\r\nContent-Length: 0\r\n\r\n", Gets(204, b"")),
    ("interim", "9110 15.2", "behind an interim response", b"HTTP/1.1 103 X\r\n\r\n" + _OK + b"Content-Length: 5\r\n\r\n", Gets(body=b"", length=b"5")),
    ("stream", "9110 9.3.2", "of events", _STREAM, Gets(body=b"", headers=_EVENTS)),
    ("broken", "9110 9.3.2", "the sidecar's own refusal has no body either", b"nonsense\r\n\r\n", _FAILS),
)  # fmt: skip

_READS = (
    ("size-alone", "9112 7.1", "a size in a read of its own, and data that looks like a chunk",
     (_CHUNKED + _FIVE, b"8\r\n", b"3\r\nabc\r\n", b"\r\n" + _LAST), Gets(body=b"hello3\r\nabc\r\n")),
    ("size-in-two", "9112 7.1", "a size in two reads", (_CHUNKED + _FIVE, b"8", b"\r\n", b"3\r\nabc\r\n", b"\r\n" + _LAST), Gets(body=b"hello3\r\nabc\r\n")),
    ("end-alone", "9112 7.1", "the end of a chunk in a read of its own", (_CHUNKED + b"5\r\nhello", b"\r\n", b"3\r\nabc\r\n", _LAST), Gets(body=b"helloabc")),
    ("data-in-two", "9112 7.1", "data that looks like a chunk behind some of its own", (_CHUNKED + b"a\r\nhe", b"3\r\nabc\r\n", b"\r\n" + _LAST), Gets(body=b"he3\r\nabc\r\n")),
    ("last-chunk-alone", "9112 7.1", "the last chunk's size in a read of its own", (_CHUNKED + _FIVE, b"0\r\n", b"\r\n"), Gets()),
    ("chunk-as-trailer", "9112 7.1.2", "a chunk where trailers are due", (_CHUNKED + _FIVE, b"0\r\n", b"3\r\nabc\r\n", b"\r\n"), _CUT),
    ("head-alone", "9112 6.3", "a head in a read of its own", (_OK + b"Content-Length: 5\r\n\r\n", HELLO), Gets()),
    ("interim-alone", "9110 15.2", "an interim response in a read of its own", (b"HTTP/1.1 103 X\r\n\r\n", _SIZED), Gets()),
)  # fmt: skip


def replies() -> Iterator[Reply]:
    """All replies."""
    for name, rfc, why, raw, gets in _WHOLE:
        yield Reply(f"reply/{name}", rfc, why, raw, gets, reuses=True)
    for name, rfc, why, raw, gets in _CLOSING:
        yield Reply(f"reply/{name}", rfc, why, raw, gets, ends=True)
    for name, rfc, why, raw, gets in _NOT_REUSED:
        yield Reply(f"reply/{name}", rfc, why, raw, gets)
    why = "empty lines behind a response are skipped, or end the connection where they come late"
    yield Reply("reply/empty-lines-behind", "9112 2.2", why, _SIZED + b"\r\n\r\n", Gets(), reuses=None)
    why = "the parser keeps HTTP/1.0 where both sides say so"
    old = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"
    yield Reply("reply/old-keep-alive", "9112 9.3", why, old, Gets(), reuses=True)
    for name, rfc, why, raw, outcome in _HEADS:
        yield Reply(f"head/{name}", rfc, why, raw, outcome, method=b"HEAD")
    for name, rfc, why, reads, outcome in _READS:
        reuses = isinstance(outcome, Gets)
        yield Reply(f"reads/{name}", rfc, why, b"".join(reads), outcome, reuses=reuses, reads=reads)
    yield from _broken()


def _broken() -> Iterator[Reply]:
    for name, value in _LENGTHS:
        why = "a gateway that cannot tell the length must answer 502 and close"
        raw = _OK + b"Content-Length: " + value + b"\r\n\r\nhello"
        yield Reply(f"broken/length-{name}", "9112 6.3", why, raw, _FAILS)
    for name, value in _CODINGS:
        why = "a transfer coding that was not offered would reach the client as content"
        raw = _OK + b"Transfer-Encoding: " + value + b"\r\n\r\n" + _FIVE + _LAST
        yield Reply(f"broken/coding-{name}", "9112 6.1", why, raw, _FAILS)
    old = b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + _FIVE + _LAST
    yield Reply("broken/coding-old", "9112 6.1", "HTTP/1.0 has no transfer codings", old, _FAILS)
    for name, rfc, line in _STATUS_LINES:
        why = "not a status line of HTTP/1.1"
        raw = line + b"\r\nContent-Length: 5\r\n\r\nhello"
        yield Reply(f"broken/line-{name}", rfc, why, raw, _FAILS)
    for name, rfc, why, line in _HEADERS:
        raw = _OK + line + b"\r\nContent-Length: 5\r\n\r\nhello"
        yield Reply(f"broken/header-{name}", rfc, why, raw, _FAILS)
        raw = b"HTTP/1.1 103 X\r\n" + line + b"\r\n\r\n" + _SIZED
        yield Reply(f"broken/interim-{name}", rfc, why, raw, _FAILS)
    for name, chunk in _CHUNKS:
        why = "a chunk that could be read in two ways"
        yield Reply(f"broken/chunk-{name}", "9112 7.1", why, _CHUNKED + chunk + _LAST, _FAILS)
    for name, chunks in _DATA:
        why = "an end that is not where it was said to be"
        yield Reply(f"broken/data-{name}", "9112 7.1", why, _CHUNKED + chunks + _LAST, _CUT)
    for name, rfc, why, raw, outcome in _ENDS:
        yield Reply(f"broken/ends-{name}", rfc, why, raw, outcome, ends=True)
    for name, raw in (
        ("switching", b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
        ("switching-alone", b"HTTP/1.1 101 X\r\n\r\n"),
    ):
        why = "nothing was offered to switch to; what follows is no HTTP"
        yield Reply(f"broken/{name}", "9110 15.2.2", why, raw + _SIZED, _FAILS)
    why = "a response in a protocol with bare line ends"
    yield Reply("broken/lf-only", "9112 2.2", why, _SIZED.replace(b"\r\n", b"\n"), _FAILS)
    why = "what has gone out of a stream cannot be taken back"
    yield Reply("broken/stream", "9112 7.1", why, _STREAM + b"9\r\ndata: 1\n\n\r\nx\r\n", _CUT)
