"""The owners of stored responses, from each worker of a sidecar to all others, through shared memory.

Each worker has a ring and writes no other one. All workers read all rings, so each of them knows the owner of
a response that another one relayed. A worker that was started again reads its own ring, too. The number of
records in a ring rises after the record is written, so a killed worker leaves no half of one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import msgspec

SLOTS = 2048
"""Records in one ring. A worker reads all rings several times per second, and at each look-up."""
SLOT_BYTES = 1024
"""Bytes of one slot: a name of 128 characters, an owner and a number fit."""
RING_BYTES = (SLOTS + 1) * SLOT_BYTES
"""Bytes of one ring: the number of its records so far, and its slots. Only used slots take memory."""
_CHECK, _HEAD = 4, 6
"""Bytes of a slot's checksum, and of it with the length of the record, which follows."""

Record = tuple[str, str, int]
"""The name of a response, its owner, and the tokens of its conversation."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class StoredRings:
    """The rings of all workers, as one worker sees them. ``rings`` are their bytes, in shared memory."""

    def __init__(self, rings: Sequence[memoryview], index: int) -> None:
        self._rings = rings
        self._counts = [ring[:8].cast("Q") for ring in rings]
        self._index = index
        self._seen = [max(count[0] - SLOTS, 0) for count in self._counts]
        """The records of each ring that were read or passed over."""

    def write(self, record: Record) -> None:
        """Let the other workers know the owner of a response. Read all records of this ring before."""
        content, index = _encode(record), self._index
        if len(content) > SLOT_BYTES - _HEAD:
            return  # no name of an entitlement is so long
        count = self._counts[index]
        number = count[0]
        at, size = _at(number), len(content).to_bytes(_HEAD - _CHECK, "little")
        self._rings[index][at : at + _HEAD + len(content)] = _check(number, content) + size + content
        self._seen[index] = count[0] = number + 1

    def news(self) -> Iterator[Record]:
        """The records since the last call. A ring that was overrun has lost its oldest ones."""
        for index, count in enumerate(self._counts):
            while self._seen[index] < count[0]:
                number = max(self._seen[index], count[0] - SLOTS + 1)
                at = _at(number)
                slot = bytes(self._rings[index][at : at + SLOT_BYTES])
                record = _record(number, slot)
                if record is None and number > count[0] - SLOTS:
                    break  # its bytes are not visible yet
                self._seen[index] = number + 1
                if record is not None:
                    yield record


def _at(number: int) -> int:
    return (1 + number % SLOTS) * SLOT_BYTES


def _check(number: int, content: bytes) -> bytes:
    return zlib.crc32(content, number & 0xFFFFFFFF).to_bytes(_CHECK, "little")


def _record(number: int, slot: bytes) -> Record | None:
    """The record in a slot; ``None`` if it is another one, or is being written."""
    end = _HEAD + int.from_bytes(slot[_CHECK:_HEAD], "little")
    content = slot[_HEAD:end]
    if end > len(slot) or _check(number, content) != slot[:_CHECK]:
        return None
    return _decode(content)
