"""OpenAI's request bodies as far as they are read: structs for the decoder. Their cost is ``openai``'s."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

from sidecar.dialects.items import NOTHING, Item


class StreamOptions(msgspec.Struct):
    """What a stream is to contain."""

    include_usage: bool | None = False


class Message(Item):
    """One message of a chat."""

    content: Raw = NOTHING
    tool_calls: Raw = NOTHING
    reasoning: Raw = NOTHING
    reasoning_content: Raw = NOTHING


class Generation(msgspec.Struct):
    """What all of them have."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | UnsetType | None = UNSET
    max_tokens: int | None = None
    n: int | None = 1
    priority: Raw | UnsetType = UNSET


class Chat(Generation):
    """One conversation to be continued."""

    messages: list[Message] = []
    max_completion_tokens: int | None = None
    tools: Raw = NOTHING
    documents: Raw = NOTHING


class ChatBatch(Generation):
    """Several of them: a list of lists of messages."""

    messages: Raw = NOTHING
    max_completion_tokens: int | None = None


class Completion(Generation):
    """Prompts to be continued."""

    prompt: Raw = NOTHING
    best_of: int | None = None
    suffix: str | None = None


decode_messages = msgspec.json.Decoder(list[Message]).decode
decode_chat = msgspec.json.Decoder(Chat).decode
decode_chat_batch = msgspec.json.Decoder(ChatBatch).decode
decode_completion = msgspec.json.Decoder(Completion).decode
