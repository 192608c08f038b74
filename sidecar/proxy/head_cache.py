"""The head cache: reads messages with a known head, and single chunks, without a parser.

A client repeats its request head, and the engine repeats its response head; only the number in ``Content-
Length`` differs. The parser's result is valid for the same bytes, so a comparison is enough. It
saves a third of the sidecar's own time of a small request (docs/decisions.md). Only a message that is
exactly one head and one whole body is cached. Only a read that is exactly one chunk or several, as servers
write them, is taken as such. Anything else goes through the parser.
"""

from __future__ import annotations

import re
from typing import Final, Self

_LENGTH: Final = re.compile(rb"\r\ncontent-length: ?(\d{1,9})\r\n", re.IGNORECASE)
_LONGEST_HEAD: Final = 4096
_LONGEST_NUMBER: Final = 9
_ZERO: Final = ord("0")
_LONGEST_SIZE: Final = 7
"""Digits of a chunk's size."""
_MOST_TABLED: Final = 4096
"""Chunks below this length are compared with a prepared size line. Formatting one takes 0.25 us."""


class CachedHead:
    """The bytes of a head before and after the number in its Content-Length."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after

    @classmethod
    def of(cls, message: bytes) -> Self | None:
        """The head of a message that the parser read as exactly one; ``None`` if it cannot be cached."""
        end = message.find(b"\r\n\r\n", 0, _LONGEST_HEAD)
        match = _LENGTH.search(message, 0, end + 2) if end > 0 else None
        if match is None or len(message) - (end + 4) != int(match[1]):
            return None
        return cls(message[: match.start(1)], message[match.end(1) : end + 4])

    def body_of(self, data: bytes) -> bytes | None:
        """The body, if ``data`` is this head and one whole body; else ``None``."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        start = at = len(before)
        size, most = 0, min(len(data), start + _LONGEST_NUMBER)
        while at < most:
            digit = data[at] - _ZERO
            if digit < 0 or digit > 9:
                break
            size = 10 * size + digit
            at += 1
        body_at = at + len(after)
        if at == start or len(data) - body_at != size or data[at:body_at] != after:
            return None
        return data[body_at:]


def _chunk_headers() -> list[bytes]:
    """The size line of the chunk that has, with its framing, as many bytes as the index; else ``b""``."""
    lines = [b""] * _MOST_TABLED
    for size in range(1, _MOST_TABLED):
        line = b"%x\r\n" % size
        if size + len(line) + 2 < _MOST_TABLED:
            lines[size + len(line) + 2] = line
    return lines


_CHUNK_HEADERS: Final = _chunk_headers()


def only_chunk(data: bytes) -> bytes | None:
    """The content, if ``data`` is one whole chunk (not the last) without extension; else ``None``."""
    length = len(data)
    if length < _MOST_TABLED:
        header = _CHUNK_HEADERS[length]
        if not header:
            return None
    else:
        end = data.find(b"\r\n", 0, 8) + 2
        header = b"%x\r\n" % (length - end - 2)
    if data.startswith(header) and data.endswith(b"\r\n"):
        return data[len(header) : -2]
    return None


def only_chunks(data: bytes) -> bytes | None:
    """The content, if ``data`` is whole chunks (none of them the last) without extensions; else ``None``.

    A busy engine's events come several to a read. The parser calls back three times for each.
    """
    parts: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        start, size = at, 0
        most = min(end, start + _LONGEST_SIZE)
        while at < most:
            digit = data[at]
            if 48 <= digit <= 57:
                size = 16 * size + digit - 48
            elif 97 <= digit <= 102:
                size = 16 * size + digit - 87
            else:
                break
            at += 1
        begin = at + 2
        after = begin + size
        if not size or data[start] == 48 or after + 2 > end:
            return None
        if data[at:begin] != b"\r\n" or data[after : after + 2] != b"\r\n":
            return None
        parts.append(data[begin:after])
        at = after + 2
    return b"".join(parts) if parts else None
