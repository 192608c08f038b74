"""The composition root of a coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.core import Metric

from coordinator.admin import Admin
from coordinator.leader import PoolLeader
from coordinator.pool_file import EncodedPoolFile, PoolFileInvalid, read, read_apart
from coordinator.quotas import QuotaKeepers
from coordinator.settings import Settings
from coordinator.telemetry import Telemetry
from runtime import collecting
from runtime.admin import PageServer
from runtime.filewatch import FileWatch
from runtime.followed import Credentials, FollowedFiles
from runtime.options import SettingsError
from runtime.tls import Certificate
from tokenpool.entitlements import PoolFile
from tokenpool.leases.wire import WireError, decode_file
from tokenpool.store import Store, StoreDown
from tokenpool.store.address import AddressInvalid, StoreFiles
from tokenpool.store.redis import RedisStore

if TYPE_CHECKING:
    from coordinator.credentials.api import CredentialApi
    from coordinator.credentials.keeper import Keeper
    from coordinator.resources.controller import Controller
    from coordinator.usage.service import UsageService
    from coordinator.usage.store import UsageStore

log = logging.getLogger(__name__)

SHORTEST_PAUSE_S = 0.01
"""The pause between two ticks, for the pages."""
STORE_AGAIN_S = 1.0
"""The time between two reads of a lease store that does not answer, before this coordinator leads."""


class Coordinator:
    """One running coordinator."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._clock = time.monotonic
        name = settings.name or socket.gethostname()
        self._candidate = f"{name}-{os.getpid()}-{secrets.token_hex(4)}"
        self.leaders: dict[str, PoolLeader] = {}
        self._removed: list[PoolLeader] = []
        self.usage: UsageService | None = None
        """Carries usage records to the usage store; ``None`` until a pool has them on."""
        self._is_started = False
        self._changed = asyncio.Event()
        """Whether a changed pool file is to be published: the next tick begins at once."""
        try:
            self._stores = StoreFiles(settings.store, settings.store_file, settings.store_password_file)
        except AddressInvalid as error:
            raise SettingsError(str(error)) from error
        made = read(settings.config) if settings.config is not None else None
        self.resources: Controller | None = None
        if settings.entitlements_from is not None:
            self.resources = self._resources(made.file if made is not None else None)
        elif made is not None:
            self._lead(made)
        self.telemetry = Telemetry(lambda: self.leaders, settings.metrics_entitlements)
        self.quotas = QuotaKeepers(self._usage_store)
        self.telemetry.sources.append(self.quotas.metrics)
        if self.resources is not None:
            self.telemetry.sources.append(self.resources.metrics)
        self.credentials = Credentials()
        """The files with the store's URL and its password."""
        self.credentials.files.append(FollowedFiles("store", self._stores.paths, self._move_stores))
        self.telemetry.sources.append(self.credentials.metrics)
        self.telemetry.sources.append(self._usage_metrics)
        self.certificate: Certificate | None = None
        """The certificate of the admin port; ``None`` without TLS."""
        if settings.tls_cert is not None and settings.tls_key is not None:
            self.certificate = Certificate(settings.tls_cert, settings.tls_key)
            self.telemetry.sources.append(self.certificate.metrics)
        self.keeper: Keeper | None = None
        """Issued credentials; ``None`` without a database for them."""
        self.credential_api = self._credential_api()
        """The API that changes them; ``None`` without administrators."""
        admin = Admin(
            lambda: self.leaders,
            self.telemetry,
            self._clock,
            self._missing,
            self._degraded,
            self.credential_api,
            lambda: self.usage.store if self.usage is not None else None,
        )
        self._server = PageServer(admin.application())
        self.watch = FileWatch(() if settings.config is None else (settings.config,), self.reload)
        self._tasks: list[asyncio.Task[None]] = []

    def _resources(self, base: PoolFile | None) -> Controller:
        """The controller of resources. Only here is its code imported, with its client library."""
        try:
            from coordinator.resources.api import Api, ApiFailure  # noqa: PLC0415
            from coordinator.resources.controller import Controller  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"--entitlements-from kubernetes: {error}; pip install 'tokenpool[kubernetes]'"
            ) from error
        try:
            api = Api()
        except ApiFailure as error:
            raise SettingsError(f"--entitlements-from kubernetes: {error}") from error
        return Controller(
            api,
            self.settings.entitlements_namespaces or (api.namespace,),
            base,
            publish=self._lead,
            last_published=self._last_published,
            leaders=lambda: self.leaders,
            clock=self._clock,
        )

    def _credential_api(self) -> CredentialApi | None:
        """The API for issued credentials. Only here is its code imported."""
        settings, tokens = self.settings, self.settings.administrator_tokens
        if tokens is None:
            return None
        from coordinator.credentials.administrators import Administrators, TokensInvalid  # noqa: PLC0415
        from coordinator.credentials.api import CredentialApi  # noqa: PLC0415
        from coordinator.credentials.database import SqlCredentials  # noqa: PLC0415
        from coordinator.credentials.keeper import Keeper  # noqa: PLC0415
        from coordinator.usage.database import DatabaseInvalid  # noqa: PLC0415
        from coordinator.usage.opened import open_usage_store  # noqa: PLC0415

        try:
            administrators = Administrators(tokens)
            store = open_usage_store(settings.usage_store, settings.usage_store_file)
        except (TokensInvalid, OSError) as error:
            raise SettingsError(f"--administrator-tokens: {error}") from error
        except DatabaseInvalid as error:
            raise SettingsError(f"--usage-store-file: {error}") from error
        database = SqlCredentials(store.database)
        self.credentials.files.append(FollowedFiles("administrators", (tokens,), administrators.follow))
        self.keeper = Keeper(lambda: self.leaders, database, self._clock, time.time)
        api = CredentialApi(self.keeper, administrators, self._clock)
        self.telemetry.sources += [self.keeper.metrics, api.metrics]
        return api

    def _degraded(self) -> list[str]:
        """The faults that do not stop this coordinator."""
        issued = self.keeper.problems() if self.keeper is not None else []
        usage = self.usage.degraded() if self.usage is not None else []
        problem = self.certificate.problem if self.certificate is not None else None
        return [*([problem] if problem else []), *self.credentials.problems(), *issued, *usage]

    def _missing(self) -> list[str]:
        """What this coordinator waits for before it can lead."""
        return self.resources.problems() if self.resources is not None else []

    async def _move_stores(self) -> tuple[Path, ...]:
        """Read the store's files again, and move the stores of all pools to what they say."""
        stores = [store for leader in self.leaders.values() if isinstance(store := leader.store, RedisStore)]
        return await self._stores.follow(stores, self.settings.store_timeout)

    async def _last_published(self, pools: Iterable[str]) -> PoolFile | None:
        """The pool file that is published for one of these pools. It waits until the lease store answers."""
        settings = self.settings
        for pool in pools:
            store = self._stores.open(pool, settings.lease_lifetime, settings.store_timeout)
            try:
                found = await _answer(store)
                if found is not None:
                    return decode_file(found[1])
            except WireError as error:
                log.warning("the published pool file cannot be read", extra={"error": str(error)})
            finally:
                await store.close()
        return None

    def _lead(self, made: EncodedPoolFile) -> None:
        """Lead the pools of this file, and no others."""
        settings, file, encoded = self.settings, made.file, (made.version, made.content)
        for pool in file.pools:
            leader = self.leaders.get(pool.name)
            if leader is not None:
                leader.follow(file, pool, encoded)
                continue
            store = self._stores.open(pool.name, settings.lease_lifetime, settings.store_timeout)
            self.leaders[pool.name] = PoolLeader(
                settings, store, file, pool, self._candidate, self._clock, encoded
            )
        named = {pool.name for pool in file.pools}
        for name in [name for name in self.leaders if name not in named]:
            self._removed.append(self.leaders.pop(name))
        self._record_usage()
        self._changed.set()

    def _record_usage(self) -> None:
        """Follow the pool file in whether pools have usage records."""
        if self.usage is None and any(leader.pool.usage_records for leader in self.leaders.values()):
            self.usage = self._usage_service()
        if self.usage is not None:
            self.usage.follow(self.leaders)
            if self._is_started:
                self.usage.start()

    def _usage_service(self) -> UsageService:
        # Imported here: without usage records, nothing of them is loaded.
        from coordinator.usage.database import DatabaseInvalid  # noqa: PLC0415
        from coordinator.usage.opened import open_usage_store  # noqa: PLC0415
        from coordinator.usage.service import UsageService  # noqa: PLC0415

        settings = self.settings
        try:
            store = open_usage_store(settings.usage_store, settings.usage_store_file)
        except DatabaseInvalid as error:
            raise SettingsError(f"--usage-store-file: {error}") from error
        return UsageService(store, self._candidate, settings.usage_keep_days)

    def _usage_store(self, pool: str) -> UsageStore | None:
        """The usage store, if the pool has usage records."""
        return self.usage.store if self.usage is not None and pool in self.usage.consumers else None

    def _usage_metrics(self) -> Iterable[Metric]:
        return self.usage.metrics() if self.usage is not None else ()

    def request_reload(self) -> None:
        """Read the pool file, the certificate and the credentials again, changed or not."""
        self.watch.request_reload()
        if self.certificate is not None:
            self.certificate.watch.request_reload()
        self.credentials.request_reload()

    async def reload(self) -> None:
        """Read the pool file and put it in force, or log the reason against it."""
        with collecting.postponed():
            await self._reload()

    async def _reload(self) -> None:
        if self.settings.config is None:
            return
        try:
            made = await read_apart(self.settings.config)
        except PoolFileInvalid as error:
            log.error("the pool file is invalid; the old one stays in force: %s", error)
            self.telemetry.config_is_current = False
            return
        self.telemetry.config_is_current = True
        if self.resources is not None:
            self.resources.base_changed(made.file)
        else:
            self._lead(made)
        collecting.keep()
        log.info("the pool file is in force", extra={"pools": list(self.leaders)})

    async def start(self) -> None:
        """Listen, and begin to tick. Raises ``OSError``."""
        certificate = self.certificate
        tls = certificate.context if certificate is not None else None
        addresses = await self._server.start(self.settings.listen, tls=tls)
        self.listens_on = addresses[0]
        loop = asyncio.get_running_loop()
        work = (
            self._tick_forever(),
            self.watch.run(),
            self.credentials.run(),
            self.telemetry.loop_delay.run(),
            self.quotas.run(self.leaders),
        )
        self._tasks = [loop.create_task(each) for each in work]
        if certificate is not None:
            self._tasks.append(loop.create_task(certificate.watch.run()))
        if self.resources is not None:
            self._tasks.append(loop.create_task(self.resources.run()))
        self._is_started = True
        self._record_usage()
        if self.keeper is not None:
            self._tasks.append(loop.create_task(self.keeper.run()))
        extra = {
            "listen": str(addresses),
            "tls": tls is not None,
            "candidate": self._candidate,
            "pools": list(self.leaders),
        }
        log.info("listening", extra=extra)

    async def _tick_forever(self) -> None:
        while True:
            started = self._clock()
            self._changed.clear()
            async with asyncio.TaskGroup() as group:
                for leader in list(self.leaders.values()):
                    group.create_task(leader.run_tick())
            while self._removed:
                await _resign(self._removed.pop())
            await asyncio.sleep(SHORTEST_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._left(started)):
                    await self._changed.wait()

    def _left(self, started: float) -> float:
        """The time until the next tick."""
        return max(self.settings.tick - (self._clock() - started), 0.0)

    async def stop(self) -> None:
        """Resign the leadership and end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.usage is not None:
            await self.usage.stop()
        for leader in self.leaders.values():
            await _resign(leader)
        await self._server.stop()
        if self.keeper is not None:
            await self.keeper.database.close()
        log.info("stopped")


async def _answer(store: Store) -> tuple[str, bytes] | None:
    while True:
        try:
            return await store.file()
        except StoreDown as error:
            log.warning("the published pool file cannot be read yet", extra={"error": str(error)})
            await asyncio.sleep(STORE_AGAIN_S)


async def _resign(leader: PoolLeader) -> None:
    try:
        await leader.resign()
    except StoreDown as error:
        log.warning("the leadership could not be resigned; it expires by itself", extra={"error": str(error)})
    await leader.close()


async def serve(settings: Settings) -> None:
    """Run a coordinator until SIGTERM or SIGINT; SIGHUP makes it read its files again."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    with collecting.postponed():
        coordinator = Coordinator(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await coordinator.start()
    loop.add_signal_handler(signal.SIGHUP, coordinator.request_reload)
    gc.collect()
    collecting.keep()
    await stopping.wait()
    await coordinator.stop()
