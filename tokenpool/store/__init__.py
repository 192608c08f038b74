"""Stores: where the lease store is kept, behind one small protocol. The domain's only impure neighbour.

The rules are ``tokenpool.leases.reference_store``'s; ``memory`` keeps them as they are, ``redis`` runs the
same rules as scripts, and one contract suite holds both to them. ``address`` reads a store's URL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from tokenpool.leases.reference_store import Answer, Census, Limit, Message, Push
from tokenpool.planning.idle import IdleTerms


class StoreDown(ConnectionError):
    """The store did not answer, or not in time; the text says which and why. Nothing was decided."""


@dataclass(frozen=True, slots=True)
class StoredScale:
    """The scale hint as the leader stored it. The store does not look into it."""

    content: bytes
    at: float
    """The time of storing, in seconds by the store's clock."""
    age_s: float
    """The age at the time of reading, by the same clock."""


class Store(Protocol):
    """The lease store of one pool, somewhere. Every call may raise ``StoreDown``."""

    async def connect(self, count: int) -> None:
        """Open ``count`` connections in advance, so that no message waits for a handshake."""

    async def exchange(self, message: Message) -> Answer:
        """Book what a sidecar says, and answer with what it holds."""

    def listen(self, holder: str) -> AsyncIterator[Push]:
        """What the lease store says to a sidecar between its messages, until ``StoreDown``.

        Some may be lost.
        """

    async def limits(self) -> tuple[Mapping[str, Limit], IdleTerms]:
        """All published limits, and the terms for every other entitlement."""

    async def file(self) -> tuple[str, bytes] | None:
        """The version and the content of the pool file that all enforce; ``None`` before the first."""

    async def lead(self, candidate: str, leadership_s: float) -> int:
        """Take or keep the coordinator's lease; its epoch, or 0 where another one leads."""

    async def resign(self, candidate: str) -> None:
        """Give the lease back, if it is this candidate's."""

    async def read(self) -> Census:
        """All pages and reports, for one tick."""

    async def publish(self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int) -> bool:
        """Replace all limits and terms unless a later epoch's stand."""

    async def publish_file(self, version: str, content: bytes, epoch: int) -> bool:
        """Replace the pool file that all enforce unless a later epoch's stands."""

    async def scale(self) -> StoredScale | None:
        """The scale hint that every coordinator serves; ``None`` where none is stored."""

    async def publish_scale(self, content: bytes, epoch: int) -> float | None:
        """Replace the scale hint. The time by the store's clock; ``None`` where a later epoch's stands."""

    async def close(self) -> None:
        """Let go of connections."""
