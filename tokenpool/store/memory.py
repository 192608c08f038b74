"""``ReferenceLeaseStore`` behind the ``Store`` protocol: the lease store of one pod, and of the tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace

from tokenpool.leases.credential_feed import (
    CredentialFeed,
    CredentialPage,
    CredentialPut,
    CredentialRemoval,
)
from tokenpool.leases.messages import (
    CREDENTIALS,
    Answer,
    Limit,
    Message,
    PoolSnapshot,
    Push,
    StoredScaleHint,
)
from tokenpool.leases.reference_store import ReferenceLeaseStore
from tokenpool.planning.idle import IdleTerms
from tokenpool.quotas.messages import QuotaAnswer, QuotaMessage, QuotaState
from tokenpool.quotas.reference import ReferenceQuotaStore


class MemoryStore:
    """A store that ends with its process. It adds a clock and the delivery of pushes to the rules."""

    def __init__(
        self, lifetime_s: float, clock: Callable[[], float] = time.time, *, is_first: bool = False
    ) -> None:
        """``is_first`` states that no holder runs yet, so that the store grants leases at once."""
        self._clock = clock
        self.rules = ReferenceLeaseStore(clock(), lifetime_s, is_first=is_first)
        self.quota_rules = ReferenceQuotaStore(lifetime_s)
        self.feed = CredentialFeed()
        self._listeners: dict[str, asyncio.Queue[Push]] = {}

    async def connect(self, count: int) -> None:
        """See ``Store``."""

    async def exchange(self, message: Message) -> Answer:
        """See ``Store``."""
        answer, pushes = self.rules.exchange(message, self._clock())
        for push in pushes:
            if push.holder in self._listeners:
                self._listeners[push.holder].put_nowait(push)
        return replace(answer, credentials=str(self.feed.state))

    async def credentials(self, after: int) -> CredentialPage:
        """See ``Store``."""
        return self.feed.page(after)

    async def put_credentials(self, puts: Sequence[CredentialPut]) -> list[int]:
        """See ``Store``."""
        written = self.feed.put(puts, self._clock())
        for holder, queue in self._listeners.items():
            queue.put_nowait(Push(holder, CREDENTIALS, ""))
        return written

    async def remove_credentials(self, removals: Sequence[CredentialRemoval]) -> None:
        """See ``Store``."""
        self.feed.remove(removals)

    async def listen(self, holder: str) -> AsyncIterator[Push]:
        """See ``Store``."""
        queue = self._listeners.setdefault(holder, asyncio.Queue())
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.pop(holder, None)

    async def secret(self, new: bytes) -> bytes:
        """See ``Store``."""
        return self.rules.secret(new)

    def host(self) -> tuple[str, int]:
        """See ``Store``."""
        return ("127.0.0.1", 1)

    async def limits(self) -> tuple[Mapping[str, Limit], IdleTerms]:
        """See ``Store``."""
        return self.rules.limits()

    async def file(self) -> tuple[str, bytes] | None:
        """See ``Store``."""
        return self.rules.file()

    async def lead(self, candidate: str, leadership_s: float) -> int:
        """See ``Store``."""
        return self.rules.lead(candidate, leadership_s, self._clock())

    async def resign(self, candidate: str) -> None:
        """See ``Store``."""
        self.rules.resign(candidate)

    async def read(self, *, whole: bool = True) -> PoolSnapshot:
        """See ``Store``. Every read is whole."""
        return self.rules.read(self._clock())

    async def publish(
        self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int, *, whole: bool = True
    ) -> bool:
        """See ``Store``. Every publication is whole."""
        return self.rules.publish(limits, terms, epoch, self._clock())

    async def publish_file(self, version: str, content: bytes, epoch: int) -> bool:
        """See ``Store``."""
        return self.rules.publish_file(version, content, epoch)

    async def scale_hint(self) -> StoredScaleHint | None:
        """See ``Store``."""
        return self.rules.scale_hint(self._clock())

    async def publish_scale_hint(self, content: bytes, epoch: int) -> float | None:
        """See ``Store``."""
        now = self._clock()
        return now if self.rules.publish_scale_hint(content, epoch, now) else None

    async def publish_prices(self, holder: str, content: bytes) -> None:
        """See ``Store``."""
        self.rules.publish_prices(holder, content, self._clock())

    async def prices(self) -> Mapping[str, bytes]:
        """See ``Store``."""
        return self.rules.prices(self._clock())

    async def exchange_quotas(self, message: QuotaMessage) -> QuotaAnswer:
        """See ``Store``."""
        return self.quota_rules.exchange(message, self._clock())

    async def quotas(self) -> Sequence[QuotaState]:
        """See ``Store``."""
        return self.quota_rules.states(self._clock())

    async def restore_quota(self, key: str, start: float, spent: float) -> bool:
        """See ``Store``."""
        return self.quota_rules.restore(key, start, spent, self._clock())

    async def close(self) -> None:
        """See ``Store``."""
