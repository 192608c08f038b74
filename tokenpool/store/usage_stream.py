"""The stream of usage records in Redis, from the sidecars of a pool to its coordinators.

A sidecar keeps each batch until the usage store has it. So the stream may lose batches: they are sent again.
The stream has a bound, and all of its keys expire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenpool.store import scripts
from tokenpool.store.redis import RedisStore
from tokenpool.store.redis_client import failures

MOST_ENTRIES = 1024
"""The most batches in the stream: 64 MiB, if all are full. Redis removes the oldest."""
CLAIM_AFTER_S = 120.0
"""The seconds after which a batch that a coordinator has read, but not stored, is read by another one. Longer
than a coordinator waits for its database."""
OWNED_S = 600.0
"""The seconds for which the stream belongs to a usage store after its last read."""
STORED_KEPT_S = 3600.0
"""The seconds for which Redis keeps the notice that a batch is stored. A notice that is lost costs one more
transfer of the batch."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The answer to a sidecar."""

    entries: Sequence[str]
    """The entries of the new batches, in their order."""
    stored: Sequence[int]
    """The numbers of batches that the usage store has."""
    missing: Sequence[int]
    """The numbers of batches in flight that Redis has lost."""


@dataclass(frozen=True, slots=True)
class ReceivedBatch:
    """One batch, for a coordinator."""

    entry: str
    spool: str
    """The id of the sidecar's process."""
    number: int
    records: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """The answer to a coordinator."""

    owner: str
    """The usage store to which the stream belongs."""
    batches: Sequence[ReceivedBatch]
    entries: int
    """All batches in the stream."""


class UsageStream:
    """The stream of one pool. Every call may raise ``StoreDown``.

    It uses the connections of the lease store, and follows it to another server.
    """

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def send(
        self, spool: str, batches: Sequence[tuple[int, bytes]], in_flight: Mapping[int, str]
    ) -> Sent:
        """Send numbered batches. ``in_flight`` has the entries of earlier ones, by number."""
        answer = await self._store.run(
            scripts.USAGE_SEND,
            *(content for _, content in batches),
            spool=spool,
            numbers=[number for number, _ in batches],
            entries=[*in_flight.values()],
            entry_numbers=[*in_flight],
            most=MOST_ENTRIES,
        )
        with failures():
            entries, stored, missing = answer
            return Sent([each.decode() for each in entries], [*map(int, stored)], [*map(int, missing)])

    async def receive(self, store: str, consumer: str, most: int) -> Received:
        """Read at most ``most`` batches for the usage store with this name."""
        answer = await self._store.run(
            scripts.USAGE_RECEIVE,
            store=store,
            consumer=consumer,
            most=most,
            idle_ms=int(CLAIM_AFTER_S * 1000),
            owned_ms=int(OWNED_S * 1000),
        )
        with failures():
            owner, batches, entries = answer
            return Received(owner.decode(), [_batch(each) for each in batches], int(entries))

    async def stored(self, batches: Sequence[ReceivedBatch]) -> None:
        """The usage store has these batches."""
        await self._store.run(
            scripts.USAGE_STORED,
            entries=[each.entry for each in batches],
            spools=[each.spool for each in batches],
            numbers=[each.number for each in batches],
            kept_ms=int(STORED_KEPT_S * 1000),
        )


def _batch(answer: Sequence[Any]) -> ReceivedBatch:
    entry, spool, number, records = answer
    return ReceivedBatch(entry.decode(), spool.decode(), int(number), bytes(records))
