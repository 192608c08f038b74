"""The spool: usage records that the usage store has not confirmed, in batches, each in a file.

The spool is bounded. A record that finds no room is refused, so that the caller can count it. Where the disk
does not work, batches stay in memory, with a smaller bound. All methods block, and run in a thread, one at a
time. A file is written without a sync. ``sync`` makes all files so far durable.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sidecar.usage.open_requests import OpenRequests, abandoned
from tokenpool.usage.batch import joined

BATCH_BYTES = 64 * 1024
"""The size of a full batch: about 450 records. It takes about 20 ms in a database."""
MEMORY_BYTES = 8 * 1024 * 1024
"""The bound without a disk."""
_BATCH = re.compile(r"([0-9a-f]{16})-(\d{1,12})\.batch")
_OPEN = re.compile(r"([0-9a-f]{16})\.open")


@dataclass(slots=True, eq=False)
class Batch:
    """Some records, in the order of their settlement."""

    number: int
    """Unique in this process."""
    path: Path | None = None
    """Its file; ``None`` while it is in memory only."""
    parts: list[bytes] = field(default_factory=list)
    """Its content, if it is in memory only."""
    size: int = 0
    """Its bytes."""


class Spool:
    """The batches of one process, and those that earlier processes have left in its folder."""

    def __init__(self, folder: Path, most_bytes: int, process: str) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._process = process
        self._waiting: deque[Batch] = deque()
        """Batches to send, the oldest first."""
        self._last: Batch | None = None
        """The batch that takes further records. It is the last one of those that wait, until it is taken."""
        self._number = 0
        self._unsynced: set[Path] = set()
        self.size = 0
        """The bytes of all batches that are not removed, sent or not."""
        self._in_memory = 0
        """Those of them that are in no file."""
        self._has_open_requests = False
        self.error = "the folder was not opened yet"
        """Why the disk is not used; empty if it is."""
        self.unreadable = 0
        """The batches whose file could not be read. Their records are lost."""

    # --- the folder ---

    def open(self) -> OpenRequests | None:
        """Use the folder, or use it again. Returns the file of running requests, if it is a new one.

        A failure sets ``error``.
        """
        made: OpenRequests | None = None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._has_open_requests:
                made = OpenRequests(self._folder / f"{self._process}.open")
                self._has_open_requests = True
            probe = self._folder / f"{self._process}.probe"
            probe.write_bytes(bytes(BATCH_BYTES))
            probe.unlink()
        except OSError as error:
            self._fail(error)
        else:
            self.error = ""
        return made

    def _fail(self, error: OSError) -> None:
        self.error = f"{error.filename or self._folder}: {error.strerror or error}"

    def adopt(self) -> int:
        """Take over the records of processes that have ended.

        Returns the number of records from their files of running requests. All others were in batches. A
        process that ends between the steps leaves some records twice, with the same ids.
        """
        left: list[bytes] = []
        living = {self._process}
        ended = []
        try:
            names = sorted(os.listdir(self._folder))
            for name in names:
                match = _OPEN.fullmatch(name)
                if match is None or match[1] == self._process:
                    continue
                file = abandoned(self._folder / name)
                if file is None:
                    living.add(match[1])
                else:
                    ended.append(file)
                    left += file.records()
            for name in names:
                match = _BATCH.fullmatch(name)
                path = self._folder / name
                if match is not None and match[1] not in living:
                    self._adopt(path)
        except OSError as error:
            self._fail(error)
        refused = self.append(left)
        for file in ended:
            if refused:
                file.close()  # the next sidecar tries again
            else:
                file.remove()
        return len(left) - len(refused)

    def _adopt(self, path: Path) -> None:
        """Take over one batch. Its file gets a name of this process, so that no other process takes it."""
        self._number += 1
        own = self._path(self._number)
        try:
            path.rename(own)
        except FileNotFoundError:
            return  # another process was faster
        size = own.stat().st_size
        if not size:
            own.unlink(missing_ok=True)
            return
        self._waiting.append(Batch(self._number, own, size=size))
        self.size += size

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._process}-{number}.batch"

    # --- records ---

    def append(self, records: Sequence[bytes]) -> Sequence[bytes]:
        """Add records, and return those that find no room."""
        for first in range(0, len(records), 256):
            part = records[first : first + 256]
            content = joined(part)
            if not self._has_room(len(content)) or not self._write(content):
                return records[first:]
        return ()

    def _has_room(self, size: int) -> bool:
        if self.error and self._in_memory + size > MEMORY_BYTES:
            return False
        return self.size + size <= self._most_bytes

    def _write(self, content: bytes) -> bool:
        batch = self._last
        if batch is None or batch.size >= BATCH_BYTES or (batch.path is None) is not bool(self.error):
            batch = self._next()
        if batch.path is not None:
            try:
                with batch.path.open("ab", buffering=0) as file:
                    written = file.write(content)
                    if written != len(content):
                        file.truncate(batch.size)
                        raise OSError("the disk is full")
            except OSError as error:
                return self._failed(error, content)
            self._unsynced.add(batch.path)
        else:
            batch.parts.append(content)
            self._in_memory += len(content)
        batch.size += len(content)
        self.size += len(content)
        return True

    def _next(self) -> Batch:
        self._number += 1
        self._last = Batch(self._number, None if self.error else self._path(self._number))
        self._waiting.append(self._last)
        return self._last

    def _failed(self, error: OSError, content: bytes) -> bool:
        """The disk does not take a record: from now on, records stay in memory."""
        self._fail(error)
        return self._has_room(len(content)) and self._write(content)

    def sync(self) -> None:
        """Make all records so far survive a loss of power."""
        unsynced, self._unsynced = self._unsynced, set()
        for path in unsynced:
            try:
                with path.open("rb") as file:
                    os.fdatasync(file.fileno())
            except FileNotFoundError:
                pass  # it was removed meanwhile
            except OSError as error:
                self._fail(error)

    # --- batches ---

    def take(self, most: int) -> list[tuple[Batch, bytes]]:
        """The oldest batches that wait, at most ``most``, with their content.

        They take no further records.
        """
        taken: list[tuple[Batch, bytes]] = []
        while self._waiting and len(taken) < most:
            batch = self._waiting.popleft()
            if batch is self._last:
                self._last = None
            content = self._content(batch)
            if content:
                taken.append((batch, content))
            else:
                self.remove(batch)
        return taken

    def _content(self, batch: Batch) -> bytes:
        if batch.path is None:
            return b"".join(batch.parts)
        try:
            return batch.path.read_bytes()
        except OSError as error:
            self._fail(error)
            self.unreadable += 1
            return b""

    def put_back(self, batches: Sequence[Batch]) -> None:
        """These batches were not sent, or got lost on the way: they wait again, first."""
        self._waiting.extendleft(sorted(batches, key=lambda each: -each.number))

    def remove(self, batch: Batch) -> None:
        """The usage store has a batch."""
        self.size -= batch.size
        if batch.path is None:
            self._in_memory -= batch.size
        else:
            self._unsynced.discard(batch.path)
            try:
                batch.path.unlink(missing_ok=True)
            except OSError as error:
                self._fail(error)

    @property
    def is_empty(self) -> bool:
        """Whether no batch waits."""
        return not self._waiting

    @property
    def is_full(self) -> bool:
        """Whether a full batch waits."""
        return bool(self._waiting) and self._waiting[0].size >= BATCH_BYTES
