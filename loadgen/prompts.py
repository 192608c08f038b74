"""Prompts and request bodies. Pure, without a tokenizer: text is counted in bytes, or token ids are sent.

Prompts differ from their first token on, so an engine's prefix cache does not distort the results. The
exception is a shared prefix of the scenario. A retry sends the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from loadgen.arrivals import Request, stream
from loadgen.scenario import PromptForm, Route, Scenario, Tenant

FIRST_ID = 10
"""The lowest token id of 256, all below 400. Lower ids are special in most vocabularies."""
_IDS = [b"%d" % (FIRST_ID + byte) for byte in range(256)]
_CONSONANTS, _VOWELS = "bdfgklmnprstvwzj", "aeiou"
_WORDS = [a + vowel + b + " " for a in _CONSONANTS for vowel in _VOWELS for b in _CONSONANTS][:1280:5]
_encode = msgspec.json.Encoder().encode


def token_ids(tokens: int, *names: str, seed: int) -> list[bytes]:
    """``tokens`` token ids as JSON numbers. Equal names and seeds give equal ids."""
    return [_IDS[byte] for byte in stream(seed, *names).randbytes(tokens)]


def text(size: int, *names: str, seed: int) -> str:
    """``size`` bytes of random words. Equal names and seeds give equal text."""
    letters = len(_WORDS[0])
    chosen = stream(seed, *names).randbytes(math.ceil(size / letters))
    return "".join([_WORDS[byte] for byte in chosen])[:size]


def body(scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str = "") -> bytes:
    """The body of a request."""
    if scenario.prompt is PromptForm.IDS:
        prompt: dict[str, object] = {"prompt": _ids(tenant, request, seed, worker)}
        return _encode({**_fields(scenario, tenant, request), **prompt})
    return body_of_messages(
        scenario, tenant, request, [("user", content(scenario, tenant, request, seed, worker))]
    )


def body_of_messages(
    scenario: Scenario, tenant: Tenant, request: Request, messages: Sequence[tuple[str, str]]
) -> bytes:
    """The body of a request with these messages (roles and contents); for completions they are one text."""
    if scenario.route is Route.CHAT:
        prompt: dict[str, object] = {"messages": [{"role": role, "content": told} for role, told in messages]}
    else:
        prompt = {"prompt": "".join(told for _, told in messages)}
    return _encode({**_fields(scenario, tenant, request), **prompt})


def _fields(scenario: Scenario, tenant: Tenant, request: Request) -> dict[str, object]:
    fields: dict[str, object] = {
        "model": scenario.model,
        "max_tokens": request.output_tokens,
        "ignore_eos": True,  # so that the scenario sets the length of the response, not the model
        "temperature": 0,
        "stream": scenario.stream,
    }
    if scenario.stream:
        fields["stream_options"] = {"include_usage": True}
    if tenant.priority is not None:
        fields["priority"] = tenant.priority
    return fields


def _ids(tenant: Tenant, request: Request, seed: int, worker: str) -> msgspec.Raw:
    prefix = _prefix_tokens(tenant, request)
    ids = token_ids(prefix, _prefix_name(tenant), "prefix", seed=seed)
    ids += token_ids(request.input_tokens - prefix, *_own(tenant, request, worker), seed=seed)
    return msgspec.Raw(b"[" + b",".join(ids) + b"]")


def content(scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str = "") -> str:
    """The text of a request's prompt. ``worker`` names the sequence in which requests are numbered."""
    per_token = 1 / scenario.tokens_per_byte
    size = max(round(request.input_tokens * per_token), 1)
    prefix = min(round(_prefix_tokens(tenant, request) * per_token), size)
    shared = text(prefix, _prefix_name(tenant), "prefix", seed=seed)
    return shared + text(size - len(shared), *_own(tenant, request, worker), seed=seed)


def _own(tenant: Tenant, request: Request, worker: str) -> tuple[str, ...]:
    return tenant.name, worker, str(request.number), "prompt"


def _prefix_name(tenant: Tenant) -> str:
    return tenant.prefix.name if tenant.prefix is not None else ""


def _prefix_tokens(tenant: Tenant, request: Request) -> int:
    if tenant.prefix is None or not request.has_prefix:
        return 0
    return min(tenant.prefix.tokens, request.input_tokens)
