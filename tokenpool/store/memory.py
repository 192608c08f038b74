"""The books in this process: for a lone sidecar, and as the measure of every other store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tokenpool.books import Books, Grant, Holding, Limit


class MemoryStore:
    """A store that is gone with its process."""

    def __init__(self, lifetime_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._books = Books(clock(), lifetime_s)

    async def publish(self, limits: Mapping[str, Limit], epoch: int) -> bool:
        """See ``Store``."""
        self._books.close_idle(self._clock())
        return self._books.publish(limits, epoch, self._clock())

    async def exchange(
        self, holder: str, number: int, holdings: Mapping[str, Holding]
    ) -> Mapping[str, Grant]:
        """See ``Store``."""
        return self._books.exchange(holder, number, holdings, self._clock())

    async def close(self) -> None:
        """See ``Store``."""
