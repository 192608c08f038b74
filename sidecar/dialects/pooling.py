"""Routes of models that generate nothing: embeddings, pooling, classification, scores, reranking.

Every input is a sequence of its own, which the engine reads once; there is no output to be priced. Errors are
those of the OpenAI dialect.
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
    content,
    is_null,
    items,
    not_too_many,
    prompts,
    read,
    read_part,
    size,
    total,
)
from sidecar.dialects.fields import is_given
from sidecar.dialects.items import NOTHING
from sidecar.dialects.openai import conversation_of
from tokenpool.cost import Ask

ROUTE = "pooling"
"""Where prices are learned: a model of this kind reads a text alike on all of these routes."""


_FIRST = re.compile(rb"\[\s*(\[\s*)?\{").match
"""What begins a list of messages, or (1) one of such lists."""


class _Pooling(msgspec.Struct):
    model: str | None = None
    priority: Raw | UnsetType = UNSET


class _Embedding(_Pooling):
    input: Raw = NOTHING
    messages: Raw = NOTHING
    data: Raw = NOTHING


class _Scoring(_Pooling):
    queries: Raw = NOTHING
    documents: Raw = NOTHING
    items: Raw = NOTHING
    text_1: Raw = NOTHING
    text_2: Raw = NOTHING
    data_1: Raw = NOTHING
    data_2: Raw = NOTHING


class _Reranking(_Pooling):
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
    """Read a body of ``/v1/embeddings``, ``/pooling`` or ``/classify``. Raises ``Malformed``."""
    request = read(_decode_embedding, body)
    fields = {"input": request.input, "messages": request.messages, "data": request.data}
    _only_one([name for name, value in fields.items() if not is_null(value)], "input")
    chats = request.input if is_null(request.messages) else request.messages
    first = _FIRST(memoryview(chats))
    if not is_null(request.data):
        # What a plugin makes of its data only the plugin knows: a text of that length.
        ask = _ask([Content(size(request.data))])
    elif first is not None and first[1]:
        ask = _ask([conversation_of(each) for each in items(chats, "messages")])
    elif first is not None:
        ask = _ask([conversation_of(chats)])
    else:
        count, text_bytes, token_ids = prompts(request.input, "input")
        ask = Ask(text_bytes, token_ids, prompts=not_too_many(count, "input"), output_bound=0)
    return _parsed(ask, request, body)


def parse_scores(body: bytes) -> Parsed:
    """Read a body of ``/score``: pairs of texts. Raises ``Malformed``."""
    request = read(_decode_scoring, body)
    given = {
        names: (one, other)
        for names, one, other in (
            ("queries and documents", request.queries, request.documents),
            ("queries and items", request.queries, request.items),
            ("text_1 and text_2", request.text_1, request.text_2),
            ("data_1 and data_2", request.data_1, request.data_2),
        )
        if not (is_null(one) or is_null(other))
    }
    if not given:
        raise Malformed(
            "send queries and documents (or items), text_1 and text_2, or data_1 and data_2", "queries"
        )
    _only_one(list(given), "queries")
    ((one, other),) = given.values()
    return _parsed(_pairs(_texts(one, "queries"), _texts(other, "documents")), request, body)


def parse_reranking(body: bytes) -> Parsed:
    """Read a body of ``/rerank``: one query, many documents. Raises ``Malformed``."""
    request = read(_decode_reranking, body)
    return _parsed(_pairs([_text(request.query)], _texts(request.documents, "documents")), request, body)


def _only_one(given: list[str], param: str) -> None:
    """Which of several the engine would read is not to be guessed: a long one may hide behind a short one."""
    if len(given) > 1:
        raise Malformed(f"send only one of {', '.join(given)}", param)


def _parsed(ask: Ask, request: _Pooling, body: bytes) -> Parsed:
    ask = ask._replace(target=(ROUTE, request.model or ""))
    return Parsed(ask, request.model, False, False, body, is_given(request.priority, body))


def _pairs(ones: Sequence[Content], others: Sequence[Content]) -> Ask:
    """Each pair is read as one sequence; a single text is paired with every other."""
    if not ones or not others:
        raise Malformed("there must be at least one query and one document", "documents")
    count = max(len(ones), len(others))
    return _ask([*_repeated(ones, count // len(ones)), *_repeated(others, count // len(others))], count)


def _repeated(texts: Sequence[Content], times: int) -> list[Content]:
    return [Content(*(number * times for number in text)) for text in texts]


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
    """One text, or a list of them."""
    if memoryview(value)[0] == BRACKET:
        return [_text(item) for item in items(value, name)]
    return [_text(value)]


def _text(value: Raw) -> Content:
    if memoryview(value)[0] == BRACE:
        rich = read_part(_decode_rich, bytes(value)).content
        return Content(size(value)) if is_null(rich) else content(rich)
    return content(value)
