"""Responses through the sidecar equal those of vLLM byte for byte."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from demo.vllm_process import VllmProcess
from tests.e2e.vllm.conftest import Sidecar

OWN = ("x-ratelimit-", "anthropic-ratelimit-", "ratelimit", "x-request-id", "request-id")
"""The beginnings of headers that the sidecar adds to an answer."""
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 12}
SAMPLED = {"temperature": 1.0, "seed": 7, "ignore_eos": True}
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "d", "parameters": {"type": "object"}},
}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
COMPLETION = {"model": "tiny", "prompt": "Once", "max_tokens": 9}
MESSAGE = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 12}
GREEDY = {"temperature": 0}
LOOK = {"name": "look", "description": "d", "input_schema": {"type": "object"}}
RESPONSE = {"model": "tiny", "input": "hello there", "max_output_tokens": 12}

CASES: dict[str, tuple[str, Any]] = {
    "chat": ("/v1/chat/completions", CHAT | SAMPLED),
    "chat greedy": ("/v1/chat/completions", CHAT | {"temperature": 0}),
    "chat n": ("/v1/chat/completions", CHAT | SAMPLED | {"n": 3}),
    "chat without a bound": (
        "/v1/chat/completions",
        {"model": "tiny", "messages": CHAT["messages"], "stop": ["e"]} | SAMPLED,
    ),
    "chat parts": (
        "/v1/chat/completions",
        CHAT | SAMPLED | {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    ),
    "chat stop": ("/v1/chat/completions", CHAT | SAMPLED | {"stop": ["a", "e", "i"], "max_tokens": 200}),
    "chat logprobs": ("/v1/chat/completions", CHAT | SAMPLED | {"logprobs": True, "top_logprobs": 2}),
    "chat tools": ("/v1/chat/completions", CHAT | SAMPLED | {"tools": [TOOL], "tool_choice": "none"}),
    "chat tools auto": ("/v1/chat/completions", CHAT | SAMPLED | {"tools": [TOOL]}),
    "chat both bounds": ("/v1/chat/completions", CHAT | SAMPLED | {"max_completion_tokens": 4}),
    "chat utf-8": (
        "/v1/chat/completions",
        CHAT | SAMPLED | {"messages": [{"role": "user", "content": "žluťoučký 🐎"}]},
    ),
    "chat stream": ("/v1/chat/completions", CHAT | SAMPLED | {"stream": True}),
    "chat stream n": ("/v1/chat/completions", CHAT | SAMPLED | {"stream": True, "n": 3}),
    "chat stream usage": ("/v1/chat/completions", CHAT | SAMPLED | USAGE),
    "chat stream no usage": (
        "/v1/chat/completions",
        CHAT | SAMPLED | {"stream": True, "stream_options": {"include_usage": False}},
    ),
    "chat stream null options": (
        "/v1/chat/completions",
        CHAT | SAMPLED | {"stream": True, "stream_options": None},
    ),
    "chat stream continuous": (
        "/v1/chat/completions",
        CHAT
        | SAMPLED
        | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "chat stream continuous alone": (
        "/v1/chat/completions",
        CHAT | SAMPLED | {"stream": True, "stream_options": {"continuous_usage_stats": True}},
    ),
    "chat stream logprobs": ("/v1/chat/completions", CHAT | SAMPLED | {"stream": True, "logprobs": True}),
    "chat stream stop": (
        "/v1/chat/completions",
        CHAT | SAMPLED | {"stream": True, "stop": ["a", "e"], "max_tokens": 200},
    ),
    "completion": ("/v1/completions", COMPLETION | SAMPLED),
    "completion default bound": ("/v1/completions", {"model": "tiny", "prompt": "Once"} | SAMPLED),
    "completion list": ("/v1/completions", COMPLETION | SAMPLED | {"prompt": ["one", "two", "three"]}),
    "completion ids": ("/v1/completions", COMPLETION | SAMPLED | {"prompt": [5, 6, 7]}),
    "completion lists of ids": ("/v1/completions", COMPLETION | SAMPLED | {"prompt": [[5, 6], [7]]}),
    "completion n": ("/v1/completions", COMPLETION | SAMPLED | {"n": 2, "prompt": ["one", "two"]}),
    "completion echo": ("/v1/completions", COMPLETION | SAMPLED | {"echo": True, "logprobs": 1}),
    "completion stream": ("/v1/completions", COMPLETION | SAMPLED | {"stream": True}),
    "completion stream list": (
        "/v1/completions",
        COMPLETION | SAMPLED | {"stream": True, "prompt": ["one", "two"]},
    ),
    "completion stream usage": ("/v1/completions", COMPLETION | SAMPLED | USAGE),
    "batch": (
        "/v1/chat/completions/batch",
        {"model": "tiny", "messages": [CHAT["messages"]] * 2, "max_tokens": 9} | SAMPLED,
    ),
    "messages": ("/v1/messages", MESSAGE | GREEDY),
    "messages system": ("/v1/messages", MESSAGE | GREEDY | {"system": "be brief"}),
    "messages parts": (
        "/v1/messages",
        MESSAGE | GREEDY | {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
    ),
    "messages tools": (
        "/v1/messages",
        MESSAGE | GREEDY | {"tools": [LOOK], "tool_choice": {"type": "none"}},
    ),
    "messages stream": ("/v1/messages", MESSAGE | GREEDY | {"stream": True, "max_tokens": 4}),
    "count_tokens": ("/v1/messages/count_tokens", {"model": "tiny", "messages": MESSAGE["messages"]}),
    "responses": ("/v1/responses", RESPONSE | GREEDY),
    "responses items": (
        "/v1/responses",
        RESPONSE | GREEDY | {"input": [{"role": "user", "content": "hi"}], "instructions": "be brief"},
    ),
    "responses stream": ("/v1/responses", RESPONSE | GREEDY | {"stream": True, "max_output_tokens": 4}),
    "tokenize": ("/tokenize", {"model": "tiny", "prompt": "hello"}),
    "detokenize": ("/detokenize", {"model": "tiny", "tokens": [5, 6, 7]}),
    "models": ("/v1/models", None),
    "version": ("/version", None),
    "health": ("/health", None),
    "error: bad temperature": ("/v1/chat/completions", CHAT | {"temperature": -1}),
    "error: zero tokens": ("/v1/chat/completions", CHAT | {"max_tokens": 0}),
    "error: prompt too long": ("/v1/completions", COMPLETION | {"prompt": [5] * 3000}),
    "error: bound too large": ("/v1/completions", COMPLETION | {"max_tokens": 3000}),
    "error: bad role": (
        "/v1/chat/completions",
        CHAT | {"messages": [{"role": 5, "content": "x"}]},
    ),
    "error: message without a bound": (
        "/v1/messages",
        {"model": "tiny", "messages": MESSAGE["messages"]},
    ),
    "error: bad role of a message": (
        "/v1/messages",
        MESSAGE | {"messages": [{"role": "nobody", "content": "x"}]},
    ),
    "error: bad temperature of a response": ("/v1/responses", RESPONSE | {"temperature": -1}),
    "error: the model embeds nothing": ("/v1/embeddings", {"model": "tiny", "input": "x"}),
    "error: the model pools nothing": ("/pooling", {"model": "tiny", "input": "x"}),
    "error: the model scores nothing": ("/score", {"model": "tiny", "queries": "x", "documents": ["y"]}),
    "error: the model ranks nothing": ("/rerank", {"model": "tiny", "query": "x", "documents": ["y"]}),
    "error in a stream request": ("/v1/chat/completions", CHAT | {"stream": True, "top_p": 7}),
}

MOST_ATTEMPTS = 30

# The parts that differ between any two responses of one engine.
_VARIES = [
    (re.compile(rb'"(id|request_id|item_id)":"[^"]*"'), rb'"\1":""'),
    (re.compile(rb'"(created|created_at)":\d+'), rb'"\1":0'),
    (re.compile(rb'"id":"modelperm-[^"]*"'), b""),
]


def curl(url: str, body: object) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body in curl's output."""
    command = ["curl", "-sS", "-N", "-i", "--max-time", "60", "-H", "authorization: Bearer guaranteed-key"]
    if body is not None:
        command += ["-H", "content-type: application/json", "--data-binary", "@-"]
    done = subprocess.run(
        [*command, url],
        input=None if body is None else json.dumps(body).encode(),
        capture_output=True,
        check=True,
    )
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    for pattern, steady in _VARIES:
        content = pattern.sub(steady, content)
    return int(first.split()[1]), headers, content


def content_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[bytes, ...]:
    """The body; for a stream its sorted events, because the engine interleaves choices in any order."""
    return tuple(sorted(answer[2].split(b"\n\n")))


@pytest.mark.parametrize("name", CASES)
def test_the_client_receives_the_response_of_the_engine(name: str, vllm: VllmProcess, front: Sidecar) -> None:
    path, body = CASES[name]

    direct, proxied = curl(vllm.url + path, body), curl(front.url + path, body)
    said = {content_of(direct)}
    for _ in range(MOST_ATTEMPTS):
        if content_of(proxied) in said:
            break
        # Sometimes vLLM puts two tokens into one event. Repeat both requests until their events match.
        said.add(content_of(curl(vllm.url + path, body)))
        proxied = curl(front.url + path, body)

    assert proxied[0] == direct[0]
    assert content_of(proxied) in said
    own = {name for name in proxied[1] if name.startswith(OWN)}
    assert set(proxied[1]) - own == set(direct[1])
    for header in ("content-type", "content-length", "transfer-encoding", "server"):
        assert proxied[1].get(header) == direct[1].get(header) or _length_of_ids(header, proxied, direct)
    assert front.is_whole()


def _length_of_ids(header: str, proxied: tuple[Any, ...], direct: tuple[Any, ...]) -> bool:
    """Lengths may differ, for example by a longer time stamp; normalised bodies do not."""
    return header == "content-length" and len(proxied[2]) == len(direct[2])


def test_streams_are_settled_from_the_engines_own_usage(vllm: VllmProcess, front: Sidecar) -> None:
    before = front.state()["entitlements"]["guaranteed"]
    path, body = CASES["chat stream"]
    direct = json.loads(curl(vllm.url + path, body | {"stream": False})[2])["usage"]

    curl(front.url + path, body)

    after = front.state()["entitlements"]["guaranteed"]
    assert after["outcomes"]["finished"] == before["outcomes"].get("finished", 0) + 1
    assert direct["completion_tokens"] == 12
