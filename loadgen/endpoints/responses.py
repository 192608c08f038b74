"""OpenAI's Responses, as vLLM implements them.

``store`` is false, because an engine that stores the responses of a load test runs out of memory.
"""

from __future__ import annotations

import msgspec

from loadgen.endpoints.dialect import Ask, Dialect, Told, decoder
from loadgen.sse import Failure, Usage

_ENDS = frozenset({"response.completed", "response.incomplete"})
"""``incomplete`` is the normal end of a response that reaches its longest length."""
_OUTPUT = ".delta"
"""The end of the type of every event with output: of texts, reasoning, refusals and arguments of tools."""
_TEXT = "response.output_text.delta"


class _Counts(msgspec.Struct, frozen=True):
    input_tokens: int = 0
    output_tokens: int | None = None


class _Part(msgspec.Struct, frozen=True):
    type: str = ""
    text: str | None = None


class _Item(msgspec.Struct, frozen=True):
    """An item of the output: a message, reasoning, or a call of a tool."""

    content: list[_Part] | None = None


class _Response(msgspec.Struct, frozen=True):
    output: list[_Item] | None = None
    usage: _Counts | None = None
    error: Failure | None = None

    @property
    def counts(self) -> Usage | None:
        usage = self.usage
        return None if usage is None else Usage(usage.input_tokens, usage.output_tokens)


class _Event(msgspec.Struct, frozen=True):
    type: str = ""
    response: _Response = _Response()
    message: str | None = None
    code: str | int | None = None
    delta: str | None = None


_decode_event = decoder(_Event)
_decode_whole = decoder(_Response)


def event(data: bytes) -> Told | None:
    """Read the data of an event."""
    read = _decode_event(data)
    if read is None:
        return None
    error = None
    if read.type == "error":
        error = Failure(read.message or "", "error", read.code)
    elif read.type == "response.failed":
        error = read.response.error or Failure(type=read.type)
    text = (read.delta or "") if read.type == _TEXT else ""
    return Told(read.type.endswith(_OUTPUT), read.type in _ENDS, read.response.counts, error, text)


def whole(content: bytes) -> Told | None:
    """Read a response that is not streamed."""
    read = _decode_whole(content)
    if read is None or (read.output is None and read.error is None):
        return None
    parts = [part for item in read.output or () for part in item.content or ()]
    text = "".join(part.text or "" for part in parts if part.type == "output_text")
    return Told(True, True, read.counts, read.error, text)


def _fields(ask: Ask) -> dict[str, object]:
    fields: dict[str, object] = {
        "input": ask.chat if len(ask.messages) > 1 else ask.pieces[0],
        "max_output_tokens": ask.output_tokens,
        "temperature": 0,
        "store": False,
        "stream": ask.stream,
    }
    if ask.ignore_eos:
        fields["ignore_eos"] = True
    if ask.priority is not None:
        fields["priority"] = ask.priority
    return fields


RESPONSES = Dialect("/v1/responses", _fields, event, whole)
