"""The calls of a ``Store`` as frames, for a store that another process of the machine keeps. Sans-IO.

A frame is its length in four bytes and a msgpack array. Both processes are of one version, so the types of
arguments and results are those of ``Store``. A call has a number, which its reply repeats. ``LISTEN`` is a
call that does not end: each of its replies is a push.
"""

from __future__ import annotations

import enum
import inspect
import typing
from typing import Any, NamedTuple

import msgspec

from tokenpool.leases.messages import Push
from tokenpool.store import Store

LISTEN = "listen"
_OWN = ("connect", "close")
"""Methods that concern the caller's connection only."""
LONGEST_FRAME = 64 << 20
"""The longest frame in bytes. The pool file of 10,000 entitlements has 5 MB."""
_LENGTH = 4


class CallInvalid(ValueError):
    """The bytes of the other process are not those of this protocol. The text says why."""


class Kind(enum.IntEnum):
    """The kind of content of a reply."""

    RESULT = 0
    FAILURE = 1
    """A message for the log."""
    PUSH = 2


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One call of a method."""

    number: int
    method: str
    arguments: msgspec.Raw


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a call, or a push."""

    number: int
    kind: Kind
    content: msgspec.Raw


class _Method(NamedTuple):
    arguments: msgspec.msgpack.Decoder[Any]
    result: msgspec.msgpack.Decoder[Any]


def _methods() -> dict[str, _Method]:
    """The decoders of every method that is answered once, by its name.

    Keyword-only arguments only save work, so they are not sent.
    """
    found = {}
    for name, method in inspect.getmembers(Store, inspect.iscoroutinefunction):
        if name in _OWN:
            continue
        types = typing.get_type_hints(method)
        result = types["return"]
        positional = [
            types[each.name]
            for each in inspect.signature(method).parameters.values()
            if each.name in types and each.kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        arguments: Any = tuple.__class_getitem__(tuple(positional))
        found[name] = _Method(msgspec.msgpack.Decoder(arguments), msgspec.msgpack.Decoder(result))
    found[LISTEN] = _Method(msgspec.msgpack.Decoder(tuple[str]), msgspec.msgpack.Decoder(Push))
    return found


_METHODS = _methods()
_calls = msgspec.msgpack.Decoder(Call)
_replies = msgspec.msgpack.Decoder(Reply)
_texts = msgspec.msgpack.Decoder(str)
_encoder = msgspec.msgpack.Encoder()


def encode_call(number: int, method: str, arguments: tuple[Any, ...]) -> bytes:
    """The frame of a call."""
    return _frame(Call(number, method, msgspec.Raw(_encoder.encode(arguments))))


def encode_reply(number: int, kind: Kind, content: Any) -> bytes:
    """The frame of a reply."""
    return _frame(Reply(number, kind, msgspec.Raw(_encoder.encode(content))))


def _frame(record: Call | Reply) -> bytes:
    content = _encoder.encode(record)
    return len(content).to_bytes(_LENGTH) + content


def decode_call(content: bytes) -> tuple[int, str, tuple[Any, ...]]:
    """The number, the method and the arguments of a call. Raises ``CallInvalid``."""
    try:
        call = _calls.decode(content)
        method = _METHODS.get(call.method)
        if method is None:
            raise CallInvalid(f"a lease store has no method {call.method!r}")
        return call.number, call.method, method.arguments.decode(call.arguments)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CallInvalid(f"a call of the lease store cannot be read: {error}") from error


def decode_reply(content: bytes) -> Reply:
    """The head of a reply. Raises ``CallInvalid``."""
    try:
        return _replies.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CallInvalid(f"a reply of the lease store cannot be read: {error}") from error


def result_of(reply: Reply, method: str) -> Any:
    """The result or the push in a reply to a call of ``method``. Raises ``CallInvalid``."""
    try:
        return _METHODS[method].result.decode(reply.content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CallInvalid(f"a result of {method} cannot be read: {error}") from error


def text_of(reply: Reply) -> str:
    """The text of a failure. Raises ``CallInvalid``."""
    try:
        return _texts.decode(reply.content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CallInvalid(f"the text of a failure cannot be read: {error}") from error


class FrameReader:
    """Cuts the bytes of a connection into frames."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The contents of the frames that are complete now. Raises ``CallInvalid``."""
        kept = self._kept
        kept += data
        frames: list[bytes] = []
        at = 0
        while len(kept) - at >= _LENGTH:
            length = int.from_bytes(kept[at : at + _LENGTH])
            if length > LONGEST_FRAME:
                raise CallInvalid(f"a frame of {length} bytes is longer than {LONGEST_FRAME}")
            end = at + _LENGTH + length
            if len(kept) < end:
                break
            frames.append(bytes(kept[at + _LENGTH : end]))
            at = end
        del kept[:at]
        return frames
