"""Embeddings, scores and reranking, as vLLM 0.32.0 serves them. Pure.

Their numbers follow from the texts alone. An embedding is a sum of one vector for each token, so texts with
common tokens are similar. A score is the share of the document's words that the query has.
"""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Sequence as Sequential
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from loadgen.engine.answers import Stamp
from loadgen.engine.bodies import Body, Refused, Tokens, bad_value, invalid, text
from loadgen.engine.model import Model, Policy
from loadgen.engine.requests import (
    Request,
    conversation,
    prompt_tokens,
    served_name,
    texts_or_ids,
    truncation,
)
from loadgen.engine.tokens import chat_text

_SCORE_INPUTS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A request for embeddings."""

    work: Request
    is_base64: bool
    size: int
    """Dimensions."""

    def answer(self, stamp: Stamp) -> dict[str, Any]:
        """The response."""
        return {
            "id": f"embd-{stamp.number:016x}",
            "object": "list",
            "created": stamp.created,
            "model": self.work.model,
            "data": [
                {"index": index, "object": "embedding", "embedding": self._told(tokens)}
                for index, tokens in enumerate(self.work.prompts)
            ],
            "usage": _usage(self.work),
        }

    def _told(self, tokens: Tokens) -> list[float] | str:
        vector = embedding(tokens, self.size)
        if not self.is_base64:
            return vector
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


@dataclass(frozen=True, slots=True)
class Scores:
    """A request for scores of pairs of texts."""

    work: Request
    scores: tuple[float, ...]

    def answer(self, stamp: Stamp) -> dict[str, Any]:
        """The response."""
        return {
            "id": f"score-{stamp.number:016x}",
            "object": "list",
            "created": stamp.created,
            "model": self.work.model,
            "data": [
                {"index": index, "object": "score", "score": score} for index, score in enumerate(self.scores)
            ],
            "usage": _usage(self.work),
        }


@dataclass(frozen=True, slots=True)
class Reranking:
    """A request that orders documents by a query."""

    work: Request
    documents: tuple[str, ...]
    scores: tuple[float, ...]
    top: int
    """The number of results."""

    def answer(self, stamp: Stamp) -> dict[str, Any]:
        """The response: the best documents first."""
        order = sorted(range(len(self.scores)), key=lambda index: -self.scores[index])
        results = [
            {
                "index": index,
                "document": {"text": self.documents[index], "multi_modal": None},
                "relevance_score": self.scores[index],
            }
            for index in order[: self.top]
        ]
        tokens = sum(map(len, self.work.prompts))
        return {
            "id": f"rerank-{stamp.number:016x}",
            "model": self.work.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "results": results,
        }


Pooled = Embeddings | Scores | Reranking


def read_embeddings(body: Body, model: Model) -> Embeddings:
    """A ``/v1/embeddings`` body: texts, token ids or a conversation."""
    name, most = served_name(body, model), truncation(body, model)
    if "messages" in body:
        inputs: Sequential[str | Tokens] = [chat_text(conversation(body.get("messages")))]
    else:
        inputs = texts_or_ids(body.needed("input"), "body.input")
    format_ = body.text("encoding_format") or "float"
    if format_ not in ("float", "base64"):
        message = "Input should be 'float' or 'base64'"
        raise invalid("literal_error", "body.encoding_format", message, format_)
    size = body.whole_or_none("dimensions")
    if size is not None and not 1 <= size <= model.embedding_size:
        raise bad_value(f"dimensions must be from 1 to {model.embedding_size}.", "dimensions", size)
    prompts = tuple(prompt_tokens(each, model, most) for each in inputs)
    work = _work(body, model, name, prompts)
    return Embeddings(work, format_ == "base64", size or model.embedding_size)


def read_rerank(body: Body, model: Model) -> Reranking:
    """A ``/rerank`` body."""
    name = served_name(body, model)
    query, documents = text(body.needed("query"), "body.query"), _texts(body, "documents")
    top = body.whole("top_n", 0)
    if top < 0:
        message = "Input should be greater than or equal to 0"
        raise invalid("greater_than_equal", "body.top_n", message, top)
    pairs = [(query, document) for document in documents]
    work = _work(body, model, name, _pair_tokens(pairs, body, model))
    return Reranking(work, documents, _scores(pairs), top or len(documents))


def read_score(body: Body, model: Model) -> Scores:
    """A ``/score`` body: one text or as many as the other side, which may be a list."""
    name = served_name(body, model)
    found = [each for each in _SCORE_INPUTS if each[0] in body and each[1] in body]
    if not found:
        raise invalid("missing", "body.queries", "Field required", {})
    ones, others = (_texts(body, field) for field in found[0])
    if len(ones) == 1:
        ones = ones * len(others)
    if len(ones) != len(others):
        raise Refused("Input lengths must be either 1:1, 1:N or N:N")
    pairs = list(zip(ones, others, strict=True))
    work = _work(body, model, name, _pair_tokens(pairs, body, model))
    return Scores(work, _scores(pairs))


def embedding(tokens: Tokens, size: int) -> list[float]:
    """A vector of length 1."""
    total = [0.0] * size
    for token in tokens:
        for index, value in enumerate(_direction(token, size)):
            total[index] += value
    norm = math.sqrt(sum(value * value for value in total))
    return [value / norm for value in total]


@lru_cache(maxsize=4096)
def _direction(token: int, size: int) -> tuple[float, ...]:
    chance = random.Random(token)
    return tuple(chance.gauss() for _ in range(size))


def _texts(body: Body, name: str) -> tuple[str, ...]:
    value = body.needed(name)
    given = value if isinstance(value, list) else [value]
    if not given:
        raise Refused(f"At least one {name} element must be given")
    return tuple(text(each, f"body.{name}.{index}") for index, each in enumerate(given))


def _pair_tokens(pairs: Sequential[tuple[str, str]], body: Body, model: Model) -> tuple[Tokens, ...]:
    most = truncation(body, model)
    return tuple(prompt_tokens(f"{one}\n{other}", model, most) for one, other in pairs)


def _scores(pairs: Sequential[tuple[str, str]]) -> tuple[float, ...]:
    return tuple(_score(set(one.lower().split()), set(other.lower().split())) for one, other in pairs)


def _score(query: set[str], document: set[str]) -> float:
    return len(query & document) / len(document) if document else 0.0


def _work(body: Body, model: Model, name: str, prompts: tuple[Tokens, ...]) -> Request:
    priority = body.whole("priority", 0)
    if priority and model.policy is not Policy.PRIORITY and model.refuses_priority:
        raise Refused(f"Got priority {priority} but Priority scheduling is not enabled.")
    return Request(
        model=name,
        is_chat=False,
        prompts=prompts,
        bounds=(0,) * len(prompts),
        n=1,
        min_tokens=0,
        ignores_end=True,
        priority=priority,
        streams=False,
        tells_usage=False,
        tells_usage_always=False,
    )


def _usage(work: Request) -> dict[str, Any]:
    tokens = sum(map(len, work.prompts))
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
