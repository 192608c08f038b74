"""A batch of encoded usage records: each with its length before it, as four bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

LENGTH_BYTES = 4


def joined(records: Iterable[bytes]) -> bytes:
    """A batch of records. Two batches, one after the other, are a batch, too."""
    return b"".join([len(each).to_bytes(LENGTH_BYTES, "big") + each for each in records])


def split(content: bytes) -> Iterator[bytes]:
    """The records of a batch. A killed process may leave an incomplete last one, which is left out.

    So do zeros, which a file may have at its end after a loss of power.
    """
    start = 0
    while start + LENGTH_BYTES < len(content):
        begin = start + LENGTH_BYTES
        end = begin + int.from_bytes(content[start:begin], "big")
        if end > len(content) or end == begin:
            return
        yield content[begin:end]
        start = end
