"""What an engine's answers may hold of interest: structs for the decoder, and usage in every API's shape.

Finding events in bytes is ``usage``'s. Fields are decoded one by one, so that one field of an unexpected type
does not make the others unreadable.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Raw

from tokenpool.pricing.cost import Usage

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What a decoder raises for bytes that it cannot read; text that is not UTF-8 has an error of its own."""

_MOST = 1 << 53
_Tokens = Annotated[int, Meta(ge=0, le=_MOST)] | Annotated[float, Meta(ge=0, le=_MOST)] | None
"""Cohere's numbers are floats. Several fields are null where an engine does not know them."""
_NONE = Raw()
_FALSE = frozenset({b"", b"null", b"false", b"0", b'""', b"{}", b"[]"})
FAILURES = frozenset({b"error", b"response.failed"})
"""What an event that ends a request in failure is called."""
_HEADS = frozenset(
    {
        *(b"ping", b"message_start", b"message-start"),
        *(b"response.created", b"response.queued", b"response.in_progress"),
    }
)


class NoUsage(StrEnum):
    """Why a finished answer could not be settled from its usage."""

    COMPRESSED = "compressed"
    MISSING = "missing"
    UNREADABLE = "unreadable"


class Spent(NamedTuple):
    """The counts of one or more usage blocks; ``None`` is a count that none of them stated."""

    prompt: float | None = None
    """Input tokens including those from the cache."""
    fresh: float | None = None
    """Input tokens of an API that has no ``prompt``: Anthropic's are without those that concern the cache."""
    read: float | None = None
    """Input tokens beside ``fresh`` that came from the cache."""
    created: float | None = None
    """Input tokens beside ``fresh`` that were written into the cache."""
    cached: float | None = None
    """Part of ``prompt`` or ``fresh`` that came from the cache."""
    output: float | None = None

    def completed(self, later: Spent) -> Spent:
        """These counts and those of a later event, which override. A zero overrides nothing.

        One zero does: ``fresh``, where the later event counts the same input as cached.
        """
        prompt, fresh, read, created, cached, output = later
        moved = fresh == 0 and bool(read or created)
        return Spent(
            prompt or self.prompt,
            fresh if moved else fresh or self.fresh,
            read or self.read,
            created or self.created,
            cached or self.cached,
            output or self.output,
        )

    def usage(self) -> Usage | None:
        """The same in our own terms; ``None`` where it counts nothing: every request has input."""
        read = int(self.read or 0)
        cached, output = int(self.cached or 0), int(self.output or 0)
        if self.prompt:
            # Some proxies repeat the cached tokens under Anthropic's name.
            usage = Usage(int(self.prompt), output, cached or read)
        else:
            usage = Usage(int(self.fresh or 0) + read + int(self.created or 0), output, cached + read)
        return usage if usage.input_tokens or usage.output_tokens else None


class Details(msgspec.Struct):
    """What the prompt's tokens were."""

    cached_tokens: _Tokens = None


class Units(msgspec.Struct):
    """Cohere's counts; images are counted beside text."""

    input_tokens: _Tokens = None
    image_tokens: _Tokens = None
    output_tokens: _Tokens = None


class UsageBlock(msgspec.Struct):
    """Any API's: OpenAI's chats say ``prompt`` and ``completion``, most others ``input`` and ``output``."""

    prompt_tokens: _Tokens = None
    completion_tokens: _Tokens = None
    total_tokens: _Tokens = None
    prompt_tokens_details: Details | None = None
    input_tokens: _Tokens = None
    image_tokens: _Tokens = None
    output_tokens: _Tokens = None
    input_tokens_details: Details | None = None
    cache_read_input_tokens: _Tokens = None
    cache_creation_input_tokens: _Tokens = None
    tokens: Units | None = None
    billed_units: Units | None = None
    cached_tokens: _Tokens = None

    def spent(self) -> Spent:
        """The counts of the block."""
        units = self.tokens or self.billed_units or self
        details = self.prompt_tokens_details or self.input_tokens_details
        prompt, fresh, output = self.prompt_tokens, units.input_tokens, self.completion_tokens
        if not output and units.output_tokens is not None:
            output = units.output_tokens
        if units.image_tokens:
            fresh = (fresh or 0) + units.image_tokens
        if prompt is None and fresh is None and self.total_tokens is not None:
            prompt = max(self.total_tokens - (output or 0), 0)
        return Spent(
            prompt,
            fresh,
            self.cache_read_input_tokens,
            self.cache_creation_input_tokens,
            details.cached_tokens if details is not None else self.cached_tokens,
            output,
        )


class Answer(msgspec.Struct):
    """One event of a stream, or a whole answer: only their top level is believed.

    What a tenant or the model wrote (tools, metadata, arguments) may look like usage, but lies deeper.
    """

    id: Raw = _NONE
    type: Raw = _NONE
    object: Raw = _NONE
    status: Raw = _NONE
    error: Raw = _NONE
    choices: Raw = _NONE
    usage: Raw = _NONE
    meta: Raw = _NONE
    system_fingerprint: Raw = _NONE
    response: Raw = _NONE
    message: Raw = _NONE
    delta: Raw = _NONE

    def is_failure(self) -> bool:
        """Whether it says that the request failed."""
        return (
            (bool(self.error) and bytes(self.error) not in _FALSE)
            or (bool(self.type) and bytes(self.type).strip(b'"') in FAILURES)
            or (bool(self.object) and bytes(self.object) == b'"error"')
            or (bool(self.status) and bytes(self.status) == b'"failed"')
        )

    def is_head(self, name: bytes) -> bool:
        """Whether it is an event, of that name, which engines send before there is any output."""
        return (bytes(self.type).strip(b'"') or name) in _HEADS

    def is_only_usage(self) -> bool:
        """Whether it is the event that ``include_usage`` asks for."""
        if not self.usage or not bytes(self.usage).startswith(b"{"):
            return False
        choices = bytes(self.choices)
        is_empty = choices in _FALSE or (choices.startswith(b"[") and not choices[1:-1].strip())
        return is_empty and not self.is_failure()

    def inner(self) -> Answer | None:
        """The answer that an event is about, which may carry the usage."""
        for raw in (self.response, self.message, self.delta):
            if raw and bytes(raw).startswith(b"{"):
                return decode_answer(raw)
        return None

    def spent(self) -> Spent | None:
        """Its usage, if it has one. Raises ``UNREADABLE``."""
        for raw in (self.usage, self.meta):
            if raw and bytes(raw).startswith(b"{"):
                return decode_block(raw).spent()
        if self.usage and bytes(self.usage) not in _FALSE:
            raise msgspec.ValidationError("usage is no object")
        return None


def text_of(raw: Raw) -> str | None:
    """A field's text; ``None`` if it is none."""
    try:
        return decode_text(raw) if bytes(raw) else None
    except UNREADABLE:
        return None


decode_block = msgspec.json.Decoder(UsageBlock).decode
decode_answer = msgspec.json.Decoder(Answer).decode
decode_text = msgspec.json.Decoder(str).decode
