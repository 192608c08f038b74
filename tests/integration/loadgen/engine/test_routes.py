"""The simulator's further routes on loopback, read by official clients."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadgen.engine.model import Costs, Policy
from loadgen.engine.server import Access
from tests.integration.loadgen.engine.simulated import HELD, Client, in_background, simulated

USER: Any = [{"role": "user", "content": "hi there"}]


def of_openai(client: Client) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0)


def of_anthropic(client: Client) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=client.url, api_key="none", max_retries=0)


async def test_openais_client_reads_responses() -> None:
    async with simulated() as client, of_openai(client) as sdk:
        whole = await sdk.responses.create(model="tiny", input="hi there", max_output_tokens=3)
        stream: Any = await sdk.responses.create(
            model="tiny", input="hi there", max_output_tokens=3, stream=True
        )
        events = [event async for event in stream]

    assert whole.output_text == "the pool is "
    assert whole.usage is not None
    assert (whole.status, whole.usage.output_tokens) == ("incomplete", 3)
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == "the pool is "
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage == whole.usage


async def test_anthropics_client_reads_messages() -> None:
    async with simulated() as client, of_anthropic(client) as sdk:
        whole = await sdk.messages.create(model="tiny", messages=USER, max_tokens=3)
        async with sdk.messages.stream(model="tiny", messages=USER, max_tokens=3) as stream:
            said = "".join([text async for text in stream.text_stream])
            final = await stream.get_final_message()
        counted = await sdk.messages.count_tokens(model="tiny", messages=USER)
        with pytest.raises(anthropic.NotFoundError, match="The model `none` does not exist"):
            await sdk.messages.create(model="none", messages=USER, max_tokens=3)

    assert isinstance(whole.content[0], anthropic.types.TextBlock)
    assert whole.content[0].text == said == "the pool is "
    assert (final.usage.input_tokens, final.usage.output_tokens) == (counted.input_tokens, 3)
    assert final.stop_reason == whole.stop_reason == "max_tokens"


async def test_openais_client_reads_embeddings() -> None:
    async with simulated(embedding_size=8) as client, of_openai(client) as sdk:
        # The client asks for base64.
        answer = await sdk.embeddings.create(model="tiny", input=["one", "two two"])
        page = (await client.get("/metrics"))[1]

    assert [len(each.embedding) for each in answer.data] == [8, 8]
    assert answer.usage.prompt_tokens == 3
    assert 'vllm:prompt_tokens_total{engine="0",model_name="tiny"} 3.0' in page
    assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 2.0' in page


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_are_reranked(path: str) -> None:
    async with simulated() as client:
        status, answer = await client.post(path, query="fair pool", documents=["a", "pool"])

    assert status == 200
    assert [each["index"] for each in answer["results"]] == [1, 0]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
async def test_pairs_are_scored(path: str) -> None:
    async with simulated() as client:
        status, answer = await client.post(path, queries="fair pool", documents=["a", "pool"])

    assert status == 200
    assert [each["score"] for each in answer["data"]] == [0.0, 1.0]


async def test_an_encoder_serves_no_generation() -> None:
    async with simulated(is_encoder=True) as client:
        assert (await client.post("/v1/embeddings", input=["a", "b"]))[0] == 200
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
            assert (await client.post(path))[0] == 404


async def test_adapters_are_listed_served_and_named_on_the_metrics_page() -> None:
    async with simulated(adapters=("tuned",), max_loras=1, costs=HELD, slots=1) as client:
        models = json.loads((await client.get("/v1/models"))[1])["data"]
        asked = client.begin(model="tuned")
        async with in_background(asked):
            await client.until(running=1)
            unknown = await client.post("/v1/completions", model="other", prompt="x")
    async with simulated(adapters=("tuned",), max_loras=1) as client:
        _, answer = await client.post("/v1/completions", model="tuned", prompt="x", max_tokens=3)
        page = (await client.get("/metrics"))[1]

    assert [(each["id"], each["parent"]) for each in models] == [("tiny", None), ("tuned", "tiny")]
    assert unknown[0] == 404
    assert answer["model"] == "tuned"
    assert 'running_lora_adapters="tuned",waiting_lora_adapters=""' in page


async def test_load_is_split_over_the_cores() -> None:
    async with simulated(cores=4, slots=2, costs=HELD) as client:
        asked = [client.begin() for _ in range(8)]
        async with in_background(*asked):
            await client.until(running=4, waiting=4)
            page = (await client.get("/metrics"))[1]

    load = sorted(
        (sample.name.removeprefix("vllm:num_requests_"), sample.labels["engine"], sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name in ("vllm:num_requests_running", "vllm:num_requests_waiting")
    )
    assert load == [(state, core, 1) for state in ("running", "waiting") for core in "0123"]


async def test_short_kv_preempts_the_least_urgent_under_priority_scheduling() -> None:
    small: dict[str, Any] = {"blocks": 16, "block_size": 4, "window": 64, "slots": 4}
    async with simulated(policy=Policy.PRIORITY, costs=Costs(step_s=0.003), **small) as client:
        order: list[int] = []

        async def ask(priority: int) -> None:
            tokens = [priority + 1] * 8
            _, answer = await client.post("/v1/completions", prompt=tokens, max_tokens=40, priority=priority)
            assert answer["usage"]["completion_tokens"] == 40
            order.append(priority)

        await asyncio.gather(*(ask(priority) for priority in (2, 1, 0)))

        assert client.scheduler.statistics.preemptions > 0
    assert order[0] == 0


async def test_a_key_is_needed_below_v1_only() -> None:
    async with simulated(Access(keys=frozenset({"secret"}))) as client:
        refused = await client.post("/v1/completions", prompt="x")
        assert refused == (401, {"error": "Unauthorized"})
        for headers, status in (({"authorization": "Bearer secret"}, 200), ({"authorization": "x"}, 401)):
            async with client.session.get(client.url + "/v1/models", headers=headers) as response:
                assert response.status == status
        assert (await client.get("/metrics"))[0] == 200


@pytest.mark.parametrize(("allowed", "told"), [("*", "*"), ("https://a.example", "https://a.example")])
async def test_browsers_of_allowed_origins_may_read_answers(allowed: str, told: str) -> None:
    origin = {"origin": "https://a.example"}
    preflight = origin | {"access-control-request-method": "POST", "access-control-request-headers": "x-a"}
    async with simulated(Access(origins=frozenset({allowed}))) as client:
        url = client.url + "/v1/completions"
        async with client.session.options(url, headers=preflight) as response:
            assert response.status == 200
            assert response.headers["access-control-allow-headers"] == "x-a"
            assert response.headers["access-control-allow-origin"] == told
        for body in ({"prompt": "x"}, {"prompt": "x", "stream": True}, {"prompt": "x", "model": "none"}):
            async with client.session.post(url, json=body, headers=origin) as response:
                assert response.headers["access-control-allow-origin"] == told


async def test_browsers_of_other_origins_may_not() -> None:
    asked = {"origin": "https://b.example", "access-control-request-method": "POST"}
    async with simulated(Access(origins=frozenset({"https://a.example"}))) as client:
        async with client.session.options(client.url + "/v1/models", headers=asked) as response:
            assert response.status == 400
        async with client.session.get(client.url + "/v1/models", headers=asked) as response:
            assert "access-control-allow-origin" not in response.headers
