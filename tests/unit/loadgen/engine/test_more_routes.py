"""Responses, messages, embeddings, scores, reranking and LoRA names: bodies, refusals and answers."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import zipfile
from typing import Any

import pytest

from loadgen.engine.answers import OpenAIAnswer, Stamp
from loadgen.engine.bodies import Body, Refused
from loadgen.engine.messages import MessagesAnswer, read_count_tokens, read_messages, translated
from loadgen.engine.model import Ending, Model
from loadgen.engine.pooling import embedding, read_embeddings, read_rerank, read_score
from loadgen.engine.requests import read_chat, read_completion, read_tokenize
from loadgen.engine.responses import ResponsesAnswer, read_responses
from tests.unit.loadgen.engine.steps import Engine

SERVED = Model(adapters=("tuned",), max_loras=1)
USER: list[Any] = [{"role": "user", "content": "hi there"}]
STAMP = Stamp(created=1, number=7, tells_cached=True)


def body(**fields: object) -> Body:
    return Body(fields)


def message(**fields: object) -> Any:
    return read_messages(body(**{"model": "tiny", "messages": USER, "max_tokens": 4, **fields}), SERVED)


def response(**fields: object) -> Any:
    return read_responses(body(**{"input": "hi there", **fields}), SERVED)


def test_all_routes_count_the_same_prompt_tokens_as_tokenize() -> None:
    counted = len(read_tokenize(body(messages=USER), SERVED))

    assert len(read_chat(body(messages=USER), SERVED).prompts[0]) == counted
    assert len(response().work.prompts[0]) == counted
    assert len(message().prompts[0]) == counted
    assert read_count_tokens(body(model="tiny", messages=USER), SERVED) == counted
    text = len(read_tokenize(body(prompt="hi there"), SERVED))
    assert len(read_embeddings(body(input="hi there"), SERVED).work.prompts[0]) == text
    assert len(read_completion(body(prompt="hi there"), SERVED).prompts[0]) == text


def test_system_texts_and_items_are_part_of_the_prompt() -> None:
    plain = len(message().prompts[0])

    assert len(message(system="be brief").prompts[0]) > plain
    assert message(system=[{"type": "text", "text": "be brief"}]) == message(system="be brief")
    assert response(instructions="be brief").work.prompts[0] == message(system="be brief").prompts[0]
    assert response(input=USER).work.prompts == response().work.prompts
    parts = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi there"}]}]
    assert response(input=parts).work.prompts == response().work.prompts
    tool = [*USER, {"type": "function_call_output", "call_id": "1", "output": "42"}]
    assert len(response(input=tool).work.prompts[0]) > len(response().work.prompts[0])


def test_bounds_have_the_names_of_each_route() -> None:
    assert message().bounds == (4,)
    assert response(max_output_tokens=9).work.bounds == (9,)
    assert response().work.bounds == (2048 - len(response().work.prompts[0]),)
    assert message(stream=True).tells_usage
    assert not message().tells_usage


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "none"}, 404, "The model `none` does not exist. Valid aliases: tiny."),
        ({"model": None}, 400, "body.model"),
        ({"max_tokens": None}, 400, "body.max_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens must be positive"),
        ({"messages": []}, 400, "empty conversation"),
        ({"messages": "hi"}, 400, "valid list"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "valid string"),
        ({"system": 5}, 400, "body.system"),
        ({"max_tokens": 9999}, 400, "greater than max_model_len"),
    ],
)
def test_messages_are_refused_like_in_vllm(fields: dict[str, object], status: int, words: str) -> None:
    with pytest.raises(Refused) as caught:
        message(**fields)

    assert caught.value.status == status
    assert words in str(caught.value.body)


def test_a_refused_message_has_anthropics_format_except_for_wrong_types() -> None:
    with pytest.raises(Refused) as unknown:
        message(model="none")
    with pytest.raises(Refused) as wrong:
        message(messages="hi")

    error = {"type": "NotFoundError", "message": "The model `none` does not exist. Valid aliases: tiny."}
    assert translated(unknown.value).body == {"type": "error", "error": error}
    assert translated(wrong.value).body["error"]["type"] == "Bad Request"


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "none"}, 404, "does not exist"),
        ({"input": 5}, 400, "body.input.str"),
        ({"input": []}, 400, "empty conversation"),
        ({"input": [5]}, 400, "body.input.0"),
        ({"background": True}, 400, "does not support the background mode"),
        ({"previous_response_id": "resp_1"}, 404, "Response with id 'resp_1' not found."),
        ({"max_output_tokens": 0}, 400, "max_tokens must be at least 1"),
    ],
)
def test_responses_are_refused_like_in_vllm(fields: dict[str, object], status: int, words: str) -> None:
    with pytest.raises(Refused) as caught:
        response(**fields)

    assert caught.value.status == status
    assert words in str(caught.value.body)


def test_fields_that_a_route_does_not_have_are_ignored() -> None:
    ignored = {"n": 2, "min_tokens": 3, "stream_options": {"include_usage": True}}

    assert message(**ignored, priority=5, ignore_eos=True) == message()
    assert response(**ignored).work == response().work
    assert response(ignore_eos=True).work.ignores_end


def finished(engine: Engine, asked: Any, **fields: Any) -> Any:
    sequence = engine.add(asked.prompts[0], asked.bounds[0], **fields)
    engine.run()
    return sequence


def test_a_message_has_one_text_and_its_usage() -> None:
    asked, engine = message(), Engine()
    finished(engine, asked)
    sequence = finished(engine, asked)

    assert MessagesAnswer(asked, [sequence], STAMP).whole() == {
        "id": "chatcmpl-0000000000000007",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": "the pool is shared "}],
        "model": "tiny",
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": 4, "output_tokens": 4, "cache_read_input_tokens": 4},
    }


def test_a_response_repeats_its_request_and_says_why_it_is_incomplete() -> None:
    asked = response(max_output_tokens=4, temperature=0.5, model="tuned", metadata={"a": "b"})
    cut = ResponsesAnswer(asked, [finished(Engine(), asked.work)], STAMP).whole()
    ended = ResponsesAnswer(asked, [finished(Engine(), asked.work, natural=2)], STAMP).whole()

    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (ended["status"], ended["incomplete_details"]) == ("completed", None)
    assert (cut["model"], cut["temperature"], cut["metadata"]) == ("tuned", 0.5, {"a": "b"})
    assert (cut["max_output_tokens"], cut["truncation"], cut["tools"]) == (4, "disabled", [])
    assert ended["output"][0]["content"][0]["text"] == "the pool "
    assert (ended["usage"]["input_tokens"], ended["usage"]["output_tokens"]) == (8, 2)


def streamed(answer: Any, engine: Engine) -> list[Any]:
    raw = b""
    while not answer.is_complete:
        engine.step()
        raw += answer.events()
    raw += answer.last_events()
    events = [event.split(b"\n", 1) for event in raw.split(b"\n\n")[:-1]]
    told = [(kind.removeprefix(b"event: ").decode(), json.loads(data[6:])) for kind, data in events]
    assert all(kind == content["type"] for kind, content in told)
    return [content for _, content in told]


def test_the_events_of_a_message_are_in_anthropics_order() -> None:
    asked, engine = message(stream=True, max_tokens=2), Engine()
    events = streamed(
        MessagesAnswer(asked, [engine.add(asked.prompts[0], 2)], Stamp(created=1, number=7)), engine
    )

    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0]["message"]["usage"] == {"input_tokens": 8, "output_tokens": 0}
    assert events[5]["usage"] == {"input_tokens": 8, "output_tokens": 2}
    assert events[5]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}


def test_the_events_of_a_response_are_numbered_and_end_with_the_whole() -> None:
    asked, engine = response(stream=True, max_output_tokens=2), Engine()
    answer = ResponsesAnswer(asked, [engine.add(asked.work.prompts[0], 2)], STAMP)
    events = streamed(answer, engine)

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[-1]["response"] == answer.whole()
    assert events[0]["response"]["status"] == "in_progress"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (OpenAIAnswer(read_completion(body(prompt="x"), SERVED), [], STAMP), b'"code":504}}\n\ndata: [DONE]'),
        (MessagesAnswer(message(), [], STAMP), b'event: error\ndata: {"type":"error","error":{"type"'),
        (ResponsesAnswer(response(), [], STAMP), b'event: error\ndata: {"type":"error","sequence_number":0'),
    ],
)
def test_a_failed_stream_ends_with_an_error_in_its_format(answer: Any, words: bytes) -> None:
    assert words in answer.failed_events(504, "no answer")
    assert b'"message":"no answer"' in answer.failed_events(504, "no answer")


def test_an_event_has_as_many_tokens_as_the_stream_interval_after_the_first() -> None:
    asked, engine = read_completion(body(prompt="x", max_tokens=6, stream=True), SERVED), Engine()
    answer = OpenAIAnswer(asked, [engine.add(asked.prompts[0], 6)], Stamp(1, 1, interval=3))
    texts = []
    while not answer.is_complete:
        engine.step()
        for event in answer.events().split(b"\n\n")[:-1]:
            texts.append(json.loads(event[6:])["choices"][0]["text"])

    assert texts == ["the ", "pool is shared ", "and fair "]


def test_a_longer_prompt_is_truncated_to_its_last_tokens() -> None:
    long = read_completion(body(prompt="x" * 60_000, truncate_prompt_tokens=100), SERVED)
    ids = read_completion(body(prompt=list(range(50)), truncate_prompt_tokens=10), SERVED)
    window = read_embeddings(body(input="x" * 60_000, truncate_prompt_tokens=-1), SERVED)

    assert len(long.prompts[0]) == 100
    assert ids.prompts[0] == tuple(range(40, 50))
    assert len(window.work.prompts[0]) == 2048


@pytest.mark.parametrize(
    ("most", "words"),
    [(-2, "greater than or equal to -1"), (3000, "greater than max_model_len"), (0, "cannot be empty")],
)
def test_an_invalid_truncation_is_refused(most: int, words: str) -> None:
    with pytest.raises(Refused, match=words):
        read_completion(body(prompt="hi", truncate_prompt_tokens=most), SERVED)


def test_texts_may_stand_among_the_parts_of_a_message() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi "}, "there"]}]

    assert read_chat(body(messages=parts), SERVED).prompts == read_chat(body(messages=USER), SERVED).prompts


def packed(rows: int, size: int = 64) -> str:
    """A tensor as PyTorch saves it, as far as the simulator reads it."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("archive/data.pkl", b"described here")
        archive.writestr("archive/data/0", struct.pack(f"<{rows * size}f", *range(rows * size)))
    return base64.b64encode(raw.getvalue()).decode()


def test_embeddings_in_place_of_a_prompt_are_served_if_enabled() -> None:
    served = Model(takes_embeds=True)

    assert len(read_completion(body(prompt_embeds=packed(5)), served).prompts[0]) == 5
    assert [len(p) for p in read_completion(body(prompt_embeds=[packed(5), packed(2)]), served).prompts] == [
        5,
        2,
    ]
    with pytest.raises(Refused, match="You must set `--enable-prompt-embeds`"):
        read_completion(body(prompt_embeds=packed(5)), SERVED)


@pytest.mark.parametrize(
    ("embeds", "words"),
    [
        ("???", "Failed to load prompt_embeds"),
        ("AAAA", "Failed to load prompt_embeds"),
        (packed(3, size=7), "must have rows of 64 32-bit numbers"),
        (5, "body.prompt_embeds"),
    ],
)
def test_invalid_embeddings_in_place_of_a_prompt_are_refused(embeds: object, words: str) -> None:
    with pytest.raises(Refused) as caught:
        read_completion(body(prompt_embeds=embeds), Model(takes_embeds=True))

    assert words in str(caught.value.body)


def test_adapters_are_models_of_their_own() -> None:
    assert read_completion(body(prompt="x", model="tuned"), SERVED).model == "tuned"
    assert read_completion(body(prompt="x"), SERVED).model == "tiny"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"adapters": ("a",)}, "give --max-loras 1 or more"),
        ({"adapters": ("tiny",), "max_loras": 1}, "give distinct names"),
        ({"adapters": ("",), "max_loras": 1}, "give distinct names"),
        ({"stream_interval": 0}, "stream_interval is 0"),
        ({"cores": 0}, "cores is 0"),
    ],
)
def test_an_impossible_engine_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Model(**fields)


def test_embeddings_have_length_one_and_similar_texts_have_similar_ones() -> None:
    asked = read_embeddings(body(input=["a b c d e f g h", "a b c d e f g i", "zzzzzzzzzzzz"]), SERVED)
    one, near, far = (embedding(tokens, 64) for tokens in asked.work.prompts)

    assert math.isclose(sum(value * value for value in one), 1.0)
    assert sum(map(float.__mul__, one, near)) > sum(map(float.__mul__, one, far)) + 0.2
    assert asked.work.bounds == (0, 0, 0)


def test_embeddings_are_numbers_or_base64() -> None:
    plain = read_embeddings(body(input=[1, 2, 3], dimensions=5), SERVED).answer(STAMP)
    packed = read_embeddings(body(input=[1, 2, 3], dimensions=5, encoding_format="base64"), SERVED)

    numbers = plain["data"][0]["embedding"]
    assert len(numbers) == 5
    raw = base64.b64decode(packed.answer(STAMP)["data"][0]["embedding"])
    assert struct.unpack("<5f", raw) == pytest.approx(numbers)
    assert (plain["usage"]["prompt_tokens"], plain["usage"]["completion_tokens"]) == (3, 0)


def test_documents_are_ordered_by_the_words_that_the_query_has() -> None:
    asked = read_rerank(body(query="fair pool", documents=["a pool", "none", "fair pool"], top_n=2), SERVED)
    results = asked.answer(STAMP)["results"]

    assert [(each["index"], each["relevance_score"]) for each in results] == [(2, 1.0), (0, 0.5)]
    assert results[0]["document"] == {"text": "fair pool", "multi_modal": None}


@pytest.mark.parametrize(
    "names",
    [("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")],
)
def test_one_text_is_scored_with_each_of_the_others(names: tuple[str, str]) -> None:
    asked = read_score(body(**{names[0]: "a b", names[1]: ["a", "c"]}), SERVED)

    assert asked.scores == (1.0, 0.0)
    assert len(asked.work.prompts) == 2


@pytest.mark.parametrize(
    ("read", "fields", "words"),
    [
        (read_embeddings, {}, "body.input"),
        (read_embeddings, {"input": []}, "at least one prompt"),
        (read_embeddings, {"input": "x", "dimensions": 65}, "dimensions must be from 1 to 64"),
        (read_embeddings, {"input": "x", "encoding_format": "hex"}, "body.encoding_format"),
        (read_embeddings, {"input": "x" * 9000}, "maximum context length"),
        (read_embeddings, {"input": "x", "priority": 1}, "Priority scheduling is not enabled"),
        (read_rerank, {"documents": ["a"]}, "body.query"),
        (read_rerank, {"query": "a", "documents": []}, "At least one documents element"),
        (read_rerank, {"query": "a", "documents": [5]}, "body.documents.0"),
        (read_rerank, {"query": "a", "documents": ["a"], "top_n": -1}, "greater than or equal to 0"),
        (read_score, {"queries": "a"}, "body.queries"),
        (read_score, {"text_1": ["a", "b"], "text_2": ["c"]}, "must be either 1:1, 1:N or N:N"),
    ],
)
def test_invalid_pooling_requests_are_refused(read: Any, fields: dict[str, object], words: str) -> None:
    with pytest.raises(Refused) as caught:
        read(body(**fields), SERVED)

    assert words in str(caught.value.body)


def test_a_pooled_prompt_ends_with_its_last_step_and_has_no_output() -> None:
    engine = Engine(batched_tokens=8)
    sequence = engine.add(20, 0)
    plans = engine.run()

    assert (len(plans), sequence.produced, sequence.ending) == (3, 0, Ending.STOP)
    assert engine.scheduler.statistics.generation_tokens == 0
    assert engine.scheduler.statistics.prompt_tokens == 20
    assert engine.scheduler.pool.used == 0
