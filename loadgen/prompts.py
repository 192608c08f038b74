"""Prompts and request bodies. Pure, without a tokenizer: text is counted in bytes, or token ids are sent.

Prompts differ from their first token on, so an engine's prefix cache does not distort the results. The
exception is a shared prefix of the scenario. A retry sends the same bytes.
"""

from __future__ import annotations

import math

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
    fields = {
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
    return _encode({**fields, **_prompt(scenario, tenant, request, seed, worker)})


def _prompt(
    scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str
) -> dict[str, object]:
    prefix = min(_prefix_tokens(tenant, request), request.input_tokens)
    unique = request.input_tokens - prefix
    shared_by = tenant.prefix.name if tenant.prefix is not None else ""
    own = (tenant.name, worker, str(request.number), "prompt")
    if scenario.prompt is PromptForm.IDS:
        ids = token_ids(prefix, shared_by, "prefix", seed=seed) + token_ids(unique, *own, seed=seed)
        return {"prompt": msgspec.Raw(b"[" + b",".join(ids) + b"]")}
    per_token = 1 / scenario.tokens_per_byte
    size = max(round(request.input_tokens * per_token), 1)
    shared = text(min(round(prefix * per_token), size), shared_by, "prefix", seed=seed)
    content = shared + text(size - len(shared), *own, seed=seed)
    if scenario.route is Route.CHAT:
        return {"messages": [{"role": "user", "content": content}]}
    return {"prompt": content}


def _prefix_tokens(tenant: Tenant, request: Request) -> int:
    return tenant.prefix.tokens if tenant.prefix is not None and request.has_prefix else 0
