"""Targets: origin-form, absolute-form and the rest; encoded paths, dot segments, fragments."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.framing.cases import HOST, REFUSED, UNKNOWN, Case, get, got

_RELAYED = (
    ("query", "3986 3.4", "a query goes on as it came", b"/version?a=b&c=%20", b"/version?a=b&c=%20"),
    ("empty-query", "3986 3.4", "an empty query is not none", b"/version?", b"/version?"),
    ("question-in-query", "3986 3.4", "only the first '?' begins the query", b"/version??a?", b"/version??a?"),
    ("path-in-query", "3986 3.4", "slashes and dots in a query are no path", b"/version?/../x", b"/version?/../x"),
    ("encoded-controls", "3986 2.4", "nothing is decoded on the way", b"/version?%00%0d%0a%20x", b"/version?%00%0d%0a%20x"),
    ("half-an-escape", "3986 2.1", "a query is opaque here; what it means is the engine's to say", b"/version?%zz%", b"/version?%zz%"),
    ("browsers-query", "3986 3.4", "what browsers leave unencoded is unambiguous", b"/version?[]{}|\\^`\"<>'", b"/version?[]{}|\\^`\"<>'"),
    ("absolute", "9112 3.2.2", "the engine gets the path", b"http://t/version", b"/version"),
    ("absolute-query", "9112 3.2.2", "... and the query", b"http://t/version?u=http://x/y", b"/version?u=http://x/y"),
    ("absolute-upper-case", "3986 3.1", "schemes have no case", b"HTTP://t/version", b"/version"),
    ("absolute-https", "9110 7.1", "TLS may end in front of the sidecar", b"https://t/version", b"/version"),
    ("absolute-other-host", "9112 3.2.2", "the Host header is replaced in any case", b"http://other.example/version", b"/version"),
    ("absolute-port", "3986 3.2.3", "a port", b"http://t:8080/version", b"/version"),
    ("absolute-empty-port", "3986 3.2.3", "a port may be empty", b"http://t:/version", b"/version"),
    ("absolute-ipv6", "3986 3.2.2", "an address in brackets", b"http://[::1]:80/version", b"/version"),
)  # fmt: skip

_INVALID = (
    ("fragment", "9112 3.2", "a target has no fragment: a reader may cut it off or not", b"/version#x"),
    ("empty-fragment", "9112 3.2", "nor an empty one", b"/version#"),
    ("fragment-in-query", "9112 3.2", "the engine might take it for the query's end", b"/version?a#b"),
    ("absolute-fragment", "9112 3.2.2", "nor in absolute form", b"http://t/version#x"),
    ("fragment-as-host", "9112 3.2.2", "nor in place of a path", b"http://t#/version"),
    ("no-host", "9110 4.2.1", "an http URI with an empty host must be refused", b"http:///version"),
    ("no-host-port", "9110 4.2.1", "... also with a port", b"http://:80/version"),
    ("no-host-query", "9110 4.2.1", "... also with a query", b"http://?/version"),
    ("user", "9110 4.2.4", "user information is an error: it hides the host", b"http://u@t/version"),
    ("user-and-password", "9110 4.2.4", "user information is an error", b"http://u:p@t/version"),
    ("host-with-colon", "3986 3.2.3", "a port is digits", b"http://t:80a/version"),
    ("two-ports", "3986 3.2.3", "a host has one port", b"http://t:80:80/version"),
    ("open-bracket", "3986 3.2.2", "a bracket that is not closed", b"http://[::1/version"),
    ("backslash-host", "3986 3.2", "browsers read '\\' as '/', others do not", b"http://t\\version"),
    ("one-slash", "9110 4.2.1", "no authority", b"http:/version"),
    ("no-slash", "9110 4.2.1", "no authority", b"http:version"),
    ("ftp", "9112 3.2.2", "not an http URI", b"ftp://t/version"),
    ("file", "9112 3.2.2", "not an http URI", b"file:///version"),
    ("scheme-with-prefix", "9112 3.2.2", "not an http URI", b"xhttp://t/version"),
    ("javascript", "9112 3.2.2", "not an http URI", b"javascript:x"),
    ("authority", "9112 3.2.3", "authority-form is CONNECT's", b"t:80"),
    ("relative", "9112 3.2.1", "a path begins with '/'", b"version"),
    ("dot", "9112 3.2.1", "a path begins with '/'", b"./version"),
    ("query-only", "9112 3.2.1", "a path begins with '/'", b"?x"),
    ("backslash", "9112 3.2.1", "a path begins with '/'", b"\\version"),
    ("encoded-slash-first", "9112 3.2.1", "a path begins with '/'", b"%2fversion"),
    ("star-and-more", "9112 3.2.4", "an asterisk stands alone", b"*x"),
    ("empty", "9112 3.2", "no target", b""),
    ("nul", "3986 2", "controls must be encoded", b"/version?\x00"),
    ("control", "3986 2", "controls must be encoded", b"/version?\x1f"),
    ("delete", "3986 2", "controls must be encoded", b"/version?\x7f"),
    ("cr", "9112 2.2", "a bare CR is invalid everywhere", b"/version?\rx"),
    ("latin-1", "3986 2", "8-bit bytes must be encoded", b"/version?\xe9"),
    ("utf-8", "3986 2", "8-bit bytes must be encoded", b"/version?\xc3\xa9"),
    ("8-bit-path", "3986 2", "8-bit bytes must be encoded", b"/versi\xf6n"),
    ("overlong-slash", "3986 2", "UTF-8 of too many bytes, which some decode to '/'", b"/x\xc0\xafversion"),
)  # fmt: skip

_UNKNOWN = (
    ("root", "3986 3.3", "not a route", b"/"),
    ("trailing-slash", "3986 6.2.3", "another path", b"/version/"),
    ("two-slashes", "3986 3.3", "another path; not an authority either", b"//version"),
    ("slash-authority", "3986 3.2", "in origin form '//t' is a path", b"//t/version"),
    ("dot-segment", "3986 5.2.4", "dot segments are not removed: the engine might not do so either", b"/./version"),
    ("dot-dot-segment", "3986 5.2.4", "nobody climbs out of a route", b"/x/../version"),
    ("dot-dot-after-route", "3986 5.2.4", "nor from one route to another", b"/version/../metrics"),
    ("encoded-dots", "3986 6.2.2.2", "nor with encoded dots", b"/version/%2e%2e/metrics"),
    ("half-encoded-dots", "3986 6.2.2.2", "nor with half of them encoded", b"/version/.%2E/metrics"),
    ("matrix-dots", "3986 3.3", "nor with path parameters", b"/version/..;/metrics"),
    ("encoded-letter", "3986 6.2.2.2", "routes are compared as sent", b"/%76ersion"),
    ("encoded-slash", "3986 2.2", "an encoded slash is data", b"/version%2fx"),
    ("encoded-question", "3986 2.2", "an encoded '?' begins no query", b"/version%3fa"),
    ("encoded-hash", "3986 2.2", "an encoded '#' begins no fragment", b"/version%23a"),
    ("encoded-nul", "3986 2.2", "nor does NUL end a path", b"/version%00"),
    ("twice-encoded", "3986 2.4", "nothing is decoded, let alone twice", b"/%2576ersion"),
    ("parameter", "3986 3.3", "a parameter is part of the path", b"/version;a"),
    ("upper-case", "3986 6.2.2.1", "paths have case", b"/VERSION"),
    ("backslash-in-path", "3986 3.3", "a backslash is no slash", b"/x\\..\\version"),
    ("absolute-in-path", "9112 3.2.1", "an absolute URI behind a slash is a path", b"/http://t/version"),
    ("absolute-no-path", "9112 3.2.2", "an empty path is '/'", b"http://t"),
    ("absolute-query-path", "3986 3.3", "a path in the query is no path", b"http://t?/version"),
    ("absolute-encoded", "3986 6.2.2.2", "in absolute form too routes are compared as sent", b"http://t/%76ersion"),
    ("absolute-dots", "3986 5.2.4", "nor are dot segments removed there", b"http://t/x/../version"),
    ("control-route", "9110 15.5.5", "the engine's own routes are not served", b"/metrics"),
    ("asterisk-get", "9112 3.2.4", "the server as a whole is not a resource here", b"*"),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All cases."""
    for name, rfc, why, target, read in _RELAYED:
        yield Case(f"target/{name}", rfc, why, get(target), (got(read),))
    for name, rfc, why, target in _INVALID:
        yield Case(f"target/{name}", rfc, why, get(target), REFUSED)
    for name, rfc, why, target in _UNKNOWN:
        yield Case(f"target/{name}", rfc, why, get(target), UNKNOWN)
    why = "'*' asks about the server as a whole; nothing is said about it, and nothing relayed"
    yield Case("target/asterisk", "9110 9.3.7", why, b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", UNKNOWN)
