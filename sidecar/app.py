"""The composition root of a sidecar: it makes all parts and connects them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import resource
import signal
import time
from collections.abc import Coroutine, Iterator
from typing import Any

from runtime import collecting, memory_limit
from runtime.admin import PageServer
from runtime.followed import Credentials, FollowedFiles
from runtime.listening import BACKLOG, bound, listening
from runtime.loopdelay import LoopDelay
from runtime.options import SettingsError
from runtime.tls import Certificate
from sidecar.admin import Admin
from sidecar.configuration import Configuration, load
from sidecar.controller.access_log import AccessLog
from sidecar.controller.controller import Controller, Policies
from sidecar.controller.engine_priority import PriorityPolicy
from sidecar.controller.stored_responses import StoredResponses
from sidecar.engine.address import engine_address, followed
from sidecar.engine.cors_watcher import CorsWatcher
from sidecar.engine.metrics_relay import MetricsRelay
from sidecar.engine.state import EngineState
from sidecar.engine.watcher import PAGE_PATIENCE, EngineWatcher
from sidecar.first_file import FirstFile
from sidecar.handover.handover import Handover
from sidecar.jwt.service import JwtService
from sidecar.lifecycle import Lifecycle
from sidecar.local_planner import LocalPlanner
from sidecar.loop_holds import LoopHolds
from sidecar.memory_bounds import derive
from sidecar.pool_file_watcher import PoolFileWatcher
from sidecar.ports import LoopPorts
from sidecar.proxy.connection import ClientConnection
from sidecar.proxy.connection_manager import ConnectionManager
from sidecar.proxy.heads import RequestFramer
from sidecar.proxy.tls import TlsServer
from sidecar.proxy.upstream import Pool as UpstreamPool
from sidecar.quota_exchange import QuotaExchange
from sidecar.replication import Replication
from sidecar.settings import Settings
from sidecar.shared_limits import SharedLimits
from sidecar.telemetry import Telemetry
from sidecar.tracing.interface import Tracer
from sidecar.usage_records import UsageRecords
from sidecar.worker import Worker, pages_path, peers_at, store_path
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.capacity.model import CapacityModel
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver
from tokenpool.planning.planner import PlannerSettings
from tokenpool.store import Store

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 0.5
STATE_ROW_EVERY_S = 0.25
LONGEST_START_S = 5.0
"""A worker that replaces another one listens after these seconds at the latest, ready or not."""
FINAL_WRITE_S = 1.0
"""Seconds for the last answers to be sent after draining."""


class Sidecar:
    """One running sidecar. ``start`` returns once both ports listen; ``stop`` drains.

    ``store`` is its lease store; without one, the settings name it. ``memory`` is the limit of its memory in
    bytes. ``published`` is the published pool file, for settings without a pool file. ``worker`` is this
    process, if it is one of several: then it shares the memory, the port and the engine with the others.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store | None = None,
        *,
        memory: int | None = None,
        published: Configuration | None = None,
        worker: Worker | None = None,
    ) -> None:
        configuration = published or load(settings)
        self._worker = worker
        self.memory_bounds = derive(settings, len(configuration.file.entitlements), memory, self._workers)
        self.settings = settings
        self.lifecycle = Lifecycle()
        self.telemetry = telemetry = Telemetry(settings.metrics_entitlements)
        address = engine_address(settings)
        priority = PriorityPolicy(settings.engine_priority)
        self.engine = EngineState(
            CapacityModel(configuration.pool.replica),
            settings.upstream.url,
            schedules_by_priority=priority is PriorityPolicy.ON,
        )
        queue = AdmissionQueue(
            QueueSettings(
                settings.queue_timeout_guaranteed,
                settings.queue_timeout_elastic,
                settings.queue_timeout_spot,
            )
        )
        self._shared: SharedLimits | None = None
        self.credentials = Credentials()
        """The files with credentials, which are read again when they change."""
        if store is None:
            store = self._open_store(configuration.pool.name)
        if store is not None:
            self._shared = SharedLimits(
                settings, configuration, store, queue, self.engine, telemetry, self.lifecycle, worker
            )
        self.control = self._admission_control(queue)
        self._ports = self._shared.ports if self._shared is not None else LoopPorts(telemetry.clock)
        self.driver = Driver(
            self.control, self._ports, self._shared.sync if self._shared is not None else None
        )
        self.quota_exchange = QuotaExchange(
            settings.tick,
            settings.lease_lifetime,
            self.driver,
            self._ports,
            store,
            self._shared.holder if self._shared is not None else "",
        )
        self.controller = Controller(
            self.driver,
            self.engine,
            telemetry,
            self.lifecycle,
            configuration,
            policies=Policies(
                settings.identity_header, priority, exposes_engine=settings.expose_engine_metrics
            ),
            access_log=AccessLog(is_on=settings.log_requests),
            random=random.Random(),
            quotas=self.quota_exchange.quotas,
            stored=StoredResponses(worker.stored) if worker is not None else None,
        )
        self.usage = UsageRecords(
            settings, store, self.controller.settlement, telemetry.clock, configuration, self._workers
        )
        self.jwts = JwtService(telemetry.clock, time.time)
        self._identify(configuration)
        self.local_planner: LocalPlanner | None = None
        self.replication: Replication | None = None
        self.handover: Handover | None = None
        if self._shared is None:
            planner = PlannerSettings(debt_gain=settings.debt_gain)
            self.local_planner = LocalPlanner(self.controller, telemetry, self.engine.capacity, planner)
        else:
            self._shared.follow(self.controller.accounts, telemetry.clock())
            self.controller.authenticator.sources.append(self._shared.issued)
            self.replication = self._shared.replication(self.driver, self)
            self.handover = self._shared.handover(self.driver, address, self.controller.connection_refused)
        self.watcher = EngineWatcher(
            address,
            self.engine,
            self.control.load,
            poll_interval=settings.poll_interval,
            poll_timeout=settings.poll_timeout,
        )
        self._cors = CorsWatcher(address, self.engine, settings.poll_timeout)
        self._upstream = UpstreamPool(address, settings.connect_timeout)
        framer = RequestFramer(
            str(settings.upstream),
            address.key,
            settings.identity_header,
            is_traced=settings.otlp_endpoint is not None,
        )
        self.credentials.files.append(followed(address, settings, lambda: framer.use_key(address.key)))
        self.manager = ConnectionManager(
            settings,
            self.memory_bounds,
            self.controller,
            telemetry,
            self._upstream,
            framer,
            self.handover.links if self.handover is not None else None,
            tracer_of(settings, configuration.pool.name, telemetry),
        )
        self.loop_delay, self.loop_holds = LoopDelay(telemetry.clock), LoopHolds(telemetry.clock)
        self.certificate = _certificate_of(settings)
        self._engine_metrics = MetricsRelay(address, PAGE_PATIENCE * settings.poll_timeout)
        self.admin = self._admin()
        self._pages = PageServer(self.admin.application())
        self.pool_file_watcher = PoolFileWatcher(settings, telemetry, configuration, self)
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: list[asyncio.Server | TlsServer] = []

    @property
    def _workers(self) -> int:
        """The processes of this sidecar."""
        return self._worker.workers if self._worker is not None else 1

    def _admission_control(self, queue: AdmissionQueue) -> AdmissionControl:
        """The decisions about requests, with what other sidecars and other workers share."""
        made = AdmissionControl(
            self.telemetry.clock(),
            queue,
            leases=self._shared.leases if self._shared is not None else None,
            placement=self._shared.placement if self._shared is not None else None,
            has_slo_feedback=self.settings.slo_feedback,
        )
        if self._worker is not None:
            made.shared_room, made.worker_address = self._worker.room, peers_at(self._worker.folder)
        return made

    def _open_store(self, pool: str) -> Store | None:
        """The lease store that the settings name, or else that of the supervisor; ``None`` without any."""
        if self.settings.has_store:
            store, files = store_of(self.settings, pool)
            self.credentials.files.append(files)
            return store
        if self._worker is None:
            return None
        # Imported here: a single process needs no store.
        from tokenpool.store.local import LocalStore  # noqa: PLC0415

        return LocalStore(store_path(self._worker.folder), self.settings.store_timeout)

    def _admin(self) -> Admin:
        """The pages, with the metrics of all parts."""
        limits = self.local_planner or self.replication
        assert limits is not None
        admin = Admin(
            self.controller,
            limits,
            self.telemetry,
            self.manager,
            [self.engine, self.controller, self.loop_delay],
            self.loop_holds,
            self._engine_metrics,
            self.replication,
            self.credentials,
            self.certificate,
            self.handover,
        )
        prices = self._shared.prices if self._shared is not None else None
        admin.sources += [
            each
            for each in (self.replication, self.handover, prices, self.manager.tracer)
            if each is not None
        ]
        admin.sources += [self.quota_exchange, self.credentials, self.usage, self.jwts]
        admin.is_worker = self._worker is not None
        admin.faults += [self.usage.degraded, self.jwts.problems]
        return admin

    # --- configuration: the one path by which a pool file reaches all parts ---

    def prepare(self, configuration: Configuration) -> Iterator[None]:
        """Make the accounts of a changed pool file, in short steps."""
        return self.controller.prepare(configuration)

    def apply(self, configuration: Configuration) -> None:
        """The sidecar's own pool file changed. Put it in force unless a published one is in force."""
        if self.replication is not None:
            self.replication.published.own_file_changed(configuration)
        else:
            self.enforce(configuration)

    def keys_changed(self) -> None:
        """A key file of the published pool file changed. The sidecar has no file of its own."""
        if self.replication is not None:
            self.replication.published.read_again()

    def enforce(self, configuration: Configuration) -> None:
        """Put a changed pool file in force. Its limits follow with the next plan, which begins now."""
        if self.settings.config is None:
            self.pool_file_watcher.follow(configuration)
        if self.local_planner is not None:
            self.local_planner.finish()
        self.controller.configure(configuration)
        self._identify(configuration)
        self.engine.reconfigure(configuration.pool.replica)
        self.usage.follow(configuration)
        now = self.telemetry.clock()
        if self._shared is not None:
            self._shared.follow(self.controller.accounts, now)
        if self.local_planner is not None:
            self.local_planner.tick_soon()
        self.controller.engine_changed()  # the room and the limits have changed
        collecting.keep()

    def _identify(self, configuration: Configuration) -> None:
        """Accept the JWTs of the issuers in a pool file, and no others."""
        self.jwts.configure(configuration.file, configuration.pool.name)
        self.controller.authenticator.jwts = self.jwts if self.jwts.is_on else None

    async def start(self) -> None:
        """Listen for tenants and operators, and start the background loops. Raises ``OSError``."""
        if self.manager.tracer is not None:
            self.manager.tracer.start()
        job = self.loop_holds.job
        with job("jwt"):
            await self.jwts.start()
        with job("pages"):
            admin = await self._start_pages()
        if self._worker is None or not self._worker.is_again:
            await self._listen()
        if self.local_planner is not None:
            self.local_planner.tick(self.telemetry.clock())
            self._spawn("planner", self.local_planner.run(self.settings.tick))
        if self.handover is not None:
            with job("handover"):
                await self.handover.start()
        if self.replication is not None:
            self._spawn("leases", self.replication.run())
        if self._shared is not None:
            self._spawn("prices", self._shared.prices.run())
        for name, work in (
            ("engine", self.watcher.run()),
            ("engine_changes", self._follow_engine()),
            ("deadlines", self._follow_alarms()),
            ("cors", self._cors.run()),
            ("pool_file", self.pool_file_watcher.run()),
            ("sweep", self._sweep()),
            ("loop_delay", self.loop_delay.run()),
            ("credentials", self.credentials.run()),
            ("quotas", self.quota_exchange.run()),
        ):
            self._spawn(name, work)
        with job("usage"):
            self.usage.start()
        if self._worker is not None:
            self._share_room(self._worker)
            if self._worker.is_again:
                await self._until_ready()
                await self._listen()
        log.info(
            "listening",
            extra={
                "listen": str(self._bound),
                "admin": admin,
                "tls": self.certificate is not None,
                "upstream": self.settings.upstream.url,
                "pool": self.controller.pool.name,
                "max_connections": self.memory_bounds.connections,
                "max_buffered_bytes": self.memory_bounds.buffered_bytes,
            },
        )

    async def _start_pages(self) -> str:
        """Serve the admin pages. Returns the addresses."""
        if self._worker is not None:
            path = pages_path(self._worker.folder, self._worker.index)
            await self._pages.start_at(path)
            return str(path)
        addresses = await self._pages.start(self.settings.admin, option="--admin")
        self.admin_on = addresses[0]
        return str(addresses)

    def _share_room(self, worker: Worker) -> None:
        """Serve when another worker notifies this one, and keep its row in the table fresh."""
        self._spawn("worker_state", self._state_row())
        asyncio.get_running_loop().add_reader(worker.notifier, self._notified, worker.notifier)

    def _notified(self, notifier: int) -> None:
        """Another worker has left room for a request that waits here."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(notifier)
        self.driver.serve()

    async def _state_row(self) -> None:
        while True:
            try:
                self.driver.act()
                self.controller.stored.follow()
            except Exception:
                # A defect must not end the loop: without fresh rows, this worker would seem to have ended.
                log.critical("this worker's row could not be stated", exc_info=True)
            await asyncio.sleep(STATE_ROW_EVERY_S)

    async def _until_ready(self) -> None:
        """Wait until requests can be served. Until then the other workers get all of them."""
        deadline = self.telemetry.clock() + LONGEST_START_S
        while self.admin.problems() and self.telemetry.clock() < deadline:
            await asyncio.sleep(0.02)

    async def _listen(self) -> None:
        shared = self._worker
        addresses = self.settings.listen if shared is None else shared.listen
        sockets = listening(addresses, is_shared=shared is not None)
        self._bound = bound(sockets)
        self.listens_on = self._bound[0]
        if self.certificate is not None:
            server = TlsServer(self.manager, self.certificate, self.settings)
            self._servers.append(server)
            self.admin.sources.append(server)
            server.accept(sockets)
            self._spawn("credentials", self.certificate.watch.run())
            return
        loop = asyncio.get_running_loop()
        for each in sockets:
            plain = await loop.create_server(
                lambda: ClientConnection(self.manager), sock=each, backlog=BACKLOG
            )
            self._servers.append(plain)

    def reload(self) -> None:
        """Make the sidecar read the pool file, the certificate and the credentials again."""
        self.pool_file_watcher.request_reload()
        self.credentials.request_reload()
        self.jwts.request_reload()
        if self.certificate is not None:
            self.certificate.watch.request_reload()

    def _spawn(self, job: str, work: Coroutine[Any, Any, None]) -> None:
        with self.loop_holds.job(job):
            task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_log_failure)
        self._tasks.append(task)

    async def _follow_engine(self) -> None:
        """Let the controller act after each poll of the engine."""
        async for _ in self.watcher.polls():
            try:
                self.controller.engine_changed()
            except Exception:
                # A defect must not end the loop: the next poll tries again.
                log.critical("an observation of the engine could not be used", exc_info=True)

    async def _follow_alarms(self) -> None:
        """Decide the waiting requests whose deadline has passed."""
        async for _ in self._ports.alarms():
            try:
                self.driver.wake()
            except Exception:
                log.critical("the waiting requests could not be decided in time", exc_info=True)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            for _ in self.manager.sweep(self.telemetry.clock()):
                await asyncio.sleep(0)

    async def stop(self) -> None:
        """Drain: refuse new requests, let running ones finish in bounded time, then end."""
        self.lifecycle.is_draining = True
        running = self.manager.exchanges
        log.info("draining", extra={"running": running})
        self.manager.close_idle()
        self.manager.end_waits()
        deadline = self.telemetry.clock() + self.settings.drain_timeout
        self.controller.update_serving()
        while (self.manager.exchanges or self._has_peer_requests) and self.telemetry.clock() < deadline:
            await asyncio.sleep(0.02)
        for server in self._servers:
            server.close()
        cut = self.manager.exchanges
        self.manager.drain()
        await self._last_writes()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.jwts.stop()
        self.driver.stop()
        await self.quota_exchange.stop()
        await self.usage.stop()
        if self.replication is not None:
            await self.replication.stop()
        if self.handover is not None:
            await self.handover.stop()
        if self._worker is not None:
            asyncio.get_running_loop().remove_reader(self._worker.notifier)
        await self._pages.stop()
        await self._engine_metrics.close()
        self._upstream.close()
        self._ports.stop()
        if self.manager.tracer is not None:
            await self.manager.tracer.stop()
        log.info("stopped", extra={"cut": cut})

    @property
    def _has_peer_requests(self) -> bool:
        """Whether requests of other sidecars run here."""
        return self.handover is not None and self.handover.port.is_busy

    async def _last_writes(self) -> None:
        """Wait until answers are sent. Then abort the connections of clients that do not read."""
        deadline = self.telemetry.clock() + FINAL_WRITE_S
        while self.manager.connections and self.telemetry.clock() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.manager.connections):
            connection.abort()


def _certificate_of(settings: Settings) -> Certificate | None:
    cert, key = settings.tls_cert, settings.tls_key
    return Certificate(cert, key) if cert is not None and key is not None else None


def store_of(settings: Settings, pool: str) -> tuple[Store, FollowedFiles]:
    """The lease store that the settings name, and the files that move it when they change."""
    # Imported here: a lone sidecar needs no client of Redis.
    from tokenpool.store.address import AddressInvalid, StoreFiles  # noqa: PLC0415

    url = settings.store if settings.store_file is None else None
    try:
        files = StoreFiles(url, settings.store_file, settings.store_password_file)
    except AddressInvalid as error:
        raise SettingsError(str(error)) from error
    timeout_s = settings.store_timeout
    store = files.open(pool, settings.lease_lifetime, timeout_s)
    return store, FollowedFiles("store", files.paths, lambda: files.follow([store], timeout_s))


def tracer_of(settings: Settings, pool: str, telemetry: Telemetry) -> Tracer | None:
    """The tracer that the settings name. Raises ``SettingsError`` if OpenTelemetry is not installed."""
    if settings.otlp_endpoint is None:
        return None
    # Imported here: without the option, nothing of OpenTelemetry is loaded.
    try:
        from sidecar.tracing.otlp import OtlpTracer  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(
            f"--otlp-endpoint needs OpenTelemetry, which is not installed ({error}):"
            " pip install 'tokenpool[tracing]'"
        ) from error
    return OtlpTracer(
        settings.otlp_endpoint,
        telemetry.clock,
        pool=pool,
        name=settings.name,
        upstream=settings.upstream,
        is_tls=settings.tls_cert is not None,
    )


def _log_failure(task: asyncio.Task[None]) -> None:
    """Log the exception that ended a background loop, which is always a defect."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a background loop failed", exc_info=error)


def raise_open_files(max_connections: int) -> None:
    """Raise the limit of open files as far as the system allows. Each request needs two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < 2 * max_connections:
        log.warning(
            "the system allows fewer open files than connections may need",
            extra={
                "open_files": hard,
                "fix": f"raise the limit, or set --max-connections to {hard // 2 - 50}",
            },
        )


async def _first_file(
    settings: Settings, stopping: asyncio.Event, worker: Worker | None
) -> Configuration | None:
    """The first published pool file; ``None`` if the sidecar is stopped before."""
    engine_address(settings)  # a key file that cannot be read is an error now
    assert settings.pool is not None
    pages = pages_path(worker.folder, worker.index) if worker is not None else None
    store, files = store_of(settings, settings.pool)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, files.watch.request_reload)
    waiting = asyncio.ensure_future(FirstFile(settings, settings.pool, store, pages).wait())
    following = asyncio.ensure_future(files.watch.run())
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((waiting, stopped), return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        for task in (waiting, following, stopped):
            task.cancel()
        await asyncio.gather(waiting, following, stopped, return_exceptions=True)
        await store.close()


def _supervisor_ended(living: int, stopping: asyncio.Event) -> None:
    """Drain: without its supervisor, a worker has no lease store, and nothing starts it again."""
    log.critical("the supervisor of this worker has ended")
    asyncio.get_running_loop().remove_reader(living)
    stopping.set()


async def serve(settings: Settings, worker: Worker | None = None) -> None:
    """Run a sidecar until SIGTERM or SIGINT. SIGINT while it drains ends it at once; SIGHUP reloads.

    ``worker`` is this process, if it is one of several.

    A second SIGTERM changes nothing: when kubelet restarts a native sidecar alone, the preStop hook signals
    first, and kubelet right after it.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if worker is not None:
        loop.add_reader(worker.supervisor, _supervisor_ended, worker.supervisor, stopping)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until there is something to reload
    published: Configuration | None = None
    if settings.config is None:
        published = await _first_file(settings, stopping, worker)
        if published is None:
            return
    with collecting.postponed():  # saves a third of the time with 10,000 entitlements
        sidecar = Sidecar(settings, memory=memory_limit.read(), published=published, worker=worker)
    raise_open_files(sidecar.memory_bounds.connections)
    await sidecar.start()
    loop.add_signal_handler(signal.SIGHUP, sidecar.reload)
    gc.collect()
    collecting.keep()  # otherwise each later collection takes 40 ms
    await stopping.wait()
    drained = loop.create_task(sidecar.stop())
    loop.add_signal_handler(signal.SIGINT, sidecar.manager.drain)
    await drained
