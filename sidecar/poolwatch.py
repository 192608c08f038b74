"""The pool file on disk: read at the start, watched for change, put in force without a restart.

An invalid file leaves the old one in force, and says so in the log and in a metric.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from service.filewatch import FileWatch
from sidecar.identity import KeyRing, KeyUnreadable, key_ring, resolver
from sidecar.settings import Settings, SettingsError
from sidecar.telemetry import Telemetry
from tokenpool.entitlements import KeySource, Pool, PoolFile
from tokenpool.poolfile import PoolFileError, parse

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A pool file with its keys, ready to be put in force."""

    file: PoolFile
    pool: Pool
    keys: KeyRing
    watched: tuple[Path, ...]
    """The pool file and every key file."""


def load(settings: Settings) -> Configuration:
    """Read the pool file. Raises ``PoolFileError``, ``KeyUnreadable``, ``SettingsError`` or ``OSError``."""
    parsed = parse(settings.config.read_text(encoding="utf-8"), name=str(settings.config))
    for warning in parsed.warnings:
        log.warning(warning.message, extra={"line": warning.line, "fix": warning.fix})
    pool = _pool(parsed.file, settings)
    keys = key_ring(parsed.file, pool.name, resolver(os.environ, _read_key))
    key_files = {
        Path(ref.value)
        for entitlement in parsed.file.entitlements_of(pool.name)
        for ref in entitlement.api_keys
        if ref.source is KeySource.FILE
    }
    return Configuration(parsed.file, pool, keys, (settings.config, *sorted(key_files)))


def _read_key(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _pool(file: PoolFile, settings: Settings) -> Pool:
    names = [pool.name for pool in file.pools]
    if settings.pool is None:
        if len(names) > 1:
            raise SettingsError(f"the pool file has several pools; give --pool {'|'.join(names)}")
        return file.pools[0]
    if settings.pool not in names:
        raise SettingsError(f"--pool {settings.pool}: the pool file has only {', '.join(names)}")
    return file.pool(settings.pool)


def of_published(file: PoolFile, settings: Settings, joined: str) -> Configuration:
    """A pool file that a coordinator published, with the keys that this sidecar can read.

    ``joined`` is the pool that this sidecar belongs to already: another pool in the file does not ask again.
    Raises ``SettingsError`` or ``KeyUnreadable``.
    """
    pool = _pool(file, replace(settings, pool=settings.pool or joined))
    return Configuration(file, pool, key_ring(file, pool.name, resolver(os.environ, _read_key)), ())


class PoolWatch:
    """Looks for changes of the pool file and of key files."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        current: Configuration,
        apply: Callable[[Configuration], None],
    ) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._apply = apply
        self._watch = FileWatch(current.watched, self.reload)

    def reload(self) -> None:
        """Read the file and put it in force, or say why not."""
        try:
            configuration = load(self._settings)
        except (PoolFileError, KeyUnreadable, SettingsError, OSError, UnicodeError) as error:
            log.error("the pool file is invalid; the old one stays in force: %s", error)
            self._telemetry.reloads["invalid"] += 1
            self._telemetry.config_is_current = False
            return
        self._watch.follow(configuration.watched)
        self._apply(configuration)
        self._telemetry.reloads["ok"] += 1
        self._telemetry.config_is_current = True
        log.info("the pool file was read", extra={"pool": configuration.pool.name})

    def look(self) -> None:
        """Read the file again if it or a key file changed."""
        self._watch.look()

    async def run(self) -> None:
        """Look until cancelled."""
        await self._watch.run()
