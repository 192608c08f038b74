"""Malformed requests, mostly with malformed bodies, each with the correct statuses.

Cases of message framing, by RFC section, are in ``tests/support/framing``.
A case has raw bytes. ``forwarded`` says whether the engine may receive it (and then refuse it itself).
Other cases must never reach the engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer g-key\r\n"
GOOD = b'{"model":"tiny","prompt":"hi","max_tokens":2}'


class Case(NamedTuple):
    """One malformed request."""

    name: str
    raw: bytes
    statuses: tuple[int, ...] = (400,)
    is_complete: bool = True
    """Whether the response must come without more bytes (or else the case waits for a timeout)."""


def post(body: bytes, path: bytes = b"/v1/completions", extra: bytes = b"") -> bytes:
    """A request with correct framing and this body."""
    head = HEAD.replace(b"/v1/completions", path)
    return head + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def cases() -> Iterator[Case]:
    """All cases."""
    yield from _framing()
    yield from _lengths()
    yield from _chunks()
    yield from _heads()
    yield from _targets()
    yield from _json()
    yield from _fields()
    yield from _sizes()
    yield from _incomplete()


def _framing() -> Iterator[Case]:
    good = b"Content-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)
    for line in (
        b"",
        b"POST",
        b"POST /v1/completions",
        b"POST /v1/completions HTTP/9.9",
        b"POST /v1/completions HTTP/1.2",
        b"POST /v1/completions HTTP/2.0",
        b"POST /v1/completions HTTP/1",
        b"POST /v1/completions http/1.1",
        b"POST /v1/completions HTTP/1.1 x",
        b"POST /v1/completions\tHTTP/1.1",
        b"P\x00ST /v1/completions HTTP/1.1",
        b"post /v1/completions HTTP/1.1",
        b"FOO /v1/completions HTTP/1.1",
        b"POST /v1/com\x00pletions HTTP/1.1",
        b"POST /v1/com pletions HTTP/1.1",
        b"POST \x80\x81 HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0",
        b"<html>",
        b"\x00\x00\x00\x00",
    ):
        yield Case(f"request line {line!r}", line + b"\r\nHost: t\r\n" + good)
    for name, raw in (
        ("bare LF", HEAD.replace(b"\r\n", b"\n") + good.replace(b"\r\n", b"\n")),
        ("bare CR", HEAD.replace(b"\r\n", b"\r") + good),
        ("LF in the middle", HEAD + b"X-A: 1\nX-B: 2\r\n" + good),
        ("CR in a value", HEAD + b"X-A: 1\rX-B: 2\r\n" + good),
        ("no host", HEAD.replace(b"Host: t\r\n", b"") + good),
        ("two hosts", HEAD + b"Host: u\r\n" + good),
        ("CONNECT", b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("leading space line", b" " + HEAD + good),
    ):
        yield Case(name, raw, (400, 405))


def _lengths() -> Iterator[Case]:
    for value in (
        b"",
        b"-1",
        b"+5",
        b"5.0",
        b"0x5",
        b"5,5",
        b"5, 6",
        b"5 5",
        b"five",
        b"\xd9\xa5",
        b"1e3",
        b"99999999999999999999",
        b"18446744073709551617",
        b"5;x",
        b"5\x00",
        b"5\x0b",
        b"0005x",
    ):
        yield Case(
            f"content-length {value!r}", HEAD + b"Content-Length: " + value + b"\r\n\r\nhello", (400, 413)
        )
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    yield Case("length and chunked", HEAD + both)
    yield Case(
        "chunked and length", HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    )
    yield Case("two lengths", HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello")
    yield Case("the same length twice", HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello")
    for name in (
        b"Content-Length ",
        b" Content-Length",
        b"Content_Length\x00",
        b"Content-Length\t",
        b"Content Length",
        b"Content-Length\x0b",
        b"(Content-Length)",
    ):
        yield Case(f"header name {name!r}", HEAD + name + b": 5\r\n\r\nhello")


def _chunks() -> Iterator[Case]:
    for coding in (
        b"chunked, chunked",
        b"gzip, chunked",
        b"chunked, gzip",
        b"gzip",
        b"identity",
        b"xchunked",
        b"chunked\x00",
        b"\x0bchunked",
        b"chun ked",
        b'"chunked"',
        b"chunked;q=1",
        b"",
    ):
        yield Case(f"coding {coding!r}", HEAD + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n")
    twice = b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    yield Case("two codings", HEAD + twice)
    yield Case("hidden coding", HEAD + b"Transfer-Encoding:\x0cchunked\r\n\r\n0\r\n\r\n")
    old = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")
    yield Case("chunked in HTTP/1.0", old + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    for body in (
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"-1\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"5\rhello\r0\r\r",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        b"5;a\x00b\r\nhello\r\n0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
        b";\r\nhello\r\n0\r\n\r\n",
    ):
        yield Case(f"chunk {body!r}", HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body)


def _heads() -> Iterator[Case]:
    good = b"Content-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)
    for line in (
        b"X-A",
        b": empty name",
        b"X A: 1",
        b"X-A : 1",
        b"X\x00A: 1",
        b"X-A: 1\x00",
        b"X-A: \x01",
        b"X-A: \x7f",
        b"X-A: 1\r\n folded",
        b"X-A: 1\r\n\tfolded",
        b" X-A: 1",
        b"X\xffA: 1",
        b"X-A\r: 1",
        b"@: 1",
        b"X[]: 1",
        b"{}: 1",
        b'"X": 1',
    ):
        yield Case(f"header line {line!r}", HEAD + line + b"\r\n" + good)
    yield Case("huge value", HEAD + b"X-A: " + b"a" * 70000 + b"\r\n" + good, (431,))
    yield Case("huge name", HEAD + b"X" * 70000 + b": a\r\n" + good, (431,))
    yield Case("many headers", HEAD + b"X-A: 1\r\n" * 20000 + good, (431,))
    yield Case("huge target", b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\nHost: t\r\n\r\n", (414,))
    yield Case("endless head", HEAD + b"X-A: " + b"a" * 100000, (431,))
    yield Case("unknown expectation", HEAD + b"Expect: magic\r\n" + good, (417,))
    for value in (b"", b"Basic Zw==", b"Bearer", b"Bearer ", b"g-key", b"Bearer wrong", b"Bearer g-key x"):
        head = HEAD.replace(b"Bearer g-key", value)
        yield Case(f"authorization {value!r}", head + good, (401,))
    yield Case("no key", HEAD.replace(b"Authorization: Bearer g-key\r\n", b"") + good, (401,))
    yield Case("two keys", HEAD + b"X-Api-Key: s-key\r\n" + good, (401,))
    yield Case("two authorizations", HEAD + b"Authorization: Bearer s-key\r\n" + good, (401,))


def _targets() -> Iterator[Case]:
    for path in (
        b"/",
        b"/v1",
        b"/v1/completions/",
        b"//v1/completions",
        b"/v1//completions",
        b"/v1/./completions",
        b"/x/../v1/completions",
        b"/v1/%63ompletions",
        b"/v1/completions%00",
        b"/v1/completions;a",
        b"/V1/COMPLETIONS",
        b"/v1/completions%2f..%2fsleep",
        b"/sleep",
        b"/wake_up",
        b"/v1/load_lora_adapter",
        b"/metrics",
        b"/load",
        b"/docs",
        b"/openapi.json",
        b"/start_profile",
        b"/reset_prefix_cache",
        b"/collective_rpc",
        b"/debug/state",
        b"*",
        b"/v1/completions#x",
        b"/v1/embeddings",
    ):
        yield Case(f"target {path!r}", post(GOOD, path), (404, 400))
    for method in (b"GET", b"PUT", b"DELETE", b"PATCH", b"TRACE"):
        raw = method + b" /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n"
        yield Case(f"method {method!r}", raw, (405,))
    yield Case(
        "method on models", b"POST /v1/models HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n", (405,)
    )


def _json() -> Iterator[Case]:
    for body in (
        b"",
        b" ",
        b"{",
        b"}",
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b"{]",
        b'{"model":"tiny","prompt":"hi"',
        b'{"model":"tiny","prompt":"hi"}}',
        b'{"model":"tiny","prompt":"hi"} x',
        b"{'model':'tiny','prompt':'hi'}",
        b'{"model":"tiny","prompt":"hi",}',
        b'{"model":"tiny" "prompt":"hi"}',
        b'{"model":"tiny","prompt":hi}',
        b'{"model":"tiny","prompt":"hi","max_tokens":NaN}',
        b'{"model":"tiny","prompt":"hi","max_tokens":Infinity}',
        b'{"model":"tiny","prompt":"hi","temperature":NaN}',
        b'{"model":"tiny","prompt":"hi","max_tokens":01}',
        b'{"model":"tiny","prompt":"hi","max_tokens":0x10}',
        b'{"model":"tiny","prompt":"hi","max_tokens":1_000}',
        b'\xef\xbb\xbf{"model":"tiny","prompt":"hi"}',
        '{"model":"tiny","prompt":"hi"}'.encode("utf-16"),
        '{"model":"tiny","prompt":"hi"}'.encode("utf-32"),
        b'{"model":"\xff\xfe","prompt":"hi"}',
        b'{"model":"tiny\x00","prompt":"hi"}',
        b'{"model":"ti\nny","prompt":"hi"}',
        b'{"model":"\\ud800","prompt":"hi"}',
        b'{"model":"\\x41","prompt":"hi"}',
        b"\x00" * 50,
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        b"model=tiny&prompt=hi",
        b"<json/>",
        b"// {}\n{}",
        b"tru",
        b"-",
        b'{"a":1e}',
    ):
        yield Case(f"json {body!r}", post(body), (400, 404))
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for depth in (2000, 100000):
            nested = opening * depth + b"1" + closing * depth
            yield Case(f"nested {depth} {opening!r}", post(b'{"model":"tiny","prompt":%s}' % nested))
            yield Case(f"open {depth} {opening!r}", post(b'{"model":"tiny","prompt":%s' % (opening * depth)))
            chat = b'{"model":"tiny","messages":[{"role":"user","content":[%s]}]}' % nested
            yield Case(f"nested content {depth} {opening!r}", post(chat, b"/v1/chat/completions"))


def _fields() -> Iterator[Case]:
    good = json.loads(GOOD)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    for field, values in {
        "model": (1, [], {}, True),
        "prompt": (1, None, {}, True, [], [1, "a"], [[1], "a"], [None], [{}], [1.5], [True], [["a"]], [-1]),
        "max_tokens": ("5", "many", 1.5, [], {}, True, 1 << 40, 1 << 100),
        "n": (0, -1, 5000, "2", 1.5, [], True),
        "best_of": (0, "2", [], 5000),
        "stream": ("true", 1, [], {}),
        "stream_options": ([], "x", 1, {"include_usage": "yes"}, {"include_usage": 1}),
        "suffix": (1, []),
    }.items():
        for value in values:
            body = json.dumps(good | {field: value}).encode()
            yield Case(f"{field}={value!r}", post(body), (400,))
    for field, values in {
        "messages": (None, 1, {}, "hi", [], [1], ["hi"], [None], [[]]),
        "max_tokens": ("5", 1.5, [], True),
        "max_completion_tokens": ("5", 1.5, [], True, 1 << 40),
        "n": (0, -1, 5000, "2"),
        "tools": (1, "x", {}),
        "stream_options": ([], "x"),
    }.items():
        for value in values:
            body = json.dumps(chat | {field: value}).encode()
            yield Case(f"chat {field}={value!r}", post(body, b"/v1/chat/completions"), (400,))
    for content in ([1], ["a", 1], [[]], [{"type": 1}]):
        message = {"role": "user", "content": content}
        body = json.dumps(chat | {"messages": [message]}).encode()
        yield Case(f"content={content!r}", post(body, b"/v1/chat/completions"), (400,))
    for model in ("other", "", "TINY", "tiny ", "../tiny"):
        body = json.dumps(good | {"model": model}).encode()
        yield Case(f"unknown model {model!r}", post(body), (404,))
    many = json.dumps(good | {"prompt": ["a"] * 2000, "n": 2}).encode()
    yield Case("too many sequences", post(many))


def _sizes() -> Iterator[Case]:
    yield Case("a body said to be huge", HEAD + b"Content-Length: 999999999999\r\n\r\n", (413,))
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    yield Case(
        "chunks that never end",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 20,
        (413,),
    )


def _incomplete() -> Iterator[Case]:
    for name, raw in (
        ("half a request line", b"POST /v1/comp"),
        ("half a head", HEAD),
        ("half a header", HEAD + b"X-A: "),
        ("half a body", HEAD + b"Content-Length: 100\r\n\r\nhello"),
        ("half a chunk", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe"),
        ("no last chunk", HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
    ):
        yield Case(name, raw, (408,), is_complete=False)
