"""Prompts and request bodies. Pure; no tokenizer: text is counted in bytes, or token ids are sent.

Prompts are unlike from their first token on, so that no engine's prefix cache makes a run look better than
it is, except for the prefix that a scenario shares on purpose. A retry sends the very same bytes.
"""

from __future__ import annotations

import math

import msgspec

from loadgen.arrivals import Request, stream
from loadgen.scenario import PromptForm, Route, Scenario, Tenant

FIRST_ID = 10
"""Token ids begin here: lower ones are special in most vocabularies. 256 follow, all below 400."""
_IDS = [b"%d" % (FIRST_ID + byte) for byte in range(256)]
_CONSONANTS, _VOWELS = "bdfgklmnprstvwzj", "aeiou"
_WORDS = [a + vowel + b + " " for a in _CONSONANTS for vowel in _VOWELS for b in _CONSONANTS][:1280:5]
_encode = msgspec.json.Encoder().encode


def token_ids(tokens: int, *names: str, seed: int) -> list[bytes]:
    """So many token ids as JSON numbers; the same for the same names and seed."""
    return [_IDS[byte] for byte in stream(seed, *names).randbytes(tokens)]


def text(size: int, *names: str, seed: int) -> str:
    """``size`` bytes of words that mean nothing; the same for the same names and seed."""
    letters = len(_WORDS[0])
    chosen = stream(seed, *names).randbytes(math.ceil(size / letters))
    return "".join([_WORDS[byte] for byte in chosen])[:size]


def body(scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str = "") -> bytes:
    """The body of a request."""
    fields = {
        "model": scenario.model,
        "max_tokens": request.output_tokens,
        "ignore_eos": True,  # so that the length is the scenario's, not the model's mood
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
