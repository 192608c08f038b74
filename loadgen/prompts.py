"""Prompts and request bodies. Pure: text is counted in bytes or in known words, or token ids are sent.

Prompts differ from their first token on, so an engine's prefix cache does not distort the results. The
exceptions are a shared prefix of the scenario, and the shared blocks and texts of a trace. A retry sends the
same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from loadgen.arrivals import Request, stream
from loadgen.endpoints.dialect import Ask, Message, Piece
from loadgen.endpoints.table import DIALECTS
from loadgen.scenario import PromptForm, Scenario, Tenant, Trace, Traced, Wording

FIRST_ID = 10
"""The lowest token id of 256, all below 400. Lower ids are special in most vocabularies."""
_IDS = [b"%d" % (FIRST_ID + byte) for byte in range(256)]
_CONSONANTS, _VOWELS = "bdfgklmnprstvwzj", "aeiou"
_WORDS = [a + vowel + b + " " for a in _CONSONANTS for vowel in _VOWELS for b in _CONSONANTS][:1280:5]
_encode = msgspec.json.Encoder().encode


class _Part(NamedTuple):
    """A part of a prompt: the first so many tokens of a stream of random tokens."""

    tokens: int
    of: int
    names: tuple[str, ...]


def token_ids(tokens: int, *names: str, seed: int) -> list[bytes]:
    """``tokens`` token ids as JSON numbers. Equal names and seeds give equal ids."""
    return [_IDS[byte] for byte in stream(seed, *names).randbytes(tokens)]


def text(size: int, *names: str, seed: int) -> str:
    """``size`` bytes of random words. Equal names and seeds give equal text."""
    letters = len(_WORDS[0])
    chosen = stream(seed, *names).randbytes(math.ceil(size / letters))
    return "".join([_WORDS[byte] for byte in chosen])[:size]


def worded(tokens: int, words: Sequence[str], *names: str, seed: int) -> list[str]:
    """``tokens`` random words. Equal names and seeds give equal words."""
    return [words[byte % len(words)] for byte in stream(seed, *names).randbytes(tokens)]


def form(prompt: PromptForm, tenant: Tenant) -> PromptForm:
    """The form of a tenant's prompts: the scenario's, or text if its endpoint does not accept token ids."""
    return prompt if DIALECTS[tenant.endpoint].accepts_ids else PromptForm.TEXT


def body(scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str = "") -> bytes:
    """The body of a request."""
    return body_of_messages(scenario, tenant, request, messages(scenario, tenant, request, seed, worker))


def messages(
    scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str = ""
) -> Sequence[Message]:
    """The messages of a request: those of a recorded conversation, or its prompt."""
    if request.traced is not None and request.traced.messages:
        return request.traced.messages
    return [("user", piece) for piece in _pieces(scenario, tenant, request, seed, worker)]


def body_of_messages(scenario: Scenario, tenant: Tenant, request: Request, said: Sequence[Message]) -> bytes:
    """The body of a request with these messages. Some endpoints take them as one text, or as a batch."""
    ask = Ask(said, request.output_tokens, scenario.stream, tenant.ignore_eos, tenant.priority)
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
    parts = _parts(tenant, request, worker)
    ids = [id_ for part in parts for id_ in token_ids(part.of, *part.names, seed=seed)[: part.tokens]]
    return msgspec.Raw(b"[" + b",".join(ids) + b"]")


def content(scenario: Scenario, tenant: Tenant, request: Request, seed: int, worker: str = "") -> str:
    """The text of a request's prompt. ``worker`` names the sequence in which requests are numbered."""
    wording = tenant.wording or Wording(scenario.tokens_per_byte)
    return _text(_parts(tenant, request, worker), wording, seed)


def _parts(tenant: Tenant, request: Request, worker: str) -> list[_Part]:
    """The parts of a prompt: shared blocks of a trace, or a shared prefix, and then its own text."""
    left, parts = request.input_tokens, []
    for part in (*_blocks(tenant.trace, request.traced), *_prefix(tenant, request)):
        parts.append(part._replace(tokens=min(part.tokens, left)))
        left -= parts[-1].tokens
    return [*parts, _Part(left, left, (tenant.name, worker, str(request.number), "prompt"))]


def _blocks(trace: Trace | None, traced: Traced | None) -> Iterator[_Part]:
    if trace is not None and traced is not None:
        for id_ in traced.blocks:
            yield _Part(trace.block_tokens, trace.block_tokens, (trace.file, str(id_), "block"))


def _prefix(tenant: Tenant, request: Request) -> Iterator[_Part]:
    prefix = tenant.prefix
    if prefix is not None and request.has_prefix:
        yield _Part(prefix.tokens, prefix.tokens, (prefix.name, "prefix"))


def _text(parts: Sequence[_Part], wording: Wording, seed: int) -> str:
    """The text of a prompt. Its length is that of all parts, less what the engine adds."""
    left = max(sum(part.tokens for part in parts) - wording.overhead, 1)
    if wording.words:
        words = [
            word
            for part in parts
            for word in worded(part.of, wording.words, *part.names, seed=seed)[: part.tokens]
        ]
        return " ".join(words[:left])
    per_token, end, pieces = 1 / wording.tokens_per_byte, 0, []
    for part in parts:
        # Rounded by the end of each part, so that equal beginnings are equal text.
        begins, end = end, end + part.tokens
        size = round(end * per_token) - round(begins * per_token)
        whole = max(math.ceil(part.of * per_token), size)
        pieces.append(text(whole, *part.names, seed=seed)[:size])
    return "".join(pieces)[: max(round(left * per_token), 1)]
