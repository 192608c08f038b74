"""Transfer-Encoding: chunked, once, alone; and never together with Content-Length."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from tests.support.framing.cases import HELLO, HIDDEN, HOST, REFUSED, Case, Relayed, post, posted

CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"

_VALID = (
    ("chunked", "9112 7.1", "the one coding that is served", b"chunked"),
    ("mixed-case", "9112 7", "codings have no case", b"Chunked"),
    ("upper-case", "9112 7", "codings have no case", b"CHUNKED"),
    ("padded", "9110 5.5", "white space around a value is not part of it", b"\t chunked "),
)

_INVALID = (
    ("gzip", "9112 6.1", "a body without an end", b"gzip"),
    ("gzip-chunked", "9112 6.1", "501 is advised, but clients retry 5xx; 400 is as true", b"gzip, chunked"),
    ("deflate-chunked", "9112 6.1", "a coding that is not served", b"deflate, chunked"),
    ("chunked-gzip", "9112 6.1", "chunked must be last, or there is no end", b"chunked, gzip"),
    ("chunked-chunked", "9112 6.1", "chunked must not be applied twice", b"chunked, chunked"),
    ("identity", "9112 7", "gone since RFC 2616; some take it for none", b"identity"),
    ("identity-chunked", "9112 7", "gone since RFC 2616", b"identity, chunked"),
    ("chunked-identity", "9112 6.1", "chunked must be last", b"chunked, identity"),
    ("unknown", "9112 6.1", "a body without an end", b"cow"),
    ("prefix", "9112 7", "another coding", b"xchunked"),
    ("suffix", "9112 7", "another coding", b"chunkedx"),
    ("parameter", "9112 7.1", "chunked has no parameters", b"chunked;q=1"),
    ("quoted", "9112 7", "a coding is a token", b'"chunked"'),
    ("split", "9112 7", "a coding is a token", b"chun ked"),
    ("no-comma", "9110 5.6.1", "not a list", b"gzip chunked"),
    ("comma-first", "9110 5.6.1", "an empty element, that some readers skip", b", chunked"),
    ("comma-last", "9110 5.6.1", "an empty element, that some readers skip", b"chunked,"),
    ("empty", "9112 6.1", "no coding, or none?", b""),
    ("comma-only", "9110 5.6.1", "no coding, or none?", b","),
    ("trailing-tab", "9110 5.5", "white space, but the parser takes only a space there", b"chunked\t"),
    ("nul", "9110 5.5", "no NUL in any value", b"chunked\x00"),
    ("vertical-tab-first", "9110 5.6.3", "not white space", b"\x0bchunked"),
    ("vertical-tab-last", "9110 5.6.3", "not white space", b"chunked\x0b"),
    ("form-feed", "9110 5.6.3", "not white space", b"\x0cchunked"),
    ("nbsp", "9110 5.6.3", "not white space", b"\xa0chunked"),
    ("next-line", "9110 5.6.3", "not white space", b"chunked\x85"),
    ("8-bit", "9112 7", "a coding is a token", b"chunked\xff"),
    ("kelvin", "9112 7", "case is ASCII's: a Kelvin sign is no 'k'", "chun\u212aed".encode()),
)

_LINES = (
    ("twice", "9112 6.1", "chunked must not be applied twice",
     b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    ("gzip-then-chunked", "9112 6.1", "lines make one list", b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
    ("chunked-then-gzip", "9112 6.1", "lines make one list", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n"),
    ("empty-then-chunked", "9110 5.3", "lines make one list", b"Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n"),
    ("chunked-then-cow", "9112 6.1", "the last one must not win", b"Transfer-Encoding: chunked\r\nTransfer-encoding: cow\r\n"),
    ("cow-then-chunked", "9112 6.1", "nor the first", b"Transfer-Encoding: cow\r\ntransfer-encoding: chunked\r\n"),
    ("space-before-colon", "9112 5.1", "must be refused", b"Transfer-Encoding : chunked\r\n"),
    ("tab-before-colon", "9112 5.1", "must be refused", b"Transfer-Encoding\t: chunked\r\n"),
    ("leading-space", "9112 5.2", "a continuation of the line before, or a header", b"X-A: 1\r\n Transfer-Encoding: chunked\r\n"),
    ("nul-in-name", "9112 5.1", "a name is a token", b"Transfer-Encoding\x00: chunked\r\n"),
    ("vertical-tab-in-name", "9112 5.1", "a name is a token", b"Transfer\x0bEncoding: chunked\r\n"),
    ("8-bit-in-name", "9112 5.1", "a name is a token", b"Transfer-Encoding\xff: chunked\r\n"),
    ("folded", "9112 5.2", "folded lines are refused", b"Transfer-Encoding:\r\n chunked\r\n"),
    ("folded-tail", "9112 5.2", "folded lines are refused", b"Transfer-Encoding: chunked\r\n , identity\r\n"),
    ("cr-in-front", "9112 2.2", "a bare CR is invalid everywhere", b"X-A: 1\rTransfer-Encoding: chunked\r\n"),
    ("lf-in-front", "9112 2.2", "a bare LF ends no line here", b"X-A: 1\nTransfer-Encoding: chunked\r\n"),
)  # fmt: skip

_BOTH_CODINGS = (b"chunked", b"Chunked", b"identity", b"cow", b"gzip, chunked", b"")
_BOTH_LENGTHS = (b"0", b"5", b"15")


def cases() -> Iterator[Case]:
    """All cases."""
    for name, rfc, why, value in _VALID:
        raw = post(b"Transfer-Encoding:" + value + b"\r\n", CHUNKS)
        yield Case(f"coding/{name}", rfc, why, raw, (posted(),))
    for name, rfc, why, value in _INVALID:
        raw = post(b"Transfer-Encoding: " + value + b"\r\n", CHUNKS + HIDDEN)
        yield Case(f"coding/{name}", rfc, why, raw, REFUSED)
    for name, rfc, why, lines in _LINES:
        yield Case(f"coding/{name}", rfc, why, post(lines, CHUNKS + HIDDEN), REFUSED)
    yield from _elsewhere()
    yield from _both()


def _elsewhere() -> Iterator[Case]:
    old = post(b"Transfer-Encoding: chunked\r\n", CHUNKS + HIDDEN, version=b"HTTP/1.0")
    yield Case("coding/old", "9112 6.1", "HTTP/1.0 has no transfer codings: faulty framing", old, REFUSED)
    raw = b"GET /version HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS
    relayed = Relayed(b"GET", b"/version", body=HELLO)
    yield Case(
        "coding/GET", "9112 6.3", "a body belongs to its request, whatever the method", raw, (relayed,)
    )
    raw = post(b"Transfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n", CHUNKS)
    why = "naming it in Connection does not unframe the body"
    yield Case("coding/nominated", "9110 7.6.1", why, raw, (posted(),))
    raw = post(b"TE: chunked, trailers\r\n")
    yield Case(
        "coding/te", "9110 10.1.4", "TE says what may come back; it frames nothing", raw, (posted(b""),)
    )
    for name in (b"X-Transfer-Encoding", b"X_Transfer_Encoding", b"TransferEncoding", b"Transfer-Encodings"):
        why = "another header: it frames nothing, and the next request begins at once"
        relayed = posted(b"", (name.lower(), b"chunked"))
        yield Case(f"coding/name-{name.decode()}", "9110 5.1", why, post(name + b": chunked\r\n"), (relayed,))


def _both() -> Iterator[Case]:
    """RFC 9112 section 6.1 lets a server refuse a request with both. Accepting it enables request smuggling."""
    for coding, length in product(_BOTH_CODINGS, _BOTH_LENGTHS):
        lines = (b"Content-Length: " + length, b"Transfer-Encoding: " + coding)
        for order, framing in (("length-first", lines), ("coding-first", lines[::-1])):
            raw = post(b"\r\n".join(framing) + b"\r\n", CHUNKS + HIDDEN)
            name = f"both/{order}-{length.decode()}-{coding.decode() or 'empty'}"
            yield Case(name, "9112 6.1", "two framings: neither is believed", raw, REFUSED)
    for name, why, lines in (
        ("between", "wherever they stand", b"Content-Length: 5\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n"),
        ("two-lengths", "nor with a second length", b"Content-Length: 5\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        ("nominated", "nor if Connection would have one dropped", b"Connection: content-length\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
    ):  # fmt: skip
        yield Case(f"both/{name}", "9112 6.3", why, post(lines, CHUNKS + HIDDEN), REFUSED)
    old = post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", CHUNKS + HIDDEN, version=b"HTTP/1.0")
    yield Case("both/old", "9112 6.1", "faulty framing in HTTP/1.0", old, REFUSED)
    raw = post(b"Content-Length: 5\r\nTransfer_Encoding: chunked\r\n", HELLO)
    why = "a server that takes '_' for '-' reads both"
    yield Case("both/underscore", "9110 5.1", why, raw, REFUSED)
    raw = post(b"Content_Length: 3\r\nTransfer-Encoding: chunked\r\n", CHUNKS)
    yield Case("both/underscore-length", "9110 5.1", why, raw, REFUSED)
