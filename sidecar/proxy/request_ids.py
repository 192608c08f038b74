"""Request ids: ``x-request-id`` of the client if it is valid, or else one that the sidecar makes.

The engine, the client and the access log get the same id.
"""

from __future__ import annotations

import os
from typing import Final

_LAST_DIGITS: Final = [b"%02x" % number for number in range(256)]
LONGEST_ID: Final = 200
"""Bytes of an id. A longer one is replaced."""


class RequestIds:
    """Makes ids: sixteen random hexadecimal digits of this process, then a number."""

    __slots__ = ("_begin", "_number", "_prefix")

    def __init__(self, prefix: bytes | None = None) -> None:
        """``prefix`` begins every id; by default it is random."""
        self._prefix = os.urandom(8).hex().encode() if prefix is None else prefix
        self._number = 0
        self._begin = b""
        """All of the next id but its last two digits. It is made once for 256 ids."""

    def next(self) -> bytes:
        """A new id."""
        self._number = number = self._number + 1
        last = number & 0xFF
        if not last or not self._begin:
            self._begin = b"%b%014x" % (self._prefix, number >> 8)
        return self._begin + _LAST_DIGITS[last]


def is_valid(value: bytes) -> bool:
    """Whether a client's id may be relayed: up to ``LONGEST_ID`` visible ASCII characters."""
    return 0 < len(value) <= LONGEST_ID and value.isascii() and value.decode("ascii").isprintable()
