"""Header names and values: tokens, text, and the headers that the sidecar forwards or removes."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.framing.cases import HOST, REFUSED, Case, Refused, get, got, sized

_NAME = b"!#$%&'*+-.^_`|~09AZaz"
_NOT_IN_NAMES = b'"(),/;<=>?@[\\]{} \t\x00\x01\x1f\x7f\x80\xff'
_NOT_IN_VALUES = b"\x00\x01\x07\x08\x0b\x0c\x0e\x1b\x1f\x7f"

_VALUES = (
    ("empty", "9110 5.5", "a value may be empty", b"", b""),
    ("blank", "9110 5.5", "... or blank, which is the same", b" \t ", b""),
    ("padded", "9110 5.5", "white space around a value is not part of it", b" \t a b \t ", b"a b"),
    ("no-space", "9112 5.1", "white space after the colon is optional", b"a", b"a"),
    ("tab-inside", "9110 5.5", "a tab inside is kept", b"a\tb", b"a\tb"),
    ("spaces-inside", "9110 5.5", "so are spaces", b"a   b", b"a   b"),
    ("latin-1", "9110 5.5", "8-bit text is opaque", b"\xe9\x80\xff", b"\xe9\x80\xff"),
    ("utf-8", "9110 5.5", "whatever its encoding", "é\u2028".encode(), "é\u2028".encode()),
    ("next-line", "9110 5.5", "NEL ends no line", b"a\x85b", b"a\x85b"),
    ("colons", "9112 5.1", "the first colon ends the name", b":a: b:", b":a: b:"),
    (
        "looks-like-header",
        "9112 5.1",
        "a header inside of a value",
        b"Content-Length: 5",
        b"Content-Length: 5",
    ),
    ("quoted", "9110 5.6.4", "quotes are not looked into", b'"a, \\" b', b'"a, \\" b'),
    ("comment", "9110 5.6.5", "nor are brackets", b"(a (b)", b"(a (b)"),
    ("commas", "9110 5.6.1", "nor lists", b",a,,b,", b",a,,b,"),
    ("escapes", "9110 5.5", "a backslash is a backslash", b"a\\r\\nb", b"a\\r\\nb"),
    ("percent", "9110 5.5", "nothing is decoded", b"a%0d%0ab", b"a%0d%0ab"),
)

_LIKE_FRAMING = (
    b"Content_Length", b"content--length", b"Content-_Length", b"CONTENT__LENGTH", b"Content-Length-", b"_Content-Length",
    b"Transfer_Encoding", b"Transfer--Encoding", b"TRANSFER_-_ENCODING", b"-Transfer-Encoding", b"Transfer-Encoding_",
    b"Host_", b"_Host", b"Connection_", b"_Expect", b"Upgrade-", b"_TE", b"Trailer--", b"Keep_Alive", b"Proxy_Connection",
    b"Http2_Settings", b"Proxy_Authorization",
)  # fmt: skip
"""Names that a server reads as framing or hop-by-hop headers if it treats ``_`` as ``-``."""

_READ_AS_KEYS = (
    b"X_Api_Key",
    b"X--Api-Key",
    b"Api_Key",
    b"_Authorization",
    b"X_Tokenpool_Entitlement",
    b"Accept_Encoding",
)

_LINES = (
    ("no-colon", "9112 5", "a header has a colon", b"X-A"),
    ("no-colon-value", "9112 5", "a header has a colon", b"X-A 1"),
    ("empty-name", "9112 5", "a header has a name", b": 1"),
    ("colon-only", "9112 5", "a header has a name", b":"),
    ("space-before-colon", "9112 5.1", "must be refused", b"X-A : 1"),
    ("tab-before-colon", "9112 5.1", "must be refused", b"X-A\t: 1"),
    ("request-line", "9112 5", "a request where a header should be", b"GET /version?hidden HTTP/1.1"),
)

_STAYS = (
    ("authorization", "9110 11.6.2", "who the tenant is concerns the sidecar", b"Authorization: Bearer g-key"),
    ("x-api-key", "9110 16.3.1", "so does another form of key", b"X-Api-Key: g-key"),
    ("identity", "9110 7.6", "a caller never names its own entitlement", b"X-Tokenpool-Entitlement: g"),
    ("identity-case", "9110 5.1", "... in no way of writing", b"x-TOKENPOOL-anything: g"),
    ("accept-encoding", "9110 12.5.3", "a compressed answer would hide the usage", b"Accept-Encoding: gzip"),
    ("te", "9110 10.1.4", "of this hop only", b"TE: trailers"),
    ("trailer", "9110 6.6.2", "trailers go no further", b"Trailer: x-a"),
    ("keep-alive", "9110 7.6.1", "of this hop only", b"Keep-Alive: timeout=5"),
    ("proxy-connection", "9112 C.2.2", "of this hop only", b"Proxy-Connection: keep-alive"),
    ("proxy-authorization", "9110 11.7.2", "of this hop only", b"Proxy-Authorization: Basic Zw=="),
    ("proxy-authenticate", "9110 11.7.1", "of this hop only", b"Proxy-Authenticate: Basic"),
    ("http2-settings", "9110 7.8", "of this hop only", b"HTTP2-Settings: AAMAAABk"),
    ("upgrade", "9110 7.8", "of this hop only", b"Upgrade: websocket"),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All cases."""
    raw = get(lines=_NAME + b": 1\r\n")
    why = "every character of a token; names go on in lower case"
    yield Case("header/token", "9110 5.6.2", why, raw, (got(b"/version", (_NAME.lower(), b"1")),))
    for code in _NOT_IN_NAMES:
        why = "not a character of a token: some readers would cut the name there"
        raw = get(lines=b"X-%cA: 1\r\n" % code)
        yield Case(f"header/name-{code:02x}", "9110 5.6.2", why, raw, REFUSED)
    for code in _NOT_IN_VALUES:
        why = "controls end or hide text for some readers"
        raw = get(lines=b"X-A: a%cb\r\n" % code)
        yield Case(f"header/value-{code:02x}", "9110 5.5", why, raw, REFUSED)
    for name, rfc, why, sent, read in _VALUES:
        raw = get(lines=b"X-A:" + sent + b"\r\nX-B: 1\r\n")
        yield Case(f"header/{name}", rfc, why, raw, (got(b"/version", (b"x-a", read), (b"x-b", b"1")),))
    for name, rfc, why, line in _LINES:
        yield Case(f"header/{name}", rfc, why, get(lines=b"X-B: 1\r\n" + line + b"\r\n"), REFUSED)
        yield Case(f"header/{name}-first", rfc, why, b"GET /version HTTP/1.1\r\n" + line + b"\r\n" + HOST + b"\r\n", REFUSED)  # fmt: skip
    for other in _LIKE_FRAMING:
        why = "servers that take '_' for '-' or merge delimiters read another request than we do"
        for value in (b"5", b"chunked"):
            raw = get(lines=b"X-A: 1\r\n" + other + b": " + value + b"\r\n")
            yield Case(f"header/like-{other.decode()}-{value.decode()}", "9110 5.1", why, raw, REFUSED)
    for other in _READ_AS_KEYS:
        why = "what stays here stays in every way of writing that a server behind might know"
        yield Case(
            f"header/stays-{other.decode()}", "9110 5.1", why, get(lines=other + b": g-key\r\n"), (got(),)
        )
    raw = get(lines=b"X_A: 1\r\nX--B: 2\r\n-c: 3\r\n")
    kept = ((b"x_a", b"1"), (b"x--b", b"2"), (b"-c", b"3"))
    yield Case(
        "header/delimiters",
        "9110 5.1",
        "other names are for the engine",
        raw,
        (got(b"/version", *kept),),
    )
    for name, rfc, why, line in _STAYS:
        yield Case(f"header/stays-{name}", rfc, why, get(lines=line + b"\r\n"), (got(),))
    yield from _several()


def _several() -> Iterator[Case]:
    pairs = ((b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3"), (b"x-a", b""))
    lines = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    why = "lines of one name keep their order"
    yield Case("header/repeated", "9110 5.3", why, get(lines=lines), (got(b"/version", *pairs),))
    lines = b"X-A: 1\r\nx-a: 1\r\nX-a: 1\r\n"
    why = "names have no case; equal lines are not merged"
    yield Case("header/equal", "9110 5.1", why, get(lines=lines), (got(b"/version", *[(b"x-a", b"1")] * 3),))
    kept = (
        (b"content-type", b"text/plain"),
        (b"accept", b"*/*"),
        (b"via", b"1.1 x"),
        (b"forwarded", b"for=x"),
    )
    raw = sized(b"hello", b"".join(b"%b: %b\r\n" % pair for pair in kept))
    why = "what concerns the engine goes on, in order"
    relayed = got(b"/tokenize", *kept)._replace(method=b"POST", body=b"hello")
    yield Case("header/kept", "9110 7.6", why, raw, (relayed,))
    for name, lines in (
        ("two-keys", b"Authorization: Bearer g-key\r\nAuthorization: Bearer s-key\r\n"),
        ("two-kinds-of-keys", b"Authorization: Bearer g-key\r\nX-Api-Key: s-key\r\n"),
        ("three-kinds-of-keys", b"X-Api-Key: g-key\r\nAuthorization: Bearer no\r\nApi-Key: e-key\r\n"),
    ):
        raw = b"POST /tokenize HTTP/1.1\r\n" + HOST + lines + b"Content-Length: 0\r\n\r\n"
        outcome = Refused(401, closes=False)
        why = "a request has one caller"
        yield Case(f"header/{name}", "9110 5.3", why, raw, (outcome,))
