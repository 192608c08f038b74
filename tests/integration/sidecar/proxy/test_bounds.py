"""The bounds of each caller: no caller can exhaust the sidecar's own resources."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import re
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.options import SettingsError
from sidecar.app import Sidecar
from sidecar.decisions import AdmittedRequest
from sidecar.dialects.bodies import MOST_UNPRICED
from sidecar.identity import Credential, KeyRing
from sidecar.proxy.bounds import LARGE_BODY, MAX_DELAY_S, UNMETERED_S, Bounds
from sidecar.proxy.connection import ClientConnection
from sidecar.proxy.connection_manager import REFUSED_AT_ONCE
from sidecar.proxy.exchange import Exchange
from sidecar.proxy.heads import RequestHead
from sidecar.proxy.receiving import has_left
from sidecar.proxy.request_parser import RequestParser
from tests.certificates import certify
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Held, Received
from tests.support.harness import (
    STREAM,
    Response,
    admin,
    ask,
    connected,
    is_whole,
    read_response,
    request,
    settings_of,
    sidecar_for,
    until,
)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def many(sidecar: Sidecar, count: int) -> AsyncIterator[list[Streams]]:
    """Connections that have sent no bytes."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(sidecar)) for _ in range(count)]


async def served(stream: Streams, key: str) -> Response:
    reader, writer = stream
    writer.write(request(key=key))
    return await read_response(reader)


def head_with(framing: bytes, key: str | None = "g-key") -> bytes:
    """The head of a request whose body is framed like this."""
    head = request(key=key).partition(b"\r\n\r\n")[0]
    return re.sub(rb"content-length: \d+", framing, head) + b"\r\n\r\n"


def holds(sidecar: Sidecar, name: str) -> int:
    """How many connections an entitlement has."""
    bounds = sidecar.manager.bounds
    return (
        bounds.unidentified if name == "none" else bounds.of(sidecar.controller.accounts[name])
    ).connections


def nothing_is_held(sidecar: Sidecar) -> bool:
    bounds = sidecar.manager.bounds
    return bounds.buffered == 0 and not any(
        h.buffered for h in (bounds.unidentified, *bounds._callers.values())
    )


# --- the rule ---


def test_one_caller_gets_its_share_and_several_divide_the_whole() -> None:
    bounds = Bounds(1000, 1000, 0.5, 0.25)
    alone = bounds.unidentified
    assert (alone.max_connections, alone.max_bytes) == (250, 250)
    for _ in range(250):
        alone.add_connection()
    assert alone.max_connections == 250
    bounds.connections += 600
    assert alone.max_connections == 100


def test_a_new_caller_finds_room_however_much_the_others_use() -> None:
    bounds = Bounds(1000, 1000, 0.5, 0.25)
    unidentified = bounds.unidentified
    bounds.connections = bounds.buffered = 990
    assert unidentified.max_connections == 2
    assert unidentified.reserve_bytes(2)
    assert not unidentified.reserve_bytes(1)
    bounds.connections = 999
    assert unidentified.max_connections == 1
    bounds.connections = 1000
    assert unidentified.max_connections == 0


# --- connections ---


async def test_a_connection_counts_for_the_entitlement_of_its_last_request(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar, many(sidecar, 1) as [stream]:
        for key, expected in (("wrong", "none"), ("g-key", "g"), ("wrong", "g")):
            reader, writer = stream
            writer.write(request("/v1/models", key=key, method="GET", headers={"x-test": "1"}))
            await read_response(reader)
            assert holds(sidecar, expected) == 1
        assert (await served(stream, "e-key")).status == 200
        assert (holds(sidecar, "g"), holds(sidecar, "e"), holds(sidecar, "none")) == (0, 1, 0)
        _, metrics = await admin(sidecar, "/metrics")
    assert 'tokenpool_connections{entitlement="e",pool="chat"} 1.0' in metrics
    assert 'tokenpool_connections{entitlement="none",pool="chat"} 0.0' in metrics


async def test_the_longest_idle_connection_is_closed_for_a_new_one(
    engine: FakeEngine, tmp_path: Path
) -> None:
    limits = {"max_connections": 8, "entitlement_share": 0.25, "unidentified_share": 1.0}
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar, many(sidecar, 3) as streams:
        first, second, third = streams
        for stream in (second, first, third):
            assert (await served(stream, "g-key")).status == 200
        assert await second[0].read() == b""
        assert holds(sidecar, "g") == 2
        assert (await served(first, "g-key")).status == 200
        _, metrics = await admin(sidecar, "/metrics")
    assert 'tokenpool_connections_cut_total{entitlement="g",pool="chat"} 1.0' in metrics


async def test_without_an_idle_connection_only_the_new_one_is_refused(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = Held()
    limits = {"max_connections": 12, "entitlement_share": 0.25, "unidentified_share": 1.0}
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar, many(sidecar, 4) as streams:
        busy = [asyncio.ensure_future(served(stream, "g-key")) for stream in streams[:2]]
        await until(lambda: len(engine.received) == 2)
        refused = await served(streams[2], "g-key")
        other = asyncio.ensure_future(served(streams[3], "e-key"))
        await until(lambda: len(engine.received) == 3)
        held.go.set()
        assert [r.status for r in (*await asyncio.gather(*busy), await other)] == [200] * 3
        assert is_whole(sidecar)
    assert (refused.status, refused.headers["x-tokenpool-reason"]) == (503, "too_many_connections")
    assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
    assert "entitlement 'g'" in refused.error()["message"]


async def test_silent_connections_are_closed_and_never_use_all_places(
    engine: FakeEngine, tmp_path: Path
) -> None:
    limits = {"max_connections": 8, "unidentified_share": 0.5}
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar:
        async with many(sidecar, 1) as [known]:
            assert (await served(known, "g-key")).status == 200
            async with many(sidecar, 8) as strangers:
                strangers[7][1].write(request()[:20])
                await until(lambda: holds(sidecar, "none") == 3)
                assert await strangers[0][0].read() == b""
                # Neither an old nor a new connection is refused.
                assert (await served(known, "g-key")).status == 200
                assert (await ask(sidecar, request(key="e-key"))).status == 200
        await until(lambda: not sidecar.manager.connections)
        assert sidecar.manager.bounds.connections == 0


async def test_a_full_sidecar_closes_idle_connections_of_the_largest_caller(
    engine: FakeEngine, tmp_path: Path
) -> None:
    limits = {"max_connections": 3, "entitlement_share": 1.0, "unidentified_share": 1.0}
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar, many(sidecar, 3) as streams:
        for stream, key in zip(streams, ("g-key", "e-key", "g-key"), strict=True):
            assert (await served(stream, key)).status == 200
        assert (await ask(sidecar, request(key="s-key"))).status == 200
        assert await streams[0][0].read() == b""
        assert (holds(sidecar, "g"), holds(sidecar, "e")) == (1, 1)


@pytest.mark.exclusive  # the refused connections must still linger when the last one comes
async def test_refused_connections_are_answered_only_up_to_a_point(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = Held()
    limits = {"max_connections": 1, "unidentified_share": 1.0}
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar, many(sidecar, 1) as [stream]:
        busy = asyncio.ensure_future(served(stream, "g-key"))
        await until(lambda: bool(engine.received))
        async with many(sidecar, REFUSED_AT_ONCE + 2) as others:
            assert (await read_response(others[0][0])).status == 503
            with contextlib.suppress(ConnectionResetError):
                assert await others[-1][0].read() == b""
        held.go.set()
        assert (await busy).status == 200


async def test_unfinished_handshakes_are_closed_for_new_connections(
    engine: FakeEngine, tmp_path: Path
) -> None:
    cert, key = certify(tmp_path, "us")
    limits = {"max_connections": 4, "unidentified_share": 0.5, "tls_cert": cert, "tls_key": key}
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar, many(sidecar, 3) as streams:
        with contextlib.suppress(ConnectionResetError):
            assert await streams[0][0].read() == b""
        assert holds(sidecar, "none") == 2


# --- bytes ---

BYTES = {"max_buffered_bytes": 100_000, "entitlement_share": 0.5, "max_body_bytes": 40_000}


def padded(size: int, key: str = "e-key", path: str = "/v1/completions") -> bytes:
    """A request whose body has so many bytes, nearly."""
    return request(path, {"model": "tiny", "prompt": "a", "max_tokens": 1, "user": "x" * size}, key=key)


async def test_bodies_of_one_entitlement_are_bounded_and_others_have_room(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = Held()
    async with sidecar_for(engine.port, tmp_path, **BYTES) as sidecar, many(sidecar, 2) as (first, last):
        first[1].write(padded(30_000))
        await until(lambda: bool(engine.received))
        refused = await ask(sidecar, padded(30_000))
        last[1].write(padded(20_000, key="g-key"))
        await until(lambda: len(engine.received) == 2)
        _, metrics = await admin(sidecar, "/metrics")
        held.go.set()
        assert [(await read_response(reader)).status for reader, _ in (first, last)] == [200, 200]
        assert (await ask(sidecar, padded(30_000))).status == 200
        assert nothing_is_held(sidecar)
        assert sidecar.telemetry.outcomes("e")["sidecar_full"] == 1
    assert (refused.status, refused.headers["x-tokenpool-reason"]) == (429, "sidecar_full")
    assert refused.headers["retry-after"] == "1"
    assert "entitlement 'e'" in refused.error()["message"]
    assert 'tokenpool_buffered_bytes{entitlement="e",pool="chat"} 32' in metrics


async def test_a_body_counts_before_it_arrives(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path, **BYTES) as sidecar:
        async with many(sidecar, 1) as [(_, writer)]:
            writer.write(padded(30_000)[:1000])
            await until(lambda: sidecar.manager.bounds.buffered > 30_000)
            assert (await ask(sidecar, padded(30_000))).status == 429
        await until(lambda: nothing_is_held(sidecar))
        assert (await ask(sidecar, padded(30_000))).status == 200


async def test_a_cached_head_is_counted_and_bounded_like_any_other(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = held = Held()
    async with sidecar_for(engine.port, tmp_path, **BYTES) as sidecar, many(sidecar, 2) as (one, two):
        held.go.set()
        for _ in range(3):
            assert (await served(one, "e-key")).status == 200
        assert nothing_is_held(sidecar)
        held.go.clear()
        two[1].write(padded(30_000))
        await until(lambda: len(engine.received) == 4)
        one[1].write(padded(30_000))
        assert (await read_response(one[0])).status == 429
        held.go.set()
        assert (await read_response(two[0])).status == 200
        await until(lambda: nothing_is_held(sidecar))


async def test_a_body_without_a_length_counts_as_it_grows(engine: FakeEngine, tmp_path: Path) -> None:
    raw = head_with(b"transfer-encoding: chunked")
    limits = BYTES | {"max_buffered_bytes": 600_000, "max_body_bytes": 190_000}
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar:
        async with many(sidecar, 2) as (slow, other):
            slow[1].write(raw + fake.chunk(b" " * 60_000))
            await until(lambda: 60_000 < sidecar.manager.bounds.buffered < 70_000)
            other[1].write(padded(100_000, key="g-key"))
            assert (await read_response(other[0])).status == 200
            slow[1].write(fake.chunk(b" " * 60_000))
            await until(lambda: 130_000 < sidecar.manager.bounds.buffered < 140_000)
            slow[1].write(fake.chunk(b" " * 60_000) + fake.chunk(b" " * 20_000))
            assert (await read_response(slow[0])).status == 413
        await until(lambda: nothing_is_held(sidecar))
        tight = raw + fake.chunk(b" " * 60_000) * 3
        async with many(sidecar, 1) as [stream]:
            stream[1].write(padded(150_000)[:500])
            await until(lambda: sidecar.manager.bounds.buffered > 150_000)
            assert (await ask(sidecar, tight.replace(b"g-key", b"e-key"))).status == 429
        await until(lambda: nothing_is_held(sidecar))


async def test_unread_answers_count_and_the_connection_beyond_the_bound_is_closed(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD)
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(fake.chunk(b"data: " + b"x" * 60_000 + b"\n\n"))
                await writer.drain()

    engine.answer = answer
    limits = {"max_buffered_bytes": 500_000, "max_body_bytes": 40_000, "entitlement_share": 0.5}
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar, many(sidecar, 5) as streams:
        for _, writer in streams:
            writer.transport.pause_reading()
            writer.write(request("/v1/chat/completions", STREAM, key="e-key"))
        caller = sidecar.manager.bounds.of(sidecar.controller.accounts["e"])
        await until(lambda: caller.cut > 0)
        assert 0 < caller.buffered <= 250_000
        for _, writer in streams:
            writer.transport.abort()
        await until(lambda: is_whole(sidecar) and nothing_is_held(sidecar))


async def test_requests_wait_while_answers_are_unread_and_go_on_when_they_are_read(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary({"text": "x" * 500_000, "usage": fake.USAGE}))

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar, many(sidecar, 1) as [(reader, writer)]:
        writer.transport.pause_reading()
        for _ in range(40):
            writer.write(request("/v1/models", key="e-key", method="GET", headers={"x-test": "1"}))
        await until(lambda: any(connection.buffered > 64_000 for connection in sidecar.manager.connections))
        seen = -1
        while seen != len(engine.received):  # until nothing moves any more
            seen = len(engine.received)
            await asyncio.sleep(0.1)
        assert seen < 40
        writer.transport.resume_reading()
        async with asyncio.timeout(20):
            statuses = [(await read_response(reader)).status for _ in range(40)]
        assert statuses == [200] * 40
        await until(lambda: nothing_is_held(sidecar))


async def test_endless_pipelining_is_bounded_in_bytes(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = held = Held()
    one = request("/v1/models", key="e-key", method="GET", headers={"x-test": "1"})
    async with sidecar_for(engine.port, tmp_path, **BYTES) as sidecar, many(sidecar, 1) as [(reader, writer)]:
        writer.write(one * 200)
        await until(lambda: bool(engine.received))
        assert sidecar.manager.bounds.buffered <= 50_000
        held.go.set()
        assert {(await read_response(reader)).status for _ in range(200)} == {200}
        writer.write(one * 1000)
        statuses = []
        while not statuses or statuses[-1] == 200:
            statuses.append((await read_response(reader)).status)
        assert statuses[-1] == 429
        await until(lambda: nothing_is_held(sidecar))


# --- time ---


def test_unmetered_answers_are_delayed() -> None:
    caller = Bounds(1000, 1000, 0.5, 0.25, unmetered_rate=10).unidentified
    for _ in range(4):
        caller.add_connection()
    assert [caller.unmetered_s(0.0, 0.0) for _ in range(12)] == [0.0] * 10 + [0.4] * 2
    assert caller.unmetered_s(0.0, 0.3) == 0.0
    assert caller.unmetered_s(2 * UNMETERED_S, 0.3) == pytest.approx(1.2)
    assert caller.unmetered_s(UNMETERED_S, 0.3) == pytest.approx(0.8)
    for _ in range(200):
        caller.add_connection()
    assert caller.unmetered_s(0.0, 0.3) == MAX_DELAY_S
    assert caller.unmetered_s(0.0, 60.0) == 0.0


def test_large_bodies_have_a_rate_and_the_first_is_always_accepted() -> None:
    caller = Bounds(1000, 1000, 0.5, 0.25, large_body_rate=100).unidentified
    assert caller.large_body_wait_s(0.0) == 0
    caller.read_large(400)
    assert caller.large_body_wait_s(0.0) == pytest.approx(3.0, abs=0.01)
    assert caller.large_body_wait_s(2.5) == pytest.approx(0.5, abs=0.01)
    assert caller.large_body_wait_s(3.5) == 0


async def test_a_connection_that_ends_during_a_delay_releases_its_bytes_once(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with (
        sidecar_for(engine.port, tmp_path, unmetered_rate=5.0) as sidecar,
        many(sidecar, 1) as [(_, writer)],
    ):
        writer.write(request("/v1/models", key="nobody", method="GET") * 40)
        await until(lambda: sidecar.manager.bounds.unidentified.delayed > 0)
        [connection] = sidecar.manager.connections
        assert connection.buffered > 0
        connection.abort()
        await until(lambda: not sidecar.manager.connections)
        connection._read_on()
        assert nothing_is_held(sidecar)


async def test_a_connection_that_is_closed_for_another_releases_its_bytes_once(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar, many(sidecar, 1):
        await until(lambda: holds(sidecar, "none") == 1)
        [connection] = sidecar.manager.connections
        connection.data_received(request("/v1/models", key="nobody", method="GET") * 40)
        assert connection.buffered > 0
        assert sidecar.manager._make_room(sidecar.manager.bounds.unidentified)
        connection._read_on()
        await until(lambda: not sidecar.manager.connections)
        assert nothing_is_held(sidecar)


@pytest.mark.parametrize("key", ["e-key", "nobody"])
async def test_too_many_unmetered_answers_are_delayed_and_none_is_lost(
    engine: FakeEngine, tmp_path: Path, key: str
) -> None:
    """Every pipelined request is answered; other callers are served during the delay."""
    async with (
        sidecar_for(engine.port, tmp_path, unmetered_rate=20.0) as sidecar,
        many(sidecar, 2) as streams,
    ):
        assert (await served(streams[0], "g-key")).status == 200
        reader, writer = streams[1]
        writer.write(request("/v1/models", key=key, method="GET") * 40)
        for _ in range(40):
            assert (await read_response(reader)).status in (200, 401)
            assert (await served(streams[0], "g-key")).status == 200
        bounds = sidecar.manager.bounds
        assert sum(h.delayed for h in (bounds.unidentified, *bounds._callers.values())) >= 5


async def test_delayed_answers_to_unidentified_callers_do_not_block_others(
    engine: FakeEngine, tmp_path: Path
) -> None:
    limits = {"max_connections": 40, "unmetered_rate": 0.5}
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar, many(sidecar, 10) as strangers:
        for _, writer in strangers:
            writer.write(request("/nothing", method="GET", key=None) * 2)
        await until(lambda: sidecar.manager.bounds.unidentified.delayed == 10)
        assert (await ask(sidecar, request())).status == 200


async def test_many_unidentified_callers_may_each_defer_few_bytes(engine: FakeEngine, tmp_path: Path) -> None:
    limits = BYTES | {"max_buffered_bytes": 400_000, "unmetered_rate": 2.0}
    nothing = request("/nothing", method="GET", key=None)
    async with sidecar_for(engine.port, tmp_path, **limits) as sidecar, many(sidecar, 2) as (one, other):
        one[1].write(nothing * 1100)
        await until(lambda: sidecar.manager.bounds.unidentified.buffered > 50_000)
        other[1].write(nothing * 500)
        while (await read_response(other[0])).status == 404:
            pass
        assert await other[0].read() == b""
        assert sidecar.manager.bounds.unidentified.buffered < 70_000


@pytest.mark.parametrize("path", ["/nothing", "/v1/models"])
async def test_delayed_answers_are_sent_when_the_sidecar_stops(
    engine: FakeEngine, tmp_path: Path, path: str
) -> None:
    async with (
        sidecar_for(engine.port, tmp_path, unmetered_rate=0.01) as sidecar,
        many(sidecar, 1) as [stream],
    ):
        reader, writer = stream
        assert (await served(stream, "e-key")).status == 200
        writer.write(request(path, method="GET", key="e-key") * 2)
        first = await read_response(reader)
        await until(lambda: sidecar.manager.exchanges == 1)
        sidecar.lifecycle.is_draining = True
        sidecar.manager.drain()
        second = await read_response(reader)
        assert await reader.read() == b""
    assert first.status in (200, 404)
    assert second.status in (404, 503)


def test_a_connection_that_is_being_closed_has_not_left() -> None:
    """Over TLS its socket closes before connection_lost. This once ended all time limits."""

    class Closing:
        def get_extra_info(self, name: str) -> None:
            return None

    assert not has_left(Closing())  # type: ignore[arg-type]


async def test_one_broken_connection_does_not_end_the_time_limits_of_others(
    engine: FakeEngine, tmp_path: Path
) -> None:
    class Broken:
        is_busy = False
        is_gone = False

        def sweep(self, now: float) -> None:
            raise AssertionError("broken")

        def abort(self) -> None:
            self.is_gone = True

    async with sidecar_for(engine.port, tmp_path) as sidecar, many(sidecar, 1):
        await until(lambda: len(sidecar.manager.connections) == 1)
        broken = Broken()
        sidecar.manager.connections.add(broken)  # type: ignore[arg-type]
        list(sidecar.manager.sweep(1e12))
        sidecar.manager.connections.discard(broken)  # type: ignore[arg-type]
        assert broken.is_gone
        await until(lambda: not sidecar.manager.connections)


async def test_large_bodies_that_come_too_fast_are_refused_with_a_time(
    engine: FakeEngine, tmp_path: Path
) -> None:
    large = {"model": "tiny", "prompt": "x" * 10 * LARGE_BODY, "max_tokens": 1}
    size = 3 * LARGE_BODY
    async with sidecar_for(engine.port, tmp_path, large_body_rate=LARGE_BODY) as sidecar:
        first = await ask(sidecar, request(body=large, key="e-key"))
        second = await ask(sidecar, request(body=large, key="e-key"))
        small = await ask(sidecar, request(key="e-key"))
        other = await ask(sidecar, request(body=large, key="s-key"))
        chunked = head_with(b"transfer-encoding: chunked", "e-key") + b"%x\r\n%b" % (size, b" " * size)
        grown = await ask(sidecar, chunked)
        assert nothing_is_held(sidecar)
    assert (first.status, small.status) == (other.status, 200)
    for refused in (second, grown):
        assert refused.status == 429
        assert refused.headers["x-tokenpool-reason"] == "sidecar_full"
        assert int(refused.headers["retry-after-ms"]) > 0
        assert "arrive faster than" in refused.error()["message"]


async def test_bodies_without_a_price_are_bounded(engine: FakeEngine, tmp_path: Path) -> None:
    keyless = b" HTTP/1.1\r\nhost: x\r\ncontent-length: 70000\r\n\r\n"
    async with sidecar_for(engine.port, tmp_path, max_body_bytes=1 << 20) as sidecar:
        beside = await ask(sidecar, request(body={"prompt": "a", "x": "y" * (MOST_UNPRICED + 9)}))
        free = await ask(sidecar, request("/tokenize", {"prompt": "y" * (1 << 18)}))
        public = await ask(sidecar, b"GET /health" + keyless + b"y" * 70_000)
        preflight = await ask(sidecar, b"OPTIONS /v1/completions" + keyless + b"y" * 70_000)
    assert beside.status == 400
    assert "bytes outside its prompt and tools" in beside.error()["message"]
    for refused in (free, public, preflight):
        assert refused.status == 413
        assert "routes that cost no tokens" in refused.error()["message"]
    assert engine.received == []


async def test_tiny_chunks_use_no_more_memory_than_they_count(engine: FakeEngine, tmp_path: Path) -> None:
    """As separate objects they used 26 times as much."""
    size = 200_000
    body = b'{"prompt":"' + b"x" * size + b'"}'
    chunks = b"".join(b"2\r\n%b\r\n" % body[at : at + 2] for at in range(0, len(body) - 1, 2))
    tracemalloc.start()
    try:
        async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
            await asyncio.sleep(0)
            before, _ = tracemalloc.get_traced_memory()
            del body
            writer.write(head_with(b"transfer-encoding: chunked") + chunks)
            del chunks
            await until(lambda: sidecar.manager.bounds.buffered > size)
            await until(lambda: tracemalloc.get_traced_memory()[0] - before < 4 * size)
            writer.write(b"0\r\n\r\n")
            assert (await read_response(reader)).status in (200, 400)
    finally:
        tracemalloc.stop()


async def test_a_disconnect_is_noticed_while_reading_is_paused(engine: FakeEngine, tmp_path: Path) -> None:
    """The client pipelines more than is read ahead, so that reading pauses, and disconnects."""
    engine.answer = held = Held()
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        async with connected(sidecar) as (_, writer):
            writer.write(request() + request("/v1/models", method="GET") * 100)
            await until(lambda: bool(engine.received))
            [connection] = sidecar.manager.connections
            await until(lambda: connection._is_paused)
            writer.transport.abort()
        await until(lambda: not sidecar.manager.connections)
        await until(lambda: is_whole(sidecar))
        held.go.set()
        assert nothing_is_held(sidecar)


async def test_a_closed_connection_leaves_no_reference_cycles(engine: FakeEngine, tmp_path: Path) -> None:
    """Collecting the cycles of many connections stopped the event loop for 170 ms."""
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        gc.collect()
        gc.disable()
        try:
            for sent in (
                b"",
                request(),
                request("/v1/chat/completions", STREAM),
                request(key="x"),
                b"?\r\n\r\n",
            ):
                async with connected(sidecar) as (reader, writer):
                    writer.write(sent)
                    if sent:
                        await reader.read(100)
            await until(lambda: not sidecar.manager.connections)
            left = [
                o
                for o in gc.get_objects()
                if isinstance(o, ClientConnection | RequestParser | Exchange | AdmittedRequest | RequestHead)
            ]
        finally:
            gc.enable()
    assert left == []


# --- refused callers ---


@pytest.mark.parametrize("key", ["wrong", None])
async def test_a_flood_of_wrong_keys_is_answered_without_reading_bodies(
    engine: FakeEngine, tmp_path: Path, key: str | None
) -> None:
    endless = head_with(b"content-length: 30000000", key)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        answers = await asyncio.gather(*(ask(sidecar, endless + b"{") for _ in range(50)))
        assert nothing_is_held(sidecar)
        assert holds(sidecar, "none") <= 50
        assert sidecar.telemetry.outcomes("none") == {"unknown_key": 50}
    assert {(a.status, a.headers["connection"]) for a in answers} == {(401, "close")}
    assert engine.received == []


async def test_a_head_of_very_many_headers_is_refused(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        few = await ask(sidecar, request(headers={f"x{i}": "1" for i in range(120)}))
        many = await ask(sidecar, request(headers={f"x{i}": "1" for i in range(130)}))
    assert (few.status, many.status) == (200, 431)
    assert "or 128 headers" in many.error()["message"]


def test_a_key_is_found_among_others_that_begin_alike() -> None:
    digest = hashlib.sha256(b"key").digest()
    twin = digest[:8] + bytes(24)
    owner = Credential("owner")
    ring = KeyRing({twin: Credential("twin"), digest: owner})
    assert (ring.find(b"key"), ring.find(b"other"), len(ring)) == (owner, None, 2)


# --- settings ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--entitlement-share 1.5", "--entitlement-share: '1.5' is above 1"),
        ("--unidentified-share 0", "--unidentified-share: '0' is not a number above 0"),
        ("--max-buffered-bytes 1000000", "has no room for a body of --max-body-bytes 16777216"),
    ],
)
def test_wrong_options_are_named(arguments: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        settings_of(f"--upstream http://h:1 {arguments}")


def test_the_admin_port_is_on_loopback_unless_told_otherwise() -> None:
    assert [a.host for a in settings_of("--upstream http://h:1").admin] == ["127.0.0.1"]
