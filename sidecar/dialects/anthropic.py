"""The Anthropic dialect: reads Messages requests; writes errors, statuses and headers of that API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import Raw

from sidecar.dialects.bodies import (
    MESSAGE_BYTES,
    Malformed,
    Parsed,
    at,
    content,
    is_flex,
    items,
    output_bound,
    read,
    reused_ids,
    size,
    total,
)
from sidecar.dialects.dialect import Dialect, limits, rate_limit_fields
from sidecar.dialects.items import NOTHING, Item
from sidecar.dialects.prefixes import prefixes
from tokenpool.accounting.account import Account
from tokenpool.outcomes import Reason
from tokenpool.pricing.cost import Ask

ROUTE = "/v1/messages"
"""The key under which costs are learned."""
OVERLOADED = 529
"""This API's status code for a server without capacity."""


class _Message(Item):
    content: Raw = NOTHING


class _Request(msgspec.Struct):
    model: str | None = None
    messages: list[_Message] = []
    system: Raw = NOTHING
    max_tokens: int | float | None = None
    tools: Raw = NOTHING
    kv_transfer_params: Raw = NOTHING
    stream: bool | None = False
    service_tier: Raw = NOTHING


_decode = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode


def parse(body: bytes) -> Parsed:
    """Read a message request: messages, system prompt and tools as input; the expected output.

    Raises ``Malformed``.
    """
    request = read(_decode, body)
    if not request.messages:
        raise Malformed("messages must be a list of at least one message", "messages")
    tools = items(request.tools, "tools")
    texts = (request.system, *(message.content for message in request.messages))
    contents = [at("system", content, request.system)]
    for number, message in enumerate(request.messages):
        contents.append(at(f"messages[{number}].content", content, message.content))
    text_bytes, images, audios = total(contents)
    text_bytes += MESSAGE_BYTES * len(request.messages) + sum(map(size, tools))
    ask = Ask(
        text_bytes=text_bytes,
        token_ids=0 if request.kv_transfer_params is NOTHING else reused_ids(request.kv_transfer_params),
        images=images,
        audios=audios,
        tools=len(tools),
        output_bound=output_bound(request.max_tokens, "max_tokens"),
        target=(ROUTE, request.model or ""),
        prefixes=prefixes(text_bytes, (*tools, *texts)),
    )
    return Parsed(
        ask,
        request.model,
        bool(request.stream),
        False,
        body,
        takes_priority=False,
        is_flex=is_flex(request.service_tier),
    )


def error_body(reason: Reason, message: str, param: str | None = None) -> bytes:
    """The body of an error answer. This API names a field only in the message."""
    text = f"{param}: {message}" if param and param not in message else message
    return _encode({"type": "error", "error": {"type": _KINDS[ANTHROPIC.status(reason)], "message": text}})


def error_event(reason: Reason, message: str, _: int) -> bytes:
    """The last event of a stream that ends early."""
    return b"event: error\ndata: " + error_body(reason, message) + b"\n\n"


def limit_headers(account: Account) -> bytes:
    """``anthropic-ratelimit-*`` lines: ``-tokens`` of the token bucket, ``-requests`` of the sequences."""
    found = limits(account)
    sequences, left, free_in_s, tokens, tokens_left, full_in_s, _ = found
    lines = _LIMITS % (sequences, left, _moment(free_in_s), tokens, tokens_left, _moment(full_in_s))
    return lines + rate_limit_fields(found).encode()


_LIMITS = (
    b"anthropic-ratelimit-requests-limit: %d\r\n"
    b"anthropic-ratelimit-requests-remaining: %d\r\n"
    b"anthropic-ratelimit-requests-reset: %b\r\n"
    b"anthropic-ratelimit-tokens-limit: %d\r\n"
    b"anthropic-ratelimit-tokens-remaining: %d\r\n"
    b"anthropic-ratelimit-tokens-reset: %b\r\n"
)


def _moment(seconds: float) -> bytes:
    """The time ``seconds`` from now as RFC 3339, rounded up to whole seconds."""
    then = datetime.now(UTC) + timedelta(seconds=max(seconds, 0.0))
    if then.microsecond:
        then = then.replace(microsecond=0) + timedelta(seconds=1)
    return then.strftime("%Y-%m-%dT%H:%M:%SZ").encode()


_OWN_STATUSES = {reason: OVERLOADED for reason in Reason if reason.status == 503}
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    414: "request_too_large",
    417: "invalid_request_error",
    429: "rate_limit_error",
    431: "request_too_large",
    502: "api_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}

ANTHROPIC = Dialect(error_body, error_event, limit_headers, _OWN_STATUSES, names_request_id=True)
