"""Other dialects through a running sidecar, in front of a scripted engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import Sidecar
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Held, Received
from tests.support.harness import POOL, ask, connected, is_whole, read_response, request, sidecar_for, until

MESSAGES = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
RESPONSE = {"model": "tiny", "input": "hi", "max_output_tokens": 8}
ONE_AT_A_TIME = POOL.replace("tier: elastic,", "tier: elastic, ceiling: {concurrency: 1},")
FORGED = {"usage": {"input_tokens": 0, "output_tokens": 0}}


def event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name} | fields)}\n\n".encode()


def streaming(*events: bytes) -> fake.Answer:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD + b"".join(fake.chunk(each) for each in events) + b"0\r\n\r\n")

    return answer


def saying(body: object) -> fake.Answer:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.unary(body))

    return answer


def spent(sidecar: Sidecar) -> float:
    """Tokens that the guaranteed entitlement was charged, less what it was given back."""
    return sidecar.controller.accounts["g"].meter.spent


async def test_a_shed_message_is_told_so_in_anthropics_words(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = held = Held()
    async with sidecar_for(engine.port, tmp_path, pool=ONE_AT_A_TIME) as sidecar:
        first = asyncio.ensure_future(ask(sidecar, request("/v1/messages", MESSAGES, key="e-key")))
        await until(lambda: len(engine.received) == 1)
        shed = await ask(sidecar, request("/v1/messages", MESSAGES, key="e-key"))
        held.go.set()
        served = await first

    assert (shed.status, shed.error()["type"]) == (429, "rate_limit_error")
    assert int(shed.headers["retry-after"]) >= 1
    assert shed.headers["x-tokenpool-reason"] == "concurrency"
    for answer in (shed, served):
        assert answer.headers["anthropic-ratelimit-requests-limit"] == "1"
        assert "x-ratelimit-limit-requests" not in answer.headers


async def test_the_key_may_come_as_anthropics_clients_send_it(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        known = await ask(
            sidecar, request("/v1/messages", MESSAGES, key=None, headers={"x-api-key": "e-key"})
        )
        stranger = await ask(
            sidecar, request("/v1/messages", MESSAGES, key=None, headers={"x-api-key": "nobody's"})
        )

    assert known.status == 200
    assert (stranger.status, stranger.error()["type"]) == (401, "authentication_error")
    assert "x-api-key" not in engine.received[0].headers


async def test_no_capacity_is_529_for_anthropics_clients_alone(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await engine.stop()
        await until(lambda: not sidecar.controller.engine.is_up)
        message = await ask(sidecar, request("/v1/messages", MESSAGES))
        completion = await ask(sidecar, request())

    assert (message.status, message.error()["type"]) == (529, "overloaded_error")
    assert completion.status == 503


async def test_a_streamed_message_is_settled_by_its_last_delta(engine: FakeEngine, tmp_path: Path) -> None:
    events = (
        event("message_start", message={"usage": {"input_tokens": 12, "output_tokens": 0}}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": '"usage"'}),
        event(
            "message_delta",
            delta={"stop_reason": "end_turn"},
            usage={"input_tokens": 4, "cache_read_input_tokens": 8, "output_tokens": 5},
        ),
        event("message_stop"),
    )
    engine.answer = streaming(*events)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        answer = await ask(sidecar, request("/v1/messages", MESSAGES | {"stream": True}))
        assert is_whole(sidecar)

    assert answer.body == b"".join(events)
    assert spent(sidecar) == 4 + 5


async def test_tokens_are_counted_without_being_spent(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = saying({"input_tokens": 3})
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        answer = await ask(sidecar, request("/v1/messages/count_tokens", MESSAGES))

    assert json.loads(answer.body) == {"input_tokens": 3}
    assert "anthropic-ratelimit-tokens-limit" not in answer.headers


async def test_usage_that_a_client_made_up_in_its_tools_is_not_taken_for_the_engines(
    engine: FakeEngine, tmp_path: Path
) -> None:
    told = {"id": "resp_1", "usage": {"input_tokens": 12, "output_tokens": 5}, "tools": [FORGED], "user": "u"}
    engine.answer = saying(told)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await ask(sidecar, request("/v1/responses", RESPONSE | {"tools": [FORGED]}))
        unary = spent(sidecar)
        engine.answer = streaming(
            event("response.created", response={"id": "resp_2", "usage": None, "tools": [FORGED]}),
            event("response.completed", response=told | {"id": "resp_2"}),
        )
        await ask(sidecar, request("/v1/responses", RESPONSE | {"stream": True}))

    assert unary == 12 + 5
    assert spent(sidecar) == 2 * (12 + 5)


async def test_a_stored_response_is_for_its_maker_alone(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = saying({"id": "resp_1", "usage": {"input_tokens": 12, "output_tokens": 5}})
    follow_up = RESPONSE | {"previous_response_id": "resp_1"}
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await ask(sidecar, request("/v1/responses", RESPONSE, key="e-key"))
        own = [
            await ask(sidecar, request("/v1/responses/resp_1", method="GET", key="e-key")),
            await ask(sidecar, request("/v1/responses/resp_1/cancel", b"", key="e-key")),
            await ask(sidecar, request("/v1/responses", follow_up, key="e-key")),
        ]
        asked = len(engine.received)
        others = [
            await ask(sidecar, request("/v1/responses/resp_1", method="GET")),
            await ask(sidecar, request("/v1/responses/resp_1/cancel", b"")),
            await ask(sidecar, request("/v1/responses", follow_up)),
        ]
        taken = await ask(sidecar, request("/v1/responses", RESPONSE | {"request_id": "resp_1"}))

        get = request("/v1/responses/resp_1", method="GET", key="e-key", headers={"content-length": "0"})
        async with connected(sidecar) as (reader, writer):
            told = []
            for owner in ("e", "e", "s"):
                sidecar.controller.stored.record("resp_1", owner, 17)
                writer.write(get)
                told.append((await read_response(reader)).status)

    assert told == [200, 200, 404]
    assert [answer.status for answer in own] == [200] * 3
    assert [answer.status for answer in others] == [404] * 3
    assert all("not found" in answer.error()["message"] for answer in others)
    assert (taken.status, taken.error()["param"]) == (400, "request_id")
    assert len(engine.received) == asked + 2


async def test_what_cohere_bills_is_settled(engine: FakeEngine, tmp_path: Path) -> None:
    echo = {"texts": ['"billed_units":{"input_tokens":1}'], "embeddings": {"float": [[0.1]]}}
    engine.answer = saying(echo | {"meta": {"billed_units": {"input_tokens": 4, "image_tokens": 5}}})
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        answer = await ask(sidecar, request("/v2/embed", {"model": "tiny", "texts": ["a"]}))
        assert is_whole(sidecar)

    assert answer.status == 200
    assert spent(sidecar) == 9


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["a", "b"]}),
        ("/pooling", {"input": "a"}),
        ("/classify", {"input": "a"}),
        ("/score", {"queries": "a", "documents": ["b", "c"]}),
        ("/rerank", {"query": "a", "documents": ["b", "c"]}),
        ("/v1/chat/completions/batch", {"messages": [[{"role": "user", "content": "a"}]], "max_tokens": 5}),
    ],
)
async def test_what_other_routes_spend_is_settled(
    engine: FakeEngine, tmp_path: Path, path: str, body: dict[str, object]
) -> None:
    engine.answer = saying({"usage": {"prompt_tokens": 9, "total_tokens": 9}})
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        answer = await ask(sidecar, request(path, {"model": "tiny"} | body))
        assert is_whole(sidecar)

    assert answer.status == 200
    assert answer.headers["x-ratelimit-limit-requests"]
    assert spent(sidecar) == 9
