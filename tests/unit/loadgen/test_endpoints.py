"""Each endpoint: the body of a request, the events of a stream, and whole responses."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.arrivals import Request, requests
from loadgen.client import recipient
from loadgen.endpoints.dialect import Event
from loadgen.endpoints.pooling import pairs, texts
from loadgen.endpoints.table import DIALECTS
from loadgen.prompts import body, body_of_messages
from loadgen.scenario import Endpoint, Fixed, Header, Prefix, Tenant
from loadgen.sse import Failure, Usage
from tests.support.loadgen_builders import scenario, tenant


def sent(endpoint: Endpoint, *, stream: bool = True, **fields: Any) -> dict[str, Any]:
    who = tenant(endpoint=endpoint, **fields)
    made: dict[str, Any] = json.loads(body(scenario(who, stream=stream), who, next(requests(who, 1)), 1))
    return made


def test_the_table_has_every_endpoint() -> None:
    assert set(DIALECTS) == set(Endpoint)


def test_a_chat_request_has_one_message() -> None:
    made = sent(Endpoint.CHAT)
    assert made.pop("messages")[0]["role"] == "user"
    assert made == {
        "model": "tiny", "max_tokens": 4, "ignore_eos": True, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_a_completion_request_has_token_ids() -> None:
    made = sent(Endpoint.COMPLETIONS, ignore_eos=False, priority=-2)
    assert len(made.pop("prompt")) == 16
    assert made == {
        "model": "tiny", "max_tokens": 4, "temperature": 0, "stream": True, "priority": -2,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_a_responses_request_is_not_stored() -> None:
    made = sent(Endpoint.RESPONSES, priority=1)
    assert len(made.pop("input")) == 64
    assert made == {
        "model": "tiny", "max_output_tokens": 4, "temperature": 0, "store": False, "stream": True,
        "ignore_eos": True, "priority": 1,
    }  # fmt: skip


def test_a_messages_request_has_the_system_prompt_in_a_field_of_its_own() -> None:
    who = tenant(endpoint=Endpoint.MESSAGES)
    said = [("system", "Be brief."), ("user", "Hi")]
    made = json.loads(body_of_messages(scenario(who), who, Request(0, 9, 9, False), said))
    assert (made["system"], made["messages"]) == ("Be brief.", [{"role": "user", "content": "Hi"}])


def test_a_messages_request_has_the_fields_of_its_api_only() -> None:
    made = sent(Endpoint.MESSAGES, stream=False)
    assert len(made.pop("messages")[0]["content"]) == 64
    assert made == {"model": "tiny", "max_tokens": 4, "temperature": 0, "stream": False}


def test_a_request_to_embed_has_a_batch_of_different_inputs() -> None:
    made = sent(Endpoint.EMBEDDINGS, input=Fixed(17), batch=3, prefix=Prefix(1.0, 2, "p"))
    assert [len(ids) for ids in made["input"]] == [6, 6, 5]
    assert len({tuple(ids[:2]) for ids in made["input"]}) == 1
    assert len({tuple(ids[2:]) for ids in made["input"]}) == 3
    assert made.keys() == {"model", "input"}


def test_a_request_to_rerank_has_a_query_and_documents() -> None:
    made = sent(Endpoint.RERANK, input=Fixed(64), batch=2, priority=4)
    assert (len(made["query"]), [len(each) for each in made["documents"]]) == (32, [96, 96])
    assert made["priority"] == 4


@given(st.integers(1, 5000), st.integers(1, 40))
def test_the_engine_counts_the_requested_tokens_of_a_batch(tokens: int, batch: int) -> None:
    assert len(texts(tokens, batch)) == batch
    assert sum(texts(tokens, batch)) == max(tokens, batch)
    query, *documents = pairs(tokens, batch)
    assert len(documents) == batch
    assert min(query, *documents) >= 1
    if tokens >= 2 * batch:
        assert batch * query + sum(documents) == tokens


def test_a_tenant_has_its_own_model_and_further_fields() -> None:
    made = sent(Endpoint.CHAT, model="sql-adapter", extra_body=(("temperature", 0.7), ("top_p", 0.9)))
    assert (made["model"], made["temperature"], made["top_p"]) == ("sql-adapter", 0.7, 0.9)


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        (tenant(), {}),
        (tenant(key="sk"), {"authorization": "Bearer sk"}),
        (
            tenant(key="sk", endpoint=Endpoint.MESSAGES),
            {"x-api-key": "sk", "anthropic-version": "2023-06-01"},
        ),
        (
            tenant(endpoint=Endpoint.MESSAGES, headers=(Header("Anthropic-Version", "2099-01-01"),)),
            {"anthropic-version": "2099-01-01"},
        ),
        (tenant(headers=(Header("X-Tenant", "a"),)), {"x-tenant": "a"}),
    ],
)
def test_headers_have_the_key_in_the_form_of_the_api(who: Tenant, expected: dict[str, str]) -> None:
    assert recipient(who).headers == {"content-type": "application/json", **expected}


def read(endpoint: Endpoint, *events: object) -> tuple[Counter[str], Usage | None, str | None]:
    """The tokens and ends of a stream, its usage, and the name of its last error."""
    seen: Counter[str] = Counter()
    usage: Usage | None = None
    error: Failure | None = None
    for each in events:
        event: Event | None = DIALECTS[endpoint].event(msgspec.json.encode(each))
        assert event is not None
        seen.update(tokens=event.is_token, ends=event.is_finish)
        usage = event.usage.after(usage) if event.usage is not None else usage
        error = event.error or error
    return seen, usage, error.name if error is not None else None


CREATED = {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}}
TEXT = {"type": "response.output_text.delta", "delta": "a", "logprobs": [], "sequence_number": 4}
THOUGHT = {"type": "response.reasoning_text.delta", "delta": "a"}
DONE = {"type": "response.output_text.done", "text": "aa"}
COUNTS = {"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}


def test_a_stream_of_a_response_is_read() -> None:
    ended = {"type": "response.completed", "response": {"status": "completed", "usage": COUNTS}}
    seen, usage, error = read(Endpoint.RESPONSES, CREATED, THOUGHT, TEXT, TEXT, DONE, ended)
    assert (seen, usage, error) == (Counter(tokens=3, ends=1), Usage(12, 3), None)


def test_a_response_with_its_longest_length_is_complete() -> None:
    seen, usage, _ = read(Endpoint.RESPONSES, {"type": "response.incomplete", "response": {"usage": COUNTS}})
    assert (seen["ends"], usage) == (1, Usage(12, 3))


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ({"type": "error", "code": "preempted", "message": "m", "param": None}, "preempted"),
        ({"type": "error", "code": None, "message": "m"}, "error"),
        (
            {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "m"}}},
            "server_error",
        ),
        ({"type": "response.failed", "response": {"usage": None}}, "response.failed"),
    ],
)
def test_errors_of_a_response_are_read(event: object, name: str) -> None:
    assert read(Endpoint.RESPONSES, event)[2] == name


STARTED = {
    "type": "message_start",
    "message": {"id": "m", "content": [], "usage": {"input_tokens": 9, "output_tokens": 1}},
}
PING = {"type": "ping"}
OPENED = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
CLOSED = {"type": "content_block_stop", "index": 0}
STOP = {"type": "message_stop"}


def delta(kind: str) -> dict[str, object]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, "text": "a"}}


def ended(**usage: int) -> dict[str, object]:
    return {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": usage}


@pytest.mark.parametrize(
    ("last", "usage"),
    [
        (ended(output_tokens=2), Usage(9, 2)),
        (ended(input_tokens=3, cache_read_input_tokens=6, output_tokens=2), Usage(9, 2)),
        (ended(input_tokens=1, cache_creation_input_tokens=10, output_tokens=2), Usage(11, 2)),
    ],
)
def test_a_stream_of_a_message_is_read(last: object, usage: Usage) -> None:
    text, thought, signed = delta("text_delta"), delta("thinking_delta"), delta("signature_delta")
    read_ = read(Endpoint.MESSAGES, STARTED, PING, OPENED, thought, signed, text, CLOSED, last, STOP)
    assert read_ == (Counter(tokens=2, ends=1), usage, None)


def test_the_placeholder_of_a_broken_message_is_no_count() -> None:
    assert read(Endpoint.MESSAGES, STARTED, delta("text_delta"))[1] == Usage(9, None)


def test_errors_of_a_message_are_read() -> None:
    failed = {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}
    assert read(Endpoint.MESSAGES, failed)[2] == "overloaded_error"


VECTORS = [{"index": 0, "embedding": [0.1] * 3, "object": "embedding"}]


@pytest.mark.parametrize(
    ("endpoint", "content", "usage"),
    [
        (Endpoint.CHAT, {"choices": [{"message": {}}], "usage": {"prompt_tokens": 2}}, Usage(2, None)),
        (Endpoint.RESPONSES, {"object": "response", "output": [{"type": "message"}], "usage": COUNTS},
         Usage(12, 3)),
        (Endpoint.MESSAGES, {"content": [{"type": "text"}], "usage": COUNTS}, Usage(12, 3)),
        (Endpoint.MESSAGES, {"content": []}, None),
        (Endpoint.EMBEDDINGS, {"data": VECTORS, "usage": {"prompt_tokens": 5, "total_tokens": 5}},
         Usage(5, 0)),
        (Endpoint.RERANK, {"results": [{"index": 0}], "usage": {"total_tokens": 7}}, Usage(7, 0)),
        (Endpoint.RERANK, {"results": [{"index": 0}]}, None),
    ],
)  # fmt: skip
def test_whole_responses_are_read(endpoint: Endpoint, content: object, usage: Usage | None) -> None:
    event = DIALECTS[endpoint].whole(msgspec.json.encode(content))
    assert event is not None
    assert (event.usage, event.error) == (usage, None)


@pytest.mark.parametrize("endpoint", Endpoint)
def test_a_whole_response_may_be_an_error(endpoint: Endpoint) -> None:
    event = DIALECTS[endpoint].whole(b'{"error": {"type": "api_error", "message": "m", "code": null}}')
    assert event is not None
    assert event.error is not None
    assert event.error.name == "api_error"


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize("content", [b"", b"<html>", b"{}", b"[]", b'{"choices": [], "data": []}', b'"\xff"'])
def test_other_content_is_no_response(endpoint: Endpoint, content: bytes) -> None:
    assert DIALECTS[endpoint].whole(content) is None


@pytest.mark.parametrize("endpoint", Endpoint)
@pytest.mark.parametrize("data", [b"", b"nonsense", b"[1]"])
def test_unreadable_data_is_no_event(endpoint: Endpoint, data: bytes) -> None:
    assert DIALECTS[endpoint].event(data) is None


def test_requests_of_a_batch_repeat_for_a_seed() -> None:
    who = tenant(endpoint=Endpoint.RERANK, batch=3)
    made = [body(scenario(who), who, Request(number, 30, 0, False), 1) for number in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
