"""The OpenAI dialect: what is priced, what is refused, and what is rewritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dialects.bodies import MESSAGE_BYTES, Malformed, Parsed
from sidecar.dialects.openai import error_body, parse_chat, parse_completion
from tokenpool.outcomes import Reason
from tokenpool.pricing.cost import Ask

USER = [{"role": "user", "content": "12345"}]


def chat(**fields: Any) -> Parsed:
    return parse_chat(json.dumps({"model": "m", "messages": USER} | fields).encode())


def completion(**fields: Any) -> Parsed:
    return parse_completion(json.dumps({"model": "m", "prompt": "12345"} | fields).encode())


def test_a_chat_is_priced_by_its_texts() -> None:
    parsed = chat()
    assert parsed.ask == Ask(text_bytes=MESSAGE_BYTES + 5, target=("/v1/chat/completions", "m"))
    assert (parsed.model, parsed.streams, parsed.hides_usage) == ("m", False, False)


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 9}, 9),
        ({"max_tokens": 7, "max_completion_tokens": 900}, 900),  # the one that the engine obeys
        ({"max_tokens": 700, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 7, "max_completion_tokens": None}, 7),
        ({"max_tokens": 0}, 1),
    ],
)
def test_the_bound_that_the_engine_obeys_counts(fields: dict[str, Any], bound: int | None) -> None:
    assert chat(**fields).ask.output_bound == bound


def test_completions_default_to_sixteen_tokens_and_ignore_the_chats_bound() -> None:
    assert completion().ask.output_bound == 16
    assert completion(max_completion_tokens=5).ask.output_bound == 16
    assert completion(max_tokens=5).ask.output_bound == 5


def test_parts_pictures_sounds_and_tools_are_counted() -> None:
    content = [
        {"type": "text", "text": "abc"},
        {"type": "image_url", "image_url": {"url": "data:" + "x" * 1000}},
        {"type": "input_audio", "input_audio": {"data": "y" * 1000}},
        {"type": "video_url"},
    ]
    tool = {"type": "function", "function": {"name": "f"}}
    calls = [{"id": "1"}]
    messages = [{"content": content}, {"content": None, "tool_calls": calls}, {"content": None}]
    ask = chat(messages=messages, tools=[tool, tool]).ask
    assert (ask.images, ask.audios, ask.tools) == (2, 1, 2)
    tools_bytes = 2 * len(json.dumps(tool)) + len(json.dumps(calls))
    assert ask.text_bytes == 3 * MESSAGE_BYTES + 3 + tools_bytes


@pytest.mark.parametrize(
    ("prompt", "prompts", "text_bytes", "token_ids"),
    [
        ("abc", 1, 3, 0),
        (["ab", "cde"], 2, 5, 0),
        ([1, 2, 3], 1, 0, 3),
        ([[1, 2], [3]], 2, 0, 3),
    ],
)
def test_prompts_in_their_four_forms(prompt: Any, prompts: int, text_bytes: int, token_ids: int) -> None:
    ask = completion(prompt=prompt).ask
    assert (ask.prompts, ask.text_bytes, ask.token_ids) == (prompts, text_bytes, token_ids)


def said(*texts: str, **fields: Any) -> tuple[int, ...]:
    return chat(messages=[{"role": "user", "content": text} for text in texts], **fields).ask.prefixes


def test_long_prompts_are_known_by_how_they_begin() -> None:
    text = "word " * 4000
    assert [len(said(text[:size])) for size in (1000, 1024, 4090, 4096, 16384, 20000)] == [0, 1, 1, 2, 3, 3]
    assert said(text[:5000] + "a") == said(text[:5000] + "b")
    assert said(text[:2000] + "a" * 4000)[0] == said(text)[0]
    assert said(text[:2000] + "a" * 4000)[1] != said(text)[1]


def test_a_beginning_runs_over_tools_and_messages() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d" * 900}}
    one, other = said("a" * 600, "b" * 600), said("a" * 600, "c" * 600)
    assert len(one) == len(other) == 1
    assert one != other
    assert said("a" * 500, "b", tools=[tool]) == said("a" * 500, "c", tools=[tool]) != one[:1]
    assert len(said("a" * 100, tools=[tool] * 5)) == 2


def test_a_completions_prompt_has_a_beginning_and_several_have_none() -> None:
    text = "x" * 4096
    assert len(completion(prompt=text).ask.prefixes) == 2
    assert completion(prompt=[text, text]).ask.prefixes == ()
    assert completion(prompt="x" * 1000).ask.prefixes == ()
    assert completion().ask.target == ("/v1/completions", "m")


def test_sequences_are_the_larger_of_n_and_best_of() -> None:
    assert chat(n=3).ask.sequences_per_prompt == 3
    assert completion(n=2, best_of=5).ask.sequences_per_prompt == 5
    assert completion(n=None).ask.sequences_per_prompt == 1


@pytest.mark.parametrize(
    ("parse", "fields", "param", "words"),
    [
        (chat, {"messages": []}, "messages", "at least one message"),
        (chat, {"messages": "hi"}, "messages", "Expected `array`"),
        (chat, {"max_tokens": "5"}, "max_tokens", "Expected `int | null`"),
        (chat, {"max_tokens": 5.5}, "max_tokens", "must be a whole number, not 5.5"),
        (chat, {"max_tokens": 1 << 40}, "max_tokens", "context window of every engine"),
        (chat, {"n": 0}, "n", "from 1 to 2048"),
        (chat, {"n": 100000}, "n", "from 1 to 2048"),
        (chat, {"stream": "yes"}, "stream", "Expected `bool"),
        (chat, {"stream_options": 5, "stream": True}, "stream_options", "Expected `object"),
        (chat, {"model": 5}, "model", "Expected `str"),
        (completion, {"prompt": None}, "prompt", "must be a string"),
        (completion, {"prompt": {}}, "prompt", "must be a string"),
        (completion, {"prompt": []}, "prompt", "empty list"),
        (completion, {"prompt": ["a", 1]}, "prompt", "must not mix"),
        (completion, {"prompt": [True]}, "prompt", "must not mix"),
        (completion, {"prompt": [[1, "a"]]}, "prompt", "must not mix"),
        (completion, {"prompt": [[1], 2]}, "prompt", "must not mix"),
        (completion, {"prompt": [[1], 2, [3]]}, "prompt", "must not mix"),
        (completion, {"prompt": [[1], [[2]]]}, "prompt", "must not mix"),
        (completion, {"prompt": [1, -2]}, "prompt", "must not mix"),
        (completion, {"prompt": ["a"] * 1100, "n": 2}, "n", "more than 2048 sequences"),
    ],
)
def test_what_cannot_be_priced_is_named(
    parse: Callable[..., Parsed], fields: dict[str, Any], param: str | None, words: str
) -> None:
    with pytest.raises(Malformed) as caught:
        parse(**fields)
    assert words in str(caught.value)
    assert param is None or caught.value.param == param


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[{"content":"x"}],"prompt":"x","\xed":1}',
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        b"\xff",
        b'{"messages":[{}',
    ],
)
def test_what_is_no_json_object_is_malformed(body: bytes) -> None:
    for parse in (parse_chat, parse_completion):
        with pytest.raises(Malformed):
            parse(body)


def test_depth_is_bounded() -> None:
    deep = b'{"messages":[{"content":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}"
    with pytest.raises(Malformed):
        parse_chat(deep)


@pytest.mark.parametrize(
    ("options", "hides"),
    [
        ({}, True),
        ({"stream_options": None}, True),
        ({"stream_options": {}}, True),
        ({"stream_options": {"include_usage": False}}, True),
        ({"stream_options": {"include_usage": None}}, True),
        ({"stream_options": {"include_usage": True}}, False),
    ],
)
def test_usage_is_asked_for_where_the_client_did_not(options: dict[str, Any], hides: bool) -> None:
    parsed = chat(stream=True, **options)
    sent = json.loads(parsed.body)
    assert (parsed.streams, parsed.hides_usage) == (True, hides)
    assert sent.pop("stream_options") == {"include_usage": True}
    assert sent == {"model": "m", "messages": USER, "stream": True}
    assert parsed.body.count(b"stream_options") == 1


def test_a_request_that_does_not_stream_is_not_touched() -> None:
    body = b'  {"model":"m", "messages":[{"content":"x"}],  "stream":false, "stream_options":{}}'
    assert parse_chat(body).body == body


def test_the_last_of_two_equal_fields_counts_as_it_does_for_the_engine() -> None:
    body = b'{"messages":[{"content":"x"}],"max_tokens":1,"max_tokens":500,"stream":true,"stream":false}'
    parsed = parse_chat(body)
    assert (parsed.ask.output_bound, parsed.streams) == (500, False)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
COUNTS = ["n", "best_of", "max_tokens", "max_completion_tokens"]
fields = st.sampled_from([*COUNTS, "model", "messages", "prompt", "stream", "stream_options", "tools"])


@given(st.binary(max_size=100) | st.dictionaries(fields, json_values).map(lambda d: json.dumps(d).encode()))
def test_any_body_is_parsed_or_malformed(body: bytes) -> None:
    for parse in (parse_chat, parse_completion):
        try:
            parsed = parse(body)
        except Malformed as error:
            assert str(error)
        else:
            assert parsed.ask.prompts >= 1
            assert parsed.ask.text_bytes >= 0


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5), st.booleans())
def test_rewriting_keeps_everything_else(others: dict[str, Any], has_options: bool) -> None:
    body = others | {"messages": USER, "stream": True}
    for name in ("n", "model", "tools", "max_tokens", "max_completion_tokens", "stream_options"):
        body.pop(name, None)
    if has_options:
        body["stream_options"] = {"include_usage": False}
    sent = json.loads(parse_chat(json.dumps(body).encode()).body)
    assert sent == body | {"stream_options": {"include_usage": True}}


def test_every_reason_has_an_error_body() -> None:
    for reason in Reason:
        error = json.loads(error_body(reason, "what", "where"))["error"]
        assert error["message"] == "what"
        assert error["param"] == "where"
        assert error["type"]
        assert error["code"]
