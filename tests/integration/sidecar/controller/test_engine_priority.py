"""The engine's priority: sent, refused, sent again without, remembered until the engine restarts.

Refusals are as vLLM (old and new), FastAPI's strict models, Anthropic's shape and plain text have them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.app import Sidecar
from sidecar.dialects import openai
from sidecar.dialects.fields import with_priority, without_priority
from sidecar.dialects.refusals import concerns_priority
from sidecar.proxy.exchange import MOST_JUDGED
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import (
    CHAT,
    STREAM,
    Response,
    admin,
    ask,
    connected,
    is_whole,
    request,
    sidecar_for,
    until,
)

PATH = "/v1/chat/completions"
NOT_ENABLED = "Got priority 20 but Priority scheduling is not enabled."
REFUSALS = {
    "vllm": ("400 Bad Request", {"error": {"message": NOT_ENABLED, "type": "BadRequestError", "code": 400}}),
    "vllm before 0.10": ("400 Bad Request", {"object": "error", "message": NOT_ENABLED, "param": None}),
    "vllm v1 at first": ("400 Bad Request", {"error": {"message": "V1 does not support priority yet."}}),
    "strict fields": (
        "422 Unprocessable Entity",
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "priority"], "msg": "not permitted"}]},
    ),
    "a parameter": ("400 Bad Request", {"error": {"message": "Unrecognized argument", "param": "priority"}}),
    "anthropic": ("400 Bad Request", {"type": "error", "error": {"message": "priority: extra inputs"}}),
    "one text": ("400 Bad Request", {"error": "unknown field: priority"}),
}


class Refuses:
    """An engine that refuses priorities, and serves anything without."""

    def __init__(self, status: str, body: object, most_at_once: int = 0) -> None:
        self.refusal = fake.unary(body, status=status)
        self.waits_for = most_at_once
        self.waiting = 0
        self.all_here = asyncio.Event()

    async def __call__(self, received: Received, writer: asyncio.StreamWriter) -> None:
        if received.json().get("priority"):
            self.waiting += 1
            if self.waiting >= self.waits_for:
                self.all_here.set()
            await self.all_here.wait()
            writer.write(self.refusal)
        elif received.json().get("stream"):
            await fake.answer_stream(received, writer)
        else:
            await fake.answer_unary(received, writer)


async def spot(sidecar: Sidecar, body: object = CHAT) -> Response:
    return await ask(sidecar, request(PATH, body, key="s-key"))


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["unary", "stream"])
@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=list(REFUSALS))
async def test_a_refused_priority_is_left_out_and_remembered(
    engine: FakeEngine, tmp_path: Path, refusal: tuple[str, object], body: dict[str, object]
) -> None:
    engine.answer = Refuses(*refusal)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        level = sidecar.controller.accounts["s"].meter.spent
        first = await spot(sidecar, body)
        assert (first.status, b"priority" in first.body) == (200, False)
        assert [received.json().get("priority") for received in engine.received] == [20, None]
        assert sidecar.controller.engine.takes_priority is False
        assert sidecar.controller.accounts["s"].meter.spent - level == 15  # as usage says, and once
        assert (await spot(sidecar, body)).status == 200
        assert (await ask(sidecar, request(PATH, body, key="g-key"))).status == 200
        assert len(engine.received) == 4
        assert not any("priority" in received.json() for received in engine.received[2:])
        await until(lambda: is_whole(sidecar))
        page = (await admin(sidecar, "/metrics"))[1]
        assert 'tokenpool_engine_priority_refused_total{pool="chat"} 1.0' in page
        assert (
            'tokenpool_requests_total{entitlement="s",pool="chat",outcome="finished",tier="spot"} 2.0' in page
        )


async def test_a_stream_that_begins_with_the_refusal_is_sent_again(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """vLLM before its engine V1 answers 200 before it looks at the priority."""

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        if not received.json().get("priority"):
            await fake.answer_stream(received, writer)
            return
        error = {"error": {"message": NOT_ENABLED, "type": "BadRequestError", "code": 400}}
        event = b"data: " + json.dumps(error).encode() + b"\n\n"
        writer.write(fake.STREAM_HEAD)
        for part in (event[:9], event[9:]):
            await asyncio.sleep(0.01)
            writer.write(fake.chunk(part))
        writer.write(fake.chunk(fake.DONE) + b"0\r\n\r\n")

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        first = await spot(sidecar, STREAM)
        assert (first.status, first.body.count(b"data: ")) == (200, 7)
        assert b"riority" not in first.body
        assert sidecar.controller.engine.takes_priority is False
        await until(lambda: is_whole(sidecar))


@pytest.mark.parametrize("key", ["g-key", "s-key"])
async def test_a_stream_s_head_waits_for_its_first_event_only_while_that_may_be_a_refusal(
    engine: FakeEngine, tmp_path: Path, key: str
) -> None:
    async def slow(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(fake.STREAM_HEAD)
        await asyncio.Event().wait()

    async with sidecar_for(engine.port, tmp_path) as sidecar:
        if key == "s-key":
            engine.answer = fake.answer_stream
            assert (await spot(sidecar, STREAM)).status == 200
        engine.answer = slow
        async with connected(sidecar) as (reader, writer):
            writer.write(request(PATH, STREAM, key=key))
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2)


async def test_requests_in_flight_before_the_refusal_is_known_are_each_sent_again(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = Refuses(*REFUSALS["vllm"], most_at_once=4)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        answers = await asyncio.gather(*(spot(sidecar) for _ in range(4)))
        assert [answer.status for answer in answers] == [200] * 4
        assert len(engine.received) == 8
        page = (await admin(sidecar, "/metrics"))[1]
        assert 'tokenpool_engine_priority_refused_total{pool="chat"} 4.0' in page
        assert sidecar.controller.accounts["s"].meter.spent == 4 * 15
        assert is_whole(sidecar)


async def test_a_restarted_engine_is_asked_again(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = Refuses(*REFUSALS["vllm"])
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await spot(sidecar)
        engine.answer = fake.answer_unary
        engine.started_at += 100
        await until(lambda: sidecar.engine.restarts == 1)
        await spot(sidecar)
        assert engine.received[-1].json()["priority"] == 20
        assert sidecar.controller.engine.takes_priority is True


async def test_an_accepted_priority_is_known_by_one_that_is_not_zero(
    engine: FakeEngine, tmp_path: Path
) -> None:
    """vLLM accepts 0 whatever its scheduling."""
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await ask(sidecar, request(PATH, CHAT, key="g-key"))
        assert sidecar.controller.engine.takes_priority is None
        await spot(sidecar)
        assert sidecar.controller.engine.takes_priority is True


QUOTES = {"error": {"message": "prompt 'priority mail is not supported' is too long", "code": 400}}
OTHER = {"error": {"message": "temperature must be at least 0", "param": "temperature", "code": 400}}


@pytest.mark.parametrize(
    ("body", "status", "tries"),
    [
        (OTHER, "400 Bad Request", 1),
        (QUOTES, "400 Bad Request", 2),
        (OTHER, "422 Unprocessable Entity", 1),
        (REFUSALS["vllm"][1], "404 Not Found", 1),
        (REFUSALS["vllm"][1], "500 Internal Server Error", 1),
    ],
)
async def test_other_refusals_are_the_clients_and_teach_nothing(
    engine: FakeEngine, tmp_path: Path, body: object, status: str, tries: int
) -> None:
    """A message that quotes the prompt costs a second try: no prompt can switch priorities off."""
    answer = fake.unary(body, status=status)

    async def refuse(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    engine.answer = refuse
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        seen = await spot(sidecar)
        assert (seen.status, json.loads(seen.body)) == (int(status[:3]), body)
        assert len(engine.received) == tries
        assert sidecar.controller.engine.takes_priority is None
        assert sidecar.controller.accounts["s"].meter.spent == 0
        await spot(sidecar)
        assert engine.received[tries].json()["priority"] == 20


@pytest.mark.parametrize("size", [MOST_JUDGED - 100, MOST_JUDGED + 1000])
async def test_a_long_refusal_comes_through_whole(engine: FakeEngine, tmp_path: Path, size: int) -> None:
    body = {"error": {"message": "x" * size, "code": 400}}
    text = json.dumps(body).encode()

    async def refuse(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ntransfer-encoding: chunked\r\n\r\n")
        for start in range(0, len(text), 5000):
            writer.write(fake.chunk(text[start : start + 5000]))
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    engine.answer = refuse
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        seen = await spot(sidecar)
        assert (seen.status, json.loads(seen.body)) == (400, body)


async def test_an_engine_that_goes_while_it_refuses_is_an_upstream_error(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def cut(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 500\r\n\r\n{")
        await writer.drain()
        writer.close()

    engine.answer = cut
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        seen = await spot(sidecar)
        assert (seen.status, seen.headers["x-tokenpool-reason"]) == (502, "upstream_error")
        assert sidecar.controller.accounts["s"].meter.spent == 0
        assert is_whole(sidecar)


async def test_a_client_that_goes_between_the_two_tries_is_settled_once(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        if received.json().get("priority"):
            writer.write(fake.unary(REFUSALS["vllm"][1], status="400 Bad Request"))
        else:
            await asyncio.Event().wait()

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        async with connected(sidecar) as (_, writer):
            writer.write(request(PATH, CHAT, key="s-key"))
            await until(lambda: len(engine.received) == 2)
        await until(lambda: is_whole(sidecar))
        page = (await admin(sidecar, "/metrics"))[1]
        assert (
            'tokenpool_requests_total{entitlement="s",pool="chat",outcome="client_gone",tier="spot"} 1.0'
            in page
        )


@pytest.mark.parametrize(("key", "priority"), [("g-key", 0), ("e-key", 10), ("s-key", 20)])
@pytest.mark.parametrize("option", ["auto", "on"])
async def test_the_engine_is_told_how_soon_and_not_by_the_client(
    engine: FakeEngine, tmp_path: Path, key: str, priority: int, option: str
) -> None:
    async with sidecar_for(engine.port, tmp_path, engine_priority=option) as sidecar:
        for body in (CHAT, CHAT | {"priority": -99}):
            await ask(sidecar, request(PATH, body, key=key))
            assert engine.received[-1].json() == CHAT | {"priority": priority}
            assert engine.received[-1].body.count(b"priority") == 1
        page = (await admin(sidecar, "/metrics"))[1]
        assert f'tokenpool_engine_priority_total{{pool="chat",priority="{priority}"}} 2.0' in page


async def test_a_clients_own_priority_is_left_out_where_the_engine_takes_none(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.answer = Refuses(*REFUSALS["vllm"])
    twice = b'{"priority":1,' + json.dumps(CHAT | {"priority": 2}).encode()[1:]
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        for body in (CHAT | {"priority": 7}, CHAT | {"priority": 7}, twice):
            assert (await spot(sidecar, body)).status == 200
            assert engine.received[-1].json() == CHAT
        assert len(engine.received) == 4


async def test_with_on_the_engines_refusal_is_the_answer(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = Refuses(*REFUSALS["vllm"])
    async with sidecar_for(engine.port, tmp_path, engine_priority="on") as sidecar:
        assert (await spot(sidecar)).status == 400
        assert len(engine.received) == 1


async def test_with_off_a_clients_priority_is_the_engines_business(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, engine_priority="off") as sidecar:
        await ask(sidecar, request(PATH, CHAT | {"priority": 3}))
        assert engine.received[-1].json()["priority"] == 3
        await spot(sidecar)
        assert engine.received[-1].json() == CHAT


@pytest.mark.parametrize("page", ["sglang:num_running_reqs 0\nsglang:max_total_num_tokens 100000\n", ""])
async def test_only_vllm_is_sent_priorities_unasked(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """With SGLang, higher values are scheduled sooner: spot would come first."""
    monkeypatch.setattr(engine, "metrics", lambda: page)
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await until(lambda: sidecar.engine.last_page is not None or not page)
        await spot(sidecar)
        assert engine.received[-1].json() == CHAT
        assert not sidecar.controller.engine.is_vllm


@pytest.mark.parametrize("option", ["auto", "on"])
async def test_only_a_known_priority_scheduler_queues_requests_of_any_tier(
    engine: FakeEngine, tmp_path: Path, option: str
) -> None:
    async with sidecar_for(engine.port, tmp_path, engine_priority=option) as sidecar:
        await spot(sidecar)
        await until(lambda: sidecar.controller.engine.room.preemptible_queue == 1.0)
        assert sidecar.controller.engine.room.queue == (1.0 if option == "on" else 0.0)


@pytest.mark.parametrize("write", [json.dumps, lambda body: json.dumps(body, indent=1)])
@pytest.mark.parametrize("own", [{}, {"priority": 5}, {"a": 1, "priority": None}])
def test_a_body_loses_its_priority_and_nothing_else(
    write: Callable[[object], str], own: dict[str, object]
) -> None:
    body = CHAT | own
    parsed = openai.parse_chat(write(body).encode())
    sent = with_priority(parsed, 20)
    back = without_priority(sent, is_ours=True)
    assert json.loads(back) == {name: value for name, value in body.items() if name != "priority"}
    if not own:
        assert json.loads(back) == json.loads(parsed.body)


@pytest.mark.parametrize(
    ("answer", "is_event", "concerns"),
    [
        (b"unknown field `priority` at line 1", False, True),
        (b"unknown field `prioritys`", False, False),
        (b'"priority is not allowed"', False, True),
        (b'["priority"]', False, False),
        (b'{"detail": "priority: extra fields not permitted"}', False, True),
        (b'{"detail": [{"loc": ["body", "messages"], "msg": "missing"}]}', False, False),
        (b'{"error": {"message": "bad", "input": {"priority": 3}}}', False, False),
        (b"\xff priority", False, True),
        (b"[" * 100_000, False, False),
        (b": ping\n\n", True, False),
        (b'data: {"error": {"message": "no priority here"}}\r\n\r\n', True, True),
        (b'data:{"object":"error","message":"V1 does not support priority yet."}\n\n', True, True),
        (b'data: {"choices": [{"delta": {"content": "priority"}}], "message": "priority"}\n\n', True, False),
        (b"data: priority\n\n", True, False),
    ],
)
def test_what_a_refusal_is_about(answer: bytes, is_event: bool, concerns: bool) -> None:
    assert concerns_priority(answer, is_event=is_event) is concerns
