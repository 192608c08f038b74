"""The pool file on disk: watched for change, and put in force without a restart.

An invalid file leaves the old one in force; the log and a metric report it. The file is read, and its
accounts are made, in steps between requests. Only the swap is one step.
"""

from __future__ import annotations

import asyncio
import logging

from runtime import collecting
from runtime.filewatch import FileWatch
from sidecar.configuration import Configuration, ConfigurationInvalid, Enforcer, load_apart
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry

log = logging.getLogger(__name__)


class PoolFileWatcher:
    """Watches the pool file and the key files; without a pool file, the key files of the published one."""

    def __init__(
        self, settings: Settings, telemetry: Telemetry, current: Configuration, enforcer: Enforcer
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._enforcer = enforcer
        self._watch = FileWatch(current.watched, self.reload)

    async def reload(self) -> None:
        """Read the file and put it in force, or log the reason against it."""
        with collecting.postponed():
            await self._reload()

    async def _reload(self) -> None:
        if self._settings.config is None:
            self._enforcer.keys_changed()
            return
        try:
            configuration = await load_apart(self._settings)
        except ConfigurationInvalid as error:
            log.error("the pool file is invalid; the old one stays in force: %s", error)
            self._telemetry.reloads["invalid"] += 1
            self._telemetry.config_is_current = False
            return
        for _ in self._enforcer.prepare(configuration):
            await asyncio.sleep(0)
        self.follow(configuration)
        self._enforcer.apply(configuration)
        self._telemetry.reloads["ok"] += 1
        self._telemetry.config_is_current = True
        log.info("the pool file was read", extra={"pool": configuration.pool.name})

    def follow(self, configuration: Configuration) -> None:
        """Watch the files of this configuration from now on."""
        self._watch.follow(configuration.watched)

    def request_reload(self) -> None:
        """Request that the file is read again, changed or not."""
        self._watch.request_reload()

    async def check(self) -> None:
        """Read the file again if it or a key file changed."""
        await self._watch.check()

    async def run(self) -> None:
        """Watch the files until cancelled."""
        await self._watch.run()
