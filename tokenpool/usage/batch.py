"""A batch of encoded usage records: each with its length before it, as four bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LENGTH_BYTES = 4
MOST_BYTES = 64 * 1024
"""The longest record. The texts in a record are bounded, so a longer one has a damaged length."""

_USUAL = 1024
_LENGTHS = [size.to_bytes(LENGTH_BYTES, "big") for size in range(_USUAL)]
"""The bytes before a record of each usual size."""


def joined(records: Iterable[bytes]) -> bytes:
    """A batch of records. Two batches, one after the other, are a batch, too."""
    parts: list[bytes] = []
    for each in records:
        size = len(each)
        parts.append(_LENGTHS[size] if size < _USUAL else size.to_bytes(LENGTH_BYTES, "big"))
        parts.append(each)
    return b"".join(parts)


def split(content: bytes) -> Iterator[bytes]:
    """The records of a batch. A killed process may leave an incomplete last one, which is left out.

    So are zeros, which a file may have at its end after a loss of power. After a damaged length no record can
    be found: the rest comes as one record, which cannot be decoded, so that its loss is counted.
    """
    start = 0
    while start + LENGTH_BYTES < len(content):
        begin = start + LENGTH_BYTES
        length = int.from_bytes(content[start:begin], "big")
        end = begin + length
        if length > MOST_BYTES or (not length and any(content[begin:])):
            yield content[start:]
            return
        if end > len(content) or not length:
            return
        yield content[begin:end]
        start = end
