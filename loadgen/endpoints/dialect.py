"""The parts of an endpoint that differ between APIs: its path, headers, request body and response events.

This module has the records only. Each API has a module that fills them in, and `table` lists them. A reader
of events gets the data of one server-sent event; a reader of whole responses gets a complete body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from loadgen.decoding import UNDECODABLE
from loadgen.sse import Failure, Usage

Piece = str | msgspec.Raw
"""One input: a text, or a JSON list of token ids."""
KEY_HEADERS = ("authorization", "x-api-key")
"""The headers that may contain a key."""
Message = tuple[str, Piece]
"""The role and the content of a message."""


class Event(Protocol):
    """The content of an event, or of a whole response, in the same terms for every API."""

    @property
    def is_token(self) -> bool:
        """Whether it contains output."""

    @property
    def text(self) -> str:
        """The text of the answer, without reasoning and calls of tools."""

    @property
    def is_finish(self) -> bool:
        """Whether the response is complete after it."""

    @property
    def usage(self) -> Usage | None:
        """The engine's counts."""

    @property
    def error(self) -> Failure | None:
        """The server's error."""


class Told(NamedTuple):
    """An `Event` of an API that is not OpenAI's."""

    is_token: bool = False
    is_finish: bool = False
    usage: Usage | None = None
    error: Failure | None = None
    text: str = ""


_Body = TypeVar("_Body")


def decoder(kind: type[_Body]) -> Callable[[bytes], _Body | None]:
    """A decoder of JSON that returns ``None`` for another format."""
    decode = msgspec.json.Decoder(kind).decode

    def read(data: bytes) -> _Body | None:
        try:
            return decode(data)
        except UNDECODABLE:
            return None

    return read


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, before it has the form of an API."""

    messages: Sequence[Message]
    """One message of the user, the turns of a conversation, or the inputs of a batch."""
    output_tokens: int
    stream: bool
    ignore_eos: bool
    """Whether the engine generates until the requested length. Some APIs cannot ask for it."""
    priority: int | None = None

    @property
    def pieces(self) -> list[Piece]:
        """The contents of the messages."""
        return [content for _, content in self.messages]

    @property
    def chat(self) -> list[dict[str, Piece]]:
        """The messages in the form of chats."""
        return [{"role": role, "content": content} for role, content in self.messages]


def bearer(key: str | None) -> dict[str, str]:
    """The headers with a key in OpenAI's form."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def secrets(headers: Mapping[str, str]) -> list[str]:
    """The keys in headers. A server may repeat them in an error."""
    found = [text.split(" ")[-1] for name, text in headers.items() if name.lower() in KEY_HEADERS]
    return [key for key in found if key]


def single(tokens: int, batch: int) -> list[int]:
    """One input with all tokens."""
    return [tokens]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One endpoint of a server."""

    path: str
    """The path after the server's address."""
    fields: Callable[[Ask], dict[str, object]]
    """The body without the model."""
    event: Callable[[bytes], Event | None]
    """Reads the data of an event; ``None`` for another format."""
    whole: Callable[[bytes], Event | None]
    """Reads a response that is not streamed; ``None`` for another format."""
    headers: Callable[[str | None], dict[str, str]] = bearer
    """The headers with the key; ``None`` is no key."""
    split: Callable[[int, int], list[int]] = single
    """The tokens of each input, by the request's tokens and its batch size."""
    batch: int | None = None
    """The default batch size; ``None`` if a request has one input."""
    accepts_ids: bool = False
    """Whether an input may be a list of token ids."""
    generates: bool = True
    """Whether the response has output tokens."""
    takes_ignore_eos: bool = True
    """Whether a request can tell vLLM to ignore the end-of-sequence token."""
    takes_priority: bool = True
    """Whether a request can contain vLLM's ``priority``."""
    takes_prefix: bool = True
    """Whether requests can begin with a shared prefix."""
