"""The published pool file. Once a coordinator publishes a file, all sidecars put it in force."""

from __future__ import annotations

import asyncio
import logging

from sidecar.configuration import Configuration, ConfigurationInvalid, Enforcer, published
from sidecar.report import Reporter
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

READ_EVERY_S = 2.0
"""Seconds between two reads of the published version, if no answer names a new one."""
LONGEST_RETRY_S = 60.0
"""A published pool file that cannot be enforced here is read again after 2 s, then at doubled intervals."""


class PublishedFile:
    """The pool file in force at a sidecar that shares its pool."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        telemetry: Telemetry,
        reporter: Reporter,
        first: Configuration,
        enforcer: Enforcer,
    ) -> None:
        """``first`` is in force now: the sidecar's own file, or without one the published file."""
        self._settings = settings
        self._store = store
        self._telemetry = telemetry
        self._reporter = reporter
        self._enforcer = enforcer
        self._own = first if settings.config is not None else None
        """The sidecar's own file; ``None`` without one."""
        self._in_force = reporter.file_version = first.version
        self._is_stale = False
        """Whether a key file may have changed since the published file was read."""
        self._pool = first.pool.name
        self._announced = ""
        """The version in the last answer."""
        self.version = first.version if self._own is None else ""
        """The version of the published file in force; empty if the sidecar's own file is in force."""
        self.refused_version = ""
        """The version of a published file that cannot be enforced here. It is tried again at intervals."""
        self._retry_at = self._retry_in_s = 0.0
        self.news = asyncio.Event()
        """Whether another version should be read now."""

    def announced(self, version: str) -> None:
        """An answer of the lease store has the published version."""
        self._announced = version or self._announced
        if version not in ("", self.version, self.refused_version):
            self.news.set()

    def own_file_changed(self, configuration: Configuration) -> None:
        """The sidecar's own file was read again. It is in force only if no file is published."""
        self._own = configuration
        if not self.version:
            self._enforcer.enforce(configuration)
            self._in_force = self._reporter.file_version = configuration.version
        else:
            self.read_again()
        self._compare()

    def read_again(self) -> None:
        """Read the published file again: one of its key files may have changed."""
        self._in_force, self._retry_at, self._is_stale = "", 0.0, True
        self.news.set()

    def _compare(self) -> None:
        own = self._own
        differs = own is not None and bool(self.version) and self.version != own.version
        if own is not None and differs and not self._telemetry.config_differs:
            log.warning(
                "this sidecar's own pool file differs from the published one, which is in force",
                extra={"own": own.version, "published": self.version},
            )
        self._telemetry.config_differs = differs

    async def read(self) -> None:
        """Read the published pool file if it changed, and put it in force. Failures are logged."""
        try:
            await self._read()
        except StoreDown:
            pass  # reported by the messages
        except Exception:
            log.critical("reading the published pool file failed", exc_info=True)

    async def _read(self) -> None:
        if self._announced == self.version == self._in_force:
            return  # the content is long, so it is read only for a new version
        now = self._telemetry.clock()
        if self.refused_version and self._announced == self.refused_version and now < self._retry_at:
            return
        found = await self._store.file()
        if found is None or found[0] == self.version == self._in_force:
            return
        version, content = found
        own, self._is_stale = self._own, False
        try:
            # It is usually identical to this sidecar's own file.
            configuration = (
                own
                if own is not None and version == own.version
                else await published(content, self._settings, self._pool)
            )
        except ConfigurationInvalid as error:
            self._refuse(version, error, now)
            return
        self.version, self.refused_version = version, ""
        self._reporter.file_version = version
        if version != self._in_force:
            for _ in self._enforcer.prepare(configuration):
                await asyncio.sleep(0)
            self._enforcer.enforce(configuration)
            # If the own file changed meanwhile, a key file may have: the published file is read again.
            self._in_force = version if self._own is own and not self._is_stale else ""
            self._telemetry.reloads["ok"] += 1
        log.info("the published pool file is in force", extra={"version": version})
        self._compare()

    def _refuse(self, version: str, error: ConfigurationInvalid, now: float) -> None:
        if version != self.refused_version:
            log.error("the published pool file cannot be enforced here; the old one stays: %s", error)
            self._telemetry.reloads["invalid"] += 1
            self._retry_in_s = READ_EVERY_S
        self.refused_version = version
        self._retry_at = now + self._retry_in_s
        self._retry_in_s = min(self._retry_in_s * 2, LONGEST_RETRY_S)
