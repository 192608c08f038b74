"""An incremental parser of server-sent events: chunks of bytes in, decoded events out. No I/O.

Only the counted fields of an event are decoded. Lines end with LF or CRLF, as all LLM servers
write them.
"""

from __future__ import annotations

import msgspec

from loadgen.decoding import UNDECODABLE


class Delta(msgspec.Struct):
    """The content of a chat event."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"null")


class Choice(msgspec.Struct):
    """One sequence's part of an event."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    message: Delta | None = None
    """The content of a whole chat response."""

    @property
    def written(self) -> str:
        """The text of the answer, without reasoning and tool calls."""
        spoken = self.delta or self.message
        return self.text or (spoken.content if spoken is not None else "") or ""


class Usage(msgspec.Struct):
    """The engine's counts."""

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    """``None`` if the engine does not report it."""

    def after(self, earlier: Usage | None) -> Usage:
        """These counts, with those of an earlier event that this one does not report."""
        if earlier is None or (self.prompt_tokens and self.completion_tokens is not None):
            return self
        output = earlier.completion_tokens if self.completion_tokens is None else self.completion_tokens
        return Usage(self.prompt_tokens or earlier.prompt_tokens, output)


UNNAMED = "error"
"""The name of an error without a code and a type."""


class Failure(msgspec.Struct):
    """An error in OpenAI's format."""

    message: str = ""
    type: str | None = None
    code: str | int | None = None

    @property
    def name(self) -> str:
        """A short name: the code, or else the type. vLLM's code is only the status."""
        code = "" if isinstance(self.code, int) or (self.code or "").isdigit() else self.code
        return str(code or self.type or self.code or UNNAMED)


class Event(msgspec.Struct):
    """One event, or a whole response that is not streamed."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Failure | None = None

    @property
    def is_token(self) -> bool:
        """Whether it contains a token. The first event of a chat contains the role only."""
        for choice in self.choices:  # noqa: SIM110 - once a token: any() costs three times as much
            if _has_token(choice):
                return True
        return False

    @property
    def text(self) -> str:
        """The text of the first sequence, without reasoning and tool calls."""
        return self.choices[0].written if self.choices else ""

    @property
    def is_finish(self) -> bool:
        """Whether it ends a sequence."""
        for choice in self.choices:  # noqa: SIM110
            if choice.finish_reason is not None:
                return True
        return False


def _has_token(choice: Choice) -> bool:
    delta = choice.delta
    if delta is None:
        return choice.text is not None
    if delta.content or delta.reasoning_content or delta.reasoning or bytes(delta.tool_calls) != b"null":
        return True
    # Empty content is a token with an incomplete character, except in the event with the role.
    return delta.content is not None and delta.role is None


DONE = b"[DONE]"
MOST_EVENT_BYTES = 8 << 20
"""The most bytes of an event. Longer ones are not of an LLM server, and would fill the memory."""
_decode = msgspec.json.Decoder(Event).decode


def decoded(data: bytes) -> Event | None:
    """The content of an event's data, or of a whole response; ``None`` for another format."""
    try:
        return _decode(data)
    except UNDECODABLE:
        return None


class TooLong(Exception):
    """A response, or an event of it, has more bytes than any of an LLM server. The text says so."""


class Reader:
    """Splits a stream into events. Chunks may end anywhere."""

    __slots__ = ("_data", "_held", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._held = 0
        """The bytes of ``_data``."""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that this chunk completes. Raises ``TooLong``."""
        lines = (self._rest + chunk).split(b"\n") if self._rest else chunk.split(b"\n")
        self._rest = lines.pop()
        events: list[bytes] = []
        for line in lines:
            if line[-1:] == b"\r":
                line = line[:-1]  # noqa: PLW2901
            if line[:5] == b"data:":
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._held += len(line)
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data = []
                self._held = 0
        if self._held + len(self._rest) > MOST_EVENT_BYTES:
            raise TooLong(f"an event has more than {MOST_EVENT_BYTES >> 20} MiB")
        return events
