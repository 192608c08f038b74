"""One worker of a sidecar: its number, and what its supervisor gave it. See ``sidecar/workers``.

The supervisor opens a table in memory, and a notifier (``eventfd``) for each worker. All workers inherit
them, so one that is started again finds the same ones. All sockets between these processes are in one private
folder.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from runtime.options import Address, Addresses
from sidecar.stored_rings import RING_BYTES, StoredRings
from tokenpool.capacity.shared_room import STRIDE, SharedRoom
from tokenpool.holders import worker_id, worker_prefix

VARIABLE = "_TOKENPOOL_WORKER"
"""The environment variable in which a supervisor gives a worker its ``Place``."""
CELL = 8


class Place(msgspec.Struct, frozen=True):
    """The values that a supervisor gives to a worker."""

    index: int
    workers: int
    pod: str
    """The id of the supervisor. It is a part of the ids of all its workers."""
    folder: str
    """The folder of the sockets between these processes."""
    table: int
    """The file descriptor of the shared table."""
    notifiers: tuple[int, ...]
    """The file descriptor of each worker's notifier."""
    listen: tuple[tuple[str, int], ...]
    """The addresses for tenants, with the port that the system chose."""
    living: int
    """The file descriptor of a pipe that ends with the supervisor."""
    start: int = 0
    """The number of this start of the worker, from zero."""

    @property
    def is_again(self) -> bool:
        """Whether it replaces a worker that has ended. Then it listens when it is ready."""
        return self.start > 0


def _rows_bytes(workers: int) -> int:
    """The part of the shared table with the rows of the engine's room, in whole pages."""
    return -(-workers * STRIDE * CELL // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


def table_bytes(workers: int) -> int:
    """The size of the shared table: the rows, and a ring for each worker."""
    return _rows_bytes(workers) + workers * RING_BYTES


def mapped(table: int, workers: int) -> memoryview[float]:
    """The cells of the rows in the shared table with this file descriptor."""
    return memoryview(mmap.mmap(table, workers * STRIDE * CELL)).cast("d")


def mapped_rings(table: int, workers: int) -> list[memoryview]:
    """The rings in the shared table with this file descriptor."""
    rings = memoryview(mmap.mmap(table, workers * RING_BYTES, offset=_rows_bytes(workers)))
    return [rings[start : start + RING_BYTES] for start in range(0, len(rings), RING_BYTES)]


def store_path(folder: Path) -> Path:
    """The socket of the lease store that the supervisor keeps."""
    return folder / "store"


def pages_path(folder: Path, index: int) -> Path:
    """The socket of a worker's admin pages."""
    return folder / f"pages-{index}"


def peers_at(folder: Path) -> str:
    """The address of a worker's peer port, without its number at the end."""
    return f"unix:{folder / 'peer-'}"


class Worker:
    """One worker of a sidecar."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.index = place.index
        self.workers = place.workers
        self.is_again = place.is_again
        self.folder = Path(place.folder)
        self.room = SharedRoom(mapped(place.table, place.workers), place.index, place.workers)
        self.stored = StoredRings(mapped_rings(place.table, place.workers), place.index)
        self.notifiers = place.notifiers
        self.supervisor = place.living
        """The end of a pipe that ends with the supervisor."""

    @property
    def listen(self) -> Addresses:
        """The addresses for tenants."""
        return Addresses(Address(*each) for each in self._place.listen)

    @property
    def holder_prefix(self) -> str:
        """The beginning of the ids of all workers of this sidecar."""
        return worker_prefix(self._place.pod)

    def living(self, now: float) -> int:
        """The number of workers that run, with this one."""
        return 1 + sum(1 for _ in self.room.others(now))

    @property
    def holder(self) -> str:
        """The id of this process in the lease store."""
        return holder_of(self._place.pod, self.index, self._place.start)

    @property
    def notifier(self) -> int:
        """The notifier to which the other workers write."""
        return self.notifiers[self.index]


def holder_of(pod: str, index: int, start: int) -> str:
    """The id of a worker's process in the lease store. Its supervisor returns its leases if it is killed.

    After that return, the store ignores the id. So each start has another one. Process ids may repeat.
    """
    return worker_id(pod, index, start)


def read(environment: Mapping[str, str]) -> Worker | None:
    """The place of this process; ``None`` if it is no worker."""
    text = environment.get(VARIABLE)
    return Worker(msgspec.json.decode(text, type=Place)) if text else None


def encoded(place: Place) -> str:
    """The value of ``VARIABLE``."""
    return msgspec.json.encode(place).decode()


def keep_descriptors(place: Place) -> tuple[int, ...]:
    """The file descriptors that a worker inherits."""
    return (place.table, place.living, *place.notifiers)


def new_table(workers: int) -> int:
    """A new table for this number of workers: its file descriptor."""
    table = os.memfd_create("tokenpool-workers")
    os.ftruncate(table, table_bytes(workers))
    return table


def new_notifier() -> int:
    """A new notifier: its file descriptor."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
