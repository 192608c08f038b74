"""Recorded workloads against the simulated engine: short parts of each format, cache hits, exact lengths."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from loadgen import tokenizing
from loadgen.engine.model import Costs
from loadgen.engine.scheduler import Scheduler
from loadgen.fields import ScenarioError
from loadgen.preparing import prepare
from loadgen.progress import Progress
from loadgen.reading import read
from loadgen.records import Outcome, Run, load
from loadgen.run import Order, Runner
from loadgen.scenario import Header, PromptForm, Scenario, Tokenizer
from loadgen.summary import summarise
from loadgen.workloads.prefix_hits import hits
from tests.integration.loadgen.engine.simulated import simulated
from tests.integration.loadgen.server import Received, Server
from tests.support.loadgen_builders import scenario, tenant

TRACES = Path(__file__).parents[2] / "support" / "traces"
MOONCAKE = TRACES / "mooncake-conversation-excerpt.jsonl"
FAST = Costs(step_s=0.001, per_sequence_s=0.0, per_prompt_token_s=0.0)
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "".join(
    f"{5 * at},ChatGPT,{90 + at},{3 + at % 4},0,Conversation log\n" for at in range(30)
)


@contextlib.asynccontextmanager
async def engine(**model: Any) -> AsyncIterator[tuple[Scheduler, str]]:
    given = {
        "slots": 64,
        "window": 4096,
        "blocks": 1 << 16,
        "batched_tokens": 1 << 16,
        "costs": FAST,
        **model,
    }
    async with simulated(**given) as client:
        yield client.scheduler, client.url


def planned(folder: Path, tenant: str, *top: str, duration_s: float = 1.0) -> Scenario:
    (folder / "burst.csv").write_text(BURST)
    talks = [
        [
            ("human", f"What is {n} times {n}?"),
            ("gpt", f"It is {n * n}, I think."),
            ("human", "Sure?"),
            ("gpt", "Yes."),
        ]
        for n in range(12)
    ]
    shared = [{"conversations": [{"from": who, "value": text} for who, text in talk]} for talk in talks]
    (folder / "talks.json").write_text(json.dumps(shared))
    lines = "\n".join(["name: w", "model: tiny", f"duration_s: {duration_s}", "drain_s: 20", *top])
    (folder / "s.yaml").write_text(f"{lines}\ntenants:\n  - {{name: gold, {tenant}}}\n")
    return read(folder / "s.yaml", {})


async def measured(folder: Path, world: Scenario, url: str) -> Run:
    ready, notes = await prepare(world, url)
    order = Order(ready, [url], folder, "test", notes=notes)
    await Runner(order, Progress(io.StringIO()), time.monotonic).run()
    return load(folder)


@pytest.mark.parametrize(
    "tenant",
    [
        f"trace: {{azure: {{file: {TRACES}/azure-llm-2023-conv.csv.gz, rate: 80, lengths: 0.5}}}}",
        f"trace: {{azure: {{file: {TRACES}/azure-llm-2023-code.csv.gz, rate: 80, lengths: 0.5}}}}",
        f"trace: {{mooncake: {{file: {MOONCAKE}, rate: 30, lengths: 0.0625}}}}",
        "trace: {burstgpt: {file: burst.csv, speed: 150}}",
        "trace: {sharegpt: {file: talks.json, turns: each}}, arrivals: {constant: {rate: 30}}",
    ],
)
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_a_short_part_of_each_format_runs(tmp_path: Path, tenant: str, endpoint: str) -> None:
    world = planned(tmp_path, tenant, f"endpoint: {endpoint}", "tokenizer: engine")
    async with engine() as (_, url):
        run = await measured(tmp_path, world, url)
    assert len(run.attempts) >= 20
    assert {attempt.outcome for attempt in run.attempts} == {Outcome.SERVED}
    assert all(attempt.prompt_tokens == attempt.input_tokens for attempt in run.attempts)
    assert all(attempt.tokens == attempt.output_tokens for attempt in run.attempts)
    assert summarise(run).notes == []


@pytest.mark.parametrize("form", ["ids", "text"])
@pytest.mark.parametrize(
    ("blocks", "arrivals"), [(1 << 16, ""), (300, ", arrivals: {closed: {workers: 1}}")], ids=["all", "few"]
)
async def test_cache_hits_are_those_of_the_trace(
    tmp_path: Path, form: str, blocks: int, arrivals: str
) -> None:
    """A bounded cache needs one request after the other: overlapping ones may end in another order."""
    trace = f"{{file: {MOONCAKE}, rate: 30, lengths: 0.0625, most_output: 2}}"
    tenant = f"trace: {{mooncake: {trace}}}{arrivals}"
    world = planned(tmp_path, tenant, f"prompt: {form}", duration_s=3.0)
    async with engine(blocks=blocks, window=2048) as (scheduler, url):
        run = await measured(tmp_path, world, url)
    counted, known = scheduler.statistics, world.tenants[0].trace
    assert known is not None
    sent = replace(known, requests=tuple(islice(cycle(known.requests), len(run.attempts))))
    assert len(sent.requests) > 40
    assert counted.cache_queries == sum(request.input_tokens for request in sent.requests)
    assert counted.cache_hits == pytest.approx(hits(sent, 16, blocks), rel=0.01)


async def test_whole_conversations_run_with_the_answers_of_the_engine(tmp_path: Path) -> None:
    talk = "{sharegpt: {file: talks.json, turns: conversation}}"
    tenant = f"trace: {talk}, arrivals: {{constant: {{rate: 12}}}}, conversation: {{think_s: 0.01}}"
    async with engine() as (_, url):
        run = await measured(tmp_path, planned(tmp_path, tenant, "endpoint: chat", "tokenizer: engine"), url)
    by_turn = [[a for a in run.attempts if a.turn == turn] for turn in (1, 2)]
    assert [len(attempts) for attempts in by_turn] >= [10, 8]
    assert {attempt.outcome for attempt in run.attempts} == {Outcome.SERVED}
    assert all(attempt.prompt_tokens == attempt.input_tokens for attempt in by_turn[0])
    # The engine's template joins the turns, so a later one may differ by a token.
    assert all(abs(attempt.prompt_tokens - attempt.input_tokens) <= 2 for attempt in by_turn[1])


async def test_other_lengths_than_asked_are_said(tmp_path: Path) -> None:
    tenant = "arrivals: {constant: {rate: 10}}, input: 20, output: 2"
    async with engine() as (_, url):
        run = await measured(tmp_path, planned(tmp_path, tenant, "endpoint: chat"), url)
    (note,) = summarise(run).notes
    assert note.startswith(
        "10 of 10 prompts (100.0%) had other lengths than requested: +6 to +6 tokens, +30.00%"
    )


async def test_tokens_are_counted_with_the_headers_of_a_tenant() -> None:
    async def counts(received: Received, request: web.Request) -> web.StreamResponse:
        return web.json_response({"count": len(str(received.json["prompt"]).split())})

    keyed = tenant("keyed", headers=(Header("Authorization", "Token abc"),))
    world = scenario(tenant("open"), keyed, tokenizer=Tokenizer(), prompt=PromptForm.TEXT)
    async with Server(counts).running() as server:
        await prepare(world, server.url)
    assert {received.headers["authorization"] for received in server.received} == {"Token abc"}


@pytest.mark.parametrize(
    "fields", [{"key": "sk-1"}, {"headers": (Header("Authorization", "Token sk-1"),)}], ids=["key", "header"]
)
async def test_a_key_that_tokenize_repeats_is_not_shown(fields: dict[str, Any]) -> None:
    async def refuses(received: Received, request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "Incorrect API key: sk-1."}}, status=401)

    world = scenario(tenant("gold", **fields), tokenizer=Tokenizer())
    async with Server(refuses).running() as server:
        with pytest.raises(ScenarioError, match=r"answered 401: Incorrect API key: \[key\]\."):
            await prepare(world, server.url)


async def test_an_engine_that_cannot_tokenize_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "MOST_BYTES", 1 << 17)

    async def refuses(received: Received, request: web.Request) -> web.StreamResponse:
        return web.json_response({"detail": "Not Found"}, status=404)

    async def empty(received: Received, request: web.Request) -> web.StreamResponse:
        return web.json_response({"tokens": []})

    async def negative(received: Received, request: web.Request) -> web.StreamResponse:
        return web.json_response({"count": -5})

    async def endless(received: Received, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * (1 << 16))

    world = scenario(tokenizer=Tokenizer())
    for answer, error in (
        (refuses, r"/tokenize answered 404: .*Not Found.*; let the engine"),
        (empty, "no count"),
        (negative, "no count in its answer .*>= 0"),
        (endless, "no count in its answer .the response has more than 0 MiB"),
    ):
        async with Server(answer).running() as server:
            with pytest.raises(ScenarioError, match=error):
                await prepare(world, server.url)
    with pytest.raises(
        ScenarioError, match=r"/tokenize cannot be reached: connection refused \(.*\); let the engine serve"
    ):
        await prepare(world, "http://127.0.0.1:1")
