"""The room of one engine, shared by the workers of one sidecar through a table in memory. Pure.

Each worker has a row, and writes no other one: its load on the engine, and the request that waits first for
room there. All workers read all rows. So a worker knows the free room without asking. The requests that wait
have one order. A worker leaves free room to the requests of other workers that come first, and notifies the
worker of the first one.

Two workers may take the last slot at the same moment, because a decision is not atomic with its row. Then one
request waits in the engine for the next free slot. The rows show the excess at once, so nothing more is
admitted: the load exceeds the room by less than one request for each worker.

The cells are shared memory in production. The supervisor clears the row of a worker that has ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from tokenpool.capacity.room import EngineRoom

STRIDE = 16
"""Cells of one row: 128 bytes, so that two workers do not write into one line of the processor's cache."""
_SEQUENCES, _KV, _SURPLUS_SEQUENCES, _SURPLUS_KV = 0, 1, 2, 3
_NEEDS_SEQUENCES, _NEEDS_KV, _RANK, _DEADLINE, _STATED_AT = 4, 5, 6, 7, 8
FRESH_S = 1.0
"""An older row claims nothing for its waiting request, because its worker may be paused. Workers write their
rows at least four times as often."""
NOTIFY_AGAIN_S = 0.005
"""A worker is not notified twice for one request within this time."""


class Cells(Protocol):
    """The memory of the table: a number at each position."""

    def __getitem__(self, position: int, /) -> float:
        """One number."""

    def __setitem__(self, position: int, value: float, /) -> None:
        """Replace one number."""


class Waiting(NamedTuple):
    """The request that waits first for the engine at one worker, in the order of the queue."""

    rank: int
    deadline: float
    """Seconds on the monotonic clock, which all processes of a machine share."""
    worker: int
    sequences: float
    kv_tokens: float


class SharedRoom:
    """The table, as one worker sees it."""

    __slots__ = ("_cells", "_notified", "index", "workers")

    def __init__(self, cells: Cells, index: int, workers: int) -> None:
        self._cells = cells
        self.index = index
        self.workers = workers
        self._notified: dict[int, tuple[float, float, float]] = {}
        """The last notification of each worker: the deadline of its request, the sequences that were free,
        and the time. Empty after this worker freed room, or another request waits first here."""

    # --- this worker's row ---

    def use(self, sequences: int, kv_tokens: int, surplus_sequences: int, surplus_kv: int) -> None:
        """State the load that this worker has put on the engine."""
        cells, at = self._cells, self.index * STRIDE
        if sequences < cells[at + _SEQUENCES] or kv_tokens < cells[at + _KV]:
            self._notified.clear()
        cells[at + _SEQUENCES] = float(sequences)
        cells[at + _KV] = float(kv_tokens)
        cells[at + _SURPLUS_SEQUENCES] = float(surplus_sequences)
        cells[at + _SURPLUS_KV] = float(surplus_kv)

    def wait(self, waiting: Waiting | None, now: float) -> None:
        """State the request that waits first here; ``None`` if none waits for the engine."""
        cells, at = self._cells, self.index * STRIDE
        cells[at + _STATED_AT] = now
        if waiting is None:
            if cells[at + _NEEDS_SEQUENCES]:
                cells[at + _NEEDS_SEQUENCES] = 0.0
                self._notified.clear()
            return
        if waiting.deadline != cells[at + _DEADLINE]:
            self._notified.clear()
        cells[at + _RANK] = float(waiting.rank)
        cells[at + _DEADLINE] = waiting.deadline
        cells[at + _NEEDS_KV] = waiting.kv_tokens
        cells[at + _NEEDS_SEQUENCES] = waiting.sequences

    # --- all rows ---

    def load(self) -> tuple[int, int]:
        """Sequences and KV tokens that all workers have put on the engine, surplus included."""
        cells, ends = self._cells, self.workers * STRIDE
        return (
            int(
                sum(cells[at + _SEQUENCES] + cells[at + _SURPLUS_SEQUENCES] for at in range(0, ends, STRIDE))
            ),
            int(sum(cells[at + _KV] + cells[at + _SURPLUS_KV] for at in range(0, ends, STRIDE))),
        )

    def others(self, now: float) -> Iterator[int]:
        """The other workers that run."""
        for worker in range(self.workers):
            if worker != self.index and now - self._cells[worker * STRIDE + _STATED_AT] < FRESH_S:
                yield worker

    def load_of_others(self) -> tuple[float, float]:
        """Sequences and KV tokens that the other workers have put on the engine, without surplus."""
        cells, own = self._cells, self.index * STRIDE
        sequences = kv_tokens = 0.0
        for at in range(0, self.workers * STRIDE, STRIDE):
            if at != own:
                sequences += cells[at + _SEQUENCES]
                kv_tokens += cells[at + _KV]
        return sequences, kv_tokens

    def seen_here(self, room: EngineRoom, now: float) -> EngineRoom:
        """The room for this worker: the load of the others is foreign, and so is what waits before it there.

        ``room`` is the engine's, in which only the load of other clients is foreign.
        """
        sequences, kv_tokens = self.load_of_others()
        claimed, claimed_kv = self._claimed(room, sequences, kv_tokens, now)
        return EngineRoom(
            room.slots,
            room.kv_tokens,
            room.foreign_sequences + sequences + claimed,
            room.foreign_kv_tokens + kv_tokens + claimed_kv,
            room.reserved_slots,
            room.proven_slots,
            room.queue,
            room.preemptible_queue,
            room.is_down,
        )

    def _claimed(
        self, room: EngineRoom, sequences: float, kv_tokens: float, now: float
    ) -> tuple[float, float]:
        """The free room that requests at other workers take first. One that does not fit claims nothing."""
        first = self._waiting(now)
        if not first or first[0].worker == self.index:
            return 0.0, 0.0
        at = self.index * STRIDE
        free = room.slots - room.reserved_slots - room.foreign_sequences - sequences
        free -= self._cells[at + _SEQUENCES]
        free_kv = room.kv_tokens - room.foreign_kv_tokens - kv_tokens - self._cells[at + _KV]
        claimed = claimed_kv = 0.0
        for each in first:
            if each.worker == self.index:
                break
            if claimed + each.sequences <= free and claimed_kv + each.kv_tokens <= free_kv:
                claimed += each.sequences
                claimed_kv += each.kv_tokens
        return claimed, claimed_kv

    def _waiting(self, now: float) -> list[Waiting]:
        """The first waiting request of each worker, in the order of the queue."""
        cells = self._cells
        found = [
            Waiting(
                int(cells[at + _RANK]),
                cells[at + _DEADLINE],
                at // STRIDE,
                cells[at + _NEEDS_SEQUENCES],
                cells[at + _NEEDS_KV],
            )
            for at in range(0, self.workers * STRIDE, STRIDE)
            if cells[at + _NEEDS_SEQUENCES] > 0
            and (now - cells[at + _STATED_AT] < FRESH_S or at == self.index * STRIDE)
        ]
        if len(found) > 1:
            found.sort()
        return found

    def next_to_try(self, room: EngineRoom, now: float) -> int | None:
        """The worker whose waiting request fits now and comes first. ``None``: none fits, or it is notified.

        ``room`` is the engine's. The result may be this worker.
        """
        waiting = self._waiting(now)
        if not waiting or room.is_down:
            return None
        sequences, kv_tokens = self.load_of_others()
        at = self.index * STRIDE
        free = room.slots - room.reserved_slots - room.foreign_sequences - sequences
        free -= self._cells[at + _SEQUENCES]
        free_kv = room.kv_tokens - room.foreign_kv_tokens - kv_tokens - self._cells[at + _KV]
        for each in waiting:
            if each.sequences > free or each.kv_tokens > free_kv:
                continue
            deadline, was_free, notified_at = self._notified.get(each.worker, (-math.inf, 0.0, -math.inf))
            if deadline != each.deadline or free > was_free or now - notified_at >= NOTIFY_AGAIN_S:
                self._notified[each.worker] = each.deadline, free, now
                return each.worker
            free -= each.sequences
            free_kv -= each.kv_tokens
        return None


def cleared(cells: Cells, worker: int) -> None:
    """Clear the row of a worker that has ended: its connections to the engine are closed."""
    for at in range(worker * STRIDE, (worker + 1) * STRIDE):
        cells[at] = 0.0
