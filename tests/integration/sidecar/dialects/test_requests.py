"""Requests as other people's clients write them: bounds on the input, other prompts, numbers, texts.

Rows R1 to R4 of the field reports, and further members of each kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.dialects import anthropic, cohere, openai, pooling, responses
from sidecar.dialects.bodies import MESSAGE_BYTES, Malformed, Parsed
from sidecar.dialects.items import MOST_ITEMS, MOST_SEQUENCES
from sidecar.dialects.routes import ROUTES
from tests.fakes.engine import FakeEngine, Received, unary
from tests.support.harness import CHAT, ask, is_whole, request, sidecar_for
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.pricing.cost import WINDOW, Ask, Cost, EngineShape, Pricer, Usage

SHAPE = EngineShape(16, 8192)
BOUNDED = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000000, kv_tokens: 65536, concurrency: 8}
entitlements:
  - name: g
    pool: chat
    tier: elastic
    ceiling: {kv_tokens: 8192}
    api_keys: [g-key]
"""
LONG = "x" * 60_000


def pricer() -> Pricer:
    return Pricer(Entitlement("a", "p", Tier.ELASTIC), Pricing())


def cost_of(parsed: Parsed, shape: EngineShape = SHAPE) -> Cost:
    return pricer().price(parsed.ask, shape)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny"} | fields).encode()


def messages(content: object) -> list[dict[str, object]]:
    return [{"role": "system", "content": "s"}, {"role": "user", "content": content}]


# --- R1: a request that bounds its own input costs at most that bound ---


@pytest.mark.parametrize(
    ("parsed", "most"),
    [
        (lambda: openai.parse_completion(body(prompt=LONG, truncate_prompt_tokens=100)), 100),
        (lambda: openai.parse_completion(body(prompt=[LONG] * 3, truncate_prompt_tokens=100)), 300),
        (lambda: openai.parse_completion(body(prompt=[7] * 9000, truncate_prompt_tokens=100)), 100),
        (lambda: openai.parse_completion(body(prompt=LONG, truncate_prompt_tokens=100, n=4)), 100),
        (lambda: openai.parse_chat(body(messages=messages(LONG), truncate_prompt_tokens=100)), 100),
        (lambda: openai.parse_chat(body(messages=messages([LONG, LONG]), truncate_prompt_tokens=1e2)), 100),
        (lambda: openai.parse_chat_batch(body(messages=[messages(LONG)] * 2, truncate_prompt_tokens=9)), 18),
        (lambda: openai.parse_completion(body(prompt=LONG, truncate_prompt_tokens=-1)), 8192),
        (lambda: responses.parse(body(input=LONG, truncation="auto")), 8192),
        (lambda: responses.parse(body(input=LONG, truncation=None)), 8192),
        (lambda: pooling.parse_input(body(input=LONG, truncate_prompt_tokens=100)), 100),
        (lambda: pooling.parse_input(body(input=[LONG, LONG], truncate_prompt_tokens=100)), 200),
        (lambda: pooling.parse_input(body(messages=messages(LONG), truncate_prompt_tokens=100)), 100),
        (lambda: pooling.parse_scores(body(text_1=LONG, text_2=[LONG] * 2, truncate_prompt_tokens=100)), 200),
        (lambda: pooling.parse_reranking(body(query="q", documents=[LONG], truncate_prompt_tokens=9)), 9),
        (lambda: pooling.parse_reranking(body(query="q", documents=[LONG], max_tokens_per_doc=100)), 229),
        (lambda: pooling.parse_reranking(body(query=LONG, documents=["d"], max_tokens_per_query=100)), 229),
        (lambda: cohere.parse(body(texts=[LONG, LONG], max_tokens=100)), 200),
        (lambda: cohere.parse(body(texts=[LONG], max_tokens=100, truncate="START")), 100),
        (lambda: cohere.parse(body(texts=[LONG])), 8192),
        (lambda: cohere.parse(body(texts=[LONG], truncate="START")), 8192),
    ],
)
def test_input_costs_at_most_the_requests_own_bound(parsed: Callable[[], Parsed], most: int) -> None:
    assert cost_of(parsed()).input_tokens == most


def test_a_bound_above_the_estimate_changes_nothing() -> None:
    plain = cost_of(openai.parse_completion(body(prompt="x" * 100)))
    for bound in (-1, 8000, 8192):
        assert cost_of(openai.parse_completion(body(prompt="x" * 100, truncate_prompt_tokens=bound))) == plain


def test_no_bound_cuts_where_the_request_asks_to_be_refused_instead() -> None:
    for fields in ({"truncate": "NONE"}, {"truncate": "NONE", "max_tokens": 100}):
        assert cost_of(cohere.parse(body(texts=[LONG], **fields))).input_tokens > 8192
    for truncation in ({}, {"truncation": "disabled"}):
        assert cost_of(responses.parse(body(input=LONG, **truncation))).input_tokens > 8192


def test_the_window_bounds_nothing_while_the_engine_has_not_said_it() -> None:
    parsed = openai.parse_completion(body(prompt=LONG, truncate_prompt_tokens=-1))
    assert cost_of(parsed, EngineShape(16, None)).input_tokens > 8192


def test_images_come_on_top_of_the_bound() -> None:
    content = [{"type": "text", "text": LONG}, {"type": "image_url", "image_url": {"url": "u"}}]
    parsed = openai.parse_chat(body(messages=messages(content), truncate_prompt_tokens=100))
    assert cost_of(parsed).input_tokens == 100 + Pricing().image_tokens


def test_padding_makes_every_prompt_as_long_as_the_window() -> None:
    parsed = pooling.parse_input(body(input=["a", "b"], padding="max_length"))
    assert cost_of(parsed).input_tokens == 2 * 8192
    assert cost_of(pooling.parse_input(body(input="a", padding="do_not_pad"))).input_tokens < 10


@pytest.mark.parametrize("bound", [-2, 1.5, "100", True, 1 << 40])
def test_a_bound_that_means_nothing_is_named(bound: object) -> None:
    for parse in (openai.parse_completion, pooling.parse_input):
        with pytest.raises(Malformed) as caught:
            parse(body(prompt="x", input="x", truncate_prompt_tokens=bound))
        assert caught.value.param == "truncate_prompt_tokens"


def test_a_prompt_that_is_cut_is_known_by_no_beginning() -> None:
    assert openai.parse_completion(body(prompt=LONG)).ask.prefixes
    assert not openai.parse_completion(body(prompt=LONG, truncate_prompt_tokens=100)).ask.prefixes
    assert not openai.parse_chat(body(messages=messages(LONG), truncate_prompt_tokens=9)).ask.prefixes


def test_twelve_cut_requests_teach_the_input_estimate_nothing_but_the_output_does() -> None:
    made = pricer()
    before = made.price(Ask(text_bytes=1200), SHAPE)
    for _ in range(12):
        cut = Ask(text_bytes=1200, input_bound=100)
        made.price(cut, SHAPE)
        made.learn(cut, Usage(100, 30))
    after = made.price(Ask(text_bytes=1200), SHAPE)
    assert after.input_tokens == before.input_tokens
    assert after.output_tokens == 30


@pytest.mark.parametrize(
    ("ask_", "usage"),
    [
        (Ask(1200, input_bound=2000), Usage(1200, 1)),
        (Ask(1200, pads_input=True), Usage(8192, 1)),
        (Ask(60_000, input_bound=WINDOW), Usage(8192, 1)),
        (Ask(60_000, input_bound=WINDOW), Usage(8191, 1)),
        (Ask(60_000, prompts=3, input_bound=WINDOW), Usage(9000, 1)),
    ],
)
def test_what_may_have_been_cut_or_padded_teaches_nothing(ask_: Ask, usage: Usage) -> None:
    made = pricer()
    before = made.price(Ask(text_bytes=1200), SHAPE).input_tokens
    for _ in range(12):
        made.price(ask_, SHAPE)
        made.learn(ask_, usage)
    assert made.price(Ask(text_bytes=1200), SHAPE).input_tokens == before


def test_what_was_below_the_window_was_read_whole_and_teaches() -> None:
    made = pricer()
    for _ in range(12):
        whole = Ask(1200, input_bound=WINDOW)
        made.price(whole, SHAPE)
        made.learn(whole, Usage(1200, 1))
    assert made.price(Ask(text_bytes=1200), SHAPE).input_tokens == pytest.approx(1200, rel=0.1)


@pytest.mark.asyncio
async def test_a_long_text_with_a_small_bound_fits_a_small_ceiling(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, pool=BOUNDED) as sidecar:
        fields = {"model": "tiny", "prompt": LONG, "max_tokens": 5}
        refused = await ask(sidecar, request(body=fields))
        assert (refused.status, refused.headers["x-tokenpool-reason"]) == (400, "never_fits")
        served = await ask(sidecar, request(body=fields | {"truncate_prompt_tokens": 100}))
        assert served.status == 200
        assert json.loads(engine.received[-1].body)["truncate_prompt_tokens"] == 100
        assert is_whole(sidecar)


@pytest.mark.asyncio
async def test_cut_requests_leave_the_price_of_others_alone(engine: FakeEngine, tmp_path: Path) -> None:
    async def answer(received: Received, writer: Any) -> None:
        writer.write(unary(usage={"prompt_tokens": 100, "completion_tokens": 5}))

    engine.answer = answer
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        price = sidecar.controller.accounts["g"].pricer
        before = price.price(Ask(text_bytes=1200), SHAPE).input_tokens
        for _ in range(12):
            fields = {"model": "tiny", "prompt": "x" * 1200, "truncate_prompt_tokens": 100, "max_tokens": 5}
            assert (await ask(sidecar, request(body=fields))).status == 200
        assert price.price(Ask(text_bytes=1200), SHAPE).input_tokens == before


# --- R2: other fields that hold a prompt ---


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_embeds": "QUJD"},
        {"prompt_embeds": ["QUJD", "QUJD"]},
        {"prompt_embeds": "QUJD", "prompt": None},
        {"prompt_embeds": "QUJD", "prompt": ""},
        {"prompt_embeds": ["QUJD"], "prompt": "the engine would read both"},
        {"prompt_embeds": 5, "prompt": "x"},
    ],
)
def test_prompt_embeds_are_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="prompt_embeds is not supported") as caught:
        openai.parse_completion(body(**fields))
    assert caught.value.param == "prompt_embeds"


@pytest.mark.parametrize("nothing", [None, []])
def test_no_prompt_embeds_are_none(nothing: object) -> None:
    assert openai.parse_completion(body(prompt="hello", prompt_embeds=nothing)).ask.text_bytes == 5


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([{"type": "prompt_embeds", "data": "QUJD"}], "messages[1].content[0]"),
        (
            ["a", {"type": "text", "text": "x"}, {"type": "prompt_embeds", "data": "Q"}],
            "messages[1].content[2]",
        ),
        ([{"prompt_embeds": None, "data": "QUJD"}], "messages[1].content[0]"),
        ([{"type": "text", "uuid": "u", "prompt_embeds": 1, "data": "QUJD"}], "messages[1].content[0]"),
        ([{"type": "x", "content": [{"type": "prompt_embeds"}]}], "messages[1].content[0].content[0]"),
    ],
)
def test_prompt_embeds_in_a_message_are_refused_with_their_place(content: object, place: str) -> None:
    for parse in (openai.parse_chat, pooling.parse_input):
        with pytest.raises(Malformed, match="prompt_embeds is not supported") as caught:
            parse(body(messages=messages(content)))
        assert caught.value.param == place


def test_token_ids_that_take_the_place_of_messages_are_priced() -> None:
    transfer = {"do_remote_prefill": True, "prompt_token_ids": list(range(5000))}
    for parse, fields in ((openai.parse_chat, {}), (anthropic.parse, {"max_tokens": 9})):
        parsed = parse(body(messages=messages("hi"), kv_transfer_params=transfer, **fields))
        assert parsed.ask.token_ids == 5000
        for plain in (None, {}, {"do_remote_decode": True}, {"prompt_token_ids": None}):
            assert parse(body(messages=messages("hi"), kv_transfer_params=plain, **fields)).ask.token_ids == 0


@pytest.mark.parametrize("transfer", [5, [], {"prompt_token_ids": 5}, {"prompt_token_ids": ["a", 1]}])
def test_a_transfer_that_cannot_be_read_is_named(transfer: object) -> None:
    with pytest.raises(Malformed) as caught:
        openai.parse_chat(body(messages=messages("hi"), kv_transfer_params=transfer))
    assert (caught.value.param or "").startswith("kv_transfer_params")


def test_earlier_messages_of_a_response_are_priced() -> None:
    plain = responses.parse(body(input="hi")).ask.text_bytes
    assert responses.parse(body(input="hi", previous_input_messages=[LONG])).ask.text_bytes > plain + 60_000


@pytest.mark.parametrize(
    ("part", "images", "audios"),
    [
        ({"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}}, 0, 1),
        ({"type": "video_url", "video_url": {"url": "u"}}, 1, 0),
        ({"type": "audio_url", "audio_url": {"url": "u"}}, 0, 1),
        ({"video_url": "u"}, 1, 0),
        ({"input_audio": {"data": "QUJD"}}, 0, 1),
    ],
)
def test_pictures_and_sounds_beside_texts_count(part: dict[str, Any], images: int, audios: int) -> None:
    asked = openai.parse_chat(body(messages=messages(["what is it", part]))).ask
    assert (asked.images, asked.audios, asked.text_bytes) == (images, audios, 2 * MESSAGE_BYTES + 11)


@pytest.mark.asyncio
async def test_refused_embeddings_never_reach_the_engine(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        refused = await ask(sidecar, request(body={"model": "tiny", "prompt_embeds": "QUJD"}))
        assert refused.status == 400
        assert refused.error()["param"] == "prompt_embeds"
        part = {"type": "prompt_embeds", "data": "QUJD"}
        chat = CHAT | {"messages": [{"role": "user", "content": [part]}]}
        refused = await ask(sidecar, request("/v1/chat/completions", chat))
        assert (refused.status, refused.error()["param"]) == (400, "messages[0].content[0]")
        assert not engine.received


# --- R3: texts beside parts, and the full path of what is wrong ---


@pytest.mark.parametrize(
    ("content", "text_bytes"),
    [
        ([{"type": "text", "text": "x"}, "hello"], 6),
        (["hello"], 5),
        (["hello", {"type": "text", "text": "x"}, "", "you"], 9),
        (["a,b,c", '"[{'], 9),
        ([{"type": "x", "content": ["hello", {"type": "text", "text": "x"}]}], 6),
    ],
)
def test_texts_beside_parts_are_read_as_the_engine_reads_them(content: object, text_bytes: int) -> None:
    assert openai.parse_chat(body(messages=messages(content))).ask.text_bytes == 33 + text_bytes
    batch = openai.parse_chat_batch(body(messages=[messages(content)]))
    assert batch.ask.text_bytes == 33 + text_bytes
    assert pooling.parse_input(body(messages=messages(content))).ask.text_bytes == 33 + text_bytes


@pytest.mark.asyncio
async def test_texts_beside_parts_reach_the_engine_as_they_are(engine: FakeEngine, tmp_path: Path) -> None:
    content = [{"type": "text", "text": "x"}, "hello"]
    async with sidecar_for(engine.port, tmp_path, engine_priority="off") as sidecar:
        chat = CHAT | {"messages": [{"role": "user", "content": content}]}
        assert (await ask(sidecar, request("/v1/chat/completions", chat))).status == 200
        assert engine.received[-1].json() == chat


def test_texts_count_as_items_of_a_request() -> None:
    at_most = [{"role": "user", "content": ["x"] * 1000}] * 4
    openai.parse_chat(body(messages=at_most))
    with pytest.raises(Malformed, match=f"more than {MOST_ITEMS}"):
        openai.parse_chat(body(messages=[*at_most, {"role": "user", "content": ["x"] * 100}]))
    with pytest.raises(Malformed, match=f"more than {MOST_SEQUENCES}") as caught:
        openai.parse_chat(body(messages=messages(["x"] * 3000)))
    assert caught.value.param == "messages[1].content"


BAD = [1]


@pytest.mark.parametrize(
    ("parse", "fields", "param"),
    [
        (openai.parse_chat, {"messages": messages(["a", 1])}, "messages[1].content[1]"),
        (openai.parse_chat, {"messages": messages([{}, {"type": 1}])}, "messages[1].content[1].type"),
        (openai.parse_chat, {"messages": ["hi"]}, "messages[0]"),
        (openai.parse_chat, {"messages": messages([{"content": BAD}])}, "messages[1].content[0].content[0]"),
        (openai.parse_chat, {"messages": messages([[[]]])}, "messages[1].content[0]"),
        (openai.parse_chat_batch, {"messages": [messages("a"), messages(BAD)]}, "messages[1][1].content[0]"),
        (openai.parse_chat_batch, {"messages": [messages("a"), 5]}, "messages[1]"),
        (anthropic.parse, {"messages": messages(BAD), "max_tokens": 1}, "messages[1].content[0]"),
        (anthropic.parse, {"messages": messages("a"), "system": BAD, "max_tokens": 1}, "system[0]"),
        (responses.parse, {"input": [{"content": "a"}, {"output": BAD}]}, "input[1].output[0]"),
        (responses.parse, {"input": [{"content": "a"}, 5]}, "input[1]"),
        (pooling.parse_input, {"input": messages(BAD)}, "input[1].content[0]"),
        (pooling.parse_input, {"messages": [messages("a"), messages(BAD)]}, "messages[1][1].content[0]"),
        (pooling.parse_reranking, {"query": {"content": BAD}, "documents": ["a"]}, "query.content[0]"),
        (pooling.parse_reranking, {"query": "", "documents": [{"content": BAD}]}, "documents[0].content[0]"),
        (pooling.parse_scores, {"text_1": "a", "text_2": [{"content": BAD}]}, "text_2[0].content[0]"),
        (cohere.parse, {"inputs": [{"content": "a"}, {"content": BAD}]}, "inputs[1].content[0]"),
        (cohere.parse, {"inputs": [5]}, "inputs[0]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_its_full_path(
    parse: Callable[[bytes], Parsed], fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(Malformed) as caught:
        parse(body(**fields))
    assert caught.value.param == param
    assert param in str(caught.value)


@pytest.mark.asyncio
async def test_the_error_names_the_path(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        chat = CHAT | {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, 5]}]}
        refused = await ask(sidecar, request("/v1/chat/completions", chat))
        assert refused.status == 400
        assert refused.error()["param"] == "messages[0].content[1]"
        assert "messages[0].content[1]" in refused.error()["message"]


# --- R4: a number without a fraction is an integer ---

NUMBERS = ("16.0", "1.6e1", "160e-1", "16")
FRACTIONS = ("16.5", '"16"', "true", "NaN", "Infinity", "1e400", "1e300", "[16]", "9" * 400)


def written(path: str, field: str, number: str) -> bytes:
    inputs = {
        "/v1/chat/completions": '"messages":[{"role":"user","content":"x"}]',
        "/v1/chat/completions/batch": '"messages":[[{"role":"user","content":"x"}]]',
        "/v1/completions": '"prompt":"x"',
        "/v1/responses": '"input":"x"',
        "/v1/messages": '"messages":[{"role":"user","content":"x"}]',
        "/v1/embeddings": '"input":"x"',
        "/v2/embed": '"texts":["x"]',
        "/rerank": '"query":"q","documents":["a document of more than seventeen bytes"]',
    }
    return f'{{"model":"tiny",{inputs[path]},"{field}":{number}}}'.encode()


FIELDS = [
    ("/v1/chat/completions", "max_tokens"),
    ("/v1/chat/completions", "max_completion_tokens"),
    ("/v1/chat/completions", "n"),
    ("/v1/chat/completions", "truncate_prompt_tokens"),
    ("/v1/chat/completions/batch", "max_tokens"),
    ("/v1/completions", "max_tokens"),
    ("/v1/completions", "n"),
    ("/v1/completions", "best_of"),
    ("/v1/completions", "truncate_prompt_tokens"),
    ("/v1/responses", "max_output_tokens"),
    ("/v1/messages", "max_tokens"),
    ("/v1/embeddings", "truncate_prompt_tokens"),
    ("/v2/embed", "max_tokens"),
    ("/rerank", "max_tokens_per_doc"),
    ("/rerank", "truncate_prompt_tokens"),
]


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_an_integral_float_is_an_integer(path: str, field: str) -> None:
    parse = ROUTES[path.encode()].parse
    assert parse is not None
    asked = {parse(written(path, field, number)).ask for number in NUMBERS}
    assert len(asked) == 1
    assert asked != {parse(written(path, field, "17")).ask}


@pytest.mark.parametrize(("path", "field"), FIELDS)
@pytest.mark.parametrize("number", FRACTIONS)
def test_any_other_number_is_refused_by_name(path: str, field: str, number: str) -> None:
    parse = ROUTES[path.encode()].parse
    assert parse is not None
    with pytest.raises(Malformed) as caught:
        parse(written(path, field, number))
    if number not in ("NaN", "Infinity"):  # those are no JSON
        assert caught.value.param == field
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("prompt", "token_ids"), [("[1.0, 2, 3.00]", 3), ("[[1.0],[2.0,3]]", 3), ("[ 1.0 ]", 1), ("[10.0,20]", 2)]
)
def test_token_ids_may_be_integral_floats(prompt: str, token_ids: int) -> None:
    parsed = openai.parse_completion(f'{{"model":"m","prompt":{prompt}}}'.encode())
    assert parsed.ask.token_ids == token_ids


@pytest.mark.parametrize("prompt", ["[1.5]", "[1.]", "[1.0.0]", "[.0]", "[1.0e1]", "[1, 2.01]", '[1.0, "a"]'])
def test_other_floats_are_no_token_ids(prompt: str) -> None:
    with pytest.raises(Malformed):
        openai.parse_completion(f'{{"model":"m","prompt":{prompt}}}'.encode())


@pytest.mark.asyncio
async def test_an_integral_float_is_reserved_and_forwarded_as_it_is(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path, engine_priority="off") as sidecar:
        raw = b'{"model":"tiny","prompt":"hi","max_tokens":16.0}'
        assert (await ask(sidecar, request(body=raw))).status == 200
        assert engine.received[-1].body == raw
        refused = await ask(sidecar, request(body=raw.replace(b"16.0", b"16.5")))
        assert (refused.status, refused.error()["param"]) == (400, "max_tokens")
        assert "whole number, not 16.5" in refused.error()["message"]
