"""The OpenAI dialect, as vLLM implements it: reads chats and completions; writes errors and headers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, cast

import msgspec
from msgspec import UNSET, Raw

from sidecar.dialects.bodies import (
    MESSAGE_BYTES,
    QUOTE,
    Content,
    Malformed,
    Parsed,
    at,
    check,
    check_no_embeds,
    content,
    input_bound,
    is_flex,
    items,
    not_too_many,
    output_bound,
    prompts,
    read,
    read_part,
    reused_ids,
    sequences,
    size,
    total,
)
from sidecar.dialects.dialect import Dialect, limits, rate_limit_fields
from sidecar.dialects.fields import is_given, with_field
from sidecar.dialects.items import MOST_ITEMS, NOTHING, begin_counting
from sidecar.dialects.openai_bodies import (
    Chat,
    ChatBatch,
    Generation,
    Message,
    StreamOptions,
    decode_chat,
    decode_chat_batch,
    decode_completion,
    decode_counted_chat,
    decode_messages,
)
from sidecar.dialects.prefixes import prefixes
from tokenpool.accounting.account import Account
from tokenpool.outcomes import Reason
from tokenpool.pricing.cost import Ask

CHAT_ROUTE, COMPLETIONS_ROUTE = "/v1/chat/completions", "/v1/completions"
"""The key under which costs are learned. Batches share it with chats."""
COMPLETIONS_DEFAULT_TOKENS: Final = 16
"""vLLM's ``max_tokens`` of ``/v1/completions`` if the request has none."""


_NOTHING: Final = NOTHING
_UNSET: Final = UNSET
_encode = msgspec.json.Encoder().encode


def parse_chat(body: bytes) -> Parsed:
    """Read a chat: messages, documents and tools as input; the expected output of each of ``n`` sequences.

    Raises ``Malformed``.
    """
    check(body)
    # A message has two bytes at least. So a short body need not be searched, nor its messages counted.
    if len(body) <= 2 * MOST_ITEMS or body.count(b"{") <= MOST_ITEMS:
        request = read_part(decode_chat, body)
        begin_counting(len(request.messages))
    else:
        begin_counting()
        request = read_part(decode_counted_chat, body)
    if not request.messages:
        raise Malformed("messages must be a list of at least one message", "messages")
    try:
        text_bytes, images, audios = conversation(request.messages)
    except Malformed as error:
        raise error.within("messages") from None
    tools: list[Raw] = []
    if request.tools is not _NOTHING:
        tools = items(request.tools, "tools")
        text_bytes += sum(map(size, tools))
    if request.documents is not _NOTHING:
        text_bytes += size(request.documents)
    token_ids = 0 if request.kv_transfer_params is _NOTHING else reused_ids(request.kv_transfer_params)
    per_prompt = 1 if request.n is None or request.n == 1 else sequences(request.n)
    bound = input_bound(request.truncate_prompt_tokens)
    ask = Ask(
        text_bytes,
        token_ids,
        images,
        audios,
        len(tools),
        1,
        per_prompt,
        _chat_bound(request),
        (CHAT_ROUTE, request.model or ""),
        # A truncated prompt may begin anywhere.
        prefixes(text_bytes, _texts(tools, request.messages)) if bound is None else (),
        bound,
    )
    return _parsed(ask, request, body)


def parse_chat_batch(body: bytes) -> Parsed:
    """Read a batch of chats: each conversation is a sequence with its own input and expected output."""
    request = read(decode_chat_batch, body)
    chats = items(request.messages, "messages")
    if not chats:
        raise Malformed("messages must be a list of at least one conversation", "messages")
    text_bytes, images, audios = total(
        [at(f"messages[{number}]", conversation_of, chat) for number, chat in enumerate(chats)]
    )
    # Fields that the engine refuses here (stream, n) are priced as on other routes.
    ask = Ask(
        text_bytes,
        images=images,
        audios=audios,
        prompts=len(chats),
        sequences_per_prompt=sequences(request.n),
        output_bound=_chat_bound(request),
        target=(CHAT_ROUTE, request.model or ""),
        # Not documented on this route; vLLM 0.32 passes it to each conversation.
        input_bound=input_bound(request.truncate_prompt_tokens),
    )
    return Parsed(
        ask,
        request.model,
        False,
        False,
        body,
        is_given(request.priority, body),
        is_flex=request.service_tier is not _NOTHING and is_flex(request.service_tier),
    )


def conversation_of(value: Raw) -> Content:
    """The content of a list of messages. Raises ``Malformed``."""
    return conversation(cast(list[Message], read_part(decode_messages, bytes(value))))


def conversation(messages: list[Message]) -> Content:
    """The content of a conversation's messages. Raises ``Malformed``."""
    images = audios = 0
    text_bytes = MESSAGE_BYTES * len(messages)
    for message in messages:
        text = message.content
        view = memoryview(text)
        if view[0] == QUOTE:
            text_bytes += len(view) - 2
        elif text is not _NOTHING:
            try:
                more, pictures, sounds = content(text)
            except Malformed as error:
                raise error.within(f"[{_index(messages, message)}].content") from None
            text_bytes += more
            images += pictures
            audios += sounds
        if message.tool_calls is not _NOTHING:
            text_bytes += size(message.tool_calls)
        if message.reasoning is not _NOTHING:
            text_bytes += size(message.reasoning)
        if message.reasoning_content is not _NOTHING:
            text_bytes += size(message.reasoning_content)
    return text_bytes, images, audios


def _index(messages: list[Message], message: Message) -> int:
    for number, each in enumerate(messages):
        if each is message:
            return number
    raise AssertionError("the message is not of this conversation")


def parse_completion(body: bytes) -> Parsed:
    """Read a completion: prompts (text or token ids); the expected output of ``n`` sequences per prompt.

    Raises ``Malformed``.
    """
    request = read(decode_completion, body)
    check_no_embeds(request.prompt_embeds)
    count, text_bytes, token_ids = prompts(request.prompt, "prompt")
    per_prompt = max(sequences(request.n), sequences(request.best_of, "best_of"))
    not_too_many(count, "n", per_prompt)
    bound = request.max_tokens
    kept = input_bound(request.truncate_prompt_tokens)
    ask = Ask(
        text_bytes=text_bytes + len(request.suffix or ""),
        token_ids=token_ids,
        prompts=count,
        sequences_per_prompt=per_prompt,
        output_bound=output_bound(COMPLETIONS_DEFAULT_TOKENS if bound is None else bound, "max_tokens"),
        target=(COMPLETIONS_ROUTE, request.model or ""),
        # Several prompts have no common beginning, and a truncated one may begin anywhere.
        prefixes=prefixes(text_bytes or len(memoryview(request.prompt)), (request.prompt,))
        if count == 1 and kept is None
        else (),
        input_bound=kept,
    )
    return _parsed(ask, request, body)


def _texts(tools: list[Raw], messages: list[Message]) -> Iterator[Raw]:
    yield from tools
    for message in messages:
        yield message.content


def _chat_bound(request: Chat | ChatBatch) -> int | None:
    """The output bound that the engine uses: the newer field, if both are sent."""
    if request.max_completion_tokens is None:
        return output_bound(request.max_tokens, "max_tokens")
    return output_bound(request.max_completion_tokens, "max_completion_tokens")


def _parsed(ask: Ask, request: Generation, body: bytes) -> Parsed:
    has_priority = request.priority is not _UNSET and is_given(request.priority, body)
    lowers = request.service_tier is not _NOTHING and is_flex(request.service_tier)
    if not request.stream:
        return Parsed(ask, request.model, False, False, body, has_priority, is_flex=lowers)
    options = request.stream_options
    asks_for_usage = isinstance(options, StreamOptions) and bool(options.include_usage)
    if not asks_for_usage:
        field = b'"stream_options":{"include_usage":true}'
        body = with_field(body, field, replaces=options is not UNSET)
    return Parsed(ask, request.model, True, not asks_for_usage, body, has_priority, is_flex=lowers)


def error_body(reason: Reason, message: str, param: str | None = None) -> bytes:
    """The body of an error answer."""
    kind, code = error_kind(reason)
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(reason: Reason, message: str, _: int) -> bytes:
    """The last event of a stream that ends early, in the form of vLLM's failed streams."""
    return b"data: " + error_body(reason, message) + b"\n\ndata: [DONE]\n\n"


def error_kind(reason: Reason) -> tuple[str, str | int]:
    """The type and the code of an error."""
    return _ERRORS[reason]


def limit_headers(account: Account) -> bytes:
    """``x-ratelimit-*`` lines (``-tokens``: the bucket, ``-requests``: the sequences), and ``ratelimit``."""
    found = limits(account)
    sequences_, left, free_in_s, tokens, tokens_left, full_in_s, _ = found
    # A text is formatted first: compiled, that takes three quarters of the time of formatting bytes.
    return (
        f"x-ratelimit-limit-requests: {int(sequences_)}\r\n"
        f"x-ratelimit-remaining-requests: {int(left)}\r\n"
        f"x-ratelimit-reset-requests: {duration(free_in_s)}\r\n"
        f"x-ratelimit-limit-tokens: {int(tokens)}\r\n"
        f"x-ratelimit-remaining-tokens: {int(tokens_left)}\r\n"
        f"x-ratelimit-reset-tokens: {duration(full_in_s)}\r\n"
        f"{rate_limit_fields(found)}"
    ).encode()


def duration(seconds: float) -> str:
    """A duration as OpenAI's headers write it: ``120ms``, ``1s``, ``6m0s``."""
    if seconds <= 0:
        return "0ms"
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"


_INVALID: Final = "invalid_request_error"
_ERRORS: dict[Reason, tuple[str, str | int]] = {
    Reason.TOKENS_PER_SECOND: ("rate_limit_error", "rate_limit_exceeded"),
    Reason.KV_TOKENS: ("rate_limit_error", "rate_limit_exceeded"),
    Reason.CONCURRENCY: ("rate_limit_error", "rate_limit_exceeded"),
    Reason.ENGINE_FULL: ("rate_limit_error", "rate_limit_exceeded"),
    Reason.PREEMPTED: ("rate_limit_error", "preempted"),
    Reason.SIDECAR_FULL: ("rate_limit_error", "rate_limit_exceeded"),
    Reason.INSUFFICIENT_QUOTA: ("insufficient_quota", "insufficient_quota"),
    Reason.QUOTA_IN_USE: ("rate_limit_error", "rate_limit_exceeded"),
    Reason.ENGINE_DOWN: ("service_unavailable_error", "server_is_overloaded"),
    Reason.DRAINING: ("service_unavailable_error", "server_is_overloaded"),
    Reason.TOO_MANY_CONNECTIONS: ("service_unavailable_error", "server_is_overloaded"),
    Reason.JWT_UNVERIFIED: ("service_unavailable_error", "server_is_overloaded"),
    Reason.NEVER_FITS: (_INVALID, "request_too_large"),
    Reason.MALFORMED: (_INVALID, "invalid_request"),
    Reason.UNKNOWN_KEY: ("authentication_error", "invalid_api_key"),
    Reason.INVALID_JWT: ("authentication_error", "invalid_api_key"),
    Reason.EXPIRED_KEY: ("authentication_error", "invalid_api_key"),
    Reason.UNKNOWN_ROUTE: (_INVALID, "unknown_url"),
    # The same values as vLLM's, so that a client sees no difference between sidecar and engine.
    Reason.UNKNOWN_MODEL: ("NotFoundError", 404),
    # The values of OpenAI, which answers 404, too: it does not reveal whether the model exists.
    Reason.MODEL_NOT_PERMITTED: (_INVALID, "model_not_found"),
    Reason.UNKNOWN_RESPONSE: (_INVALID, 404),
    Reason.METHOD_NOT_ALLOWED: (_INVALID, "method_not_allowed"),
    Reason.TARGET_TOO_LONG: (_INVALID, "target_too_long"),
    Reason.HEAD_TOO_LARGE: (_INVALID, "headers_too_large"),
    Reason.BODY_TOO_LARGE: (_INVALID, "request_too_large"),
    Reason.REQUEST_TIMEOUT: (_INVALID, "request_timeout"),
    Reason.UNSUPPORTED_EXPECTATION: (_INVALID, "unsupported_expectation"),
    Reason.UPSTREAM_ERROR: ("server_error", "upstream_error"),
    Reason.UPSTREAM_TIMEOUT: ("server_error", "upstream_timeout"),
}

OPENAI: Final = Dialect(error_body, error_event, limit_headers)
