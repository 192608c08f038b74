"""The simulator on loopback: routes, errors, streams and disconnects."""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadgen.engine.calibrate import CalibrationError, Effort, calibrate
from loadgen.engine.model import Costs, Policy
from tests.integration.loadgen.engine.simulated import HELD, in_background, simulated


async def test_a_completion_is_answered_with_its_usage() -> None:
    async with simulated() as client:
        status, answer = await client.post("/v1/completions", prompt="x" * 40, max_tokens=5)

    assert status == 200
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "the pool is shared and "
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 10,
        "total_tokens": 15,
        "completion_tokens": 5,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


async def test_a_chat_is_answered_by_the_assistant() -> None:
    async with simulated() as client:
        messages = [{"role": "user", "content": "hi"}]
        status, answer = await client.post("/v1/chat/completions", messages=messages, max_tokens=2)

    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["message"]["content"] == "the pool "


async def test_lists_and_n_multiply_choices_and_usage_is_their_sum() -> None:
    async with simulated() as client:
        _, answer = await client.post("/v1/completions", prompt=[[1, 2, 3], [4, 5]], n=2, max_tokens=3)

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["usage"]["completion_tokens"] == 12


async def test_a_stream_has_all_tokens_and_ends_with_done() -> None:
    async with simulated() as client:
        events = await client.events("/v1/completions", prompt="hello", max_tokens=4)

    assert events.pop() is None
    assert "".join(e["choices"][0]["text"] for e in events) == "the pool is shared "
    assert [e["choices"][0]["finish_reason"] for e in events][-1] == "length"
    assert all("usage" not in e for e in events)
    assert events[-1]["system_fingerprint"]


async def test_a_chat_stream_begins_with_the_role_of_each_choice() -> None:
    async with simulated() as client:
        messages = [{"role": "user", "content": "hi"}]
        events = await client.events("/v1/chat/completions", messages=messages, max_tokens=3, n=2)

    choices = [e["choices"][0] for e in events[:-1]]
    assert [c["delta"] for c in choices[:2]] == [{"role": "assistant", "content": ""}] * 2
    for index in (0, 1):
        said = "".join(c["delta"]["content"] for c in choices if c["index"] == index)
        assert said == "the pool is "
    assert {e["object"] for e in events[:-1]} == {"chat.completion.chunk"}


async def test_usage_is_in_the_last_event_or_in_every_event_on_request() -> None:
    once = {"include_usage": True}
    async with simulated() as client:
        last = await client.events("/v1/completions", prompt=[1, 2], max_tokens=2, stream_options=once)
        always = await client.events(
            "/v1/completions",
            prompt=[1, 2],
            max_tokens=2,
            stream_options=once | {"continuous_usage_stats": True},
        )

    expected = {"prompt_tokens": 2, "total_tokens": 4, "completion_tokens": 2}
    assert last[-2]["choices"] == always[-2]["choices"] == []
    assert last[-2]["usage"] == always[-2]["usage"] == expected
    assert all("usage" not in e for e in last[:-2])
    assert always[-3]["usage"] == expected


async def test_cached_tokens_are_in_the_usage_if_enabled() -> None:
    async with simulated(tells_cached_tokens=True) as client:
        seen = [
            (await client.post("/v1/completions", prompt=[7] * 40, n=2, max_tokens=1))[1]["usage"]
            for _ in range(2)
        ]
        streamed = await client.events(
            "/v1/completions", prompt=[7] * 40, max_tokens=1, stream_options={"include_usage": True}
        )

    assert [usage["prompt_tokens_details"] for usage in seen] == [{"cached_tokens": 0}, {"cached_tokens": 32}]
    assert streamed[-2]["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}


async def test_responses_end_by_themselves_without_ignore_eos() -> None:
    async with simulated(output_tokens=5.0) as client:
        free = [(await client.post("/v1/completions", prompt="x", max_tokens=200))[1] for _ in range(5)]
        _, least = await client.post("/v1/completions", prompt="x", max_tokens=200, min_tokens=60)
        _, bound = await client.post("/v1/completions", prompt="x", max_tokens=80, ignore_eos=True)

    assert {answer["choices"][0]["finish_reason"] for answer in free} == {"stop"}
    assert least["usage"]["completion_tokens"] >= 60
    assert bound["usage"]["completion_tokens"] == 80
    assert bound["choices"][0]["finish_reason"] == "length"


async def test_the_same_seed_gives_the_same_lengths() -> None:
    lengths = []
    for _ in range(2):
        async with simulated(output_tokens=10.0) as client:
            answers = [await client.post("/v1/completions", prompt="x", max_tokens=200) for _ in range(5)]
            lengths.append([answer["usage"]["completion_tokens"] for _, answer in answers])

    assert lengths[0] == lengths[1]


async def test_the_small_routes_answer_like_vllm() -> None:
    async with simulated() as client:
        models = json.loads((await client.get("/v1/models"))[1])
        assert models["data"][0]["id"] == "tiny"
        assert models["data"][0]["max_model_len"] == 2048
        assert await client.get("/health") == (200, "")
        assert await client.get("/ping") == (200, "")
        assert "version" in json.loads((await client.get("/version"))[1])
        assert json.loads((await client.get("/load"))[1]) == {"server_load": 0}
        assert await client.get("/nope") == (404, '{"detail":"Not Found"}')
        assert await client.get("/v1/completions") == (405, '{"detail":"Method Not Allowed"}')


async def test_text_is_tokenized_and_tokens_are_detokenized() -> None:
    async with simulated() as client:
        status, made = await client.post("/tokenize", prompt="hello there")
        _, chat = await client.post("/tokenize", messages=[{"role": "user", "content": "hi"}])
        _, shown = await client.post("/tokenize", prompt="hello there", return_token_strs=True)
        _, text = await client.post("/detokenize", tokens=made["tokens"])

    assert (status, made["count"], made["max_model_len"], made["token_strs"]) == (200, 3, 2048, None)
    assert len(made["tokens"]) == 3
    assert chat["count"] > 1
    assert len(shown["token_strs"]) == 3
    assert text["prompt"]


async def test_refusals_have_vllms_status_and_body() -> None:
    async with simulated() as client:
        unknown = await client.post("/v1/completions", model="none", prompt="x")
        field = await client.post("/v1/chat/completions", max_tokens=5)
        words = await client.post("/tokenize")
        tokens = await client.post("/detokenize", tokens=["a"])
        async with client.session.post(client.url + "/v1/completions", data=b"{") as response:
            plain = response.status

    assert unknown == (
        404,
        {
            "error": {
                "message": "The model `none` does not exist. Valid aliases: tiny.",
                "type": "NotFoundError",
                "param": "model",
                "code": 404,
            }
        },
    )
    assert [status for status, _ in (field, words, tokens)] == [400, 400, 400]
    assert [body["error"]["param"] for _, body in (field, words, tokens)] == [
        "body.messages",
        "body.prompt",
        "body.tokens.0",
    ]
    assert plain == 400


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/rerank",
        "/tokenize",
    ],
)
async def test_half_of_a_surrogate_pair_is_refused(path: str) -> None:
    async with (
        simulated() as client,
        client.session.post(
            client.url + path,
            data=b'{"model": "\\ud800", "prompt": "x"}',
            headers={"content-type": "application/json"},
        ) as response,
    ):
        assert response.status == 400
        assert "unicode" in await response.text()


async def test_a_whole_surrogate_pair_is_text() -> None:
    async with (
        simulated() as client,
        client.session.post(
            client.url + "/tokenize",
            data=b'{"prompt": "\\ud83d\\ude00"}',
            headers={"content-type": "application/json"},
        ) as response,
    ):
        assert response.status == 200


async def test_a_full_queue_is_refused_with_503_and_counted() -> None:
    async with simulated(max_queued_requests=1, costs=HELD) as client:
        first = client.begin()
        async with in_background(first):
            await client.until(running=1)
            status, body = await client.post("/v1/completions", prompt="x", stream=True)
            page = (await client.get("/metrics"))[1]

    assert status == 503
    assert body == {
        "error": {
            "message": "The engine is currently busy and cannot accept new requests."
            " Please try again later or on a different instance.",
            "type": "Service Unavailable",
            "param": None,
            "code": 503,
        }
    }
    assert 'vllm:admission_rejections_total{model_name="tiny",reason="max_num_queued_reqs"} 1.0' in page


async def test_a_backlog_of_prompts_is_refused_with_503() -> None:
    async with simulated(max_queued_tokens=100, costs=HELD) as client:
        first = client.begin(prompt=[1] * 100)
        async with in_background(first):
            await client.until(running=1)
            status, body = await client.post("/v1/completions", prompt="x")

    assert status == 503
    assert "prefill token backlog limit" in body["error"]["message"]


async def test_a_disconnect_ends_the_sequences_and_frees_their_blocks() -> None:
    async with simulated(costs=HELD, slots=2) as client:
        whole, waiting = client.begin(n=2), client.begin()
        await client.until(running=2, waiting=1)
        assert client.scheduler.pool.used > 0
        for task in (whole, waiting):
            task.cancel()
        await asyncio.gather(whole, waiting, return_exceptions=True)

        await client.until(running=0)

        assert client.scheduler.pool.used == 0
        assert client.scheduler.statistics.endings["abort"] == 3


async def test_a_disconnect_ends_a_stream() -> None:
    async with simulated() as client:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 2000, "stream": True}
        async with client.session.post(client.url + "/v1/completions", json=body) as response:
            await response.content.readline()
            await client.until(running=1)
            response.close()

        await client.until(running=0)

        assert client.scheduler.pool.used == 0


async def test_priority_decides_the_order() -> None:
    async with simulated(policy=Policy.PRIORITY, slots=1, costs=Costs(step_s=0.02)) as client:
        order: list[int] = []

        async def ask(priority: int) -> None:
            status, _ = await client.post("/v1/completions", prompt="x", max_tokens=2, priority=priority)
            assert status == 200
            order.append(priority)

        running = client.begin(max_tokens=2000)
        await client.until(running=1)
        asked = []
        for waiting, priority in enumerate((5, 1, -3), start=1):
            asked.append(asyncio.create_task(ask(priority)))
            await client.until(running=1, waiting=waiting)
        running.cancel()
        await asyncio.gather(*asked)

    assert order == [-3, 1, 5]


async def test_load_counts_requests_in_progress() -> None:
    async with simulated(costs=HELD) as client:
        first = client.begin()
        async with in_background(first):
            await client.until(running=1)
            assert json.loads((await client.get("/load"))[1]) == {"server_load": 1}


async def test_the_metrics_page_is_valid_for_prometheus() -> None:
    async with simulated() as client:
        await client.post("/v1/completions", prompt="x", max_tokens=3)
        async with client.session.get(client.url + "/metrics") as response:
            assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            page = await response.text()

    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert families["vllm:time_to_first_token_seconds"].type == "histogram"
    assert families["vllm:generation_tokens"].samples[0].value == 3
    assert families["vllm:num_requests_running"].samples[0].labels == {"engine": "0", "model_name": "tiny"}


async def test_the_metrics_page_has_the_lateness_of_the_simulator_itself() -> None:
    async with simulated() as client:
        await client.post("/v1/completions", prompt="x", max_tokens=3)
        request = client.begin(max_tokens=1900)
        async with in_background(request):
            await client.until(running=1)
            time.sleep(0.3)  # the simulator runs in this loop, too
            await asyncio.sleep(0.05)
            _, page = await client.get("/metrics")

    values = {s.name: s.value for family in text_string_to_metric_families(page) for s in family.samples}
    assert values["loadgen_engine_step_delay_seconds_count"] >= 4
    assert values["loadgen_engine_step_delay_seconds_sum"] > 0.2
    assert values["loadgen_engine_lost_seconds_total"] > 0.1


@pytest.mark.exclusive
async def test_calibration_finds_the_configured_costs() -> None:
    costs = Costs(step_s=0.012, per_sequence_s=0.0015, per_prompt_token_s=0.00006)
    # Three rounds, so that one slow round does not change the medians.
    effort = Effort(lengths=(64, 512, 1024), streams=(1, 8, 16), rounds=3, repeats=3, tokens=24)

    async with simulated(costs=costs, slots=16) as client:
        result = await calibrate(client.url, "tiny", effort, random.Random(1))

    found = result.costs
    assert abs(found.step_s / costs.step_s - 1) < 0.15
    assert abs(found.per_sequence_s / costs.per_sequence_s - 1) < 0.15
    assert abs(found.per_prompt_token_s / costs.per_prompt_token_s - 1) < 0.15
    assert result.mean_error < 0.1
    assert (result.shape.window, result.shape.block_size, result.shape.blocks) == (2048, 16, 4096)


async def test_calibration_measures_at_most_as_many_streams_as_slots() -> None:
    effort = Effort(lengths=(16, 1024), streams=(1, 2, 8), rounds=1, repeats=1, tokens=120)

    async with simulated(costs=Costs(step_s=0.004), slots=2) as client:
        result = await calibrate(client.url, "tiny", effort, random.Random(1))

    assert [point.streams for point in result.points if point.streams] == [1, 2]


async def test_the_error_of_an_unknown_model_names_the_served_models() -> None:
    async with simulated() as client:
        with pytest.raises(CalibrationError, match="serves tiny, not large: give --model"):
            await calibrate(client.url, "large", Effort(), random.Random(1))


async def test_the_error_of_an_unreachable_engine_names_it() -> None:
    async with simulated() as client:
        url = client.url

    with pytest.raises(CalibrationError, match=url):
        await calibrate(url, "tiny", Effort(), random.Random(1))
