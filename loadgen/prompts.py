"""Prompts and request bodies. Pure, without a tokenizer: text is counted in bytes, or token ids are sent.

Prompts differ from their first token on, so an engine's prefix cache does not distort the results. The
exception is a shared prefix of the scenario. A retry sends the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from loadgen.arrivals import Request, stream
from loadgen.endpoints.dialect import Ask, Message, Piece
from loadgen.endpoints.table import DIALECTS
from loadgen.scenario import PromptForm, Scenario, Tenant

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


def form(prompt: PromptForm, tenant: Tenant) -> PromptForm:
    """The form of a tenant's prompts: the scenario's, or text if its endpoint does not accept token ids."""
    return prompt if DIALECTS[tenant.endpoint].accepts_ids else PromptForm.TEXT


def body(scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str = "") -> bytes:
    """The body of a request."""
    contents = _pieces(scenario, tenant, request, seed, worker)
    return body_of_messages(scenario, tenant, request, [("user", piece) for piece in contents])


def body_of_messages(
    scenario: Scenario, tenant: Tenant, request: Request, messages: Sequence[Message]
) -> bytes:
    """The body of a request with these messages. Some endpoints take them as one text, or as a batch."""
    ask = Ask(messages, request.output_tokens, scenario.stream, tenant.ignore_eos, tenant.priority)
    fields = DIALECTS[tenant.endpoint].fields(ask)
    return _encode({"model": tenant.model or scenario.model, **fields, **dict(tenant.extra_body)})


def _pieces(scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str) -> list[Piece]:
    """The inputs of a request: several for a batch."""
    sizes = DIALECTS[tenant.endpoint].split(request.input_tokens, tenant.batch)
    make = _ids if form(scenario.prompt, tenant) is PromptForm.IDS else content
    return [
        make(scenario, tenant, replace(request, input_tokens=size), seed, _sequence(worker, number))
        for number, size in enumerate(sizes)
    ]


def _sequence(worker: str, piece: int) -> str:
    """A name for the random stream of each further input of a batch."""
    return f"{worker}/{piece}" if piece else worker


def _ids(scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str = "") -> msgspec.Raw:
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
