"""Expect, Upgrade, h2c and CONNECT: offers to change the protocol."""

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
    chunked,
    get,
    got,
    posted,
    sized,
)
from tests.support.framing.codings import CHUNKS

_CONTINUED = posted()._replace(continues=True)

_EXPECTATIONS = (
    ("unknown", "an expectation that is not known", b"Expect: magic"),
    ("empty", "an expectation without a name", b"Expect:"),
    ("and-unknown", "a second expectation that is not known", b"Expect: 100-continue, magic"),
    ("then-unknown", "... in a second line", b"Expect: 100-continue\r\nExpect: magic"),
    ("unknown-first", "... in the first", b"Expect: magic\r\nExpect: 100-continue"),
    ("value", "100-continue has no value", b"Expect: 100-continue=x"),
    ("prefix", "another name", b"Expect: 100-continued"),
    ("number", "another name", b"Expect: 100"),
)

_OFFER = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
_H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"

_OFFERS = (
    ("websocket", "an offer is declined by not mentioning it", _OFFER, ()),
    ("h2c", "HTTP/2 in clear would be a tunnel past the sidecar", _H2C, ()),
    ("case", "options have no case", b"connection: UPGRADE\r\nupgrade: H2C\r\n", ()),
    ("no-option", "not an offer for this hop", b"Upgrade: h2c\r\n", ()),
    ("option-only", "nothing is offered", b"Connection: upgrade\r\n", ()),
    ("several", "any number of protocols", b"Connection: upgrade\r\nUpgrade: h2c, websocket, TLS/1.2\r\n", ()),
    ("names", "what else Connection names is of this hop", b"Connection: upgrade, x-hop\r\nUpgrade: h2c\r\nX-Hop: 1\r\nX-A: 1\r\n", ((b"x-a", b"1"),)),
    ("names-length", "naming the framing does not unframe the body", b"Connection: upgrade, content-length\r\nUpgrade: h2c\r\n", ()),
    ("websocket-key", "the rest of the offer goes on, and means nothing alone", _OFFER + b"Sec-WebSocket-Key: eA==\r\n", ((b"sec-websocket-key", b"eA=="),)),
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All cases."""
    yield from _expect()
    yield from _upgrade()
    yield from _connect()


def _expect() -> Iterator[Case]:
    for name, lines in (
        ("plain", b"Expect: 100-continue\r\n"),
        ("case", b"expect: 100-Continue\r\n"),
        ("padded", b"Expect: \t100-continue \r\n"),
        ("twice", b"Expect: 100-continue\r\nExpect: 100-continue\r\n"),
    ):
        why = "the body is invited, and the expectation stays here"
        yield Case(f"expect/{name}", "9110 10.1.1", why, sized(HELLO, lines), (_CONTINUED,))
    raw = chunked(CHUNKS, b"Expect: 100-continue\r\n")
    yield Case("expect/chunked", "9110 10.1.1", "whatever the framing", raw, (_CONTINUED,))
    for name, why, lines in _EXPECTATIONS:
        raw = sized(HELLO, lines + b"\r\n") + HIDDEN
        yield Case(f"expect/{name}", "9110 10.1.1", why, raw, (Refused(417),))
    raw = sized(HELLO, b"Expect: 100-continue\r\n").replace(b"HTTP/1.1", b"HTTP/1.0") + HIDDEN
    why = "HTTP/1.0 knows no interim responses: the expectation is ignored"
    yield Case("expect/old", "9110 10.1.1", why, raw, (posted(closes=True),))
    for name, status, line in (("unknown", 404, b"POST /x"), ("no-key", 401, b"POST /tokenize")):
        why = "a final answer instead of an invitation: the body may still come or not"
        raw = (
            line
            + b" HTTP/1.1\r\n"
            + HOST
            + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN)
        )
        yield Case(f"expect/refused-{name}", "9110 10.1.1", why, raw + HIDDEN, (Refused(status),))
    raw = get() + sized(HELLO, b"Expect: 100-continue\r\n")
    why = "an invitation must not come before the answer that is due; it may be omitted"
    relayed = posted()._replace(continues=None)
    yield Case("expect/pipelined", "9110 10.1.1", why, raw, (got(), relayed))


def _upgrade() -> Iterator[Case]:
    for name, why, lines, kept in _OFFERS:
        raw = sized(HELLO, lines)
        yield Case(f"upgrade/{name}", "9110 7.8", why, raw, (posted(HELLO, *kept),))
    for name, rfc, why, raw, outcomes in (
        ("chunked", "9110 7.8", "whatever the framing", chunked(CHUNKS, _OFFER), (posted(),)),
        ("no-body", "9110 7.8", "or without a body", get(lines=_H2C), (got(),)),
        ("close", "9112 9.6", "'close' still closes", get(lines=b"Connection: upgrade, close\r\nUpgrade: h2c\r\n") + HIDDEN, (got(closes=True),)),
        ("old", "9110 7.8", "an offer in HTTP/1.0 must be ignored", b"GET /version HTTP/1.0\r\n" + _OFFER + b"\r\n" + HIDDEN, (got(closes=True),)),
        ("old-keep-alive", "9110 7.8", "... and the rest is obeyed", b"GET /version HTTP/1.0\r\nConnection: upgrade, keep-alive\r\nUpgrade: h2c\r\n\r\n", (got(),)),
        ("absolute", "9112 3.2.2", "with a target in absolute form", get(b"http://t/version?a", _OFFER), (got(b"/version?a"),)),
        ("expect", "9110 7.8", "with an expectation", sized(HELLO, _OFFER + b"Expect: 100-continue\r\n"), (_CONTINUED,)),
        ("pipelined", "9112 9.3.2", "what follows is HTTP/1.1", get(lines=_H2C) + sized(HELLO) + get(b"/version?2", _OFFER), (got(), posted(), got(b"/version?2"))),
        ("many", "9112 9.3.2", "as many as a read holds", get(lines=_OFFER) * 300, (got(),) * 300),
        ("preface", "9112 9.3", "a client that takes the upgrade for granted is refused", get(lines=_H2C) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN, (got(), Refused())),
        ("tunnel", "9110 7.8", "so is one that begins to speak", get(lines=_OFFER) + b"\x81\x05hello" + HIDDEN, (got(), Refused())),
        ("both-framings", "9112 6.1", "an offer excuses nothing", sized(HELLO, _OFFER + b"Transfer-Encoding: chunked\r\n") + HIDDEN, REFUSED),
        ("no-host", "9112 3.2", "an offer excuses nothing", b"GET /version HTTP/1.1\r\n" + _OFFER + b"\r\n" + HIDDEN, REFUSED),
        ("bad-chunk", "9112 7.1", "an offer excuses nothing", chunked(b"x\r\n", _OFFER) + HIDDEN, REFUSED),
        ("unknown-route", "9110 15.5.5", "an offer opens no route", get(b"/x", _OFFER), (Refused(404, closes=False),)),
        ("prior-knowledge", "9112 2.3", "HTTP/2 from the first byte", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + HIDDEN, REFUSED),
    ):  # fmt: skip
        yield Case(f"upgrade/{name}", rfc, why, raw, outcomes)


def _connect() -> Iterator[Case]:
    for name, target in (
        ("authority", b"t:80"),
        ("path", b"/version"),
        ("absolute", b"http://t/version"),
        ("asterisk", b"*"),
        ("ipv6", b"[::1]:80"),
    ):
        raw = b"CONNECT " + target + b" HTTP/1.1\r\n" + HOST + KEY + b"\r\n" + HIDDEN
        yield Case(f"connect/{name}", "9110 9.3.6", "no tunnels, to nowhere", raw, REFUSED)
    raw = get() + b"CONNECT t:80 HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello" + HIDDEN
    yield Case("connect/pipelined", "9110 9.3.6", "nothing after it is read", raw, (got(), Refused()))
    raw = b"CONNECT t:80 HTTP/1.0\r\n\r\n" + HIDDEN
    yield Case("connect/old", "9110 9.3.6", "nor in HTTP/1.0", raw, REFUSED)
