"""The supervisor of a sidecar with several workers. It relays no request, and parses none.

It keeps the port, the table of the engine's room and the notifiers. It starts the workers, and answers on the
admin port for all of them. Without a lease store of its pool it also keeps one for the workers, and plans.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime import memory_limit
from runtime.admin import PageServer
from runtime.followed import Credentials
from runtime.listening import bound, reserved
from runtime.options import SettingsError
from sidecar.configuration import Configuration, load
from sidecar.memory_bounds import derive
from sidecar.pool_file_watcher import PoolFileWatcher
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry
from sidecar.worker import Place, holder_of, mapped, new_notifier, new_table
from sidecar.workers.pages import Pages
from sidecar.workers.planner import PodPlanner
from sidecar.workers.processes import KILLED_AFTER_S, USAGE_ERROR, WorkerProcess
from sidecar.workers.release import release
from tokenpool.capacity.shared_room import cleared
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

FOLDERS = (None, "/dev/shm")
"""Where the folder of the sockets may be: the usual one, or if that is not writable, shared memory."""
LONGEST_PATH = 90
"""Bytes of this folder's path: a socket's path has at most 107."""


class Supervisor:
    """The workers of one sidecar, and what they share. ``command`` starts one."""

    def __init__(self, settings: Settings, command: Sequence[str]) -> None:
        self._settings = settings
        self._configuration = load(settings) if settings.config is not None else None
        if self._configuration is not None:
            # An error of the settings is found here, and not by each worker.
            entitlements = len(self._configuration.file.entitlements)
            derive(settings, entitlements, memory_limit.read(), settings.workers)
        self._stopping = asyncio.Event()
        self._reserved = reserved(settings.listen)
        self.listens_on = bound(self._reserved)
        self.folder = private_folder()
        self._table = new_table(settings.workers)
        self._cells = mapped(self._table, settings.workers)
        self._notifiers = tuple(new_notifier() for _ in range(settings.workers))
        self._living, self._alive = os.pipe()
        port = self.listens_on[0].port
        self._pod = f"{settings.name or os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"
        self._workers = [
            WorkerProcess(
                Place(
                    index=index,
                    workers=settings.workers,
                    pod=self._pod,
                    folder=str(self.folder),
                    table=self._table,
                    notifiers=self._notifiers,
                    listen=tuple((each.host, each.port or port) for each in settings.listen),
                    living=self._living,
                ),
                command,
                self._ended,
            )
            for index in range(settings.workers)
        ]
        self._releases: set[asyncio.Task[None]] = set()
        self._planner: PodPlanner | None = None
        self._watcher: PoolFileWatcher | None = None
        if self._configuration is not None and not settings.has_store:
            self._planner = PodPlanner(
                self._configuration, settings.tick, settings.lease_lifetime, settings.debt_gain
            )
            telemetry = Telemetry(settings.metrics_entitlements)
            self._watcher = PoolFileWatcher(settings, telemetry, self._configuration, self)
        pool = self._configuration.pool.name if self._configuration is not None else settings.pool or ""
        self._credentials = Credentials()
        """The files with the URL of the lease store, which is read again when they change."""
        self._store = self._planner.store if self._planner is not None else self._open_store(pool)
        self._pages = Pages(self.folder, list(self._workers), pool, self._restarts, self._kill)
        if self._planner is not None:
            self._pages.sources.append(self._planner.metrics)
            self._pages.planner = "none: a lone sidecar plans for itself"
        self._server = PageServer(self._pages.application())

    def _open_store(self, pool: str) -> Store:
        """The lease store of the pool, as the workers use it."""
        from sidecar.app import store_of  # noqa: PLC0415  # only with a lease store

        store, files = store_of(self._settings, pool)
        self._credentials.files.append(files)
        return store

    # --- workers ---

    def _restarts(self, index: int) -> int:
        return self._workers[index].restarts.count

    def _kill(self, index: int) -> None:
        self._workers[index].signal(signal.SIGKILL)

    def _ended(self, index: int, start: int) -> None:
        """The process of a worker has ended: its connections to the engine are closed."""
        cleared(self._cells, index)
        self._pages.ended(index)
        for notifier in self._notifiers:
            os.eventfd_write(notifier, 1)  # its room is free
        task = asyncio.get_running_loop().create_task(self._release(holder_of(self._pod, index, start)))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _release(self, holder: str) -> None:
        """Return the leases of a process that has ended. One that drained has returned them by itself."""
        with contextlib.suppress(StoreDown):  # then they expire
            await self._store.exchange(release(holder))

    # --- the pool file, for the planner (``configuration.Enforcer``) ---

    def prepare(self, configuration: Configuration) -> Iterator[None]:
        """Nothing is made in advance."""
        return iter(())

    def apply(self, configuration: Configuration) -> None:
        """The pool file changed. The workers read it, too."""
        self.enforce(configuration)

    def enforce(self, configuration: Configuration) -> None:
        """Plan with a changed pool file."""
        if self._planner is not None:
            self._planner.follow(configuration)

    def keys_changed(self) -> None:
        """The planner has no keys."""

    # --- the process ---

    async def run(self) -> int:
        """Run until ``stop`` was called and all workers have ended. Returns the exit status."""
        tasks: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        try:
            if self._planner is not None:
                await self._planner.start(self.folder)
            tasks.append(loop.create_task(self._credentials.run()))
            if self._watcher is not None:
                tasks.append(loop.create_task(self._watcher.run()))
            admin = await self._server.start(self._settings.admin, option="--admin")
            self._pages.start()
            running = [loop.create_task(each.run()) for each in self._workers]
            log.info(
                "supervising",
                extra={
                    "listen": str(self.listens_on),
                    "admin": str(admin),
                    "workers": self._settings.workers,
                    "lease_store": "of the pool" if self._planner is None else "of this sidecar",
                },
            )
            stopped = loop.create_task(self._stopping.wait())
            await asyncio.wait((stopped, *running), return_when=asyncio.FIRST_COMPLETED)
            self._drain()
            _, late = await asyncio.wait(running, timeout=self._settings.drain_timeout + KILLED_AFTER_S)
            if late:
                log.error("workers do not end, and are killed", extra={"workers": len(late)})
                for each in self._workers:
                    each.signal(signal.SIGKILL)
                await asyncio.wait(running)
            stopped.cancel()
            for task in running:
                task.result()
            return USAGE_ERROR if any(each.cannot_start for each in self._workers) else 0
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._pages.stop()
            await self._server.stop()
            await asyncio.gather(*self._releases, return_exceptions=True)
            await self._store.close()
            if self._planner is not None:
                await self._planner.stop()
            self.close()

    def stop(self) -> None:
        """Drain all workers, and end."""
        self._stopping.set()

    def _drain(self) -> None:
        self._pages.is_draining = True
        for each in self._workers:
            each.stop()

    def interrupted(self) -> None:
        """SIGINT: drain, and at the second one end at once."""
        if self._stopping.is_set():
            for each in self._workers:
                each.signal(signal.SIGINT)
        self.stop()

    def reload(self) -> None:
        """Make all workers read their files again."""
        self._credentials.request_reload()
        if self._watcher is not None:
            self._watcher.request_reload()
        for each in self._workers:
            if self._pages.answers(each.index):  # before its first page, a worker reads the files by itself
                each.signal(signal.SIGHUP)

    def close(self) -> None:
        """Give back the port, the files and the memory."""
        for sock in self._reserved:
            sock.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._cells.release()
        for descriptor in (self._table, self._living, self._alive, *self._notifiers):
            os.close(descriptor)


def private_folder(parents: Sequence[str | None] = FOLDERS) -> Path:
    """A new folder for sockets that only this user can use, in the first usable parent.

    Raises ``SettingsError``.
    """
    problem = ""
    for parent in parents:
        with contextlib.suppress(OSError):
            made = Path(tempfile.mkdtemp(prefix="tokenpool-", dir=parent))
            if len(os.fsencode(made)) <= LONGEST_PATH:
                return made
            problem = f"; {made} is too long for a socket"
            made.rmdir()
    raise SettingsError(
        f"--workers needs a folder for its sockets, and none is writable{problem}: set TMPDIR to a"
        " writable folder with a short path"
    )


async def serve(settings: Settings) -> int:
    """Run a sidecar with several workers until SIGTERM or SIGINT. SIGHUP reloads. Returns the exit status."""
    supervisor = Supervisor(settings, (sys.executable, *sys.orig_argv[1:]))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, supervisor.stop)
    loop.add_signal_handler(signal.SIGINT, supervisor.interrupted)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
    return await supervisor.run()
