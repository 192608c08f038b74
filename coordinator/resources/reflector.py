"""A reflector: it keeps one collection of objects up to date with the API server, whatever fails.

It lists, watches, and resumes a watch from the last version that it has seen. It lists again only if the
server no longer has that version (410). Between two attempts it waits: longer after each failure, and at
least as long as the server asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from typing import Protocol

from coordinator.resources.api import Api, ApiFailure, Collection
from coordinator.resources.fields import Json

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 30.0
"""As client-go's reflectors."""
STEADY_S = 5.0
"""A watch that lasted for so long was successful, also without an event."""


class Backoff:
    """The time to wait before the next attempt. Pure: the random number goes in."""

    def __init__(self) -> None:
        self._next_s = FIRST_WAIT_S

    def reset(self) -> None:
        """An attempt was successful."""
        self._next_s = FIRST_WAIT_S

    def wait_s(self, random: float, retry_after_s: float = 0.0) -> float:
        """The time to wait. ``random`` from 0 to 1 spreads several clients.

        A server that names a time gets exactly that, as from client-go. Otherwise each wait is twice as long.
        """
        if retry_after_s:
            return retry_after_s * (1 + random / 10)
        wait, self._next_s = self._next_s, min(self._next_s * 2, LONGEST_WAIT_S)
        return wait * (0.5 + random / 2)


class Sink(Protocol):
    """Takes the objects of a collection."""

    async def replaced(self, collection: Collection, items: list[Json]) -> None:
        """These are all objects of the collection."""

    def changed(self, collection: Collection, item: Json, *, is_deleted: bool) -> None:
        """One object changed."""

    def failed(self, collection: Collection, failure: ApiFailure) -> None:
        """The collection cannot be read now."""


class Reflector:
    """Follows one collection."""

    def __init__(self, api: Api, collection: Collection, sink: Sink, random: Callable[[], float]) -> None:
        self._api = api
        self._collection = collection
        self._sink = sink
        self._random = random
        self._backoff = Backoff()
        self._version = ""
        self.error = "it has not been listed yet"
        """The reason that the collection may be out of date; empty if there is none."""
        self.is_listed = False
        self.restarts: Counter[str] = Counter()
        """Ended lists and watches, by their end."""

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self._follow()
                wait = self._backoff.wait_s(self._random())
                self.restarts["ended"] += 1
            except ApiFailure as failure:
                wait = self._failed(failure)
            except Exception as error:
                # A defect: the collection is read again from the start, and the others go on.
                log.critical("a collection could not be used", exc_info=True)
                self._version = ""
                wait = self._failed(ApiFailure(0, f"{self._collection}: {error!r}"))
            await asyncio.sleep(wait)

    def _failed(self, failure: ApiFailure) -> float:
        if failure.is_gone:
            self._version = ""
        self.restarts["gone" if failure.is_gone else "failed"] += 1
        if not self.error and not failure.is_gone:
            # A watch that breaks is routine. A failure of the attempt after it is not.
            log.info("a watch ended: %s", failure)
        elif not failure.is_gone:
            log.warning("the API server cannot be read: %s", failure)
        self.error = str(failure)
        self._sink.failed(self._collection, failure)
        return self._backoff.wait_s(self._random(), failure.retry_after_s)

    async def _follow(self) -> None:
        if not self._version:
            items, self._version = await self._api.list(self._collection)
            await self._sink.replaced(self._collection, items)
            self.is_listed = True
            self.error = ""
        loop = asyncio.get_running_loop()
        started = loop.time()
        async with aclosing(self._api.watch(self._collection, self._version)) as events:
            async for event in events:
                self._version = event.version or self._version
                self._backoff.reset()
                self.error = ""
                if event.kind != "BOOKMARK":
                    self._sink.changed(self._collection, event.object, is_deleted=event.kind == "DELETED")
        if loop.time() - started > STEADY_S:
            self._backoff.reset()
            self.error = ""
