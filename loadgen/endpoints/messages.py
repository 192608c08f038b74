"""Anthropic's Messages.

The API has neither ``ignore_eos`` nor ``priority``, and vLLM adds neither. So a model may end a response
before the requested length.
"""

from __future__ import annotations

import msgspec

from loadgen.endpoints.dialect import Ask, Dialect, Told, decoder
from loadgen.sse import Failure, Usage

VERSION = "2023-06-01"
"""The value of ``anthropic-version``."""
_TOKENS = frozenset({"text_delta", "thinking_delta", "input_json_delta"})


class _Counts(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def usage(self, output: int | None) -> Usage:
        """The counts in OpenAI's terms, where the input includes the tokens of the cache."""
        read, made = self.cache_read_input_tokens, self.cache_creation_input_tokens
        return Usage((self.input_tokens or 0) + (read or 0) + (made or 0), output)


class _Part(msgspec.Struct, frozen=True):
    """A part of the content, or a change of one."""

    type: str | None = None
    text: str | None = None


class _Message(msgspec.Struct, frozen=True):
    content: list[_Part] | None = None
    usage: _Counts | None = None
    error: Failure | None = None


class _Event(msgspec.Struct, frozen=True):
    type: str = ""
    message: _Message = _Message()
    delta: _Part = _Part()
    usage: _Counts | None = None
    error: Failure | None = None


_decode_event = decoder(_Event)
_decode_whole = decoder(_Message)


def event(data: bytes) -> Told | None:
    """Read the data of an event."""
    read = _decode_event(data)
    if read is None:
        return None
    usage = None
    if read.type == "message_start" and read.message.usage is not None:
        # Its count of output tokens is a placeholder: 0 or 1.
        usage = read.message.usage.usage(None)
    elif read.usage is not None:
        usage = read.usage.usage(read.usage.output_tokens)
    delta = read.delta
    return Told(delta.type in _TOKENS, read.type == "message_stop", usage, read.error, delta.text or "")


def whole(content: bytes) -> Told | None:
    """Read a response that is not streamed."""
    read = _decode_whole(content)
    if read is None or (read.content is None and read.error is None):
        return None
    usage = read.usage.usage(read.usage.output_tokens) if read.usage is not None else None
    return Told(True, True, usage, read.error, "".join(part.text or "" for part in read.content or ()))


def _headers(key: str | None) -> dict[str, str]:
    version = {"anthropic-version": VERSION}
    return version if key is None else {"x-api-key": key, **version}


def _fields(ask: Ask) -> dict[str, object]:
    fields: dict[str, object] = {
        "messages": [said for said in ask.chat if said["role"] != "system"],
        "max_tokens": ask.output_tokens,
        "temperature": 0,
        "stream": ask.stream,
    }
    # A system prompt has a field of its own in this API.
    if system := "\n\n".join(str(said["content"]) for said in ask.chat if said["role"] == "system"):
        fields["system"] = system
    return fields


MESSAGES = Dialect(
    "/v1/messages", _fields, event, whole, _headers, takes_ignore_eos=False, takes_priority=False
)
