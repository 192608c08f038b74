"""Routes of models that generate nothing: embeddings, pooling, classification, scores, reranking.

Each input is one sequence, which the engine reads once. There is no output to price. Errors have the OpenAI
form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Raw, UnsetType

from sidecar.dialects.bodies import (
    BRACE,
    BRACKET,
    Content,
    Malformed,
    Parsed,
    at,
    content,
    input_bound,
    is_null,
    items,
    not_too_many,
    prompts,
    read,
    read_part,
    size,
    tokens,
    total,
)
from sidecar.dialects.fields import is_given
from sidecar.dialects.items import NOTHING
from sidecar.dialects.openai import conversation_of
from tokenpool.pricing.cost import Ask

ROUTE = "pooling"
"""The key under which costs are learned. Such a model tokenizes a text equally on all of these routes."""
PAIR_TOKENS = 128
"""The tokens that a score template may add to a truncated query and a truncated document."""


_FIRST = re.compile(rb"\[\s*(\[\s*)?\{").match
"""Matches the beginning of a list of messages, or (group 1) of a list of such lists."""


class _Pooling(msgspec.Struct):
    model: str | None = None
    truncate_prompt_tokens: int | float | None = None
    padding: str | None = None
    priority: Raw | UnsetType = UNSET


class _Embedding(_Pooling):
    input: Raw = NOTHING
    messages: Raw = NOTHING
    data: Raw = NOTHING


class _Pairs(_Pooling):
    instruction: Raw = NOTHING
    max_tokens_per_query: int | float | None = 0
    max_tokens_per_doc: int | float | None = 0


class _Scoring(_Pairs):
    queries: Raw = NOTHING
    documents: Raw = NOTHING
    items: Raw = NOTHING
    text_1: Raw = NOTHING
    text_2: Raw = NOTHING
    data_1: Raw = NOTHING
    data_2: Raw = NOTHING


class _Reranking(_Pairs):
    query: Raw = NOTHING
    documents: Raw = NOTHING


class _Rich(msgspec.Struct):
    """A query or document of several parts."""

    content: Raw = NOTHING


_decode_embedding = msgspec.json.Decoder(_Embedding).decode
_decode_scoring = msgspec.json.Decoder(_Scoring).decode
_decode_reranking = msgspec.json.Decoder(_Reranking).decode
_decode_rich = msgspec.json.Decoder(_Rich).decode


def parse_input(body: bytes) -> Parsed:
    """Read texts to embed, pool or classify: each text is a sequence of input. There is no output.

    Raises ``Malformed``.
    """
    request = read(_decode_embedding, body)
    fields = {"input": request.input, "messages": request.messages, "data": request.data}
    _only_one([name for name, value in fields.items() if not is_null(value)], "input")
    name, chats = ("input", request.input) if is_null(request.messages) else ("messages", request.messages)
    first = _FIRST(memoryview(chats))
    if not is_null(request.data):
        # Only the plugin knows the meaning of its data. It is priced as a text of the same length.
        ask = _ask([(size(request.data), 0, 0)])
    elif first is not None and first[1]:
        ask = _ask([at(f"{name}[{n}]", conversation_of, each) for n, each in enumerate(items(chats, name))])
    elif first is not None:
        ask = _ask([at(name, conversation_of, chats)])
    else:
        count, text_bytes, token_ids = prompts(request.input, "input")
        ask = Ask(text_bytes, token_ids, prompts=not_too_many(count, "input"), output_bound=0)
    return _parsed(ask, request, body)


def parse_scores(body: bytes) -> Parsed:
    """Read pairs of texts to score: each pair is a sequence of input. There is no output.

    Raises ``Malformed``.
    """
    request = read(_decode_scoring, body)
    given = {
        (first, second): (one, other)
        for first, second, one, other in (
            ("queries", "documents", request.queries, request.documents),
            ("queries", "items", request.queries, request.items),
            ("text_1", "text_2", request.text_1, request.text_2),
            ("data_1", "data_2", request.data_1, request.data_2),
        )
        if not (is_null(one) or is_null(other))
    }
    if not given:
        raise Malformed(
            "send queries and documents (or items), text_1 and text_2, or data_1 and data_2", "queries"
        )
    _only_one([" and ".join(names) for names in given], "queries")
    (((first, second), (one, other)),) = given.items()
    return _parsed(_pairs(_texts(one, first), _texts(other, second), request), request, body)


def parse_reranking(body: bytes) -> Parsed:
    """Read a query and documents to rank: each document is a sequence with the query. There is no output.

    Raises ``Malformed``.
    """
    request = read(_decode_reranking, body)
    queries = [at("query", _text, request.query)]
    return _parsed(_pairs(queries, _texts(request.documents, "documents"), request), request, body)


def _only_one(given: list[str], param: str) -> None:
    """Refuse several forms of input in one request, because the engine may read a longer one."""
    if len(given) > 1:
        raise Malformed(f"send only one of {', '.join(given)}", param)


def _parsed(ask: Ask, request: _Pooling, body: bytes) -> Parsed:
    bound = input_bound(request.truncate_prompt_tokens)
    if bound is None or (ask.input_bound is not None and 0 <= ask.input_bound < bound):
        bound = ask.input_bound
    ask = ask.changed(
        target=(ROUTE, request.model or ""), input_bound=bound, pads_input=request.padding == "max_length"
    )
    return Parsed(ask, request.model, False, False, body, is_given(request.priority, body))


def _pairs(ones: Sequence[Content], others: Sequence[Content], request: _Pairs) -> Ask:
    """The price of pairs. Each pair is one sequence; a single text is paired with every other text."""
    if not ones or not others:
        raise Malformed("there must be at least one query and one document", "documents")
    count = max(len(ones), len(others))
    ask = _ask([*_repeated(ones, count // len(ones)), *_repeated(others, count // len(others))], count)
    return ask.changed(input_bound=_pair_bound(ones, others, request))


def _pair_bound(ones: Sequence[Content], others: Sequence[Content], request: _Pairs) -> int | None:
    """The most tokens of a pair whose texts are truncated. A text has no more tokens than bytes."""
    query = tokens(request.max_tokens_per_query or 0, "max_tokens_per_query")
    document = tokens(request.max_tokens_per_doc or 0, "max_tokens_per_doc")
    if query <= 0 and document <= 0:
        return None
    longest, longest_other = (max(text[0] for text in texts) for texts in (ones, others))
    one = min(query, longest) if query > 0 else longest
    other = min(document, longest_other) if document > 0 else longest_other
    return one + other + size(request.instruction) + PAIR_TOKENS


def _repeated(texts: Sequence[Content], times: int) -> list[Content]:
    return [(text[0] * times, text[1] * times, text[2] * times) for text in texts]


def _ask(texts: Sequence[Content], count: int | None = None) -> Ask:
    text_bytes, images, audios = total(texts)
    return Ask(
        text_bytes=text_bytes,
        images=images,
        audios=audios,
        prompts=not_too_many(len(texts) if count is None else count, "input"),
        output_bound=0,
    )


def _texts(value: Raw, name: str) -> list[Content]:
    """The contents of one text or of a list of texts."""
    if memoryview(value)[0] == BRACKET:
        return [at(f"{name}[{number}]", _text, item) for number, item in enumerate(items(value, name))]
    return [at(name, _text, value)]


def _text(value: Raw) -> Content:
    if memoryview(value)[0] == BRACE:
        rich = read_part(_decode_rich, bytes(value)).content
        return (size(value), 0, 0) if is_null(rich) else at("content", content, rich)
    return content(value)
