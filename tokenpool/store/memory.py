"""The lease store in this process: the measure of every other store, and the store of simulations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping

from tokenpool.leases.reference_store import Answer, Census, Limit, Message, Push, ReferenceLeaseStore
from tokenpool.planning.idle import IdleTerms
from tokenpool.store import StoredScale


class MemoryStore:
    """A store that is gone with its process."""

    def __init__(self, lifetime_s: float, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lease_store = ReferenceLeaseStore(clock(), lifetime_s)
        self._lease: tuple[str, int, float] = ("", 0, 0.0)
        self._scale: tuple[bytes, float] | None = None
        self._listeners: dict[str, asyncio.Queue[Push]] = {}

    async def connect(self, count: int) -> None:
        """See ``Store``."""

    async def exchange(self, message: Message) -> Answer:
        """See ``Store``."""
        answer = self._lease_store.exchange(message, self._clock())
        pushes, self._lease_store.pushes = self._lease_store.pushes, []
        for push in pushes:
            if push.holder in self._listeners:
                self._listeners[push.holder].put_nowait(push)
        return answer

    async def listen(self, holder: str) -> AsyncIterator[Push]:
        """See ``Store``."""
        queue = self._listeners.setdefault(holder, asyncio.Queue())
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.pop(holder, None)

    async def limits(self) -> tuple[Mapping[str, Limit], IdleTerms]:
        """See ``Store``."""
        return self._lease_store.limits()

    async def file(self) -> tuple[str, bytes] | None:
        """See ``Store``."""
        lease_store = self._lease_store
        return (lease_store.file_version, lease_store.file) if lease_store.file_version else None

    async def lead(self, candidate: str, leadership_s: float) -> int:
        """See ``Store``."""
        now, (owner, epoch, until) = self._clock(), self._lease
        if owner and owner != candidate and until > now:
            return 0
        if owner != candidate or until <= now or epoch < self._lease_store.epoch:
            epoch = self._lease_store.epoch = max(self._lease_store.epoch + 1, int(now * 1000))
        self._lease = (candidate, epoch, now + leadership_s)
        return epoch

    async def resign(self, candidate: str) -> None:
        """See ``Store``."""
        if self._lease[0] == candidate:
            self._lease = ("", 0, 0.0)

    async def read(self) -> Census:
        """See ``Store``."""
        return self._lease_store.read(self._clock())

    async def publish(self, limits: Mapping[str, Limit], terms: IdleTerms, epoch: int) -> bool:
        """See ``Store``."""
        return self._lease_store.publish(limits, terms, epoch, self._clock())

    async def publish_file(self, version: str, content: bytes, epoch: int) -> bool:
        """See ``Store``."""
        return self._lease_store.publish_file(version, content, epoch)

    async def scale(self) -> StoredScale | None:
        """See ``Store``."""
        if self._scale is None:
            return None
        content, at = self._scale
        return StoredScale(content, at, max(self._clock() - at, 0.0))

    async def publish_scale(self, content: bytes, epoch: int) -> float | None:
        """See ``Store``."""
        if epoch < self._lease_store.epoch:
            return None
        now = self._clock()
        self._lease_store.epoch, self._scale = epoch, (content, now)
        return now

    async def close(self) -> None:
        """See ``Store``."""
