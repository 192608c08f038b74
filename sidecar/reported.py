"""What the engine reports of a request: structs for the decoder. Finding it in its bytes is ``usage``'s."""

from __future__ import annotations

from typing import Annotated

import msgspec

from tokenpool.cost import Usage

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What a decoder has for bytes that are not what they should be; not UTF-8 is an error of its own."""

_Tokens = Annotated[int, msgspec.Meta(ge=0)]


class Details(msgspec.Struct):
    """What the prompt's tokens were."""

    cached_tokens: _Tokens | None = None


class UsageBlock(msgspec.Struct):
    """Any dialect's: OpenAI's chats say ``prompt`` and ``completion``, the others ``input`` and ``output``.

    The prompt is counted once, the output over all sequences. Anthropic's ``input_tokens`` are those that did
    not come from the cache, Cohere's those that are no image's.
    """

    prompt_tokens: _Tokens = 0
    completion_tokens: _Tokens | None = 0
    prompt_tokens_details: Details | None = None
    input_tokens: _Tokens = 0
    image_tokens: _Tokens = 0
    output_tokens: _Tokens = 0
    input_tokens_details: Details | None = None
    cache_read_input_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None

    def usage(self) -> Usage:
        """The same in our own words."""
        details = self.prompt_tokens_details or self.input_tokens_details
        cached = details.cached_tokens if details is not None else None
        apart, created = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        return Usage(
            self.prompt_tokens or self.input_tokens + self.image_tokens + apart + created,
            self.completion_tokens or self.output_tokens,
            (cached or 0) + apart,
        )


class Answer(msgspec.Struct):
    """A whole response, as OpenAI's Responses give it and end a stream with it."""

    id: str | None = None
    usage: UsageBlock | None = None


class Event(msgspec.Struct):
    """One event of a stream."""

    choices: list[msgspec.Raw] = []
    usage: UsageBlock | None = None
    system_fingerprint: str | None = None
    response: Answer | None = None


decode_block = msgspec.json.Decoder(UsageBlock).decode
decode_answer = msgspec.json.Decoder(Answer).decode
decode_event = msgspec.json.Decoder(Event).decode
