"""Endpoints of models that generate nothing: embeddings and reranking. Responses are never streamed."""

from __future__ import annotations

import msgspec

from loadgen.endpoints.dialect import Ask, Dialect, Told, decoder
from loadgen.sse import Failure, Usage

DOCUMENTS = 10
"""Documents of a request to rerank, unless the scenario has a batch size."""
_QUERY = 4
"""A query is this part of its pair with a document: one fourth."""


class _Item(msgspec.Struct, frozen=True):
    """A vector or a score. It is not read: vectors are long."""


class _Counts(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Pooled(msgspec.Struct, frozen=True):
    data: list[_Item] | None = None
    results: list[_Item] | None = None
    usage: _Counts | None = None
    error: Failure | None = None


_decode = decoder(_Pooled)


def whole(content: bytes) -> Told | None:
    """Read a response."""
    read = _decode(content)
    if read is None or not (read.data or read.results or read.error):
        return None
    counts = read.usage
    usage = Usage(counts.prompt_tokens or counts.total_tokens or 0, 0) if counts is not None else None
    return Told(True, True, usage, read.error)


def event(data: bytes) -> Told | None:
    """There are no events."""
    return None


def texts(tokens: int, batch: int) -> list[int]:
    """The texts of a request to embed, of about equal length. Each has at least one token."""
    least, more = divmod(tokens, batch)
    return [max(least + (number < more), 1) for number in range(batch)]


def pairs(tokens: int, batch: int) -> list[int]:
    """The query, and each document. An engine reads the query again with each document.

    So the tokens of all pairs together are the tokens of the request, as the engine counts them. Each text
    has at least one token.
    """
    query = max(tokens // batch // _QUERY, 1)
    return [query, *(max(pair - query, 1) for pair in texts(tokens, batch))]


def _priority(ask: Ask) -> dict[str, object]:
    return {} if ask.priority is None else {"priority": ask.priority}


def _embed(ask: Ask) -> dict[str, object]:
    return {"input": list(ask.pieces), **_priority(ask)}


def _rerank(ask: Ask) -> dict[str, object]:
    query, *documents = ask.pieces
    return {"query": query, "documents": documents, **_priority(ask)}


EMBEDDINGS = Dialect(
    "/v1/embeddings", _embed, event, whole, split=texts, batch=1, accepts_ids=True, generates=False,
    takes_ignore_eos=False,
)  # fmt: skip
RERANK = Dialect(
    "/v1/rerank", _rerank, event, whole, split=pairs, batch=DOCUMENTS, generates=False,
    takes_ignore_eos=False, takes_prefix=False,
)  # fmt: skip
