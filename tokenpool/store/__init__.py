"""The lease store of one pool, behind one protocol. Only this part of ``tokenpool`` does I/O.

``redis`` runs the rules as Lua scripts, ``redis_client`` owns the connections, and ``address`` parses the URL
of a store. ``tokenpool.leases.reference_store`` has the rules in Python. One contract suite requires the same
answers from both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from tokenpool.leases.credential_feed import CredentialPage, CredentialPut, CredentialRemoval
from tokenpool.leases.messages import (
    Answer,
    Limit,
    Message,
    PoolSnapshot,
    Push,
    StoredScaleHint,
)
from tokenpool.planning.idle import IdleTerms
from tokenpool.quotas.messages import QuotaAnswer, QuotaMessage, QuotaState

SECRET_BYTES = 32
"""The size of a pool's secret."""


class StoreDown(ConnectionError):
    """The store did not answer in time. The text names the store and the reason.

    The store may have applied a call that fails in this way. Only the answer is known to be lost.
    """


class Store(Protocol):
    """The lease store of one pool. Every call may raise ``StoreDown``."""

    async def connect(self, count: int) -> None:
        """Open ``count`` connections in advance, so that no message waits for a handshake.

        A failure is not raised here; the next call raises it.
        """

    async def exchange(self, message: Message) -> Answer:
        """Apply a sidecar's message, and answer with its leases."""

    def listen(self, holder: str) -> AsyncIterator[Push]:
        """The notifications for a sidecar between its messages, until ``StoreDown``. Some may be lost."""

    async def limits(self) -> tuple[Mapping[str, Limit], IdleTerms]:
        """All published limits, and the terms for every other entitlement."""

    async def file(self) -> tuple[str, bytes] | None:
        """The version and the content of the published pool file; ``None`` before the first."""

    async def lead(self, candidate: str, leadership_s: float) -> int:
        """Take or keep the leadership of the coordinators for ``leadership_s`` seconds.

        Returns the leader's epoch, or 0 if another candidate leads.
        """

    async def resign(self, candidate: str) -> None:
        """End the leadership of this candidate. Does nothing if another candidate leads."""

    async def read(self, *, whole: bool = True) -> PoolSnapshot:
        """All records and reports, for one tick.

        Without ``whole``, a record that nobody has written since the last read may be the same object as
        then, with its level and its floor of that time. Its limit is the published one. So the cost of a
        read depends on the number of records written since the last one.
        """

    async def publish(
        self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int, *, whole: bool = True
    ) -> bool:
        """Replace all limits and terms. Returns false, without a change, if a later epoch has written.

        Without ``whole``, only limits that differ from the last publication may be sent, and records of
        removed entitlements may stay until the next one with ``whole``.
        """

    async def publish_file(self, version: str, content: bytes, epoch: int) -> bool:
        """Replace the pool file of all sidecars. Returns false if a later epoch has written."""

    async def scale_hint(self) -> StoredScaleHint | None:
        """The scale hint that every coordinator serves; ``None`` if none is stored."""

    async def publish_scale_hint(self, content: bytes, epoch: int) -> float | None:
        """Replace the scale hint. Returns the store's time; ``None`` if a later epoch has written."""

    async def credentials(self, after: int) -> CredentialPage:
        """The issued credentials that changed after this sequence of the feed, in the order of the changes.

        At most ``credential_feed.PAGE`` of them.
        """

    async def put_credentials(self, puts: Sequence[CredentialPut]) -> list[int]:
        """Write issued credentials, in parts of ``PAGE``. Returns their versions; 0 if one was not written.

        ``CredentialFeed.put`` has the rules.
        """

    async def remove_credentials(self, removals: Sequence[CredentialRemoval]) -> None:
        """Remove issued credentials that ended long ago, at most ``PAGE``.

        ``CredentialFeed.remove`` has the rules.
        """

    async def secret(self, new: bytes) -> bytes:
        """The secret that the sidecars of the pool share.

        ``new`` becomes the secret if there is none. Each call renews its expiry.
        """

    def host(self) -> tuple[str, int]:
        """The host and port of the server, to find the address of this machine that faces it."""

    async def publish_prices(self, holder: str, content: bytes) -> None:
        """Replace the learned prices of a sidecar. They are kept for ``KEEP_S``."""

    async def prices(self) -> Mapping[str, bytes]:
        """The last content of each of the ``MOST_PRICES`` sidecars that wrote last.

        The store does not decode it (``wire.decode_prices``).
        """

    async def exchange_quotas(self, message: QuotaMessage) -> QuotaAnswer:
        """Apply a sidecar's message about quotas, and answer with its portions."""

    async def quotas(self) -> Sequence[QuotaState]:
        """The windows of all budgets that have not ended."""

    async def restore_quota(self, key: str, start: float, spent: float) -> bool:
        """Set the spending in the window of a budget that the store has lost, in weighted tokens.

        Returns false if the sidecars have not stated their own yet, or nothing is known of the window.
        """

    async def close(self) -> None:
        """Close all connections."""
