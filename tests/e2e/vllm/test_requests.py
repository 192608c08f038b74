"""Requests in the forms of existing clients: the engine and the sidecar interpret each in the same way.

Each request is sent to the sidecar and to the engine itself.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from demo.vllm_process import VllmProcess
from tests.e2e.vllm.conftest import Sidecar

LONG = "word " * 4000
"""More than the engine's context window."""
CHAT, COMPLETIONS, BATCH = "/v1/chat/completions", "/v1/completions", "/v1/chat/completions/batch"


def post(url: str, body: dict[str, Any] | str) -> tuple[int, dict[str, Any]]:
    """Status and body of an answer."""
    text = body if isinstance(body, str) else json.dumps({"model": "tiny"} | body)
    headers = {"content-type": "application/json", "authorization": "Bearer guaranteed-key"}
    sent = urllib.request.Request(url, text.encode(), headers)
    try:
        with urllib.request.urlopen(sent, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def said(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("path", "fields", "tokens"),
    [
        (COMPLETIONS, {"prompt": LONG, "truncate_prompt_tokens": 100}, 100),
        (COMPLETIONS, {"prompt": LONG, "truncate_prompt_tokens": 100.0}, 100),
        (COMPLETIONS, {"prompt": [LONG, LONG], "truncate_prompt_tokens": 50}, 100),
        (COMPLETIONS, {"prompt": [7] * 3000, "truncate_prompt_tokens": 100}, 100),
        (COMPLETIONS, {"prompt": LONG, "truncate_prompt_tokens": -1}, 2047),
        (CHAT, {"messages": said(LONG), "truncate_prompt_tokens": 100}, 100),
        (BATCH, {"messages": [said(LONG), said(LONG)], "truncate_prompt_tokens": 50}, 100),
    ],
)
def test_a_truncated_text_is_served_and_settled_by_its_rest(
    vllm: VllmProcess, front: Sidecar, path: str, fields: dict[str, Any], tokens: int
) -> None:
    fields = fields | {"max_tokens": 1}
    whole = {name: value for name, value in fields.items() if name != "truncate_prompt_tokens"}
    assert post(vllm.url + path, whole)[0] == 400
    for url in (vllm.url, front.url):
        status, answer = post(url + path, fields)
        assert (status, answer["usage"]["prompt_tokens"]) == (200, tokens)
    front.until_whole()


def test_an_invalid_bound_is_refused_by_both(vllm: VllmProcess, front: Sidecar) -> None:
    for bound in (-2, 1.5, "x"):
        for url in (vllm.url, front.url):
            assert post(url + COMPLETIONS, {"prompt": "hi", "truncate_prompt_tokens": bound})[0] == 400


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (COMPLETIONS, {"prompt_embeds": "QUJD"}, "prompt_embeds"),
        (COMPLETIONS, {"prompt": "hi", "prompt_embeds": ["QUJD"]}, "prompt_embeds"),
        (CHAT, {"messages": said([{"type": "prompt_embeds", "data": "QUJD"}])}, "messages[0].content[0]"),
    ],
)
def test_embeddings_in_place_of_a_prompt_are_refused_by_name(
    vllm: VllmProcess, front: Sidecar, path: str, fields: dict[str, Any], param: str
) -> None:
    assert post(vllm.url + path, fields)[0] == 400  # without --enable-prompt-embeds
    status, answer = post(front.url + path, fields)
    assert (status, answer["error"]["param"]) == (400, param)


def test_token_ids_in_a_request_with_messages_are_the_prompt_of_the_engine(
    vllm: VllmProcess, front: Sidecar
) -> None:
    fields = {"messages": said("hi"), "max_tokens": 1, "kv_transfer_params": {"prompt_token_ids": [7] * 321}}
    for url in (vllm.url, front.url):
        status, answer = post(url + CHAT, fields)
        assert (status, answer["usage"]["prompt_tokens"]) == (200, 321)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ([{"type": "text", "text": "x"}, "hello"], 200),
        (["hello", {"type": "text", "text": "x"}, "you"], 200),
        (["hello"], 400),  # the engine refuses a lone text; the sidecar leaves that to it
    ],
)
def test_texts_among_parts_are_read_like_the_engine_reads_them(
    vllm: VllmProcess, front: Sidecar, content: object, status: int
) -> None:
    fields = {"messages": said(content), "max_tokens": 1}
    (one, direct), (other, relayed) = (post(url + CHAT, fields) for url in (vllm.url, front.url))
    assert (one, other) == (status, status)
    if status == 200:
        assert direct["usage"]["prompt_tokens"] == relayed["usage"]["prompt_tokens"]


def test_an_invalid_content_is_refused_by_both_with_its_name(vllm: VllmProcess, front: Sidecar) -> None:
    fields = {"messages": said([{"type": "text", "text": "x"}, 5])}
    assert post(vllm.url + CHAT, fields)[0] == 400
    status, answer = post(front.url + CHAT, fields)
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[1]")


NUMBERS = [
    (COMPLETIONS, "max_tokens"),
    (COMPLETIONS, "n"),
    (COMPLETIONS, "truncate_prompt_tokens"),
    (CHAT, "max_tokens"),
    (CHAT, "max_completion_tokens"),
    (CHAT, "n"),
    ("/v1/responses", "max_output_tokens"),
    ("/v1/messages", "max_tokens"),
]


@pytest.mark.parametrize(("path", "field"), NUMBERS)
def test_numbers_are_read_like_the_engine_reads_them(
    vllm: VllmProcess, front: Sidecar, path: str, field: str
) -> None:
    prompt = {COMPLETIONS: '"prompt":"hi"', "/v1/responses": '"input":"hi"'}
    fields = prompt.get(path, '"messages":[{"role":"user","content":"hi"}]')
    if path in (COMPLETIONS, CHAT) and not field.startswith("max_"):
        fields += ',"max_tokens":1'
    for number, status in (("2.0", 200), ("2e0", 200), ("2.5", 400), ("1e400", 400), ("NaN", 400)):
        body = f'{{"model":"tiny",{fields},"{field}":{number}}}'
        assert [post(url + path, body)[0] for url in (vllm.url, front.url)] == [status] * 2, number


def test_token_ids_may_be_integral_floats(vllm: VllmProcess, front: Sidecar) -> None:
    for url in (vllm.url, front.url):
        status, answer = post(url + COMPLETIONS, {"prompt": [7.0, 8, 9.0], "max_tokens": 1})
        assert (status, answer["usage"]["prompt_tokens"]) == (200, 3)
