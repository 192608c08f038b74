"""The parts of a sidecar that shares its pool's limits with others: leases, messages, replication."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Mapping

from sidecar.configuration import Configuration, Enforcer
from sidecar.engine.address import EngineAddress
from sidecar.engine.state import EngineState
from sidecar.handover.asking import PeerLinks
from sidecar.handover.handover import Handover
from sidecar.issued_keys import IssuedKeys
from sidecar.lifecycle import Lifecycle
from sidecar.ports import LoopPorts
from sidecar.price_sharing import PriceSharing
from sidecar.published_file import PublishedFile
from sidecar.replication import Replication
from sidecar.report import Reporter
from sidecar.settings import Settings
from sidecar.telemetry import Telemetry
from sidecar.worker import Worker
from tokenpool.accounting.account import Account
from tokenpool.admission.affinity import PrefixCaches
from tokenpool.admission.placement import Placement
from tokenpool.admission.queue import AdmissionQueue
from tokenpool.control.driver import Driver
from tokenpool.leases.leases import Leases
from tokenpool.leases.settings import LeaseSettings
from tokenpool.leases.sync import LeaseSync
from tokenpool.store import Store


class SharedLimits:
    """Makes these parts, in the order of their dependencies."""

    def __init__(
        self,
        settings: Settings,
        configuration: Configuration,
        store: Store,
        queue: AdmissionQueue,
        engine: EngineState,
        telemetry: Telemetry,
        lifecycle: Lifecycle,
        worker: Worker | None = None,
    ) -> None:
        """``worker`` is this process, if it is one of several."""
        self._worker = worker
        workers = worker.workers if worker is not None else 1
        self._settings = settings
        self._configuration = configuration
        self._telemetry = telemetry
        lease_settings = LeaseSettings(settings.lease_lifetime, settings.tick)
        self.leases = Leases(lease_settings, configuration.pool.max_replicas * workers, queue)
        name = settings.name or socket.gethostname()
        # A restarted process is a new lease holder: the leases of its predecessor must expire.
        holder = f"{name}-{os.getpid()}-{secrets.token_hex(4)}"
        if worker is not None:
            holder = worker.holder
        self.holder = holder
        self.sync = LeaseSync(holder, self.leases)
        self._store = store
        self._reporter = Reporter(engine, self.leases, telemetry, lifecycle, self._worker)
        self.ports = LoopPorts(telemetry.clock, self._store, self._reporter)
        self.placement: Placement | None = None
        # Without a lease store of its pool, a sidecar has no other replicas, only its own workers.
        self._hands_over = settings.handover == "on" and (worker is None or settings.has_store)
        if self._hands_over or worker is not None:
            caches = PrefixCaches() if self._hands_over and settings.prefix_affinity == "on" else None
            own_workers = worker.holder_prefix if worker is not None else ""
            self.placement = Placement(holder, caches, own_workers=own_workers, has_others=self._hands_over)
            self.ports.peers = PeerLinks(telemetry.clock)
        if worker is not None:
            self.ports.notifiers = worker.notifiers
        self.prices = PriceSharing(holder, store, telemetry)
        self.issued = IssuedKeys(store)

    def follow(self, accounts: Mapping[str, Account], now: float) -> None:
        """Use these accounts from now on."""
        self.sync.follow(accounts, now)
        self.prices.follow(accounts)

    def handover(
        self, driver: Driver, engine: EngineAddress, connection_refused: Callable[[], None]
    ) -> Handover | None:
        """Handover, if it is on. ``connection_refused`` is called when the engine refuses a connection."""
        links = self.ports.peers
        if links is None:
            return None
        return Handover(
            self._settings,
            driver,
            links,
            engine,
            self._store,
            self._telemetry.clock,
            connection_refused=connection_refused,
            worker=self._worker,
            hands_over=self._hands_over,
        )

    def replication(self, driver: Driver, enforcer: Enforcer) -> Replication:
        """The loops of the exchange. ``enforcer`` puts a published pool file in force."""
        published = PublishedFile(
            self._settings, self._store, self._telemetry, self._reporter, self._configuration, enforcer
        )
        return Replication(
            self._settings.tick,
            driver,
            self.sync,
            self._store,
            self.ports,
            published,
            self.issued,
            self._telemetry,
        )
