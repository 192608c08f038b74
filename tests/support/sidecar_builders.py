"""Short ways to build the sidecar's parts for tests."""

from __future__ import annotations

import random
from collections.abc import Callable

from sidecar.configuration import Configuration
from sidecar.controller.access_log import AccessLog
from sidecar.controller.controller import Controller, Policies
from sidecar.engine.state import EngineState
from sidecar.identity import KeyRing, administrator_digests, digests
from sidecar.lifecycle import Lifecycle
from sidecar.ports import LoopPorts
from sidecar.proxy.heads import RequestHead
from sidecar.report import Reporter
from sidecar.telemetry import Telemetry
from tests.support.harness import POOL
from tokenpool.admission.queue import AdmissionQueue, QueueSettings
from tokenpool.capacity.model import CapacityModel
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.control.driver import Driver
from tokenpool.entitlements import KeyRef, PoolFile, ReplicaCapacity
from tokenpool.leases.leases import Leases
from tokenpool.leases.settings import LeaseSettings
from tokenpool.poolfile.reading import parse


def configuration(text: str = POOL, version: str = "") -> Configuration:
    """The configuration of a pool file with its plain keys."""
    return configuration_of(parse(text).file, version)


def configuration_of(file: PoolFile, version: str = "") -> Configuration:
    """The configuration of a parsed file. It omits keys that are not plain."""

    def plain(ref: KeyRef) -> str:
        return ref.value

    keys = digests(file.entitlements, plain)
    administrators = KeyRing(administrator_digests(file.administrator_keys, plain, keys))
    return Configuration(file, file.pools[0], KeyRing(keys), administrators, (), version)


def controller(
    text: str = POOL,
    *,
    telemetry: Telemetry | None = None,
    policies: Policies | None = None,
    access_log: AccessLog | None = None,
    clock: Callable[[], float] | None = None,
) -> Controller:
    """The controller of a lone sidecar. Its driver has the ports of the event loop."""
    made, telemetry = configuration(text), telemetry or Telemetry(10)
    if clock is not None:
        telemetry.clock = clock
    control = AdmissionControl(telemetry.clock(), AdmissionQueue(QueueSettings()))
    return Controller(
        Driver(control, LoopPorts(telemetry.clock)),
        EngineState(CapacityModel(made.pool.replica)),
        telemetry,
        Lifecycle(),
        made,
        policies=policies or Policies(),
        access_log=access_log,
        random=random.Random(1),
    )


def head(
    path: bytes = b"/v1/completions", *headers: tuple[bytes, bytes], method: bytes = b"POST"
) -> RequestHead:
    """The head of a request. Header names are in lower case."""
    made = RequestHead()
    made.method, made.path, made.target, made.headers = method, path, path, list(headers)
    return made


def reporter(telemetry: Telemetry) -> Reporter:
    """The reporter of a sidecar before the first answer of its engine."""
    engine = EngineState(CapacityModel(ReplicaCapacity(1000.0, 10_000.0, 8.0)))
    leases = Leases(LeaseSettings(1.5, 0.25), 1, AdmissionQueue(QueueSettings()))
    return Reporter(engine, leases, telemetry, Lifecycle())


def owner(ring: KeyRing, key: bytes) -> str | None:
    """The entitlement of a key; ``None`` if the ring does not have it."""
    found = ring.find(key)
    return None if found is None else found.entitlement
