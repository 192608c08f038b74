"""The Host header: exactly one, and a host."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.framing.cases import REFUSED, Case, got

_VALID = (
    ("name", "3986 3.2.2", "a name", b"t"),
    ("upper-case", "3986 3.2.2", "names have no case", b"T.EXAMPLE"),
    ("trailing-dot", "3986 3.2.2", "a name from the root", b"t.example."),
    ("port", "3986 3.2.3", "a port", b"t:80"),
    ("empty-port", "3986 3.2.3", "a port may be empty", b"t:"),
    ("empty", "9110 7.2", "a target without an authority has an empty Host", b""),
    ("ipv4", "3986 3.2.2", "an address", b"127.0.0.1:8080"),
    ("ipv6", "3986 3.2.2", "an address in brackets", b"[::1]"),
    ("ipv6-port", "3986 3.2.2", "... and a port", b"[2001:db8::1]:80"),
    ("unreserved", "3986 2.3", "all unreserved marks", b"a-b.c_d~e"),
    ("encoded", "3986 3.2.2", "a registered name may be encoded", b"%41%c3%a9"),
    ("sub-delims", "3986 2.2", "a registered name may hold these", b"a!b$c&d'(e)*+,;=f"),
    ("padded", "9110 5.5", "white space around a value is not part of it", b" \tt \t"),
)

_INVALID = (
    ("space", "3986 3.2", "no white space in a host", b"a b"),
    ("list", "9110 7.2", "Host is not a list", b"t, u"),
    ("path", "3986 3.2", "a path is not part of an authority", b"t/x"),
    ("query", "3986 3.2", "nor is a query", b"t?x"),
    ("fragment", "3986 3.2", "nor a fragment", b"t#x"),
    ("uri", "9110 7.2", "nor a scheme", b"http://t"),
    ("user", "9110 7.2", "Host has no user information", b"u@t"),
    ("backslash", "3986 3.2.2", "not a character of a host", b"t\\x"),
    ("two-ports", "3986 3.2.3", "one port", b"t:80:80"),
    ("port-name", "3986 3.2.3", "a port is digits", b"t:http"),
    ("negative-port", "3986 3.2.3", "a port is digits", b"t:-1"),
    ("port-only", "3986 3.2.2", "IPv6 needs its brackets", b"::1"),
    ("open-bracket", "3986 3.2.2", "a bracket that is not closed", b"[::1"),
    ("closing-bracket", "3986 3.2.2", "a bracket that was not opened", b"::1]"),
    ("empty-brackets", "3986 3.2.2", "no address", b"[]"),
    ("behind-brackets", "3986 3.2.2", "only a port follows an address", b"[::1]t"),
    ("half-an-escape", "3986 2.1", "two digits follow '%'", b"t%"),
    ("no-escape", "3986 2.1", "hexadecimal ones", b"t%zz"),
    ("quoted", "3986 3.2.2", "not a character of a host", b'"t"'),
    ("angle", "3986 3.2.2", "not a character of a host", b"<t>"),
    ("brace", "3986 3.2.2", "not a character of a host", b"t{}"),
    ("pipe", "3986 3.2.2", "not a character of a host", b"t|u"),
    ("caret", "3986 3.2.2", "not a character of a host", b"t^"),
    ("latin-1", "3986 3.2.2", "names beyond ASCII are encoded", b"t\xe9"),
    ("tab", "3986 3.2", "no white space in a host", b"t\tu"),
    ("nul", "9110 5.5", "no NUL in any value", b"t\x00"),
    ("control", "9110 5.5", "no controls in any value", b"t\x01"),
)

_LINE = b"GET /version HTTP/1.1\r\n"
_OLD = b"GET /version HTTP/1.0\r\n"
_WHOLE = (
    ("missing", "9112 3.2", "HTTP/1.1 needs one", _LINE + b"\r\n"),
    ("missing-absolute", "9112 3.2.2", "... in absolute form too", b"GET http://t/version HTTP/1.1\r\n\r\n"),
    ("two", "9112 3.2", "more than one is refused", _LINE + b"Host: t\r\nHost: u\r\n\r\n"),
    ("two-equal", "9112 3.2", "... even if they are equal", _LINE + b"Host: t\r\nHost: t\r\n\r\n"),
    ("two-cases", "9110 5.1", "... or written otherwise", _LINE + b"Host: t\r\nhOST: u\r\n\r\n"),
    ("two-apart", "9112 3.2", "... or far apart", _LINE + b"Host: t\r\nX-A: 1\r\nHost: u\r\n\r\n"),
    ("one-empty", "9112 3.2", "... or empty", _LINE + b"Host: t\r\nHost:\r\n\r\n"),
    ("space-name", "9112 5.1", "no space before the colon", _LINE + b"Host : t\r\n\r\n"),
    ("two-one-hidden", "9112 5.1", "a second one behind a space", _LINE + b"Host: t\r\nHost : u\r\n\r\n"),
    ("folded", "9112 5.2", "folded lines are refused", _LINE + b"Host: t\r\n u\r\n\r\n"),
    ("absolute-invalid", "9112 3.2", "an invalid one counts, even where the target says another",
     b"GET http://t/version HTTP/1.1\r\nHost: a b\r\n\r\n"),
    ("old-two", "9112 3.2", "more than one is refused in HTTP/1.0 too", _OLD + b"Host: t\r\nHost: u\r\n\r\n"),
    ("old-invalid", "9112 3.2", "an invalid one is refused in HTTP/1.0 too", _OLD + b"Host: a/b\r\n\r\n"),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All cases."""
    for name, rfc, why, value in _VALID:
        yield Case(f"host/{name}", rfc, why, _LINE + b"Host:" + value + b"\r\n\r\n", (got(),))
    for name, rfc, why, value in _INVALID:
        yield Case(f"host/{name}", rfc, why, _LINE + b"Host: " + value + b"\r\n\r\n", REFUSED)
    for name, rfc, why, raw in _WHOLE:
        yield Case(f"host/{name}", rfc, why, raw, REFUSED)
    why = "HTTP/1.0 did not know Host; the engine gets one"
    yield Case("host/old-none", "9112 3.2", why, _OLD + b"\r\n", (got(closes=True),))
