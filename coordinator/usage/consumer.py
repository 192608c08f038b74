"""The consumer: carries the batches of one pool from its stream to the usage store.

A batch leaves the stream after the usage store has it. So a batch may come twice, and the usage store adds
each record once, by its id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from coordinator.usage.store import UsageRefused, UsageStore, UsageStoreDown
from tokenpool.store import StoreDown
from tokenpool.store.usage_stream import Received, ReceivedBatch
from tokenpool.usage.batch import split
from tokenpool.usage.record import RecordInvalid, UsageRecord, decode

log = logging.getLogger(__name__)

READ_EVERY_S = 0.5
"""Seconds between two reads of a stream without batches."""
RETRY_S = (1.0, 15.0)
"""Seconds until the next attempt after the first failure, and at most. Each failure doubles them."""
AT_ONCE = 16
"""The most batches in one transaction: 1 MiB, or 7,000 records, if all are full."""
RESULTS = ("stored", "duplicate", "unreadable", "refused")


class Stream(Protocol):
    """The stream of the pool: see ``UsageStream``."""

    async def receive(self, store: str, consumer: str, most: int) -> Received:
        """Read batches."""

    async def stored(self, batches: Sequence[ReceivedBatch]) -> None:
        """The usage store has these batches."""


class UsageConsumer:
    """Carries the usage records of one pool. ``name`` is unique among the coordinators."""

    def __init__(
        self, pool: str, stream: Stream, store: UsageStore, name: str, clock: Callable[[], float]
    ) -> None:
        self.pool = pool
        self._stream = stream
        self._store = store
        self._name = name
        self._clock = clock
        self._identity = ""
        """The name of the usage store, after it was read."""
        self._received: Sequence[ReceivedBatch] = ()
        """Batches that were read, and are not removed from the stream yet."""
        self.records: Counter[str] = Counter()
        """Records by result."""
        self.entries = 0
        """The batches in the stream at the last read."""
        self.stored_s = 0.0
        """The time of the last transaction, in seconds."""
        self.error = ""
        """Why the last round failed; empty if it did not."""
        self.other_store = ""
        """The name of the usage store that has the stream, if it is another one."""

    async def run(self) -> None:
        """Carry until cancelled."""
        retry_s = 0.0
        while True:
            try:
                has_work = await self.step()
            except (StoreDown, UsageStoreDown) as error:
                retry_s = min(max(2 * retry_s, RETRY_S[0]), RETRY_S[1])
                self._failed(str(error))
                await asyncio.sleep(retry_s)
                continue
            except Exception as error:
                retry_s = RETRY_S[1]
                log.critical("usage records could not be stored", exc_info=True)
                self._failed(repr(error))
                await asyncio.sleep(retry_s)
                continue
            if self.error:
                self.error = ""
                log.info("usage records are stored again", extra={"pool": self.pool})
            retry_s = 0.0
            if not has_work:
                await asyncio.sleep(READ_EVERY_S)

    def _failed(self, error: str) -> None:
        if not self.error:
            log.warning(
                "usage records are not stored; the sidecars keep them",
                extra={"pool": self.pool, "error": error},
            )
        self.error, self._identity = error, ""

    async def step(self) -> bool:
        """Carry some batches. Returns whether there were any.

        Raises ``StoreDown`` and ``UsageStoreDown``. The next step continues where this one failed.
        """
        if not self._received:
            if not self._identity:
                self._identity = await self._store.identity()
            received = await self._stream.receive(self._identity, self._name, AT_ONCE)
            self.entries = received.entries
            self._check_owner(received.owner)
            self._received = received.batches
        if not self._received:
            return False
        await self._add(self._records())
        await self._stream.stored(self._received)
        self._received = ()
        return True

    def _check_owner(self, owner: str) -> None:
        other = owner if owner != self._identity else ""
        if other and not self.other_store:
            log.warning(
                "another usage store has the records of this pool; give all coordinators one PostgreSQL",
                extra={"pool": self.pool},
            )
        self.other_store = other

    def _records(self) -> list[UsageRecord]:
        found = []
        for batch in self._received:
            for content in split(batch.records):
                try:
                    found.append(decode(content))
                except RecordInvalid as error:
                    self.records["unreadable"] += 1
                    log.error("a usage record is lost", extra={"pool": self.pool, "error": str(error)})
        return found

    async def _add(self, records: Sequence[UsageRecord]) -> None:
        began = self._clock()
        try:
            self._count(len(records), await self._store.add(records))
        except UsageRefused:
            # One record has a value that the database does not take. All others are stored one by one.
            for record in records:
                await self._add_one(record)
        self.stored_s = self._clock() - began

    async def _add_one(self, record: UsageRecord) -> None:
        try:
            self._count(1, await self._store.add([record]))
        except UsageRefused as error:
            self.records["refused"] += 1
            log.error("a usage record is lost", extra={"pool": self.pool, "error": str(error)})

    def _count(self, records: int, new: int) -> None:
        self.records["stored"] += new
        self.records["duplicate"] += records - new
