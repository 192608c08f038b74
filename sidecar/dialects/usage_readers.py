"""Readers of the engine's answers: bytes in, usage and failures out, for any split of the bytes.

This file has the base class, and the readers of answers that are not streamed; ``stream_reader`` reads
streams. ``reported_usage`` has the forms of usage. A reader never fails: it relays unreadable bytes, and the
exchange settles by the number of relayed events.
"""

from __future__ import annotations

import re
from typing import Final

from sidecar.dialects.reported_usage import (
    UNREADABLE,
    Answer,
    NoUsage,
    TokenCounts,
    decode_answer,
    decode_block,
    decode_plain,
    text_of,
)
from tokenpool.pricing.cost import Usage

USAGE_KEY: Final = b'"usage"'
_BILLED: Final = b'"billed_units"'
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_OPENS: Final = re.compile(rb"\s*:\s*\{")
_LONGEST_MARK: Final = 64
"""Bytes of a field name with the blanks before its value."""
_LONGEST_USAGE: Final = 4096
_LONGEST_BODY: Final = 64 << 10
_LONGEST_RESPONSE: Final = 2 << 20


class Reader:
    """The data of one answer so far. Subclasses read it from bytes."""

    __slots__ = ("_counts", "_is_unreadable", "_plain", "events", "has_begun", "has_failed", "response")

    def __init__(self) -> None:
        self.events = 0
        """The number of events of a stream. A comment with a blank line of its own counts."""
        self.has_begun = False
        """Whether the answer has any output."""
        self.has_failed = False
        """Whether the engine reported that the request failed."""
        self.response: str | None = None
        """The name by which the engine may have stored the answer."""
        self._counts: TokenCounts | None = None
        self._plain: Usage | None = None
        """The usage of an answer in its usual form, which needs no counts."""
        self._is_unreadable = False

    def feed(self, data: bytes) -> bytes:
        """Read the next bytes. Returns the bytes for the client."""
        return data

    def end(self) -> bytes:
        """The answer is complete. Returns the delayed bytes."""
        return b""

    @property
    def usage(self) -> Usage | None:
        """The usage that the engine has reported, or ``None``."""
        if self._plain is not None:
            return self._plain
        return self._counts.usage() if self._counts is not None else None

    def unreported(self, is_complete: bool) -> int:
        """The number of events since the last usage. Their output is not reported."""
        return 0

    @property
    def output_events(self) -> int | None:
        """The number of events with output, to estimate tokens; ``None`` if events are not counted."""
        return None

    @property
    def no_usage(self) -> NoUsage:
        """The reason why there is no usage. Valid only without usage."""
        return NoUsage.UNREADABLE if self._is_unreadable else NoUsage.MISSING

    def _report(self, answer: Answer) -> bool:
        """Add the usage of an answer. Returns whether it has output tokens."""
        try:
            counts = answer.counts()
        except UNREADABLE:
            self._is_unreadable = True
            return False
        if counts is None:
            return False
        self._counts = counts if self._counts is None else self._counts.merged_with(counts)
        return counts.output is not None


def _plain_usage(body: bytes) -> Usage | None:
    """The usage of a whole answer in its usual form; ``None`` for any other answer, and without usage."""
    try:
        block = decode_plain(body).usage
    except UNREADABLE:
        return None
    prompt, output, details = block.prompt_tokens, block.completion_tokens, block.prompt_tokens_details
    if not (prompt or output):
        return None
    cached = details.cached_tokens if details is not None else None
    return Usage(prompt, output, cached or 0)


class OpaqueReader(Reader):
    """Relays a compressed answer. The sidecar asks for none, and cannot read its usage."""

    __slots__ = ()

    def feed(self, data: bytes) -> bytes:
        """Relay the next part of the body."""
        if data:
            self.has_begun = True
        return data

    @property
    def no_usage(self) -> NoUsage:
        """The reason why there is no usage."""
        return NoUsage.COMPRESSED


class BodyReader(Reader):
    """Reads an answer that is not streamed.

    A short answer is kept and decoded. In a longer one (embeddings, logprobs) the last object with the name
    of usage counts, and only a few bytes are kept. Text in the answer is escaped, so it cannot look like that
    name.
    """

    __slots__ = ("_held", "_is_response", "_is_usual", "_longest", "_parts", "_size")

    def __init__(
        self, longest: int = _LONGEST_BODY, is_response: bool = False, is_usual: bool = True
    ) -> None:
        super().__init__()
        self._is_usual = is_usual
        """Whether the answer may have the usual form of OpenAI's API."""
        self._longest = longest
        """The number of bytes that are kept."""
        self._is_response = is_response
        self._parts: list[bytes] = []
        self._size = 0
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Read the next part of the body, and return it unchanged."""
        if not data:
            return data
        self.has_begun = True
        before = self._size
        self._size = before + len(data)
        if self._size <= self._longest:
            self._parts.append(data)
        elif before > self._longest:
            self._search(data)
        else:
            text = b"".join([*self._parts, data])
            self._parts = []
            self._is_unreadable = self._is_response or not text[:_LONGEST_MARK].lstrip().startswith(b"{")
            self._search(text)
        return data

    def end(self) -> bytes:
        """The body is complete. No bytes were delayed."""
        if 0 < self._size <= self._longest:
            self._read(b"".join(self._parts))
        return b""

    def _read(self, body: bytes) -> None:
        if self._is_usual:
            self._plain = _plain_usage(body)
            if self._plain is not None:
                return
        try:
            answer = decode_answer(body.removeprefix(BYTE_ORDER_MARK))
        except UNREADABLE:
            self._is_unreadable = True
            return
        self._report(answer)
        if self._is_response:
            self.response = text_of(answer.id)
        if answer.is_failure():
            self.has_failed = True
            self.has_begun = False

    def _search(self, data: bytes) -> None:
        if self._is_response:
            return
        text = self._held + data if self._held else data
        start = _last_object(text, USAGE_KEY)
        if start < 0:
            start = _last_object(text, _BILLED)
        if start < 0:
            self._held = text[-_LONGEST_MARK:]
            return
        self._counts = None  # the last one counts
        brace = text.index(b"{", start)
        end = _object_end(text, brace)
        if end or len(text) - brace > _LONGEST_USAGE:
            if end:
                self._read_block(text[brace:end])
            self._held = text[max(end, len(text) - _LONGEST_MARK) :]
        else:
            self._held = text[start:]

    def _read_block(self, block: bytes) -> None:
        try:
            self._counts = decode_block(block).counts()
        except UNREADABLE:
            self._is_unreadable = True


class ResponseReader(BodyReader):
    """Reads the usage and the name of a response that is not streamed. It keeps the response until its end.

    The response repeats the client's tools and metadata. So only decoding can distinguish the engine's usage
    from usage that the client wrote.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_LONGEST_RESPONSE, is_response=True, is_usual=False)


class OtherBodyReader(BodyReader):
    """Reads an answer of another API than OpenAI's. It never has the usual form."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(is_usual=False)


def _last_object(text: bytes, name: bytes) -> int:
    """The start of the last field ``name`` with an object as its value, or -1. A text may equal the name."""
    start = text.rfind(name)
    while start >= 0 and _OPENS.match(text, start + len(name)) is None:
        start = text.rfind(name, 0, start)
    return start


def _object_end(text: bytes, start: int) -> int:
    """The end of the object that begins at ``start``, or 0. Usage has only numbers: no string has a brace."""
    limit = start + _LONGEST_USAGE
    end = text.find(b"}", start, limit) + 1
    while end:
        if text.count(b"{", start, end) <= text.count(b"}", start, end):
            return end
        end = text.find(b"}", end, limit) + 1
    return 0
