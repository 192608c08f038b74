"""Content-Length: one number, or nothing is believed."""

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
    get,
    got,
    post,
    posted,
)

_VALID = (
    ("plain", "9112 6.2", "a number", b"Content-Length: 5"),
    ("no-space", "9112 5.1", "white space after the colon is optional", b"Content-Length:5"),
    ("lower-case", "9110 5.1", "names have no case", b"content-length: 5"),
    ("upper-case", "9110 5.1", "names have no case", b"CONTENT-LENGTH: 5"),
    ("zero-padded", "9110 8.6", "digits: zeros in front mean nothing", b"Content-Length: 0005"),
    ("long-zero-padded", "9110 8.6", "... however many", b"Content-Length: " + b"0" * 30 + b"5"),
    ("very-long-zero-padded", "9110 8.6", "... beyond what a number parser takes", b"Content-Length: " + b"0" * 5000 + b"5"),
    ("padded", "9110 5.5", "white space around a value is not part of it", b"Content-Length:  \t 5 \t "),
)  # fmt: skip

_INVALID = (
    ("empty", "9110 8.6", "a number has digits", b""),
    ("negative", "9110 8.6", "digits only", b"-5"),
    ("plus", "9110 8.6", "digits only, though int() takes it", b"+5"),
    ("fraction", "9110 8.6", "digits only", b"5.0"),
    ("exponent", "9110 8.6", "digits only", b"5e0"),
    ("hexadecimal", "9110 8.6", "decimal digits", b"0x5"),
    ("octal", "9110 8.6", "decimal digits", b"0o5"),
    ("underscore", "9110 8.6", "digits only, though int() takes it", b"0_5"),
    ("word", "9110 8.6", "digits only", b"five"),
    ("quoted", "9110 8.6", "digits only", b'"5"'),
    ("two-numbers", "9112 6.3", "which of them?", b"5 5"),
    ("list", "9112 6.3", "a list of equal values may be refused", b"5, 5"),
    ("list-unequal", "9112 6.3", "a list of unequal values must be", b"5, 6"),
    ("list-tight", "9112 6.3", "without a space too", b"5,5"),
    ("list-empty-end", "9112 6.3", "with an empty element too", b"5,"),
    ("parameter", "9110 8.6", "no parameters", b"5;q=1"),
    ("nul", "9110 5.5", "no NUL in any value", b"5\x00"),
    ("vertical-tab", "9110 5.6.3", "not white space", b"5\x0b"),
    ("form-feed", "9110 5.6.3", "not white space", b"\x0c5"),
    ("nbsp", "9110 5.6.3", "not white space", b"5\xa0"),
    ("arabic-digit", "9110 8.6", "ASCII digits, though int() takes others", "\u0665".encode()),
    ("wide-digit", "9110 8.6", "ASCII digits", "\uff15".encode()),
    ("superscript", "9110 8.6", "ASCII digits, though isdigit() of text takes it", "\u2075".encode()),
    ("minus-zero", "9110 8.6", "digits only", b"-0"),
    ("wraps-64", "9112 6.3", "2^64 + 5 must not become 5", b"18446744073709551621"),
    ("beyond-64", "9112 6.3", "no number is read modulo anything", b"99999999999999999999999"),
)

_TOO_LARGE = (
    ("wraps-32", "9112 6.3", "2^32 + 5 must not become 5", b"4294967301"),
    ("wraps-53", "9112 6.3", "nor be rounded", b"9007199254740997"),
    ("wraps-63", "9112 6.3", "nor turn negative", b"9223372036854775813"),
)

_TWICE = (
    ("two-equal", "a repeated number may be refused", b"Content-Length: 5\r\nContent-Length: 5\r\n"),
    ("two-unequal", "which of them?", b"Content-Length: 5\r\nContent-Length: 6\r\n"),
    ("two-unequal-zero", "which of them?", b"Content-Length: 0\r\nContent-Length: 5\r\n"),
    ("two-cases", "names have no case", b"Content-Length: 5\r\ncontent-length: 5\r\n"),
    ("two-apart", "wherever they stand", b"Content-Length: 5\r\nX-A: 1\r\nContent-Length: 44\r\n"),
    ("two-one-empty", "an empty one counts", b"Content-Length: 5\r\nContent-Length:\r\n"),
    ("two-padded", "another way to write the same", b"Content-Length: 5\r\nContent-Length: 05\r\n"),
)

_NAMES = (
    ("space", b"Content-Length : 5"),
    ("tab", b"Content-Length\t: 5"),
    ("leading-space", b" Content-Length: 5"),
    ("nul", b"Content-Length\x00: 5"),
    ("vertical-tab", b"Content-Length\x0b: 5"),
    ("nbsp", b"Content-Length\xa0: 5"),
    ("inner-space", b"Content Length: 5"),
    ("brackets", b"(Content-Length): 5"),
    ("no-colon", b"Content-Length 5"),
)

_OTHER_NAMES = (b"X-Content-Length", b"X_Content_Length", b"Content-Len", b"ContentLength", b"Content.Length")


def cases() -> Iterator[Case]:
    """All cases."""
    for name, rfc, why, line in _VALID:
        yield Case(f"length/{name}", rfc, why, post(line + b"\r\n", HELLO), (posted(),))
    for name, rfc, why, value in _INVALID:
        raw = post(b"Content-Length: " + value + b"\r\n", HELLO + HIDDEN)
        yield Case(f"length/{name}", rfc, why, raw, REFUSED)
    for name, rfc, why, value in _TOO_LARGE:
        raw = post(b"Content-Length: " + value + b"\r\n", HELLO + HIDDEN)
        yield Case(f"length/{name}", rfc, why, raw, (Refused(413),))
    for name, why, lines in _TWICE:
        yield Case(f"length/{name}", "9112 6.3", why, post(lines, HELLO + HIDDEN), REFUSED)
    for name, line in _NAMES:
        why = "a name that one reader might take for Content-Length, and another might not"
        yield Case(f"length/name-{name}", "9112 5.1", why, post(line + b"\r\n", HELLO + HIDDEN), REFUSED)
    for other in _OTHER_NAMES:
        why = "another header: it frames nothing, and the next request begins at once"
        relayed = posted(b"", (other.lower(), b"5"))
        yield Case(f"length/name-{other.decode()}", "9110 5.1", why, post(other + b": 5\r\n"), (relayed,))
    yield from _bodies()


def _bodies() -> Iterator[Case]:
    yield Case("length/none", "9112 6.3", "without framing there is no body", post(b""), (posted(b""),))
    zero = post(b"Content-Length: 0\r\n")
    yield Case("length/zero", "9112 6.3", "an empty body", zero, (posted(b""),))
    why = "what follows the body is the next request"
    raw = post(b"Content-Length: 5\r\n", HELLO + get(b"/version?next"))
    yield Case("length/exact", "9112 6.3", why, raw, (posted(), got(b"/version?next")))
    why = "a length that is one too many eats the next request's first letter, for both alike"
    raw = post(b"Content-Length: 6\r\n", HELLO + get())
    yield Case("length/one-too-many", "9112 6.3", why, raw, (posted(b"helloG"), Refused()))
    why = "a length that is one too few leaves a letter in front of the next request, for both alike"
    raw = post(b"Content-Length: 4\r\n", HELLO + get())
    yield Case("length/one-too-few", "9112 6.3", why, raw, (posted(b"hell"), Refused()))
    for method in (b"GET", b"HEAD", b"OPTIONS"):
        raw = method + b" /version HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN
        why = "a body belongs to its request, whatever the method"
        relayed = Relayed(method, b"/version", body=HIDDEN)
        yield Case(f"length/{method.decode()}-with-body", "9110 9.3.1", why, raw, (relayed,))
    raw = get(lines=b"Content-Length: 0\r\n")
    yield Case("length/GET-zero", "9112 6.3", "no body, said at length", raw, (got(),))
    every = bytes(range(256)) * 2
    raw = post(b"Content-Length: 512\r\n", every)
    yield Case("length/every-byte", "9112 6.2", "a body is any bytes", raw, (posted(every),))
    raw = b"POST /tokenize HTTP/1.0\r\n" + KEY + b"Content-Length: 5\r\n\r\n" + HELLO + HIDDEN
    why = "HTTP/1.0 frames by length, and closes"
    yield Case("length/old", "9112 6.3", why, raw, (posted(closes=True),))
