"""Whole runs against each endpoint of a scripted engine: directly, and through a real sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadgen.progress import Progress
from loadgen.records import Outcome, Run, load
from loadgen.run import Order, Runner
from loadgen.scenario import Constant, Conversation, Endpoint, Fixed, Header, PromptForm, Tenant
from loadgen.summary import summarise
from tests.fakes.scripted_engine import STREAM_HEAD, FakeEngine, Received, chunk, unary
from tests.support.harness import is_whole, sidecar_for, until
from tests.support.loadgen_builders import scenario, tenant

TOKENS = 3
"""Output tokens of each scripted response."""
GENERATING = [Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES]


def named(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


def plain(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


OPENAI = {"prompt_tokens": 16, "completion_tokens": TOKENS, "total_tokens": 16 + TOKENS}
OTHERS = {"input_tokens": 16, "output_tokens": TOKENS}
CHOICE = {"index": 0, "finish_reason": None}
STREAMS = {
    "/v1/completions": [plain(choices=[CHOICE | {"text": "a"}])] * TOKENS
    + [plain(choices=[], usage=OPENAI), b"data: [DONE]\n\n"],
    "/v1/chat/completions": [plain(choices=[CHOICE | {"delta": {"role": "assistant", "content": ""}}])]
    + [plain(choices=[CHOICE | {"delta": {"content": "a"}}])] * TOKENS
    + [plain(choices=[], usage=OPENAI), b"data: [DONE]\n\n"],
    "/v1/responses": [named("response.created", response={"id": "resp_1", "status": "in_progress"})]
    + [named("response.output_text.delta", delta="a")] * TOKENS
    + [named("response.completed", response={"id": "resp_1", "status": "completed", "usage": OTHERS})],
    "/v1/messages": [
        named("message_start", message={"id": "m", "content": [], "usage": OTHERS | {"output_tokens": 0}})
    ]
    + [named("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})] * TOKENS
    + [named("message_delta", delta={"stop_reason": "max_tokens"}, usage=OTHERS), named("message_stop")],
}
WHOLE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"choices": [CHOICE | {"text": "aaa"}], "usage": OPENAI},
    "/v1/chat/completions": {"choices": [CHOICE | {"message": {"content": "aaa"}}], "usage": OPENAI},
    "/v1/responses": {
        "id": "resp_1",
        "status": "completed",
        "usage": OTHERS,
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "aaa"}]}],
    },
    "/v1/messages": {"id": "m", "content": [{"type": "text", "text": "aaa"}], "usage": OTHERS},
    "/v1/embeddings": {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 16, "total_tokens": 16}},
    "/v1/rerank": {"results": [{"index": 0}], "usage": {"prompt_tokens": 16, "total_tokens": 16}},
}


def path_of(request: Received) -> str:
    return request.line.split()[1].decode()


async def answer(request: Received, writer: asyncio.StreamWriter) -> None:
    """A correct response of the route, streamed if the request says so."""
    path = path_of(request)
    if not request.json().get("stream"):
        writer.write(unary(WHOLE[path]))
        return
    writer.write(STREAM_HEAD)
    for event in STREAMS[path]:
        writer.write(chunk(event))
        await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")


def asking(endpoint: Endpoint, **fields: Any) -> Tenant:
    output = Fixed(TOKENS if endpoint in GENERATING else 0)
    return tenant(process=Constant(20.0), endpoint=endpoint, output=output, **fields)


async def measured(out: Path, port: int, *tenants: Tenant, **fields: Any) -> Run:
    made = scenario(*tenants, **{"duration_s": 0.3, "drain_s": 5.0, "timeout_s": 5.0, **fields})
    order = Order(made, [f"http://127.0.0.1:{port}"], out, "test")
    await Runner(order, Progress(io.StringIO()), time.monotonic).run()
    return load(out)


@contextlib.asynccontextmanager
async def server(engine: FakeEngine, folder: Path, *, through_sidecar: bool) -> AsyncIterator[int]:
    """The port of the engine, or of a sidecar in front of it, whose ledger must be empty at the end."""
    if not through_sidecar:
        yield engine.port
        return
    folder.mkdir()
    async with sidecar_for(engine.port, folder) as sidecar:
        yield sidecar.listens_on.port
        await until(lambda: is_whole(sidecar))


@pytest.mark.parametrize("through_sidecar", [False, True])
@pytest.mark.parametrize("endpoint", GENERATING)
async def test_a_stream_is_measured_by_token(
    engine: FakeEngine, tmp_path: Path, endpoint: Endpoint, through_sidecar: bool
) -> None:
    engine.answer = answer
    async with server(engine, tmp_path / "pod", through_sidecar=through_sidecar) as port:
        run = await measured(tmp_path, port, asking(endpoint, key="g-key"))
    assert Counter((a.outcome, a.prompt_tokens, a.tokens, sum(a.gaps.values())) for a in run.attempts) == {
        (Outcome.SERVED, 16, TOKENS, TOKENS - 1): 6
    }
    assert all(a.first_s is not None and a.sent_s <= a.first_s <= a.end_s for a in run.attempts)


@pytest.mark.parametrize("through_sidecar", [False, True])
@pytest.mark.parametrize("endpoint", Endpoint)
async def test_a_response_that_is_not_streamed_is_measured_as_a_whole(
    engine: FakeEngine, tmp_path: Path, endpoint: Endpoint, through_sidecar: bool
) -> None:
    engine.answer = answer
    async with server(engine, tmp_path / "pod", through_sidecar=through_sidecar) as port:
        run = await measured(tmp_path, port, asking(endpoint, key="g-key"), stream=False)
    tokens = TOKENS if endpoint in GENERATING else 0
    assert Counter((a.outcome, a.prompt_tokens, a.tokens, a.first_s) for a in run.attempts) == {
        (Outcome.SERVED, 16, tokens, None): 6
    }
    cell = summarise(run).cells[0]
    assert cell.tokens_per_s is not None
    in_time = sum(attempt.end_s < 0.3 for attempt in run.attempts)  # fewer than 6 on a busy machine
    assert cell.tokens_per_s.value == pytest.approx(in_time * (16 + tokens) / 0.3)


@pytest.mark.parametrize("endpoint", [Endpoint.EMBEDDINGS, Endpoint.RERANK])
async def test_endpoints_without_output_are_never_streamed(
    engine: FakeEngine, tmp_path: Path, endpoint: Endpoint
) -> None:
    engine.answer = answer
    await measured(tmp_path, engine.port, asking(endpoint), stream=True)
    assert all("stream" not in request.json() for request in engine.received)


async def test_tenants_of_one_run_have_different_endpoints(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = answer
    headers = (Header("X-Team", "search"),)
    tenants = [asking(each, name=each.value, headers=headers, model=f"{each}-m") for each in Endpoint]
    run = await measured(tmp_path, engine.port, *tenants)
    assert {(a.tenant, a.outcome) for a in run.attempts} == {
        (each.value, Outcome.SERVED) for each in Endpoint
    }
    assert {(path_of(r), r.json()["model"], r.headers["x-team"]) for r in engine.received} == {
        ("/v1/completions", "completions-m", "search"),
        ("/v1/chat/completions", "chat-m", "search"),
        ("/v1/responses", "responses-m", "search"),
        ("/v1/messages", "messages-m", "search"),
        ("/v1/embeddings", "embeddings-m", "search"),
        ("/v1/rerank", "rerank-m", "search"),
    }


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("endpoint", "field"),
    [(Endpoint.CHAT, "messages"), (Endpoint.RESPONSES, "input"), (Endpoint.MESSAGES, "messages")],
)
async def test_the_turns_of_a_conversation_carry_the_answers(
    engine: FakeEngine, tmp_path: Path, endpoint: Endpoint, field: str, stream: bool
) -> None:
    engine.answer = answer
    who = replace(asking(endpoint, conversation=Conversation(Fixed(2), 0.0)), ends_s=0.05)
    run = await measured(tmp_path, engine.port, who, prompt=PromptForm.TEXT, stream=stream)
    assert Counter(a.outcome for a in run.attempts) == {Outcome.SERVED: 2}
    second = engine.received[1].json()[field]
    assert isinstance(second, list)
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[1]["content"] == "aaa"


ENDINGS = {
    Endpoint.COMPLETIONS: plain(error={"message": "m", "type": "preempted", "code": "preempted"}),
    Endpoint.RESPONSES: named("error", code="preempted", message="m", param=None),
    Endpoint.MESSAGES: named("error", error={"type": "rate_limit_error", "message": "m"}),
}


@pytest.mark.parametrize("endpoint", ENDINGS)
async def test_an_error_within_a_stream_ends_the_request(
    engine: FakeEngine, tmp_path: Path, endpoint: Endpoint
) -> None:
    async def fails(request: Received, writer: asyncio.StreamWriter) -> None:
        begun = STREAMS[path_of(request)][:2]
        writer.write(STREAM_HEAD + b"".join(map(chunk, (*begun, ENDINGS[endpoint]))) + b"0\r\n\r\n")

    engine.answer = fails
    run = await measured(tmp_path, engine.port, asking(endpoint))
    reason = "rate_limit_error" if endpoint is Endpoint.MESSAGES else "preempted"
    assert {(a.outcome, a.reason, a.message) for a in run.attempts} == {(Outcome.PREEMPTED, reason, "m")}


@pytest.mark.parametrize("endpoint", GENERATING)
async def test_a_stream_without_its_last_event_is_broken(
    engine: FakeEngine, tmp_path: Path, endpoint: Endpoint
) -> None:
    async def ends(request: Received, writer: asyncio.StreamWriter) -> None:
        events = STREAMS[path_of(request)][:3]
        writer.write(STREAM_HEAD + b"".join(map(chunk, events)) + b"0\r\n\r\n")

    engine.answer = ends
    run = await measured(tmp_path, engine.port, asking(endpoint))
    assert {(a.outcome, a.reason) for a in run.attempts} == {(Outcome.BROKEN, "stream ended early")}
    assert all(0 < a.tokens <= 3 for a in run.attempts)


@pytest.mark.parametrize("endpoint", Endpoint)
async def test_the_sidecars_refusals_are_read(engine: FakeEngine, tmp_path: Path, endpoint: Endpoint) -> None:
    """The sidecar refuses an unknown key in the form of each API."""
    async with server(engine, tmp_path / "pod", through_sidecar=True) as port:
        run = await measured(tmp_path, port, asking(endpoint, key="stranger"))
    assert {(a.outcome, a.status) for a in run.attempts} == {(Outcome.ERROR, 401)}
    assert all(a.reason for a in run.attempts)


async def test_an_overloaded_server_of_anthropics_api_is_unavailable(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def overloaded(request: Received, writer: asyncio.StreamWriter) -> None:
        told = {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}
        writer.write(unary(told, status="529 Overloaded"))

    engine.answer = overloaded
    run = await measured(tmp_path, engine.port, asking(Endpoint.MESSAGES))
    assert {(a.outcome, a.reason) for a in run.attempts} == {(Outcome.UNAVAILABLE, "overloaded_error")}
