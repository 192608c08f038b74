"""The fields of OpenAI's request bodies that are read: structs for the decoder. ``openai`` prices them.

A number of tokens or sequences may be written ``16.0``: ``bodies.whole`` takes it for 16, as the engine does.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

from sidecar.dialects.items import NOTHING, Item


class StreamOptions(msgspec.Struct):
    """The options of a stream."""

    include_usage: bool | None = False


class Message(msgspec.Struct):
    """One message of a chat."""

    content: Raw = NOTHING
    tool_calls: Raw = NOTHING
    reasoning: Raw = NOTHING
    reasoning_content: Raw = NOTHING


class CountedMessage(Message, Item):
    """A message of a body that may have too many. Reading it counts it."""


class Generation(msgspec.Struct):
    """The fields that all of these bodies have."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | UnsetType | None = UNSET
    max_tokens: int | float | None = None
    n: int | float | None = 1
    truncate_prompt_tokens: int | float | None = None
    priority: Raw | UnsetType = UNSET
    service_tier: Raw = NOTHING


class Chat(Generation):
    """A chat: one conversation."""

    messages: list[Message] = []
    max_completion_tokens: int | float | None = None
    tools: Raw = NOTHING
    documents: Raw = NOTHING
    kv_transfer_params: Raw = NOTHING


class CountedChat(Chat):
    """A chat that may have too many messages."""

    messages: list[CountedMessage] = []  # type: ignore[assignment]


class ChatBatch(Generation):
    """A batch of chats: a list of lists of messages."""

    messages: Raw = NOTHING
    max_completion_tokens: int | float | None = None


class Completion(Generation):
    """A completion: one or more prompts."""

    prompt: Raw = NOTHING
    prompt_embeds: Raw = NOTHING
    best_of: int | float | None = None
    suffix: str | None = None


decode_messages = msgspec.json.Decoder(list[CountedMessage]).decode
decode_chat = msgspec.json.Decoder(Chat).decode
decode_counted_chat = msgspec.json.Decoder(CountedChat).decode
decode_chat_batch = msgspec.json.Decoder(ChatBatch).decode
decode_completion = msgspec.json.Decoder(Completion).decode
