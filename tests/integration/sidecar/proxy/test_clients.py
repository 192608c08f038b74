"""Clients as they are: browsers, SDKs with odd credentials, hosts with two families of IP, odd header names.

Rows C1 to C4 and H1 of the field reports, and further members of each kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from injector.app import Injector
from injector.settings import Settings as InjectorSettings
from injector.settings import Template
from runtime.listening import CannotListen, bound, listening
from runtime.options import Address, Addresses, SettingsError, address, addresses, upstream
from sidecar.app import Sidecar
from sidecar.decisions import Refusal
from sidecar.engine.cors import LONGEST_ORIGIN, MOST_ORIGINS, PROBE_ORIGIN, Cors
from sidecar.identity import MOST_KEYS, Credential, KeyRing, sent_keys
from sidecar.proxy.answers import refusal_bytes
from sidecar.proxy.heads import RequestHead, canonical
from tests.certificates import certify
from tests.fakes.scripted_engine import FakeEngine, Held, Received, unary
from tests.support.harness import CHAT, POOL, Response, ask, request, settings_of, sidecar_for, until
from tokenpool.outcomes import Reason

PAGE = "https://page.example"
OPEN = b"access-control-allow-origin: *\r\n"
TWO_KEYS = POOL.replace("api_keys: [g-key]", "api_keys: [g-key, g-other]")
ANONYMOUS = POOL + "anonymous: s\n"


# --- C1: CORS ---


def allowing(*origins: str, credentials: bool = False) -> Any:
    """An engine with a list of allowed origins, or ``*``."""

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(with_cors(received, unary(), origins, credentials=credentials))

    return answer


def with_cors(received: Received, answer: bytes, origins: tuple[str, ...], *, credentials: bool) -> bytes:
    origin = received.headers.get("origin")
    lines = b""
    if origin is not None and "*" in origins and not credentials:
        lines = OPEN
    elif origin is not None and (origin in origins or "*" in origins):
        lines = f"access-control-allow-origin: {origin}\r\n".encode()
    if lines and credentials:
        lines += b"access-control-allow-credentials: true\r\n"
    line, rest = answer.split(b"\r\n", 1)
    return line + b"\r\n" + lines + rest


def says_all(engine: FakeEngine) -> None:
    """Its answers to polls have CORS headers as well, as with vLLM's ``--allowed-origins '["*"]'``."""
    poll = engine._poll

    async def answer(received: Received, writer: Any) -> None:
        class Adding:
            def write(self, data: bytes) -> None:
                writer.write(with_cors(received, data, ("*",), credentials=False))

        await poll(received, Adding())  # type: ignore[arg-type]

    engine._poll = answer  # type: ignore[method-assign]
    engine.answer = allowing("*")


def browser(
    path: str = "/v1/completions", *, key: str | None = "g-key", origin: str = PAGE, **more: Any
) -> bytes:
    return request(path, more.pop("body", None), key=key, headers={"origin": origin}, **more)


def preflight(path: str = "/v1/completions", origin: str = PAGE) -> bytes:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    return request(path, method="OPTIONS", key=None, headers=asked)


def may_be_read(response: Response, origin: str = PAGE) -> bool:
    return response.headers.get("access-control-allow-origin") in ("*", origin)


@pytest.mark.asyncio
async def test_the_sidecars_answers_allow_every_origin_before_the_first_browser(
    engine: FakeEngine, tmp_path: Path
) -> None:
    says_all(engine)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await until(lambda: bool(sidecar.controller.engine.cors.lines(PAGE.encode())))
        for raw, status in (
            (browser(key="wrong"), 401),
            (browser(key=None), 401),
            (browser(body={"model": "tiny", "prompt": 5}), 400),
            (browser(body={"model": "other", "prompt": "x"}), 404),
            (browser("/nowhere"), 404),
            (browser(method="GET"), 405),
            (browser(body={"model": "tiny", "prompt": "x" * 4_000_000}), 400),
        ):
            response = await ask(sidecar, raw)
            assert response.status == status
            assert response.headers["access-control-allow-origin"] == "*"
            assert response.headers["vary"] == "Origin"
            for name in ("retry-after", "x-ratelimit-remaining-tokens", "x-tokenpool-reason"):
                assert name in response.headers["access-control-expose-headers"]
        assert not engine.received


@pytest.mark.asyncio
async def test_what_is_shed_can_be_read_by_a_page(engine: FakeEngine, tmp_path: Path) -> None:
    pool = POOL.replace("tier: elastic,", "tier: elastic, ceiling: {concurrency: 1},")
    async with sidecar_for(engine.port, tmp_path, pool=pool, queue_timeout_elastic=0.0) as sidecar:
        engine.answer = allowing("*")
        assert may_be_read(await ask(sidecar, browser(key="e-key")))
        engine.answer = held = Held()
        running = asyncio.ensure_future(ask(sidecar, browser(key="e-key")))
        await until(lambda: len(engine.received) == 2)
        shed = await ask(sidecar, browser(key="e-key"))
        assert (shed.status, shed.headers["retry-after"] != "") == (429, True)
        assert may_be_read(shed)
        held.go.set()
        await running


@pytest.mark.asyncio
async def test_preflights_and_errors_are_answered_while_the_engine_is_down(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = allowing(PAGE, credentials=True)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert (await ask(sidecar, preflight())).status == 200
        await engine.stop()
        await until(lambda: not sidecar.controller.engine.is_up)
        answer = await ask(sidecar, preflight())
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["access-control-allow-methods"] == "POST, OPTIONS"
        assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
        assert "access-control-max-age" not in answer.headers
        down = await ask(sidecar, browser())
        assert (down.status, may_be_read(down)) == (503, True)
        assert down.headers["access-control-allow-credentials"] == "true"


@pytest.mark.asyncio
async def test_preflights_are_answered_while_draining_and_for_routes_that_are_not_served(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = allowing("*")
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert (await ask(sidecar, preflight())).status == 200
        answer = await ask(sidecar, preflight("/nowhere"))
        assert (answer.status, answer.headers["access-control-allow-methods"]) == (204, "GET, POST, OPTIONS")
        sidecar.lifecycle.is_draining = True
        assert (await ask(sidecar, preflight())).status == 204
        plain = request(method="OPTIONS", key=None, headers={"origin": PAGE})
        assert (await ask(sidecar, plain)).status == 503


@pytest.mark.asyncio
async def test_an_origin_that_the_engine_does_not_allow_gets_nothing(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = allowing(PAGE)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert not may_be_read(await ask(sidecar, browser(key="wrong")))
        assert may_be_read(await ask(sidecar, browser()))
        assert may_be_read(await ask(sidecar, browser(key="wrong")))
        for origin in ("https://other.example", "null", "https://page.example.evil", "http://page.example"):
            assert not may_be_read(await ask(sidecar, browser(origin=origin)), origin)
            refused = await ask(sidecar, browser(key="wrong", origin=origin))
            assert not any(name.startswith("access-control") for name in refused.headers)
        await engine.stop()
        await until(lambda: not sidecar.controller.engine.is_up)
        assert (await ask(sidecar, preflight(origin="https://other.example"))).status == 503


@pytest.mark.asyncio
async def test_a_closed_engine_makes_nothing_readable(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert (await ask(sidecar, browser())).status == 200
        for response in (await ask(sidecar, browser(key="wrong")), await ask(sidecar, browser())):
            assert not any(name.startswith("access-control") for name in response.headers)


@pytest.mark.asyncio
async def test_what_we_add_to_the_engines_answers_can_be_read(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = allowing("*")
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        for _ in range(2):  # the second head is a known one
            response = await ask(sidecar, browser("/v1/chat/completions", body=CHAT))
            assert "x-ratelimit-remaining-tokens" in response.headers
            assert "x-ratelimit-remaining-tokens" in response.headers["access-control-expose-headers"]
        assert "access-control-expose-headers" not in (await ask(sidecar, request())).headers


@pytest.mark.asyncio
async def test_no_origin_no_headers(engine: FakeEngine, tmp_path: Path) -> None:
    says_all(engine)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await until(lambda: bool(sidecar.controller.engine.cors.lines(PAGE.encode())))
        refused = await ask(sidecar, request(key="wrong"))
        assert not any(name.startswith("access-control") or name == "vary" for name in refused.headers)


def learned(*answers: tuple[bytes, bytes | None, bool]) -> Cors:
    cors = Cors()
    for origin, allowed, succeeded in answers:
        cors.learn(origin, allowed, credentials=False, succeeded=succeeded)
    return cors


A, B = b"https://a.example", b"https://b.example"


@pytest.mark.parametrize(
    ("answers", "a_may", "b_may"),
    [
        ([], False, False),
        ([(A, b"*", True)], True, True),
        ([(A, A, True)], True, False),
        ([(A, A, False)], True, False),
        ([(PROBE_ORIGIN, PROBE_ORIGIN, True)], True, True),
        ([(PROBE_ORIGIN, None, True)], False, False),
        ([(A, B, True)], False, False),
        ([(A, b"", True)], False, False),
        ([(A, A + b", " + B, True)], False, False),
        ([(A, b"*", True), (A, None, True)], False, False),
        ([(A, b"*", True), (A, None, False)], True, True),
        ([(A, b"*", True), (A, A, True)], True, False),
        ([(A, A, True), (A, None, True)], False, False),
        ([(A, A, True), (B, None, True)], True, False),
        ([(A, A, True), (A, None, False)], True, False),
    ],
)
def test_what_answers_teach(
    answers: list[tuple[bytes, bytes | None, bool]], a_may: bool, b_may: bool
) -> None:
    cors = learned(*answers)
    assert (bool(cors.lines(A)), bool(cors.lines(B))) == (a_may, b_may)


def test_origins_are_remembered_within_bounds() -> None:
    cors = learned(*((b"https://%d.example" % number,) * 2 + (True,) for number in range(MOST_ORIGINS + 1)))
    assert not cors.lines(b"https://0.example")
    assert cors.lines(b"https://1.example")
    long = b"https://" + b"a" * LONGEST_ORIGIN
    assert not learned((long, long, True)).lines(long)


def test_two_origins_are_no_origin() -> None:
    head = RequestHead()
    assert head.origin is None
    head.method, head.headers = b"OPTIONS", [(b"access-control-request-method", b"POST")]
    refusal = Refusal(Reason.ENGINE_DOWN, "the engine does not answer")
    assert b"access-control" not in refusal_bytes(refusal, head, learned((A, b"*", True)), closes=True)


# --- C2, C3: credentials ---


@pytest.mark.parametrize(
    ("lines", "owner"),
    [
        ((), "anonymous"),
        (("authorization: Bearer ",), "anonymous"),
        (("authorization: Bearer",), "anonymous"),
        (("authorization: bearer \t ",), "anonymous"),
        (("authorization:",), "anonymous"),
        (("x-api-key:",), "anonymous"),
        (("x-api-key: ", "api-key:", "authorization: Bearer "), "anonymous"),
        (("authorization: Basic dXNlcjpwYXNz",), "anonymous"),
        (("authorization: Bearer ", "x-api-key: g-key"), "g"),
        (("authorization: Basic dXNlcjpwYXNz", "x-api-key: g-key"), "g"),
        (("authorization: Digest username=x", "x-api-key: g-key"), "g"),
        (("authorization: AWS4-HMAC-SHA256 Credential=x", "api-key: g-key"), "g"),
        (("x-api-key: g-key", "x-api-key:"), "g"),
        (("authorization: Bearer g-key", "x-api-key:"), "g"),
        (("authorization: Basic dXNlcjpwYXNz", "authorization: Bearer g-key"), "g"),
        (("authorization: BEARER   g-key  ",), "g"),
        (("api-key: g-key",), "g"),
        # one known, one unknown
        (("authorization: Bearer wrong", "x-api-key: g-key"), "g"),
        (("authorization: Bearer g-key", "x-api-key: wrong"), "g"),
        (("x-api-key: wrong", "x-api-key: g-key"), "g"),
        (("authorization: Bearer sk-proj-1", "x-api-key: sk-ant-1", "api-key: g-key"), "g"),
        # two known ones of one entitlement
        (("authorization: Bearer g-key", "x-api-key: g-other"), "g"),
        (("authorization: Bearer g-key", "x-api-key: g-key"), "g"),
        # two known ones that differ, and none
        (("authorization: Bearer g-key", "x-api-key: e-key"), None),
        (("authorization: Bearer g-key", "x-api-key: wrong", "api-key: e-key"), None),
        (("authorization: Bearer wrong",), None),
        (("authorization: Bearer wrong", "x-api-key: also-wrong"), None),
        (("authorization: Bearer g-key x",), None),
    ],
)
@pytest.mark.asyncio
async def test_whose_a_request_is(
    lines: tuple[str, ...], owner: str | None, engine: FakeEngine, tmp_path: Path
) -> None:
    raw = request(key=None).replace(
        b"host: test", b"host: test" + b"".join(b"\r\n" + x.encode() for x in lines)
    )
    async with sidecar_for(engine.port, tmp_path, pool=TWO_KEYS) as sidecar:
        expected = None if owner == "anonymous" else owner
        assert await served_for(sidecar, raw) == expected
    async with sidecar_for(engine.port, tmp_path, pool=TWO_KEYS + "anonymous: s\n") as sidecar:
        assert await served_for(sidecar, raw) == ("s" if owner == "anonymous" else owner)
    assert all(b"key" not in received.raw_head for received in engine.received)


async def served_for(sidecar: Sidecar, raw: bytes) -> str | None:
    """The entitlement that a request was charged to; ``None`` if it was refused with 401."""
    before = {name: account.meter.spent for name, account in sidecar.controller.accounts.items()}
    response = await ask(sidecar, raw)
    assert response.status in (200, 401)
    charged = [name for name, was in before.items() if sidecar.controller.accounts[name].meter.spent != was]
    assert len(charged) == (response.status == 200)
    return charged[0] if charged else None


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), "the request has no API key"),
        (("authorization: Basic dXNlcjpwYXNz",), "the Authorization header holds no API key"),
        (("authorization: g-key",), "the Authorization header holds no API key"),
        (("authorization: Bearer g-key", "x-api-key: e-key"), "different entitlements"),
        (tuple(f"x-api-key: {number}" for number in range(MOST_KEYS + 1)), "more than 4 different API keys"),
        (
            (*(f"x-api-key: {number}" for number in range(MOST_KEYS)), "api-key: g-key"),
            "more than 4 different",
        ),
    ],
)
@pytest.mark.asyncio
async def test_why_a_caller_is_not_known_is_said(
    lines: tuple[str, ...], words: str, engine: FakeEngine, tmp_path: Path
) -> None:
    raw = request(key=None).replace(
        b"host: test", b"host: test" + b"".join(b"\r\n" + x.encode() for x in lines)
    )
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        refused = await ask(sidecar, raw)
        assert refused.status == 401
        assert words in refused.error()["message"]
        assert refused.headers["www-authenticate"].startswith("Bearer")


def test_the_same_key_many_times_is_one_key() -> None:
    headers = [(b"x-api-key", b"k"), (b"authorization", b"Bearer k")] * 50
    assert sent_keys(headers) == ([b"k"], False)
    owner = Credential("g")
    ring = KeyRing({hashlib.sha256(b"k").digest(): owner})
    assert ring.find(b"k") is owner


# --- C4: where servers listen ---


def has_ipv6() -> bool:
    if not socket.has_dualstack_ipv6():
        return False
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("127.0.0.1:8080", [("127.0.0.1", 8080)]),
        ("[::]:8080", [("::", 8080)]),
        (":8080", [("", 8080)]),
        ("[::1]:1, 127.0.0.1:1", [("::1", 1), ("127.0.0.1", 1)]),
        ("0.0.0.0:8080,[::]:8080", [("0.0.0.0", 8080), ("::", 8080)]),
        ("localhost:0,127.0.0.1:0", [("localhost", 0), ("127.0.0.1", 0)]),
        ("[fe80::1%eth0]:80", [("fe80::1%eth0", 80)]),
        (":80,:81", [("", 80), ("", 81)]),
    ],
)
def test_lists_of_addresses(text: str, read: list[tuple[str, int]]) -> None:
    assert list(addresses(text, "--listen")) == [Address(*each) for each in read]
    assert addresses(str(addresses(text, "--listen")), "--listen") == addresses(text, "--listen")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8080",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "::1:8080",
        "[::1]",
        "::",
        "[127.0.0.1]:80",
        "[::1:80",
        "::1]:80",
        "127.0.0.1:80,",
        ",127.0.0.1:80",
        "a b:80",
        "h:٣",
        "h:999999",
    ],
)
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--admin: .* is not HOST:PORT"):
        addresses(text, "--admin")


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:80,127.0.0.1:80",
        ":80,127.0.0.1:80",
        "[::1]:80,[::]:80",
        "127.0.0.1:80,[::]:80",
        "0.0.0.0:80,127.0.0.1:80",
        "[::]:80,:80",
        "localhost:80,0.0.0.0:80",
    ],
)
def test_addresses_that_include_each_other_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="one includes the other"):
        addresses(text, "--listen")


def test_options_take_lists_and_an_upstream_has_a_host() -> None:
    read = settings_of("--upstream http://h:1 --listen [::1]:1,127.0.0.1:1 --admin [::]:2")
    assert (str(read.listen), str(read.admin)) == ("[::1]:1,127.0.0.1:1", "[::]:2")
    with pytest.raises(SettingsError, match="names no host"):
        upstream("http://:8000", "--upstream")
    assert address("[::1]:5", "x") == ("::1", 5)


async def answers(port: int, *hosts: str, tls: ssl.SSLContext | None = None) -> list[str]:
    """On which hosts something accepts connections, of those asked."""
    found = []
    for host in hosts:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port, ssl=tls)
            writer.close()
            found.append(host)
    return found


BOTH = ("127.0.0.1", "::1")


@needs_ipv6
@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("[::]:0", BOTH),
        (":0", BOTH),
        ("0.0.0.0:0", BOTH[:1]),
        ("[::1]:0", BOTH[1:]),
        ("127.0.0.1:0,[::1]:0", BOTH),
        ("[::]:0,0.0.0.0:0", BOTH),
        ("0.0.0.0:0,[::]:0", BOTH),
    ],
)
@pytest.mark.asyncio
async def test_where_a_sidecar_is_reached(
    text: str, hosts: tuple[str, ...], engine: FakeEngine, tmp_path: Path
) -> None:
    where = addresses(text, "--listen")
    async with sidecar_for(engine.port, tmp_path, listen=where, admin=where) as sidecar:
        for port in (sidecar.listens_on.port, sidecar.admin_on.port):
            assert await answers(port, *BOTH) == list(hosts)
        for host in hosts:
            url = f"http://{Address(host, sidecar.listens_on.port)}/v1/completions"
            key = {"authorization": "Bearer g-key"}
            body = {"model": "tiny", "prompt": "x"}
            async with aiohttp.ClientSession(headers=key) as session, session.post(url, json=body) as got:
                assert got.status == 200
    assert await answers(sidecar.listens_on.port, *BOTH) == []


@needs_ipv6
@pytest.mark.asyncio
async def test_tls_is_spoken_in_both_families(engine: FakeEngine, tmp_path: Path) -> None:
    cert, key = certify(tmp_path, "front")
    options = {"listen": Addresses.of("::", 0), "tls_cert": cert, "tls_key": key}
    async with sidecar_for(engine.port, tmp_path, **options) as sidecar:
        context = ssl._create_unverified_context()
        assert await answers(sidecar.listens_on.port, *BOTH, tls=context) == list(BOTH)


@needs_ipv6
@pytest.mark.asyncio
async def test_the_injector_listens_in_both_families(tmp_path: Path) -> None:
    cert, key = certify(tmp_path, "injector")
    settings = InjectorSettings(tls_cert=cert, tls_key=key, listen=Addresses.of("::", 0))
    injector = Injector(settings, Template(image="i"))
    await injector.start()
    try:
        context = ssl._create_unverified_context()
        assert await answers(injector.listens_on.port, *BOTH, tls=context) == list(BOTH)
    finally:
        await injector.stop()


def test_a_port_that_the_system_chooses_is_one_for_all_addresses() -> None:
    sockets = listening(addresses("127.0.0.1:0,127.0.0.2:0,127.0.0.3:0", "--listen"))
    try:
        assert len({each.port for each in bound(sockets)}) == 1
        assert [each.host for each in bound(sockets)] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    finally:
        for sock in sockets:
            sock.close()


def test_a_port_in_use_is_named_with_its_option_and_nothing_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = rf"--admin: cannot listen on 127\.0\.0\.1:{port}: address already in use; .*another port"
        with pytest.raises(CannotListen, match=words):
            listening((Address("127.0.0.2", port), Address("127.0.0.1", port)), "--admin")
        socket.create_server(("127.0.0.2", port)).close()


@pytest.mark.parametrize(
    ("host", "words"),
    [("192.0.2.1", "192.0.2.1:1: .*no such address"), ("nowhere.invalid", "nowhere.invalid:1: no such host")],
)
def test_an_address_that_is_not_ours_is_named(host: str, words: str) -> None:
    with pytest.raises(CannotListen, match=words):
        listening((Address(host, 1),))


@pytest.mark.asyncio
async def test_a_sidecar_whose_port_is_taken_says_so(engine: FakeEngine, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = Addresses.of("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(CannotListen, match=f"--listen: cannot listen on {where}"):
            async with starting(engine, tmp_path, listen=where):
                pass


@contextlib.asynccontextmanager
async def starting(engine: FakeEngine, folder: Path, **options: Any) -> AsyncIterator[Sidecar]:
    async with sidecar_for(engine.port, folder, ready=False, **options) as sidecar:
        yield sidecar


# --- H1: names that are read as others ---


@pytest.mark.parametrize(
    ("name", "read_as"),
    [
        (b"content-length", b"content-length"),
        (b"content_length", b"content-length"),
        (b"content--length", b"content-length"),
        (b"content-_length", b"content-length"),
        (b"__content___length__", b"content-length"),
        (b"x-a", b"x-a"),
        (b"te", b"te"),
        (b"---", b""),
    ],
)
def test_how_servers_may_read_a_name(name: bytes, read_as: bytes) -> None:
    assert canonical(name) == read_as


@pytest.mark.parametrize("configured", ["x-tenant-id", "X_Tenant_Id"])
@pytest.mark.asyncio
async def test_what_reads_as_the_identity_header_goes_no_further(
    configured: str, engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, identity_header=configured) as sidecar:
        for name in ("x-tenant-id", "x_tenant_id", "X--Tenant-ID", "x-tenant_id", "_x-tenant-id"):
            headers = {name: "g", "x-other": "kept", "x_other": "kept"}
            response = await ask(sidecar, request(key="e-key", headers=headers))
            assert response.status == 200, name
            received = engine.received[-1].headers
            assert {"x-other", "x_other"} <= set(received)
            assert not any("tenant" in each for each in received)
        spent = sidecar.controller.accounts["g"].meter.spent
        named = request(key="e-key", headers={configured: "g"})
        assert (await ask(sidecar, named)).status == 200
        assert sidecar.controller.accounts["g"].meter.spent > spent


@pytest.mark.parametrize(
    "name", ["Transfer_Encoding", "Content_Length", "Transfer--Encoding", "Keep_Alive", "host_"]
)
@pytest.mark.asyncio
async def test_a_name_that_reads_as_framing_is_refused_and_named(
    name: str, engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        refused = await ask(sidecar, request(headers={name: "5"}))
        assert refused.status == 400
        assert f"the header {name.lower()} could be read as" in refused.error()["message"]
        assert not engine.received
