"""Cohere's embeddings, as vLLM implements them. Errors have the OpenAI form, as the engine's have."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

from sidecar.dialects.bodies import (
    Malformed,
    Parsed,
    at,
    content,
    input_bound,
    is_null,
    items,
    read,
    read_part,
    size,
    total,
)
from sidecar.dialects.fields import is_given
from sidecar.dialects.items import NOTHING, Item
from sidecar.dialects.pooling import ROUTE
from tokenpool.pricing.cost import WINDOW, Ask


class _Request(msgspec.Struct):
    model: str | None = None
    texts: Raw = NOTHING
    images: Raw = NOTHING
    inputs: Raw = NOTHING
    max_tokens: int | float | None = None
    truncate: str | None = "END"
    priority: Raw | UnsetType = UNSET


class _Input(Item):
    content: Raw = NOTHING


_decode = msgspec.json.Decoder(_Request).decode
_decode_inputs = msgspec.json.Decoder(list[_Input]).decode


def parse(body: bytes) -> Parsed:
    """Read an embedding request: texts, images, or inputs with parts. There is no output.

    Raises ``Malformed``.
    """
    request = read(_decode, body)
    given = [each for each in (request.texts, request.images, request.inputs) if not is_null(each)]
    if len(given) != 1:
        raise Malformed("send one of texts, images and inputs", "texts")
    if given[0] is request.texts:
        contents = [(size(text), 0, 0) for text in items(request.texts, "texts")]
    elif given[0] is request.images:
        contents = [(0, 1, 0) for _ in items(request.images, "images")]
    else:
        items(request.inputs, "inputs")  # raises if there are too many
        listed = at("inputs", _read_inputs, request.inputs)
        contents = [at(f"inputs[{n}].content", content, each.content) for n, each in enumerate(listed)]
    if not contents:
        raise Malformed("send at least one text, image or input to embed", "texts")
    text_bytes, images, audios = total(contents)
    ask = Ask(
        text_bytes=text_bytes,
        images=images,
        audios=audios,
        prompts=len(contents),
        output_bound=0,
        target=(ROUTE, request.model or ""),
        input_bound=_bound(request),
    )
    return Parsed(ask, request.model, False, False, body, is_given(request.priority, body))


def _read_inputs(value: Raw) -> list[_Input]:
    return read_part(_decode_inputs, bytes(value))


def _bound(request: _Request) -> int | None:
    """The number of tokens to which each input is truncated; the window unless the request has a bound."""
    bound = input_bound(request.max_tokens, "max_tokens")
    if request.truncate == "NONE":
        return None  # the engine refuses a longer input
    return WINDOW if bound is None else bound
