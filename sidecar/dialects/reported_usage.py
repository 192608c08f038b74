"""Usage and other fields of an engine's answers, in every API's form: structs for the decoder.

``usage_readers`` and ``stream_reader`` find answers in bytes. Fields are decoded one by one, so that one
field of an unexpected type does not make the others unreadable.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta, Raw

from tokenpool.pricing.cost import Usage

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The exceptions of a decoder for unreadable bytes. Invalid UTF-8 has an exception of its own."""

_MOST = 1 << 53
_Tokens = Annotated[int, Meta(ge=0, le=_MOST)] | Annotated[float, Meta(ge=0, le=_MOST)] | None
"""A token count. Cohere's are floats. Several fields are null if an engine does not know them."""
_NONE = Raw()
_FALSE = frozenset({b"", b"null", b"false", b"0", b'""', b"{}", b"[]"})
FAILURES = frozenset({b"error", b"response.failed"})
"""The names of events that end a request in failure."""
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


class TokenCounts(NamedTuple):
    """The token counts of one or more usage blocks. ``None``: no block has the count."""

    prompt: float | None = None
    """Input tokens including those from the cache."""
    fresh: float | None = None
    """Input tokens of an API without ``prompt``. Anthropic's exclude tokens of the cache."""
    read: float | None = None
    """Input tokens in addition to ``fresh`` that came from the cache."""
    created: float | None = None
    """Input tokens in addition to ``fresh`` that were written into the cache."""
    cached: float | None = None
    """The part of ``prompt`` or ``fresh`` that came from the cache."""
    output: float | None = None

    def merged_with(self, later: TokenCounts) -> TokenCounts:
        """These counts with those of a later event, which override. A zero does not override.

        The exception is ``fresh``, if the later event counts the same input as cached.
        """
        prompt, fresh, read, created, cached, output = later
        moved = fresh == 0 and bool(read or created)
        return TokenCounts(
            prompt or self.prompt,
            fresh if moved else fresh or self.fresh,
            read or self.read,
            created or self.created,
            cached or self.cached,
            output or self.output,
        )

    def usage(self) -> Usage | None:
        """The counts as ``Usage``; ``None`` without any count, because every request has input."""
        read = int(self.read or 0)
        cached, output = int(self.cached or 0), int(self.output or 0)
        if self.prompt:
            # Some proxies repeat the cached tokens under Anthropic's name.
            usage = Usage(int(self.prompt), output, cached or read)
        else:
            usage = Usage(int(self.fresh or 0) + read + int(self.created or 0), output, cached + read)
        return usage if usage.input_tokens or usage.output_tokens else None


class Details(msgspec.Struct):
    """Details about the prompt's tokens."""

    cached_tokens: _Tokens = None


class Units(msgspec.Struct):
    """Cohere's counts. Image tokens are counted separately."""

    input_tokens: _Tokens = None
    image_tokens: _Tokens = None
    output_tokens: _Tokens = None


class UsageBlock(msgspec.Struct):
    """The usage block of any API. OpenAI names the counts ``prompt`` and ``completion``, others differ."""

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

    def counts(self) -> TokenCounts:
        """The counts of the block."""
        units = self.tokens or self.billed_units or self
        details = self.prompt_tokens_details or self.input_tokens_details
        prompt, fresh = _whole(self.prompt_tokens), _whole(units.input_tokens)
        output, total = _whole(self.completion_tokens), _whole(self.total_tokens)
        if not output and units.output_tokens is not None:
            output = _whole(units.output_tokens)
        if units.image_tokens:
            fresh = (fresh or 0) + int(units.image_tokens)
        if prompt is None and fresh is None and total is not None:
            prompt = max(total - (output or 0), 0)
        return TokenCounts(
            prompt,
            fresh,
            _whole(self.cache_read_input_tokens),
            _whole(self.cache_creation_input_tokens),
            _whole(details.cached_tokens if details is not None else self.cached_tokens),
            output,
        )


def _whole(count: float | None) -> int | None:
    """A count in whole tokens: a fraction below one is none."""
    return None if count is None else int(count)


class Answer(msgspec.Struct):
    """One event of a stream, or a whole answer. Only the fields of the top level are trusted.

    Text of a tenant or the model (tools, metadata, arguments) may look like usage, but is on deeper levels.
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
        """Whether it reports that the request failed."""
        return (
            (bool(self.error) and bytes(self.error) not in _FALSE)
            or (bool(self.type) and bytes(self.type).strip(b'"') in FAILURES)
            or (bool(self.object) and bytes(self.object) == b'"error"')
            or (bool(self.status) and bytes(self.status) == b'"failed"')
        )

    def is_head(self, name: bytes) -> bool:
        """Whether it is an event that engines send before any output. ``name`` is the name of the event."""
        return (bytes(self.type).strip(b'"') or name) in _HEADS

    def is_only_usage(self) -> bool:
        """Whether it is the extra event of ``include_usage``."""
        if not self.usage or not bytes(self.usage).startswith(b"{"):
            return False
        choices = bytes(self.choices)
        is_empty = choices in _FALSE or (choices.startswith(b"[") and not choices[1:-1].strip())
        return is_empty and not self.is_failure()

    def inner(self) -> Answer | None:
        """The answer inside an event, which may have the usage."""
        for raw in (self.response, self.message, self.delta):
            if raw and bytes(raw).startswith(b"{"):
                return decode_answer(raw)
        return None

    def counts(self) -> TokenCounts | None:
        """The counts of its usage, or ``None``. Raises ``UNREADABLE``."""
        for raw in (self.usage, self.meta):
            if raw and bytes(raw).startswith(b"{"):
                return decode_block(raw).counts()
        if self.usage and bytes(self.usage) not in _FALSE:
            raise msgspec.ValidationError("usage is not an object")
        return None


class _PlainDetails(msgspec.Struct, gc=False):
    cached_tokens: Annotated[int, Meta(ge=0, le=_MOST)] | None = None


class _PlainUsage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    prompt_tokens: Annotated[int, Meta(ge=0, le=_MOST)]
    completion_tokens: Annotated[int, Meta(ge=0, le=_MOST)] = 0
    total_tokens: Annotated[int, Meta(ge=0, le=_MOST)] = 0
    prompt_tokens_details: _PlainDetails | None = None
    completion_tokens_details: Raw = _NONE


class PlainAnswer(msgspec.Struct, gc=False):
    """A whole answer of OpenAI's API in its usual form. Most answers have it, and decode in one step.

    Any other form, and any failure, cannot be decoded as this.
    """

    usage: _PlainUsage
    object: Literal["chat.completion", "text_completion", "list"] | None = None
    error: None = None
    type: None = None
    status: None = None


def text_of(raw: Raw) -> str | None:
    """The text of a field; ``None`` if the field is no text."""
    try:
        return decode_text(raw) if bytes(raw) else None
    except UNREADABLE:
        return None


decode_plain = msgspec.json.Decoder(PlainAnswer).decode
decode_block = msgspec.json.Decoder(UsageBlock).decode
decode_answer = msgspec.json.Decoder(Answer).decode
decode_text = msgspec.json.Decoder(str).decode
