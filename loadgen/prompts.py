"""Prompts and request bodies. Pure, without a tokenizer: text is counted in bytes, or token ids are sent.

Prompts differ from their first token on, so an engine's prefix cache does not distort the results. The
exception is a shared prefix of the scenario. A retry sends the same bytes.
"""

from __future__ import annotations

import math

import msgspec

from loadgen.arrivals import Request, stream
from loadgen.endpoints.dialect import Ask, Piece
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


def form(scenario: Scenario, tenant: Tenant) -> PromptForm:
    """The form of a tenant's prompts: texts if its endpoint does not accept token ids."""
    return scenario.prompt if DIALECTS[tenant.endpoint].accepts_ids else PromptForm.TEXT


def body(scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str = "") -> bytes:
    """The body of a request."""
    dialect = DIALECTS[tenant.endpoint]
    ask = Ask(
        _pieces(scenario, tenant, request, seed, worker),
        request.output_tokens,
        scenario.stream,
        tenant.ignore_eos,
        tenant.priority,
    )
    model = tenant.model or scenario.model
    return _encode({"model": model, **dialect.fields(ask), **dict(tenant.extra_body)})


def _pieces(scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str) -> list[Piece]:
    sizes = DIALECTS[tenant.endpoint].split(request.input_tokens, tenant.batch)
    return [
        _piece(scenario, tenant, request, seed, size, (worker, _name(request, number)))
        for number, size in enumerate(sizes)
    ]


def _name(request: Request, piece: int) -> str:
    """A name of each input for its random stream."""
    return f"{request.number}/{piece}" if piece else str(request.number)


def _piece(
    scenario: Scenario, tenant: Tenant, request: Request, seed: int, tokens: int, names: tuple[str, str]
) -> Piece:
    prefix = min(_prefix_tokens(tenant, request), tokens)
    shared_by = tenant.prefix.name if tenant.prefix is not None else ""
    own = (tenant.name, *names, "prompt")
    if form(scenario, tenant) is PromptForm.IDS:
        ids = token_ids(prefix, shared_by, "prefix", seed=seed)
        ids += token_ids(tokens - prefix, *own, seed=seed)
        return msgspec.Raw(b"[" + b",".join(ids) + b"]")
    per_token = 1 / scenario.tokens_per_byte
    size = max(round(tokens * per_token), 1)
    shared = text(min(round(prefix * per_token), size), shared_by, "prefix", seed=seed)
    return shared + text(size - len(shared), *own, seed=seed)


def _prefix_tokens(tenant: Tenant, request: Request) -> int:
    return tenant.prefix.tokens if tenant.prefix is not None and request.has_prefix else 0
