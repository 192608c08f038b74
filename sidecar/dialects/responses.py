"""OpenAI's Responses, as vLLM implements them. Errors have the OpenAI form, except inside a stream.

A stored response belongs to the entitlement that made it; ``sidecar/controller/stored_responses.py`` enforces
it.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import UNSET, Raw, UnsetType

from sidecar.dialects.bodies import (
    BRACKET,
    MESSAGE_BYTES,
    Content,
    Malformed,
    Parsed,
    at,
    content,
    is_flex,
    items,
    output_bound,
    read,
    read_part,
    size,
    total,
)
from sidecar.dialects.dialect import Dialect
from sidecar.dialects.fields import is_given
from sidecar.dialects.items import NOTHING, Item
from sidecar.dialects.openai import error_body, error_kind, limit_headers
from sidecar.dialects.prefixes import prefixes
from tokenpool.outcomes import Reason
from tokenpool.pricing.cost import WINDOW, Ask

ROUTE = "/v1/responses"
"""The key under which costs are learned."""


class _Item(Item):
    """A message, a tool call, the output of a tool, or reasoning."""

    content: Raw = NOTHING
    arguments: Raw = NOTHING
    output: Raw = NOTHING
    summary: Raw = NOTHING


class _Request(msgspec.Struct):
    model: str | None = None
    input: Raw = NOTHING
    instructions: Raw = NOTHING
    previous_input_messages: Raw = NOTHING
    max_output_tokens: int | float | None = None
    truncation: Raw | UnsetType = UNSET
    tools: Raw = NOTHING
    stream: bool | None = False
    background: bool | None = False
    previous_response_id: str | None = None
    request_id: str | None = None
    priority: Raw | UnsetType = UNSET
    service_tier: Raw = NOTHING


_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}").fullmatch
"""Matches a ``request_id``. vLLM names the response ``resp_`` and this id; paths contain that name."""
_decode = msgspec.json.Decoder(_Request).decode
_decode_items = msgspec.json.Decoder(list[_Item]).decode
_encode = msgspec.json.Encoder().encode


def parse(body: bytes) -> Parsed:
    """Read a response request: input, instructions, tools, the continued conversation; the expected output.

    Raises ``Malformed``.
    """
    request = read(_decode, body)
    if request.background:
        # The engine would answer at once and compute later, so the output would not be settled.
        raise Malformed("background responses are not served here; stream the response instead", "background")
    if request.request_id is not None and not _NAME(request.request_id):
        raise Malformed("request_id must be 1 to 100 letters, digits, dashes or underscores", "request_id")
    if request.input is NOTHING:
        raise Malformed("input must be a text or a list of items", "input")
    text_bytes, images, audios = at("input", _input, request.input)
    tools = items(request.tools, "tools")
    text_bytes += size(request.instructions) + sum(map(size, tools))
    text_bytes += size(request.previous_input_messages)
    ask = Ask(
        text_bytes=text_bytes,
        images=images,
        audios=audios,
        tools=len(tools),
        output_bound=output_bound(request.max_output_tokens, "max_output_tokens"),
        target=(ROUTE, request.model or ""),
        prefixes=prefixes(text_bytes, (*tools, request.instructions, request.input)),
        input_bound=WINDOW if _truncates(request.truncation) else None,
    )
    return Parsed(
        ask,
        request.model,
        bool(request.stream),
        False,
        body,
        has_priority=is_given(request.priority, body),
        continued_response=request.previous_response_id,
        response_name=request.request_id,
        is_flex=is_flex(request.service_tier),
    )


def _truncates(truncation: Raw | UnsetType) -> bool:
    """Whether the engine truncates the prompt to its window: it does for any value but ``disabled``."""
    return not isinstance(truncation, UnsetType) and bytes(memoryview(truncation)) != b'"disabled"'


def _input(value: Raw) -> Content:
    view = memoryview(value)
    if view[0] != BRACKET:
        return size(value) + MESSAGE_BYTES, 0, 0
    listed = read_part(_decode_items, bytes(view))
    return total([at(f"[{number}]", _content_of, item) for number, item in enumerate(listed)])


def _content_of(item: _Item) -> Content:
    rest = MESSAGE_BYTES + size(item.arguments), 0, 0
    parts = (("content", item.content), ("output", item.output), ("summary", item.summary))
    said = [at(name, content, each) for name, each in parts if each is not NOTHING]
    return total((rest, *said)) if said else rest


def error_event(reason: Reason, message: str, events: int) -> bytes:
    """The event that reports a failed response. Events are numbered from 0."""
    _, code = error_kind(reason)
    said = {
        "type": "error",
        "code": str(code),
        "message": message,
        "param": None,
        "sequence_number": events,
    }
    return b"event: error\ndata: " + _encode(said) + b"\n\n"


RESPONSES = Dialect(error_body, error_event, limit_headers)
