"""Packs usage records: the bytes of ``UsageRecord.encode``, without making the object.

A sidecar makes two records for each request, and most of their texts are the same for many requests. So these
texts are encoded once, and one call of ``struct`` packs the numbers between them. That takes a third of the
time. Tests decode the packed bytes and compare them with the record.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from tokenpool.usage.record import COLUMNS, SCHEMA

_NIL: Final = b"\xc0"
_UNSIGNED: Final = 0xCF
"""The byte before an unsigned number of 64 bits."""
_FLOAT: Final = 0xCB
"""The byte before a float of 64 bits."""
_FLOAT_BYTE: Final = b"\xcb"
_BEGIN: Final = b"\xdc" + (COLUMNS + 1).to_bytes(2, "big") + bytes([SCHEMA])
"""The head of an array of all columns, and its first element."""
_first_token: Final = struct.Struct(">Bd")
_text: Final = msgspec.msgpack.Encoder().encode


class PackedIds:
    """The ids of one process's records: its name, and a number."""

    __slots__ = ("_begin", "_number", "_process", "_until")

    def __init__(self, process: str) -> None:
        self._process = process
        self._number = self._until = 0
        self._begin = b""
        """The bytes before the number. They are the same for all numbers below ``_until``."""

    def next(self) -> bytes:
        """The beginning of the next record, with its id."""
        self._number = number = self._number + 1
        digits = str(number).encode()
        if number >= self._until:
            self._until = 10 ** len(digits)
            self._begin = _BEGIN + _text(f"{self._process}-{number}")[: -len(digits)]
        return b"%b%b%b" % (self._begin, digits, _FLOAT_BYTE)


class PackedTexts:
    """The texts of the records of one kind of request."""

    __slots__ = ("_ends", "_estimated_ends", "_last", "_numbers", "_texts")

    def __init__(
        self,
        pool: str,
        entitlement: str,
        model: str,
        route: str,
        replica: str,
        group: str,
        credential_id: str,
    ) -> None:
        """Raises ``ValueError`` for a text that has no encoding."""
        names = (pool, entitlement, model, route)
        self._texts = b"".join([_text(name) for name in names]) + bytes([_UNSIGNED])
        self._last = b"".join([_text(name) for name in (replica, group, credential_id)])
        self._numbers = struct.Struct(f">d{len(self._texts)}sQBQBQBdBdBd")
        self._ends: dict[str, bytes] = {}
        self._estimated_ends: dict[str, bytes] = {}
        """The end of a record by its outcome."""

    def pack(
        self,
        id_: bytes,
        time: float,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int,
        kv_token_seconds: float,
        sequence_seconds: float,
        queue_s: float,
        ttft_s: float,
        outcome: str,
        is_estimated: bool,
    ) -> bytes:
        """A record as bytes. ``ttft_s`` is below 0 without a first output.

        ``id_`` is from ``PackedIds``. Raises ``struct.error`` for a number of tokens that does
        not fit into 64 unsigned bits.
        """
        ends = self._estimated_ends if is_estimated else self._ends
        end = ends.get(outcome)
        if end is None:
            end = ends[outcome] = _text(outcome) + self._last + (b"\xc3" if is_estimated else b"\xc2")
        numbers = self._numbers.pack(
            time,
            self._texts,
            input_tokens,
            _UNSIGNED,
            output_tokens,
            _UNSIGNED,
            cached_tokens,
            _FLOAT,
            kv_token_seconds,
            _FLOAT,
            sequence_seconds,
            _FLOAT,
            queue_s,
        )
        first_token = _NIL if ttft_s < 0.0 else _first_token.pack(_FLOAT, ttft_s)
        return b"%b%b%b%b" % (id_, numbers, first_token, end)
