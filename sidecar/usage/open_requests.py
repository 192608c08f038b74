"""The records of requests that run, in a file that survives the end of the process.

A killed sidecar settles nothing. So each running request has a slot in a file that is mapped into memory,
with the record of a lost request. Its settlement replaces that by the final record, which stays there until
the spool has it. The next sidecar finds in the slots exactly what the spool does not have. A write is a copy
in memory, without a call of the system.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SLOTS: Final = 8192
"""The requests that can be in the file at once. Ended ones stay in it for a quarter of a second, in which a
sidecar ends up to 6,500. The file has 4 MB, and only used slots take memory."""
SLOT_BYTES: Final = 512
"""The bytes of one slot. A typical record has 150."""
LENGTH_BYTES: Final = 2
_LENGTHS: Final = [size.to_bytes(LENGTH_BYTES, "big") for size in range(SLOT_BYTES - LENGTH_BYTES + 1)]
"""The bytes before a record of each size."""
_EMPTY: Final = _LENGTHS[0]


class OpenRequests:
    """The file of one process. The file is locked while the process lives."""

    def __init__(self, path: Path) -> None:
        """Make the file. Raises ``OSError``, also if its disk has no room."""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The blocks exist from now on: a write into a mapped file without room would end the process.
            os.posix_fallocate(self._file, 0, SLOTS * SLOT_BYTES)
            self._slots = mmap.mmap(self._file, SLOTS * SLOT_BYTES)
        except OSError:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise
        self._free = list(range(SLOTS - 1, -1, -1))

    def take(self, record: bytes) -> int:
        """A free slot, with this record; -1 if none is free or the record is too long for one."""
        if not self._free or len(record) > SLOT_BYTES - LENGTH_BYTES:
            return -1
        slot = self._free.pop()
        self._write(slot, record)
        return slot

    def replace(self, slot: int, record: bytes) -> None:
        """Replace the record in a slot. A record that is too long leaves the former one."""
        if len(record) <= SLOT_BYTES - LENGTH_BYTES:
            self._write(slot, record)

    def _write(self, slot: int, record: bytes) -> None:
        start, size = slot * SLOT_BYTES, len(record)
        self._slots[start : start + LENGTH_BYTES + size] = _LENGTHS[size] + record

    def free(self, slot: int) -> None:
        """Empty a slot."""
        self.free_all((slot,))

    def free_all(self, slots: Sequence[int]) -> None:
        """Empty several slots."""
        content = self._slots
        for slot in slots:
            start = slot * SLOT_BYTES
            content[start : start + LENGTH_BYTES] = _EMPTY
        self._free.extend(slots)

    @property
    def used(self) -> int:
        """The number of slots with a record."""
        return SLOTS - len(self._free)

    def close(self) -> None:
        """Close the file, and remove it if it is empty. Otherwise the next sidecar reads it."""
        self._slots.close()
        if len(self._free) == SLOTS:
            self.path.unlink(missing_ok=True)
        os.close(self._file)


class Abandoned:
    """The file of a process that has ended."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self._file = file

    def records(self) -> list[bytes]:
        """The records in its slots."""
        content = os.pread(self._file, SLOTS * SLOT_BYTES, 0)
        found = []
        for start in range(0, len(content), SLOT_BYTES):
            size = int.from_bytes(content[start : start + LENGTH_BYTES], "big")
            if 0 < size <= SLOT_BYTES - LENGTH_BYTES:
                found.append(content[start + LENGTH_BYTES : start + LENGTH_BYTES + size])
        return found

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """End the use of the file, and leave it for the next sidecar."""
        os.close(self._file)


def abandoned(path: Path) -> Abandoned | None:
    """The file at a path, if the process that made it has ended. Raises ``OSError``."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return Abandoned(path, file)
