"""The relay: the client gets the engine's answer, and the engine gets an unambiguous request."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
from pathlib import Path

import pytest

from sidecar.decisions import AdmittedRequest, Refusal
from sidecar.proxy.connection_state import Phase
from sidecar.proxy.exchange import Exchange
from sidecar.proxy.heads import RequestHead
from sidecar.proxy.upstream import Connection
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import (
    CHAT,
    STREAM,
    ask,
    connected,
    is_whole,
    read_chunks,
    read_response,
    request,
    sidecar_for,
    until,
)
from tests.support.memory import Transport


async def test_a_unary_answer_passes_with_limit_headers(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request())

    assert response.status == 200
    assert json.loads(response.body)["usage"] == fake.USAGE
    assert response.headers["x-ratelimit-limit-requests"] == "8"
    assert response.headers["x-ratelimit-remaining-requests"] == "7"
    assert {"x-ratelimit-limit-tokens", "x-ratelimit-reset-tokens"} <= set(response.headers)


async def test_the_engine_gets_the_request_with_a_new_framing(engine: FakeEngine, tmp_path: Path) -> None:
    body = b'{"model":"tiny","prompt":"a","max_tokens":1}'
    raw = (
        b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer g-key\r\n"
        b"X-Tokenpool-Entitlement: s\r\nX-Api-Key: g-key\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n"
        b"Accept-Encoding: gzip\r\nTE: trailers\r\nX-Request-Id: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    raw += b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body))) + b"0\r\n\r\n"
    async with sidecar_for(engine.port, tmp_path, engine_priority="off") as sidecar:
        response = await ask(sidecar, raw)

    [received] = engine.received
    assert response.status == 200
    assert received.line == b"POST /v1/completions?x=1 HTTP/1.1"
    assert received.body == body
    assert received.headers == {
        "host": f"127.0.0.1:{engine.port}",
        "accept-encoding": "identity",
        "x-llm-d-inference-fairness-id": "g",
        "x-gateway-inference-fairness-id": "g",
        "x-llm-d-inference-objective": "guaranteed",
        "x-gateway-inference-objective": "guaranteed",
        "x-request-id": "7",
        "content-length": str(len(body)),
    }


async def test_a_stream_hides_the_usage_that_only_we_asked_for(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = fake.answer_stream
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        hidden = [await ask(sidecar, request("/v1/chat/completions", STREAM)) for _ in range(2)]
        asked = STREAM | {"stream_options": {"include_usage": True}}
        visible = await ask(sidecar, request("/v1/chat/completions", asked))
        assert is_whole(sidecar)

    plain = fake.token_event() * 5
    finish = fake.FINISH_EVENT
    stamped = finish.replace(b"}\n\n", b',"system_fingerprint":"fp"}\n\n')
    assert [r.body for r in hidden] == [plain + stamped + fake.DONE] * 2
    assert visible.body == plain + finish + fake.usage_event() + fake.DONE
    assert all(r.json()["stream_options"] == {"include_usage": True} for r in engine.received)


async def test_stream_options_of_the_client_are_replaced_not_doubled(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = fake.answer_stream
    for options in (None, {}, {"include_usage": False}, {"continuous_usage_stats": True}):
        async with sidecar_for(engine.port, tmp_path, engine_priority="off") as sidecar:
            body = STREAM | {"stream_options": options}
            response = await ask(sidecar, request("/v1/chat/completions", body))
        assert b"usage" not in response.body
        assert engine.received[-1].body.count(b"stream_options") == 1
        assert engine.received[-1].json() == body | {"stream_options": {"include_usage": True}}


async def test_events_are_relayed_as_they_come(engine: FakeEngine, tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event()))
        await go_on.wait()
        writer.write(fake.chunk(fake.usage_event()) + fake.chunk(fake.DONE) + b"0\r\n\r\n")

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(request("/v1/chat/completions", STREAM))
        await reader.readuntil(b"\r\n\r\n")
        chunks = read_chunks(reader)
        assert await anext(chunks) == fake.token_event()
        go_on.set()
        assert b"".join([part async for part in chunks]) == fake.DONE


@pytest.mark.parametrize("size", [1, 2, 7, 64])
async def test_a_stream_survives_any_split_of_its_bytes(
    engine: FakeEngine, tmp_path: Path, size: int
) -> None:
    whole = fake.token_event() * 3 + fake.FINISH_EVENT + fake.usage_event(fingerprint=None) + fake.DONE

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD)
        for start in range(0, len(whole), size):
            writer.write(fake.chunk(whole[start : start + size]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request("/v1/chat/completions", STREAM))
        assert is_whole(sidecar)

    assert response.body == fake.token_event() * 3 + fake.FINISH_EVENT + fake.DONE


async def test_a_client_that_goes_away_stops_the_engine_at_once(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD)
        while True:
            writer.write(fake.chunk(fake.token_event()))
            await asyncio.sleep(0.005)

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        async with connected(sidecar) as (reader, writer):
            writer.write(request("/v1/chat/completions", STREAM))
            await reader.readuntil(fake.token_event())
        await asyncio.wait_for(engine.aborted.wait(), 2)
        assert is_whole(sidecar)
        assert sidecar.telemetry.outcomes("g") == {"client_gone": 1}


async def test_a_half_closed_client_counts_as_gone(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (_, writer):
        writer.write(request())
        await until(lambda: bool(engine.received))
        writer.write_eof()
        await asyncio.wait_for(engine.aborted.wait(), 2)
        assert is_whole(sidecar)


async def test_a_stale_pooled_connection_is_replaced(engine: FakeEngine, tmp_path: Path) -> None:
    closes = asyncio.Event()

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        if closes.is_set():
            closes.clear()
            writer.close()
        else:
            await fake.answer_unary(request, writer)

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        assert (await ask(sidecar, request())).status == 200
        closes.set()  # the engine closes the reused connection instead of answering
        assert (await ask(sidecar, request())).status == 200
        assert is_whole(sidecar)
    assert len(engine.received) == 3


async def test_a_fresh_connection_that_closes_is_not_retried(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.close()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request())
        assert is_whole(sidecar)
    assert (response.status, response.headers["x-tokenpool-reason"]) == (502, "upstream_error")
    assert len(engine.received) == 1


async def test_connections_to_the_engine_are_reused(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        async with connected(sidecar) as (reader, writer):
            for _ in range(20):
                writer.write(request())
                assert (await read_response(reader)).status == 200
        assert len(sidecar._upstream._open) == 1


@pytest.mark.parametrize("sends_head", [False, True])
async def test_an_engine_that_dies_ends_the_request(
    engine: FakeEngine, tmp_path: Path, sends_head: bool
) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        if sends_head:
            writer.write(fake.STREAM_HEAD + fake.chunk(fake.token_event()))
            await writer.drain()
        writer.transport.abort()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        if sends_head:
            # The client must not take the stream for complete.
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
                await ask(sidecar, request("/v1/chat/completions", STREAM))
        else:
            assert (await ask(sidecar, request())).status == 502
        assert is_whole(sidecar)
        assert sidecar.telemetry.outcomes("g") == {"upstream_error": 1}


async def test_a_silent_engine_times_out(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path, upstream_timeout=0.1) as sidecar:
        response = await ask(sidecar, request())
        assert is_whole(sidecar)
    assert (response.status, response.headers["x-tokenpool-reason"]) == (504, "upstream_timeout")
    assert engine.aborted.is_set()


async def test_an_engine_error_passes_unchanged_and_costs_nothing(engine: FakeEngine, tmp_path: Path) -> None:
    error = {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}}

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary(error, status="400 Bad Request"))

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request())
        account = sidecar.controller.accounts["g"]
        assert account.bucket.refill(sidecar.telemetry.clock()) == account.bucket.depth
    assert (response.status, json.loads(response.body)) == (400, error)


async def test_a_response_without_a_length_ends_at_close(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        writer.write(b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}')
        await writer.drain()
        writer.close()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request())
        assert is_whole(sidecar)
        assert sidecar.telemetry.outcomes("g") == {"finished": 1}
    assert response.body == b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}'


async def test_interim_responses_are_passed_over(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + fake.unary())

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request())
    assert response.status == 200
    assert "link" not in response.headers


async def test_head_and_no_content_have_no_body(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        if request.line.startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(request("/version", method="HEAD"))
        head = await read_response(reader, has_body=False)
        writer.write(request("/version", method="GET"))
        empty = await read_response(reader, has_body=False)
    assert (head.status, head.headers["content-length"], empty.status) == (200, "40", 204)


async def test_pipelined_requests_are_answered_in_order(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary({"echo": request.json()["prompt"], "usage": fake.USAGE}))

    engine.answer = answer
    bodies = [{"model": "tiny", "prompt": f"p{i}", "max_tokens": 1} for i in range(20)]
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(b"".join(request(body=body) for body in bodies))
        echoes = [json.loads((await read_response(reader)).body)["echo"] for _ in bodies]
        assert is_whole(sidecar)
    assert echoes == [body["prompt"] for body in bodies]


@pytest.mark.parametrize("size", [1, 3, 50])
async def test_a_request_survives_any_split_of_its_bytes(
    engine: FakeEngine, tmp_path: Path, size: int
) -> None:
    raw = request()
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        for start in range(0, len(raw), size):
            writer.write(raw[start : start + size])
            await writer.drain()
            await asyncio.sleep(0)
        assert (await read_response(reader)).status == 200


async def test_expect_100_continue_is_answered_before_the_body(engine: FakeEngine, tmp_path: Path) -> None:
    raw = request(headers={"expect": "100-continue"})
    head, _, body = raw.partition(b"\r\n\r\n")
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await read_response(reader)).status == 200
    assert "expect" not in engine.received[0].headers


async def test_a_pipelined_expect_100_continue_is_answered_in_its_turn(
    engine: FakeEngine, tmp_path: Path
) -> None:
    head, _, body = request(headers={"expect": "100-continue"}).partition(b"\r\n\r\n")
    engine.answer = held = fake.Held()
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(request() + head + b"\r\n\r\n")
        await until(lambda: bool(engine.received))
        held.go.set()
        assert (await read_response(reader)).status == 200
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await read_response(reader)).status == 200


@pytest.mark.parametrize(("number", "is_up"), [(errno.EMFILE, True), (errno.ECONNREFUSED, False)])
async def test_a_shortage_of_the_sidecar_proves_nothing_about_the_engine(
    engine: FakeEngine, tmp_path: Path, number: int, is_up: bool
) -> None:
    class Client:
        def refuse(self, refusal: Refusal, head: RequestHead) -> None:
            self.refusal = refusal

    async with sidecar_for(engine.port, tmp_path, poll_interval=60.0) as sidecar:
        controller, manager, client = sidecar.controller, sidecar.manager, Client()
        admitted = AdmittedRequest(b"", 0.0)
        exchange = Exchange(client, controller, manager.telemetry, manager.pool, RequestHead(), admitted, b"")  # type: ignore[arg-type]
        exchange.on_refused(OSError(number, "no"))
        assert controller.engine.is_up is is_up
    assert client.refusal.reason.value == "engine_down"


class Placed:
    """A client, and a source of connections, that note what the exchange asks for."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def place_again(self, admitted: AdmittedRequest, head: RequestHead, *, has_failed: bool) -> None:
        self.said.append("placed again")

    def refuse(self, refusal: Refusal, head: RequestHead) -> None:
        self.said.append("refused")

    def connect(self, waiter: object) -> None:
        self.said.append("connects")


@pytest.mark.parametrize("is_sent", [False, True])
async def test_a_request_that_an_engine_may_have_begun_is_not_placed_at_another_replica(
    engine: FakeEngine, tmp_path: Path, is_sent: bool
) -> None:
    async with sidecar_for(engine.port, tmp_path, poll_interval=60.0) as sidecar:
        manager, placed, admitted = sidecar.manager, Placed(), AdmittedRequest(b"", 0.0)
        admitted.parsed = "a parsed request, because there are other replicas"
        exchange = Exchange(
            placed,  # type: ignore[arg-type]
            sidecar.controller,
            manager.telemetry,
            placed,  # type: ignore[arg-type]
            RequestHead(),
            admitted,
            b"head",
        )
        connection = Connection(manager.pool)
        connection._transport = transport = Transport()
        if is_sent:
            exchange.on_connected(connection)
            exchange.on_lost(before_response=True, was_reused=True)
        exchange.on_refused(OSError(errno.ECONNREFUSED, "no"))
        connection._transport = None
    assert transport.written == (b"head" if is_sent else b"")
    assert placed.said == (["connects", "refused"] if is_sent else ["placed again"])


async def test_expect_100_continue_spares_a_refused_body(engine: FakeEngine, tmp_path: Path) -> None:
    raw = request(key="wrong", headers={"expect": "100-continue"})
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    assert (response.status, response.headers["connection"]) == (401, "close")


async def test_an_offered_upgrade_is_declined_and_the_body_kept(engine: FakeEngine, tmp_path: Path) -> None:
    upgrade = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAM"}
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(request(headers=upgrade) + request())
        assert [(await read_response(reader)).status for _ in range(2)] == [200, 200]
    assert [r.json()["prompt"] for r in engine.received] == ["hello", "hello"]
    assert "upgrade" not in engine.received[0].headers


@pytest.mark.parametrize("keep", [False, True])
async def test_http10_clients_are_served(engine: FakeEngine, tmp_path: Path, keep: bool) -> None:
    raw = request().replace(b"HTTP/1.1", b"HTTP/1.0")
    if keep:
        raw = raw.replace(b"host: test", b"connection: keep-alive")
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(raw)
        response = await read_response(reader)
        assert response.headers["connection"] == ("keep-alive" if keep else "close")
        if keep:
            writer.write(raw)
            assert (await read_response(reader)).status == 200


async def test_http10_streams_end_at_close(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = fake.answer_stream
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        raw = request("/v1/chat/completions", STREAM).replace(b"HTTP/1.1", b"HTTP/1.0")
        response = await ask(sidecar, raw)
    assert "transfer-encoding" not in response.headers
    assert response.body.endswith(fake.DONE)


async def test_connection_close_is_obeyed(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(request(headers={"connection": "close"}))
        response = await read_response(reader)
        assert response.headers["connection"] == "close"
        assert await reader.read() == b""


async def test_absolute_targets_are_understood(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request("http://anything/v1/completions?a=b"))
    assert response.status == 200
    assert engine.received[0].line == b"POST /v1/completions?a=b HTTP/1.1"


async def test_a_slow_reader_holds_the_engine_back(engine: FakeEngine, tmp_path: Path) -> None:
    sent = 0

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(fake.STREAM_HEAD)
        event = b'data: {"choices":[{"delta":{"content":"' + b"x" * 60000 + b'"}}]}\n\n'
        for _ in range(1000):
            writer.write(fake.chunk(event))
            sent += 1
            await writer.drain()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.listens_on.port, limit=1024)
        writer.write(request("/v1/chat/completions", STREAM))
        await reader.readuntil(b"\r\n\r\n")
        last = -1
        while sent != last:  # until nothing moves any more
            last = sent
            await asyncio.sleep(0.2)
        # 60 MB were on offer; kernel and transport buffers took a small part of it.
        assert sent < 500
        writer.transport.abort()
        await until(lambda: is_whole(sidecar))


async def test_a_client_that_never_reads_is_dropped(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD)
        for _ in range(1000):
            writer.write(fake.chunk(b"data: " + b"x" * 60000 + b"\n\n"))
            await writer.drain()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path, write_timeout=0.1) as sidecar:
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.listens_on.port, limit=1024)
        writer.write(request("/v1/chat/completions", STREAM))
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: sidecar.telemetry.outcomes("g") == {"client_gone": 1})
        assert is_whole(sidecar)
        writer.close()


async def test_an_engine_that_says_more_than_one_answer_is_not_believed(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary() + fake.unary({"for": "somebody else"}))

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request())
        assert response.status in (200, 502)
        assert b"somebody" not in response.body
        assert is_whole(sidecar)


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable"])
async def test_engine_failures_are_relayed_and_counted(
    engine: FakeEngine, tmp_path: Path, status: str
) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary({"error": {}}, status=status))

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        response = await ask(sidecar, request("/v1/chat/completions", CHAT))
        assert sidecar.telemetry.outcomes("g") == {"upstream_error": 1}
    assert response.status == int(status[:3])


async def test_draining_refuses_new_requests_and_finishes_running_ones(
    engine: FakeEngine, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await fake.answer_unary(request, writer)

    engine.answer = answer
    async with (
        sidecar_for(engine.port, tmp_path, drain_timeout=5.0) as sidecar,
        connected(sidecar) as (reader, writer),
        connected(sidecar) as (late_reader, late_writer),
    ):
        late_writer.write(request()[:20])  # a request that is being sent when draining begins
        writer.write(request())
        await until(lambda: bool(engine.received))
        await until(lambda: any(d._parser.phase.name == "HEAD" for d in sidecar.manager.connections))
        stopping = asyncio.ensure_future(sidecar.stop())
        await asyncio.sleep(0)
        assert sidecar.admin.problems() == ["draining"]
        late_writer.write(request()[20:])
        late = await read_response(late_reader)
        assert (late.status, late.headers["retry-after"]) == (503, "1")
        assert late.headers["x-tokenpool-reason"] == "draining"
        go_on.set()
        assert (await read_response(reader)).status == 200
        await stopping


async def test_draining_is_bounded(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path, drain_timeout=0.05) as sidecar:
        waiting = asyncio.ensure_future(ask(sidecar, request()))
        await until(lambda: bool(engine.received))
        await sidecar.stop()
        response = await waiting
        assert (response.status, response.headers["x-tokenpool-reason"]) == (503, "draining")
        assert is_whole(sidecar)
        assert sidecar.telemetry.outcomes("g") == {"drained": 1}


@pytest.mark.parametrize("is_warm", [False, True], ids=["first request", "later request"])
@pytest.mark.parametrize("sent", [20, -3], ids=["part of the head", "part of the body"])
async def test_a_request_that_is_incomplete_at_the_end_of_the_drain_is_refused(
    engine: FakeEngine, tmp_path: Path, sent: int, *, is_warm: bool
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        if is_warm:
            writer.write(request())
            assert (await read_response(reader)).status == 200
        writer.write(request()[:sent])
        await until(
            lambda: any(d._parser.phase in (Phase.HEAD, Phase.BODY) for d in sidecar.manager.connections)
        )
        stopping = asyncio.ensure_future(sidecar.stop())
        response = await read_response(reader)
        assert (response.status, response.headers["x-tokenpool-reason"]) == (503, "draining")
        assert await reader.read() == b""
        writer.close()
        await stopping
        assert is_whole(sidecar)


# --- request ids ---


async def test_client_engine_and_access_log_have_the_same_id(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sidecar.access")

    def logged() -> list[str]:
        return [vars(record)["request_id"] for record in caplog.records if record.name == "sidecar.access"]

    async with sidecar_for(engine.port, tmp_path, log_requests=True) as sidecar, connected(sidecar) as stream:
        reader, writer = stream
        answers = []
        for given in ("mine", None, None, None):  # the third and later ones have a known head
            writer.write(request(headers={"x-request-id": given} if given else {}))
            answers.append(await read_response(reader))
        await until(lambda: len(logged()) == 4)

    ids = [answer.headers["x-request-id"] for answer in answers]
    assert ids[0] == "mine"
    assert len(set(ids)) == 4
    assert [received.headers["x-request-id"] for received in engine.received] == ids
    assert logged() == ids


async def test_an_engine_that_states_the_id_itself_does_not_double_it(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary().replace(b"\r\n\r\n", b"\r\nX-Request-Id: the-engines-own\r\n\r\n", 1))

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar, connected(sidecar) as (reader, writer):
        writer.write(request(headers={"x-request-id": "mine"}))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert re.findall(rb"x-request-id: (\S+)", head) == [b"mine"]


@pytest.mark.parametrize(
    ("path", "key", "status", "names"),
    [
        ("/v1/completions", "unknown", 401, {"x-request-id"}),
        ("/v1/nothing", "g-key", 404, {"x-request-id"}),
        ("/v1/messages", "unknown", 401, {"x-request-id", "request-id"}),
    ],
)
async def test_refusals_have_an_id_under_the_names_of_the_dialect(
    engine: FakeEngine, tmp_path: Path, path: str, key: str, status: int, names: set[str]
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        answer = await ask(sidecar, request(path, key=key, headers={"x-request-id": "mine"}))
    assert answer.status == status
    assert {name for name, value in answer.headers.items() if value == "mine"} == names
