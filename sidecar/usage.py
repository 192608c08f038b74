"""Readers of the usage that the engine reports: bytes in, usage out, whatever the split of the bytes.

Only finding (and hiding) usage lives here. The readers never fail: what they cannot read they leave, and
the exchange settles from what was relayed.
"""

from __future__ import annotations

import msgspec

from tokenpool.cost import Usage

_MARK = b'"usage"'
_LONGEST_USAGE = 4096
_LONGEST_EVENT = 1 << 20


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _UsageBlock(msgspec.Struct):
    """The OpenAI form: ``prompt_tokens`` counts the prompt once, ``completion_tokens`` all sequences."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None

    def usage(self) -> Usage:
        details = self.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        return Usage(self.prompt_tokens, self.completion_tokens or 0, cached or 0)


class _Event(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: _UsageBlock | None = None


_decode_block = msgspec.json.Decoder(_UsageBlock).decode
_decode_event = msgspec.json.Decoder(_Event).decode


class BodyReader:
    """Finds the usage block of a JSON answer. Keeps a few bytes, never the body."""

    __slots__ = ("_held", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Look at the next part of the body, and return it as it is."""
        text = self._held + data if self._held else data
        start = text.rfind(_MARK)
        if start < 0:
            self._held = text[-(len(_MARK) - 1) :]
            return data
        end = _object_end(text, start)
        if end:
            self._read(text, start, end)
            self._held = b""
        elif len(text) - start <= _LONGEST_USAGE:
            self._held = text[start:]
        else:
            self._held = b""
        return data

    def end(self) -> bytes:
        """The body is complete: nothing was held back."""
        return b""

    def _read(self, text: bytes, start: int, end: int) -> None:
        try:
            self.usage = _decode_block(text[text.index(b"{", start) : end]).usage()
        except (msgspec.MsgspecError, ValueError):
            return


def _object_end(text: bytes, start: int) -> int:
    """Where the object that follows the mark ends, or 0. Usage holds numbers: no string hides a brace."""
    depth = 0
    for position in range(text.find(b"{", start), min(len(text), start + _LONGEST_USAGE)):
        if position < 0:
            return 0
        byte = text[position]
        if byte == 0x7B:
            depth += 1
        elif byte == 0x7D:
            depth -= 1
            if depth == 0:
                return position + 1
    return 0


class StreamReader:
    """Counts the events of a server-sent stream, finds its usage and, if told to, hides the usage event.

    An event is relayed as soon as it is whole; only where usage is hidden is an incomplete one held back,
    since it might be the one that the client must not see.
    """

    __slots__ = ("_held", "_hides", "events", "usage")

    def __init__(self, hides_usage: bool) -> None:
        self._hides = hides_usage
        self._held = b""
        self.usage: Usage | None = None
        self.events = 0
        """Events seen so far."""

    def feed(self, data: bytes) -> bytes:
        """The bytes that the client is to receive for these."""
        if not self._held and data.endswith(b"\n\n") and _MARK not in data:
            self.events += data.count(b"\n\n")
            return data
        text = self._held + data
        cut = max(text.rfind(b"\n\n") + 2, text.rfind(b"\r\n\r\n") + 4)
        if cut < 4:
            cut = 0
        self._held = text[cut:]
        if len(self._held) > _LONGEST_EVENT:
            cut, self._held = len(text), b""
        passed = self._examine(text[:cut])
        return passed if self._hides else data

    def end(self) -> bytes:
        """The stream is complete: what is still held back goes out."""
        held, self._held = self._held, b""
        return held if self._hides else b""

    def _examine(self, whole: bytes) -> bytes:
        """Count and read whole events; return those that the client may see."""
        self.events += whole.count(b"\n\n") + whole.count(b"\r\n\r\n")
        if _MARK not in whole:
            return whole
        separator = b"\n\n" if b"\n\n" in whole else b"\r\n\r\n"
        return b"".join(
            event for event in _split(whole, separator) if not (_MARK in event and self._is_only_usage(event))
        )

    def _is_only_usage(self, event: bytes) -> bool:
        """Whether an event carries usage and no choices; its usage is remembered in any case."""
        if not event.startswith(b"data:"):
            return False
        try:
            decoded = _decode_event(event[5:].strip())
        except msgspec.MsgspecError:
            return False
        if decoded.usage is None:
            return False
        self.usage = decoded.usage.usage()
        return not decoded.choices


def _split(text: bytes, separator: bytes) -> list[bytes]:
    """Events with their separators; what follows the last separator is an event too."""
    parts = text.split(separator)
    last = parts.pop()
    events = [part + separator for part in parts]
    if last:
        events.append(last)
    return events
