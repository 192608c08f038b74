"""The traces of live sidecars, as a collector receives them over OTLP/HTTP."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runtime.options import SettingsError
from sidecar.tracing.otlp import FLUSH_S
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Held, Received
from tests.integration.sidecar.handover.peers import (
    EngineDown,
    replica,
    scripted_peer,
    shared_store,
    until_known,
)
from tests.integration.sidecar.tracing import scenarios
from tests.integration.sidecar.tracing.scenarios import CALLER, TRACE_ID, TRACED, chat, endpoint
from tests.support.harness import CHAT, admin, ask, connected, read_response, request, sidecar_for, until
from toolbox.collector import Collector, Span, collecting
from toolbox.ports import free_port

SECRETS = (b"e-key", b"hello-prompt", b"said-this")


@pytest_asyncio.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as made:
        yield made


@pytest_asyncio.fixture
async def second() -> AsyncIterator[FakeEngine]:
    """The engine of another replica."""
    made = FakeEngine()
    await made.start()
    yield made
    await made.stop()


def names(spans: list[Span]) -> list[str]:
    """The names of spans; each must be a child of the first one and lie inside it."""
    server, *stages = spans
    assert server.kind == "server"
    for stage in stages:
        assert stage.parent == server.id
        assert server.start_ns <= stage.start_ns <= stage.end_ns <= server.end_ns
    return [span.name for span in spans]


def span_of(received: Received) -> tuple[str, str, str]:
    """The trace, the span and the flags that the engine gets."""
    version, trace, span, flags = received.headers["traceparent"].split("-")
    assert version == "00"
    return trace, span, flags


STORED = "/v1/responses/resp_1"
SERVER = "POST /v1/chat/completions"

# --- one request, with each of its fates ---


async def test_a_served_request(engine: FakeEngine, collector: Collector, tmp_path: Path) -> None:
    spans = await scenarios.served(engine, tmp_path, collector)

    assert names(spans) == [SERVER, "authenticate", "price", "chat tiny"]
    server, _, price, relayed = spans
    assert server.parent == CALLER
    assert server.status == relayed.status == "unset"
    said = server.attributes
    assert {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 8,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "tokenpool.entitlement": "e",
        "tokenpool.tier": "elastic",
        "tokenpool.ending": "finished",
    }.items() <= said.items()
    assert "error.type" not in said
    assert price.attributes["tokenpool.cost.output_tokens"] == 8
    assert relayed.kind == "client"
    assert (relayed.attributes["server.address"], relayed.attributes["server.port"]) == (
        "127.0.0.1",
        engine.port,
    )
    assert 0 < relayed.attributes["gen_ai.response.time_to_first_chunk"] <= relayed.seconds
    assert server.resource["service.name"] == "tokenpool-sidecar"
    assert server.resource["tokenpool.pool"] == "chat"
    # The engine's own spans join the trace below the span of the engine.
    [received] = engine.received
    assert span_of(received) == (TRACE_ID, relayed.id, "01")
    assert received.headers["tracestate"] == TRACED["tracestate"]
    assert said["tokenpool.request_id"] == received.headers["x-request-id"]


async def test_a_shed_request(engine: FakeEngine, collector: Collector, tmp_path: Path) -> None:
    spans = await scenarios.shed(engine, tmp_path, collector)

    assert names(spans) == [SERVER, "authenticate", "price", "queue"]
    said = spans[0].attributes
    assert said["tokenpool.reason"] == said["error.type"] == "concurrency"
    assert said["http.response.status_code"] == 429
    assert spans[0].status == "unset"  # the conventions for HTTP count only 5xx as errors of a server
    assert spans[-1].attributes["tokenpool.queue.reason"] == "limit"
    assert spans[-1].seconds > 0.05


async def test_a_queued_request(engine: FakeEngine, collector: Collector, tmp_path: Path) -> None:
    spans = await scenarios.queued(engine, tmp_path, collector)

    assert names(spans) == [SERVER, "authenticate", "price", "queue", "chat tiny"]
    assert spans[3].end_ns <= spans[4].start_ns


async def test_a_request_that_is_handed_over(
    engine: FakeEngine, second: FakeEngine, collector: Collector, tmp_path: Path
) -> None:
    spans = await scenarios.handed_over(engine, second, tmp_path, collector)

    assert sorted(names(spans)) == [SERVER, "authenticate", "chat tiny", "handover", "price", "queue"]
    [handover] = [span for span in spans if span.name == "handover"]
    peer = handover.attributes["tokenpool.peer"]
    assert peer.startswith("there-")
    server, relayed = spans[0], spans[-1]
    assert server.attributes["tokenpool.peer"] == relayed.attributes["tokenpool.peer"] == peer
    assert relayed.attributes["server.port"] != engine.port
    assert span_of(second.received[-1]) == (TRACE_ID, relayed.id, "01")
    assert {span.resource["service.instance.id"] for span in spans} == {"here"}


async def test_a_preempted_request(engine: FakeEngine, collector: Collector, tmp_path: Path) -> None:
    spans = await scenarios.preempted(engine, tmp_path, collector)

    assert names(spans) == [SERVER, "authenticate", "price", "chat tiny"]
    for span in (spans[0], spans[-1]):
        assert (span.attributes["error.type"], span.status) == ("preempted", "error")
    assert spans[0].attributes["tokenpool.ending"] == "preempted"
    assert spans[0].attributes["http.response.status_code"] == 200  # the stream had begun


async def test_a_request_that_its_replica_did_not_begin_has_a_span_for_each_place(
    engine: FakeEngine, collector: Collector, tmp_path: Path
) -> None:
    down = EngineDown()
    engine.answer = answer = scenarios.Engine(0.0)
    store = await shared_store()
    async with (
        replica(engine.port, tmp_path, store, otlp_endpoint=endpoint(collector)) as here,
        scripted_peer(store, down),
    ):
        held = await scenarios.hold(here, engine)
        await until_known(here)
        waiting = asyncio.ensure_future(ask(here, chat("e-key", headers=TRACED)))
        await until(lambda: len(down.requests) == 1 and len(here.control.queue) == 1)
        answer.may_end.set()
        await held
        assert (await waiting).status == 200

    spans = collector.of(TRACE_ID)
    assert sorted(names(spans)) == sorted(
        [SERVER, "authenticate", "price", "queue", "handover", "chat tiny", "queue", "chat tiny"]
    )
    first, last = [span for span in spans if span.kind == "client"]
    assert (first.attributes["error.type"], first.status) == ("displaced", "error")
    assert last.status == "unset"
    assert f"00-{TRACE_ID}-{first.id}-01".encode() in down.requests[0]
    assert span_of(engine.received[-1]) == (TRACE_ID, last.id, "01")


async def test_a_request_that_is_sent_again_without_its_priority_keeps_its_span(
    engine: FakeEngine, collector: Collector, tmp_path: Path
) -> None:
    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        if "priority" in received.json():
            error = {"message": "Got priority 20 but Priority scheduling is not enabled.", "code": 400}
            writer.write(fake.unary({"error": error}, status="400 Bad Request"))
        else:
            writer.write(fake.unary())

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
        assert (await ask(sidecar, request(key="s-key", headers=TRACED))).status == 200
    [relayed] = [span for span in collector.of(TRACE_ID) if span.kind == "client"]
    assert relayed.name == "text_completion tiny"
    assert [span_of(each) for each in engine.received] == [(TRACE_ID, relayed.id, "01")] * 2


async def test_the_requests_of_one_connection_have_traces_of_their_own(
    engine: FakeEngine, collector: Collector, tmp_path: Path
) -> None:
    async with (
        sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar,
        connected(sidecar) as (reader, writer),
    ):
        for _ in range(3):  # the last ones have a head that is known, so it is not parsed
            writer.write(request())
            assert (await read_response(reader)).status == 200
    servers = [span for span in collector.spans if span.kind == "server"]
    assert len({span.trace_id for span in servers}) == 3
    assert {span.parent for span in servers} == {""}
    assert len({span_of(received) for received in engine.received}) == 3
    relayed = {span.id for span in collector.spans if span.kind == "client"}
    assert {span_of(received)[1] for received in engine.received} == relayed
    assert all(span.attributes["tokenpool.entitlement"] == "g" for span in servers)


# --- answers of the sidecar itself, and clients that leave ---


@pytest.mark.parametrize(
    ("raw", "name", "status", "reason"),
    [
        (request(key="nobody"), "POST /v1/completions", 401, "unknown_key"),
        (request("/v1/nothing"), "POST", 404, "unknown_route"),
        (request(body=b"{"), "POST /v1/completions", 400, "malformed"),
        (request(method="PROPFIND"), "HTTP /v1/completions", 405, "method_not_allowed"),
        (b"nonsense\r\n\r\n", "HTTP", 400, "malformed"),
        (request(STORED, method="GET"), "GET /v1/responses/{response_id}", 404, "unknown_response"),
    ],
)  # fmt: skip
async def test_a_refused_request(
    engine: FakeEngine,
    collector: Collector,
    tmp_path: Path,
    raw: bytes,
    name: str,
    status: int,
    reason: str,
) -> None:
    async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
        answer = await ask(sidecar, raw)
    assert answer.status == status
    [server] = [span for span in collector.spans if span.kind == "server"]
    assert server.name == name
    assert server.attributes["tokenpool.reason"] == server.attributes["error.type"] == reason
    assert server.attributes["http.response.status_code"] == status
    assert server.attributes["tokenpool.request_id"] == answer.headers["x-request-id"]


async def test_an_engine_that_is_down_is_an_error(
    engine: FakeEngine, collector: Collector, tmp_path: Path
) -> None:
    async def cut(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    engine.answer = cut
    async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
        assert (await ask(sidecar, request(headers=TRACED))).status == 502
    server, *_, relayed = collector.of(TRACE_ID)
    for span in (server, relayed):
        assert (span.attributes["error.type"], span.status) == ("upstream_error", "error")
    assert server.attributes["tokenpool.reason"] == "upstream_error"
    assert server.attributes["http.response.status_code"] == 502
    assert "http.response.status_code" not in relayed.attributes


async def test_a_refusal_of_the_engine(engine: FakeEngine, collector: Collector, tmp_path: Path) -> None:
    async def refuse(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary({"error": {"message": "no such adapter"}}, status="404 Not Found"))

    engine.answer = refuse
    async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
        assert (await ask(sidecar, request(headers=TRACED))).status == 404
    server, *_, relayed = collector.of(TRACE_ID)
    assert (relayed.attributes["error.type"], relayed.status) == ("404", "error")
    assert (server.attributes["error.type"], server.status) == ("404", "unset")
    assert server.attributes["tokenpool.ending"] == "finished"


async def test_a_request_without_a_price(engine: FakeEngine, collector: Collector, tmp_path: Path) -> None:
    raw = request("/v1/models", method="GET", key="e-key", headers={"x-test": "1"} | TRACED)
    async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
        assert (await ask(sidecar, raw)).status == 200
    spans = collector.of(TRACE_ID)
    assert names(spans) == ["GET /v1/models", "authenticate", "GET /v1/models"]
    assert spans[0].attributes["tokenpool.entitlement"] == "e"
    assert not any(name.startswith("gen_ai.") for name in spans[0].attributes)


async def test_the_delay_of_a_request_is_a_stage(
    engine: FakeEngine, collector: Collector, tmp_path: Path
) -> None:
    raw = request("/v1/models", method="GET", key="e-key")
    options = {"otlp_endpoint": endpoint(collector), "unmetered_rate": 40.0}
    async with (
        sidecar_for(engine.port, tmp_path, **options) as sidecar,
        connected(sidecar) as (reader, writer),
    ):
        while not sidecar.manager.bounds.of(sidecar.controller.accounts["e"]).delayed:
            writer.write(raw)
            await read_response(reader)
    delays = [span for span in collector.spans if span.name == "delay"]
    assert delays
    assert all(span.seconds > 0 for span in delays)


async def test_a_client_that_leaves(engine: FakeEngine, collector: Collector, tmp_path: Path) -> None:
    engine.answer = Held()
    async with sidecar_for(
        engine.port, tmp_path, pool=scenarios.ONE_SLOT, otlp_endpoint=endpoint(collector)
    ) as sidecar:
        async with connected(sidecar) as (_, running):
            running.write(request(key="e-key"))
            await until(lambda: len(engine.received) == 1)
            async with connected(sidecar) as (_, waiting):
                # One waits for its decision, one is complete behind it, and one is being received.
                waiting.write(request(key="e-key") * 2 + request(key="e-key")[:-3])
                await until(lambda: len(sidecar.control.queue) == 1)
            await until(lambda: len(sidecar.control.queue) == 0)
        await until(lambda: not sidecar.manager.connections)
    servers = [span for span in collector.spans if span.kind == "server"]
    assert [span.attributes["error.type"] for span in servers] == ["client_gone"] * 4
    assert {span.status for span in servers} == {"unset"}
    assert sum(span.name == "queue" for span in collector.spans) == 1
    assert sum(span.kind == "client" for span in collector.spans) == 1


# --- what is passed on, and what is not ---


async def test_without_the_option_the_headers_pass_unchanged(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await ask(sidecar, request(headers=TRACED | {"baggage": "a=b"}))
        await ask(sidecar, request(headers={"traceparent": "nonsense"}))
        await ask(sidecar, request())
    passed = [
        {k: v for k, v in each.headers.items() if k in {*TRACED, "baggage"}} for each in engine.received
    ]
    assert passed == [TRACED | {"baggage": "a=b"}, {"traceparent": "nonsense"}, {}]


def test_without_the_option_nothing_of_opentelemetry_is_loaded() -> None:
    code = "import sys, sidecar.app; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_a_caller_that_does_not_sample_is_respected(
    engine: FakeEngine, collector: Collector, tmp_path: Path
) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{CALLER}-00"}
    async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
        assert (await ask(sidecar, request(headers=headers))).status == 200
        assert (await ask(sidecar, request(key="nobody", headers=headers))).status == 401
        async with connected(sidecar) as (_, writer):
            writer.write(request(headers=headers)[:-1])
            await until(lambda: len(sidecar.manager.connections) == 1)
    trace, span, flags = span_of(engine.received[0])
    assert (trace, flags) == (TRACE_ID, "00")
    assert span != CALLER
    assert collector.spans == []


async def test_no_span_has_a_prompt_an_answer_or_a_key(
    engine: FakeEngine, collector: Collector, tmp_path: Path
) -> None:
    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary({"choices": [{"text": "said-this"}], "usage": fake.USAGE}))

    engine.answer = answer
    body = {"model": "tiny", "prompt": "hello-prompt", "max_tokens": 5, "user": "hello-prompt"}
    target = "/v1/completions?api_key=e-key&q=hello-prompt"
    async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
        for each in (body, body | {"max_tokens": -1}, body | {"model": "hello-prompt"}):
            await ask(sidecar, request(target, each, key="e-key"))
        await ask(sidecar, request(target, body, key="e-keyless"))
    assert sum(span.kind == "server" for span in collector.spans) == 4
    assert not [secret for secret in SECRETS for sent in collector.bodies if secret in sent]


async def test_the_access_log_has_the_trace(
    engine: FakeEngine, collector: Collector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="sidecar.access")
    options = {"otlp_endpoint": endpoint(collector), "log_requests": True}
    async with sidecar_for(engine.port, tmp_path, **options) as sidecar:
        await ask(sidecar, request(headers=TRACED))
        await ask(sidecar, request(key="nobody", headers=TRACED))
    lines = [record for record in caplog.records if record.name == "sidecar.access"]
    assert [vars(line)["trace_id"] for line in lines] == [TRACE_ID] * 2


# --- the collector ---


async def test_a_collector_that_is_down_costs_no_request(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    url = f"http://127.0.0.1:{free_port()}/v1/traces"
    async with asyncio.timeout(10 + FLUSH_S):
        async with sidecar_for(engine.port, tmp_path, otlp_endpoint=url) as sidecar:
            assert (await ask(sidecar, request())).status == 200
            page = (await admin(sidecar, "/metrics"))[1]
    assert 'tokenpool_spans_total{pool="chat",result="recorded"} 4.0' in page
    assert 'tokenpool_spans_total{pool="chat",result="exported"} 0.0' in page


async def test_a_collector_that_hangs_costs_no_request_and_bounded_memory(
    engine: FakeEngine, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    collector.hangs = True
    async with asyncio.timeout(10 + FLUSH_S):
        async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
            async with connected(sidecar) as (reader, writer):
                for _ in range(20):
                    writer.write(request())
                    assert (await read_response(reader)).status == 200
            page = (await admin(sidecar, "/metrics"))[1]
    # A cached head is not authenticated again.
    assert 'tokenpool_spans_total{pool="chat",result="recorded"} 61.0' in page
    assert collector.spans == []


async def test_a_collector_that_refuses_is_counted(
    engine: FakeEngine, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    collector.status = 400
    async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
        assert (await ask(sidecar, request())).status == 200
        while 'result="failed"} 4.0' not in (await admin(sidecar, "/metrics"))[1]:
            await asyncio.sleep(0)


async def test_the_standard_variables_are_used(
    engine: FakeEngine, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=secret")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat-pool")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
        assert (await ask(sidecar, request())).status == 200
    assert collector.headers[0]["x-collector-key"] == "secret"
    resource = collector.spans[0].resource
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("chat-pool", "prod")
    assert resource["tokenpool.pool"] == "chat"


async def test_the_standard_sampler_is_used(
    engine: FakeEngine, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with sidecar_for(engine.port, tmp_path, otlp_endpoint=endpoint(collector)) as sidecar:
        assert (await ask(sidecar, request("/v1/chat/completions", CHAT, headers=TRACED))).status == 200
    assert span_of(engine.received[0])[2] == "00"
    assert collector.spans == []


async def test_without_the_packages_the_option_is_refused(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sidecar.tracing.otlp", None)
    with pytest.raises(SettingsError, match=r"pip install 'tokenpool\[tracing\]'"):
        async with sidecar_for(engine.port, tmp_path, otlp_endpoint="http://127.0.0.1:4318/v1/traces"):
            pass
