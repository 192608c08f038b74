"""The first pool file of a sidecar without one of its own: the file that a coordinator has published.

Until there is one, the sidecar does not listen for tenants. Its admin port answers: ``/healthz`` with 200,
and ``/readyz`` with 503 and the reason.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from aiohttp import web

from runtime.admin import AdminPages, PageServer, Readiness
from sidecar.configuration import Configuration, ConfigurationInvalid, published
from sidecar.pool_secret import read_secret
from sidecar.settings import Settings
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

READ_EVERY_S = 0.5
"""Seconds between two reads of the lease store."""


class FirstFile:
    """Waits for the first published pool file that can be enforced here."""

    def __init__(self, settings: Settings, pool: str, store: Store, pages: Path | None = None) -> None:
        """``pages`` is the socket of the admin pages of a worker."""
        self._pages = pages
        self._settings = settings
        self._pool = pool
        self._store = store
        self.problem = "the lease store has not answered yet"
        """The reason why there is no pool file yet."""

    async def wait(self) -> Configuration:
        """The pool file. Until then the admin port answers. Raises ``OSError`` if it cannot listen."""
        pages = AdminPages(self.readiness, lambda: iter(()), lambda: {"pool": self._pool})
        application = web.Application()
        application.add_routes(pages.routes())
        server = PageServer(application)
        if self._pages is not None:
            await server.start_at(self._pages)
            admin = str(self._pages)
        else:
            admin = str(await server.start(self._settings.admin, option="--admin"))
        log.info("waiting for a pool file", extra={"pool": self._pool, "admin": admin})
        try:
            while (found := await self.read()) is None:
                await asyncio.sleep(READ_EVERY_S)
            return found
        finally:
            await server.stop()

    async def read(self) -> Configuration | None:
        """The published file, or ``None`` with the reason in ``problem``."""
        try:
            # A store that has failed answers reads only after a script that writes.
            await read_secret(self._store)
            found = await self._store.file()
            if found is not None:
                return await published(found[1], self._settings, self._pool)
            problem = (
                f"no pool file is published for pool {self._pool!r}: start a coordinator that has it, or"
                " give this sidecar a --config"
            )
        except StoreDown as error:
            problem = f"the lease store does not answer: {error}"
        except ConfigurationInvalid as error:
            problem = f"the published pool file cannot be enforced here: {error}"
        if problem != self.problem:
            self.problem = problem
            log.warning(problem)
        return None

    def readiness(self) -> Readiness:
        """Not ready, with the reason."""
        return Readiness([self.problem])
