"""The other dialects: prices of their requests, and their answers. test_openai.py has OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.controller.stored_responses import MOST_STORED, StoredResponses
from sidecar.dialects import anthropic, cohere, openai, pooling, responses
from sidecar.dialects.bodies import MESSAGE_BYTES, MOST_VALUES, Malformed, Parsed
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.fields import with_priority
from sidecar.dialects.items import MOST_ITEMS
from sidecar.dialects.routes import ROUTES, find, stored_id
from tests.unit.sidecar.dialects.test_openai import json_values
from tokenpool.accounting.account import Account
from tokenpool.amounts import Amount
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.outcomes import Reason
from tokenpool.pricing.cost import WINDOW, Ask

PARSERS = {route.parse for route in ROUTES.values() if route.parse is not None}
DIALECTS = {id(route.dialect): route.dialect for route in ROUTES.values()}.values()


def written(**fields: Any) -> bytes:
    return json.dumps({"model": "m"} | fields).encode()


def asked_by(parsed: Parsed) -> Ask:
    """The ask without the route."""
    return parsed.ask.changed(target=("", ""))


def size(value: object) -> int:
    return len(json.dumps(value))


# --- Anthropic ---


def message(content: object, **fields: Any) -> Ask:
    body = written(messages=[{"role": "user", "content": content}], max_tokens=9, **fields)
    return asked_by(anthropic.parse(body))


def test_a_message_is_priced_by_its_texts_and_those_of_the_system() -> None:
    assert message("12345") == Ask(text_bytes=MESSAGE_BYTES + 5, output_bound=9)
    assert message("12345", system="123").text_bytes == MESSAGE_BYTES + 8
    assert message("12345", system=[{"type": "text", "text": "123"}]).text_bytes == MESSAGE_BYTES + 8
    assert message([{"type": "thinking", "thinking": "1234"}]).text_bytes == MESSAGE_BYTES + 4


def test_images_and_tools_of_a_message_count() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "A" * 1000}}
    assert message([image, {"type": "text", "text": "what is it"}]) == Ask(
        text_bytes=MESSAGE_BYTES + 10, images=1, output_bound=9
    )
    tool = {"name": "look", "input_schema": {"type": "object"}}
    asked = message("12345", tools=[tool])
    assert (asked.tools, asked.text_bytes) == (1, MESSAGE_BYTES + 5 + size(tool))


def test_tool_calls_and_their_results_count_also_if_nested() -> None:
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {"at": "this"}}
    said = {"type": "tool_result", "tool_use_id": "t", "content": "12345"}
    shown = {"type": "tool_result", "content": [{"type": "text", "text": "123"}, {"type": "image"}]}
    asked = message([call, said, shown])
    assert asked.text_bytes == MESSAGE_BYTES + size({"at": "this"}) + 5 + 3
    assert asked.images == 1


def test_a_message_streams_without_being_rewritten() -> None:
    body = written(messages=[{"role": "user", "content": "x"}], max_tokens=1, stream=True)
    parsed = anthropic.parse(body)
    assert (parsed.streams, parsed.hides_usage, parsed.body) == (True, False, body)
    assert not parsed.takes_priority


def test_anthropics_errors_have_its_kinds_and_its_status_for_no_capacity() -> None:
    kinds = {}
    for reason in Reason:
        error = json.loads(anthropic.error_body(reason, "what", "where"))
        assert error["type"] == "error"
        assert error["error"]["message"] == "where: what"
        kinds[reason] = error["error"]["type"]
    assert kinds[Reason.CONCURRENCY] == "rate_limit_error"
    assert kinds[Reason.UNKNOWN_KEY] == "authentication_error"
    assert kinds[Reason.ENGINE_DOWN] == "overloaded_error"
    assert anthropic.ANTHROPIC.status(Reason.ENGINE_DOWN) == 529
    assert anthropic.ANTHROPIC.status(Reason.CONCURRENCY) == 429


def test_anthropics_limits_are_in_its_own_headers_with_moments_for_resets() -> None:
    account = Account(Entitlement("a", "p", Tier.ELASTIC), Pricing(), 0.0)
    account.pool_limit = Amount(100, 1000, 4)
    lines = dict(
        line.split(": ", 1) for line in anthropic.limit_headers(account).decode().split("\r\n") if line
    )
    assert lines["anthropic-ratelimit-requests-limit"] == "4"
    assert lines["anthropic-ratelimit-requests-remaining"] == "4"
    for name in ("requests", "tokens"):
        assert lines[f"anthropic-ratelimit-{name}-reset"].endswith("Z")


@pytest.mark.parametrize("dialect", [openai.OPENAI, anthropic.ANTHROPIC])
def test_every_dialect_states_the_limits_in_the_form_of_the_ietf_draft(dialect: Dialect) -> None:
    account = Account(Entitlement("a", "p", Tier.ELASTIC), Pricing(), 0.0)
    account.pool_limit, account.depth, account.bucket.level = Amount(100, 1000, 4), 1050.0, 850.0
    written = dialect.limit_headers(account).decode()
    lines = dict(line.split(": ", 1) for line in written.split("\r\n") if line)
    policies = '"tokens";q=1050;w=11;qu="tokens", "requests";q=4;qu="concurrent-requests"'
    assert lines["ratelimit-policy"] == policies
    assert lines["ratelimit"] == '"tokens";r=850;t=2, "requests";r=4;t=0'


@pytest.mark.parametrize("rate", [1e-6, 1e-12, 5e-324])
@pytest.mark.parametrize("dialect", [openai.OPENAI, anthropic.ANTHROPIC])
def test_a_limit_that_is_almost_nothing_has_times_that_can_be_written(dialect: Dialect, rate: float) -> None:
    account = Account(Entitlement("a", "p", Tier.ELASTIC), Pricing(), 0.0)
    account.pool_limit, account.depth, account.bucket.level = Amount(rate, 1000, 4), 1050.0, -1e6
    written = dialect.limit_headers(account).decode()
    lines = dict(line.split(": ", 1) for line in written.split("\r\n") if line)
    assert ";t=1000000000," in lines["ratelimit"]


# --- Responses ---


def response(**fields: Any) -> Ask:
    return asked_by(responses.parse(written(**fields)))


def test_a_response_is_priced_by_input_and_instructions() -> None:
    assert response(input="12345", instructions="123", max_output_tokens=7) == Ask(
        text_bytes=MESSAGE_BYTES + 8, output_bound=7
    )
    items = [
        {"role": "user", "content": "12345"},
        {"role": "user", "content": [{"type": "input_text", "text": "123"}, {"type": "input_image"}]},
        {"type": "function_call", "arguments": "12", "name": "f", "call_id": "c"},
        {"type": "function_call_output", "output": "1", "call_id": "c"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "1234"}]},
    ]
    asked = response(input=items, tools=[{"type": "function", "name": "f"}])
    assert asked.text_bytes == 5 * MESSAGE_BYTES + 5 + 3 + 2 + 1 + 4 + size({"type": "function", "name": "f"})
    assert (asked.images, asked.tools, asked.output_bound) == (1, 1, None)


def test_a_response_names_what_it_goes_on_from_and_how_it_is_called() -> None:
    parsed = responses.parse(written(input="x", previous_response_id="resp_1", request_id="resp_2"))
    assert (parsed.continued_response, parsed.response_name) == ("resp_1", "resp_2")


def test_a_background_response_is_refused() -> None:
    with pytest.raises(Malformed, match="background"):
        response(input="x", background=True)


def test_a_stream_of_response_events_ends_with_one_that_is_numbered() -> None:
    lines = responses.error_event(Reason.PREEMPTED, "gone", 7).decode().strip().split("\n")
    assert lines[0] == "event: error"
    said = json.loads(lines[1].removeprefix("data: "))
    assert (said["type"], said["code"], said["sequence_number"]) == ("error", "preempted", 7)


# --- models that generate nothing ---


@pytest.mark.parametrize(
    ("given_input", "asked"),
    [
        ("12345", Ask(5, output_bound=0)),
        (["123", "45"], Ask(5, prompts=2, output_bound=0)),
        ([1, 2, 3], Ask(0, 3, output_bound=0)),
        ([[1, 2], [3]], Ask(0, 3, prompts=2, output_bound=0)),
        ([{"role": "user", "content": "12345"}], Ask(MESSAGE_BYTES + 5, output_bound=0)),
        (
            [[{"role": "user", "content": "123"}], [{"role": "user", "content": "12"}]],
            Ask(2 * MESSAGE_BYTES + 5, prompts=2, output_bound=0),
        ),
    ],
)
def test_every_form_of_what_is_embedded_is_priced(given_input: object, asked: Ask) -> None:
    assert asked_by(pooling.parse_input(written(input=given_input))) == asked


def test_conversations_are_embedded_too_and_plugins_have_data() -> None:
    chat = [{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "12"}]}]
    assert asked_by(pooling.parse_input(written(messages=chat))) == Ask(
        MESSAGE_BYTES + 2, images=1, output_bound=0
    )
    assert pooling.parse_input(written(data={"a": 1})).ask.text_bytes == size({"a": 1})


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"texts": ["123", "4567"]}, Ask(text_bytes=7, prompts=2, output_bound=0)),
        ({"images": ["data:image/png;base64,AAAA"]}, Ask(images=1, output_bound=0)),
        (
            {
                "inputs": [
                    {"content": [{"type": "text", "text": "12"}, {"type": "image_url", "image_url": {}}]}
                ]
            },
            Ask(text_bytes=2, images=1, output_bound=0),
        ),
        ({"texts": None, "inputs": [{"content": [{"type": "text", "text": "12"}]}]}, Ask(2, output_bound=0)),
    ],
)
def test_every_form_of_coheres_inputs_is_priced(fields: dict[str, Any], asked: Ask) -> None:
    assert asked_by(cohere.parse(written(**fields))) == asked.changed(input_bound=WINDOW)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "one of texts, images and inputs"),
        ({"texts": ["a"], "images": ["b"]}, "one of texts, images and inputs"),
        ({"texts": []}, "input to embed"),
        ({"texts": "a"}, "texts must be a list"),
        ({"inputs": [5]}, "Expected `object`"),
        ({"texts": ["a"] * 2049}, "more than 2048"),
    ],
)
def test_requests_that_cohere_would_refuse_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Malformed, match=words):
        cohere.parse(written(**fields))


def test_a_query_is_read_again_for_every_document() -> None:
    asked = Ask(3 * 2 + 9, prompts=3, output_bound=0)
    documents = ["123", "123", "123"]
    assert asked_by(pooling.parse_reranking(written(query="12", documents=documents))) == asked
    for one, other in (("queries", "documents"), ("text_1", "text_2"), ("data_1", "data_2")):
        assert asked_by(pooling.parse_scores(written(**{one: "12", other: documents}))) == asked
    pairs = asked_by(pooling.parse_scores(written(queries=["1", "2"], items=["12", "34"])))
    assert pairs == Ask(6, prompts=2, output_bound=0)
    rich = {"content": [{"type": "text", "text": "12"}, {"type": "image_url"}]}
    assert asked_by(pooling.parse_reranking(written(query=rich, documents=["1"]))) == Ask(
        3, images=1, output_bound=0
    )


@pytest.mark.parametrize(
    ("parse", "fields", "param"),
    [
        (pooling.parse_input, {}, "input"),
        (pooling.parse_input, {"input": ["x"] * 2049}, "input"),
        (pooling.parse_scores, {"queries": "x"}, "queries"),
        (pooling.parse_reranking, {"query": "x", "documents": []}, "documents"),
        (responses.parse, {}, "input"),
        (anthropic.parse, {"messages": []}, "messages"),
        (openai.parse_chat_batch, {"messages": []}, "messages"),
        (openai.parse_chat_batch, {"messages": [[{"content": "x"}]] * 2049}, "messages"),
    ],
)
def test_requests_without_a_price_are_named(parse: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Malformed) as error:
        parse(written(**fields))
    assert error.value.param == param


MANY = MOST_ITEMS + 1
EMPTY = b"{},".join([b""] * MANY)
HOSTILE = {
    "messages": ("/v1/chat/completions", b'{"messages":[%b{}]}' % EMPTY),
    "parts": ("/v1/chat/completions", b'{"messages":[{"content":[%b{}]}]}' % EMPTY),
    "parts of many messages": (
        "/v1/chat/completions",
        b'{"messages":[%b{}]}' % b"".join([b'{"content":[{},{},{}]},'] * (MANY // 4 + 1)),
    ),
    "ids": ("/v1/completions", b'{"prompt":[%b1]}' % (b"1," * (MOST_VALUES + 1))),
    "unknown fields": ("/v1/completions", b'{"x":[%b1]}' % (b"1," * (MOST_VALUES + 1))),
    "tools": ("/v1/chat/completions", b'{"messages":[{}],"tools":[%b1]}' % (b"1," * MANY)),
    "conversations": ("/v1/chat/completions/batch", b'{"messages":[%b[]]}' % (b"[]," * MANY)),
    "messages of a batch": ("/v1/chat/completions/batch", b'{"messages":[[%b{}]]}' % EMPTY),
    "prompts": ("/v1/completions", b'{"prompt":[%b""]}' % (b'"",' * MANY)),
    "prompts of ids": ("/v1/completions", b'{"prompt":[%b[1]]}' % (b"[1]," * MANY)),
    "fields beside a priority": (
        "/v1/completions",
        b'{"prompt":"a","priority":1,%b"x":1}' % b"".join(b'"f%d":1,' % i for i in range(MANY)),
    ),
    "fields beside stream options": (
        "/v1/completions",
        b'{"prompt":"a","stream":true,"stream_options":null,%b"x":1}'
        % b"".join(b'"f%d":1,' % i for i in range(MANY)),
    ),
    "Anthropic's messages": ("/v1/messages", b'{"messages":[%b{}]}' % EMPTY),
    "Anthropic's tools": ("/v1/messages", b'{"messages":[{}],"tools":[%b{}]}' % EMPTY),
    "Anthropic's system": ("/v1/messages", b'{"messages":[{}],"system":[%b{}]}' % EMPTY),
    "items of a response": ("/v1/responses", b'{"input":[%b{}]}' % EMPTY),
    "tools of a response": ("/v1/responses", b'{"input":"a","tools":[%b{}]}' % EMPTY),
    "inputs": ("/v1/embeddings", b'{"input":[%b""]}' % (b'"",' * MANY)),
    "embedded messages": ("/v1/embeddings", b'{"messages":[%b{}]}' % EMPTY),
    "embedded conversations": ("/v1/embeddings", b'{"messages":[%b[{}]]}' % (b"[{}]," * MANY)),
    "documents": ("/rerank", b'{"query":"a","documents":[%b""]}' % (b'"",' * MANY)),
    "queries": ("/score", b'{"queries":[%b""],"documents":["a"]}' % (b'"",' * MANY)),
    "parts of a document": ("/rerank", b'{"query":"a","documents":[{"content":[%b{}]}]}' % EMPTY),
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_no_body_takes_more_than_its_bytes(shape: str) -> None:
    path, body = HOSTILE[shape]
    route = find(path.encode())
    assert route is not None
    assert route.parse is not None
    with pytest.raises(Malformed, match=r"more than \d+"):
        route.parse(body)


@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/messages"])
def test_parts_within_parts_have_an_end(path: bytes) -> None:
    route = find(path)
    assert route is not None
    assert route.parse is not None
    for depth, is_too_deep in ((3, False), (4, True), (400, True)):
        body = b'{"messages":[' + b'{"content":[' * depth + b'{"text":"a"}' + b"]}" * depth + b"]}"
        if is_too_deep:
            with pytest.raises(Malformed, match="more than 3 levels"):
                route.parse(body)
        else:
            assert route.parse(body).ask.text_bytes == MESSAGE_BYTES + 1


@pytest.mark.parametrize("name", ["", "a" * 101, "a/b", "a b", "\u00e9"])
def test_a_response_is_called_by_what_fits_into_a_path(name: str) -> None:
    with pytest.raises(Malformed, match="request_id must be"):
        responses.parse(written(input="a", request_id=name))


def test_documents_and_tools_of_a_chat_are_priced() -> None:
    plain = openai.parse_chat(written(messages=[{"content": "a"}])).ask.text_bytes
    for field in ("reasoning", "reasoning_content"):
        chat = written(messages=[{"content": "a", field: "x" * 50}])
        assert openai.parse_chat(chat).ask.text_bytes == plain + 50
    rag = openai.parse_chat(written(messages=[{"content": "a"}], documents=[{"text": "x" * 50}]))
    assert rag.ask.text_bytes >= plain + 50


def test_a_text_may_have_any_content() -> None:
    text = '{"a": [1, 2, {}]}, ' * MANY
    chat = openai.parse_chat(written(messages=[{"role": "user", "content": text}]))
    assert chat.ask.text_bytes == MESSAGE_BYTES + size(text) - 2
    assert asked_by(pooling.parse_input(written(input=[text, text]))).prompts == 2


def test_each_request_is_counted_by_itself() -> None:
    half = written(messages=[{}] * (MOST_ITEMS // 2 + 1), priority=1)
    for _ in range(3):
        assert openai.parse_chat(half).has_priority
        assert with_priority(openai.parse_chat(half), 5).count(b"priority") == 1


@pytest.mark.parametrize("split", [b"\xc3", b"\xe2\x82", b"\xff"])
def test_text_that_is_not_utf_8_is_found_wherever_it_is(split: bytes) -> None:
    start = b'{"prompt":"'
    text = b"x" * ((1 << 20) - len(start) - 1)
    with pytest.raises(Malformed, match=rf"not valid UTF-8 \(byte {(1 << 20) - 1}\)"):
        openai.parse_completion(start + text + split + b'"}')
    whole = start + text + "\u20ac".encode() + b'"}'
    assert openai.parse_completion(whole).ask.text_bytes == len(text) + 3


def test_a_long_prompt_is_recognised_by_its_beginning_in_every_dialect() -> None:
    long, other = "a" * 5000, "b" * 5000

    def known(text: str, more: str) -> list[tuple[int, ...]]:
        chat = [{"role": "user", "content": text}, {"role": "user", "content": more}]
        return [
            parsed.ask.prefixes
            for parsed in (
                openai.parse_chat(written(messages=chat)),
                anthropic.parse(written(messages=chat, max_tokens=1)),
                anthropic.parse(written(system=text, messages=chat[1:], max_tokens=1)),
                responses.parse(written(instructions=text, input=more)),
            )
        ]

    for one, same, another in zip(known(long, "1"), known(long, "2"), known(other, "1"), strict=True):
        assert len(one) == 2  # of 1 and 4 kB
        assert one == same
        assert not set(one) & set(another)
    assert not any(known("short", "1"))


def test_a_batch_of_chats_is_as_many_sequences() -> None:
    chat = [{"role": "user", "content": "12345"}]
    parsed = openai.parse_chat_batch(written(messages=[chat, chat], max_tokens=4))
    assert asked_by(parsed) == Ask(2 * (MESSAGE_BYTES + 5), prompts=2, output_bound=4)


def test_of_several_things_to_be_read_only_one_may_be_sent() -> None:
    for parse, fields in (
        (pooling.parse_input, {"input": "a long text", "data": 1}),
        (pooling.parse_input, {"input": "a long text", "messages": [{"content": "x"}]}),
        (pooling.parse_scores, {"queries": "a", "documents": "b", "text_1": "a long text", "text_2": "c"}),
    ):
        with pytest.raises(Malformed, match="send only one of"):
            parse(written(**fields))
    assert asked_by(pooling.parse_input(written(input="12345", data=None))) == Ask(5, output_bound=0)
    given = {"queries": None, "documents": None, "text_1": "123", "text_2": "45"}
    assert asked_by(pooling.parse_scores(written(**given))) == Ask(5, output_bound=0)


@pytest.mark.parametrize(
    ("part", "text_bytes", "images", "audios"),
    [
        ({"type": "refusal", "refusal": "12345"}, 5, 0, 0),
        ({"image_url": "x"}, 0, 1, 0),
        ({"video_url": {"url": "x"}}, 0, 1, 0),
        ({"input_audio": {"data": "x"}}, 0, 0, 1),
        ({"type": "text", "text": "123", "uuid": "u", "image_url": "x"}, 3, 1, 0),
        ({"type": "text", "text": "123", "image_url": "x"}, 3, 0, 0),
    ],
)
def test_parts_are_priced_as_the_engine_takes_them(
    part: dict[str, Any], text_bytes: int, images: int, audios: int
) -> None:
    asked = asked_by(openai.parse_chat(written(messages=[{"content": [part]}])))
    assert (asked.text_bytes, asked.images, asked.audios) == (MESSAGE_BYTES + text_bytes, images, audios)


# --- all ---

names = ["messages", "input", "query", "queries", "documents", "system", "tools", "data", "max_tokens"]


@given(
    st.binary(max_size=60)
    | st.dictionaries(st.sampled_from(names), json_values).map(lambda d: json.dumps(d).encode())
)
def test_any_body_is_parsed_or_malformed(body: bytes) -> None:
    for parse in PARSERS:
        try:
            parsed = parse(body)
        except Malformed as error:
            assert str(error)
        else:
            assert parsed.ask.prompts >= 1
            ask = parsed.ask
            assert min(ask.text_bytes, ask.token_ids, ask.images, ask.audios, ask.tools) >= 0


@pytest.mark.parametrize("reason", Reason)
def test_every_dialect_has_an_error_for_every_reason(reason: Reason) -> None:
    for dialect in DIALECTS:
        assert b"what" in dialect.error_body(reason, "what", None)
        assert b"what" in dialect.error_event(reason, "what", 3)
        assert 400 <= dialect.status(reason) < 600


def test_stored_responses_have_paths_of_their_own() -> None:
    retrieve, cancel = find(b"/v1/responses/resp_1-a"), find(b"/v1/responses/resp_1-a/cancel")
    assert retrieve is not None
    assert cancel is not None
    assert (retrieve.method, cancel.method) == (b"GET", b"POST")
    assert retrieve.names_stored
    assert stored_id(b"/v1/responses/resp_1-a/cancel") == "resp_1-a"
    for path in (b"/v1/responses/", b"/v1/responses/a/b", b"/v1/responses/../models", b"/v1/responses/a%2fb"):
        assert find(path) is None


def test_a_stored_response_belongs_to_its_owner() -> None:
    stored = StoredResponses()
    stored.record("resp_1", "a", 30)
    assert stored.tokens("resp_1", "a") == 30
    assert stored.tokens("resp_1", "b") is None
    assert stored.belongs_to_another("resp_1", "b")
    assert not stored.belongs_to_another("resp_1", "a")
    assert not stored.belongs_to_another("resp_2", "b")


def test_the_oldest_stored_responses_are_forgotten() -> None:
    stored = StoredResponses()
    stored.record("resp_b", "b", 7)
    stored.record("x" * 129, "a", 1)
    for number in range(MOST_STORED + 1):
        stored.record(f"resp_{number}", "a", number)
    assert stored.tokens("resp_0", "a") is None
    assert stored.tokens(f"resp_{MOST_STORED}", "a") == MOST_STORED
    assert stored.tokens("resp_b", "b") == 7
    assert stored.tokens("x" * 129, "a") is None
    stored.record("resp_b", "a", 8)
    assert stored.tokens("resp_b", "b") is None
    assert stored.belongs_to_another("resp_b", "b")
