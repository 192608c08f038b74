"""Readers of the usage that the engine reports: bytes in, usage out, whatever the split of the bytes.

Only finding (and hiding) usage lives here. The readers never fail: what they cannot read they leave, and
the exchange settles from what was relayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import msgspec

from sidecar.reported import UNREADABLE, decode_answer, decode_block, decode_event
from tokenpool.cost import Usage

_MARK = b'"usage":'
"""With its colon: a text may be just that word."""
_FINISH = b'"finish_reason":"'
_LONGEST_USAGE = 4096
_LONGEST_EVENT = 1 << 20
_LONGEST_QUEUE = 1 << 20
_LONGEST_RESPONSE = 2 << 20


class BodyReader:
    """Finds the usage block of a JSON answer. Keeps a few bytes, never the body."""

    __slots__ = ("_held", "_mark", "usage")

    events: ClassVar[int] = 0
    """An answer that is not streamed has none."""
    response: ClassVar[str | None] = None
    """Nor is it stored."""

    def __init__(self, mark: bytes = _MARK) -> None:
        self._mark = mark
        """What the usage is called."""
        self.usage: Usage | None = None
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Look at the next part of the body, and return it as it is."""
        text = self._held + data if self._held else data
        mark = self._mark
        start, tail = text.rfind(mark), len(mark) - 1
        if start < 0:
            self._held = text[-tail:]
            return data
        self.usage = None  # the last one counts
        end = _object_end(text, start)
        if end or len(text) - start > _LONGEST_USAGE:
            if end:
                self._read(text[start + len(mark) : end])
            self._held = text[max(end, len(text) - tail) :]
        else:
            self._held = text[start:]
        return data

    def end(self) -> bytes:
        """The body is complete: nothing was held back."""
        return b""

    def _read(self, block: bytes) -> None:
        try:
            self.usage = decode_block(block).usage()
        except UNREADABLE:
            return


class ResponseReader:
    """Reads the usage and the name of a response that is not streamed, and keeps it until its end.

    Tools and metadata come back in it as their owner wrote them, so that only its structure tells the
    engine's usage from one that was made up.
    """

    __slots__ = ("_parts", "_size", "response", "usage")

    events: ClassVar[int] = 0

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.response: str | None = None
        """Its name, by which it may be stored."""
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """Look at the next part of the body, and return it as it is."""
        self._size += len(data)
        if self._size <= _LONGEST_RESPONSE:
            self._parts.append(data)
        else:
            self._parts.clear()
        return data

    def end(self) -> bytes:
        """The body is complete: nothing was held back."""
        if self._size <= _LONGEST_RESPONSE:
            try:
                answer = decode_answer(b"".join(self._parts))
            except UNREADABLE:
                return b""
            self.response = answer.id
            self.usage = answer.usage.usage() if answer.usage is not None else None
        return b""


def _object_end(text: bytes, start: int) -> int:
    """Where the object that follows the mark ends, or 0. Usage holds numbers: no string hides a brace."""
    limit = start + _LONGEST_USAGE
    end = text.find(b"}", start, limit) + 1
    while end:
        if text.count(b"{", start, end) <= text.count(b"}", start, end):
            return end
        end = text.find(b"}", end, limit) + 1
    return 0


class Stamp:
    """What vLLM writes at the end of an event that finishes a choice, unless it was asked for usage.

    Asked for usage, it writes its ``system_fingerprint`` into the usage event instead. Hiding that event
    must bring the field back to where the client would have found it. The value is the engine's own and
    the same for every request, so it is learned from the first usage event and forgotten on a restart.
    """

    __slots__ = ("field",)

    def __init__(self) -> None:
        self.field: bytes | None = None
        """The JSON field with its leading comma; empty where there is none; ``None`` while unknown."""

    def learn(self, fingerprint: str | None) -> None:
        """Take it from a usage event."""
        if fingerprint is None:
            self.field = b""
        else:
            self.field = b',"system_fingerprint":' + msgspec.json.encode(fingerprint)

    def put_on(self, event: bytes) -> bytes:
        """The event with the field, if it finishes a choice."""
        if not self.field or _FINISH not in event:
            return event
        before, brace, after = event.rpartition(b"}")
        return before + self.field + brace + after if brace else event


class StreamReader:
    """Counts the events of a server-sent stream, finds its usage and, given a stamp, hides the usage event.

    Events are relayed as soon as they are whole. Only where usage is hidden is an incomplete one held
    back, since it might be the one that the client must not see; and while the stamp is unknown, those
    that need it, until the usage event brings it, or they are too many to keep.
    """

    __slots__ = ("_held", "_queue", "_queued", "_stamp", "events", "response", "usage")

    def __init__(self, stamp: Stamp | None) -> None:
        self._stamp = stamp
        self._held = b""
        self._queue: list[bytes] = []
        self._queued = 0
        """Bytes in the queue."""
        self.usage: Usage | None = None
        self.response: str | None = None
        """The name of the response, by which it may be stored."""
        self.events = 0
        """Events seen so far."""

    def feed(self, data: bytes) -> bytes:
        """The bytes that the client is to receive for these."""
        if (
            not self._held
            and not self._queue
            and data.endswith(b"\n\n")
            and _MARK not in data
            and _FINISH not in data
        ):
            self.events += data.count(b"\n\n")
            return data
        text = self._held + data
        cut = text.rfind(b"\n\n") + 2
        if cut < 2:
            cut = 0
        if len(text) - cut > _LONGEST_EVENT:
            cut = len(text)
        self._held = text[cut:]
        passed = b"".join(self._examine(text[:cut])) if cut else b""
        return data if self._stamp is None else passed

    @property
    def is_between_events(self) -> bool:
        """Whether what was passed on ends with a whole event."""
        return not self._held or self._stamp is not None

    def end(self) -> bytes:
        """The stream is complete: what is still held back goes out."""
        left = [*self._leave_queue(), self._held]
        self._held = b""
        return b"" if self._stamp is None else b"".join(left)

    def _examine(self, whole: bytes) -> Iterator[bytes]:
        """Count and read whole events; yield those that the client may see now."""
        stamp = self._stamp
        for event in _split(whole):
            self.events += 1
            if _MARK in event and self._is_only_usage(event) and stamp is not None:
                yield from map(stamp.put_on, self._leave_queue())
            elif stamp is None:
                yield event
            elif self._queue or (stamp.field is None and _FINISH in event):
                self._queue.append(event)
                self._queued += len(event)
                if self._queued > _LONGEST_QUEUE:
                    yield from self._leave_queue()
            else:
                yield stamp.put_on(event)

    def _leave_queue(self) -> list[bytes]:
        queue, self._queue, self._queued = self._queue, [], 0
        return queue

    def _is_only_usage(self, event: bytes) -> bool:
        """Whether an event carries usage and no choices; its usage is remembered in any case."""
        start = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
        if not event.startswith(b"data:", start):
            return False
        try:
            decoded = decode_event(event[start + 5 :].strip())
        except UNREADABLE:
            return False
        if decoded.response is not None:
            self.response = decoded.response.id
            if decoded.response.usage is not None:
                self.usage = decoded.response.usage.usage()
            return False
        if decoded.usage is None:
            return False
        self.usage = decoded.usage.usage()
        if decoded.choices:
            return False
        if self._stamp is not None:
            self._stamp.learn(decoded.system_fingerprint)
        return True


Reader = BodyReader | ResponseReader | StreamReader


def _split(text: bytes) -> list[bytes]:
    """Events with the blank lines that end them; what follows the last of these is an event too."""
    parts = text.split(b"\n\n")
    last = parts.pop()
    events = [part + b"\n\n" for part in parts]
    if last:
        events.append(last)
    return events
