"""The metrics of all processes, from their telemetry without a running process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, ProcessCollector

from coordinator import telemetry as coordinator_telemetry
from coordinator.resources import metrics as resource_metrics
from docs.generate import coordinator_with_all_metrics, pool_with_all_metrics
from injector.telemetry import Telemetry as InjectorTelemetry
from runtime.build import BuildInfo
from runtime.options import Origin
from runtime.tls import Certificate
from sidecar import telemetry
from sidecar.app import Sidecar
from sidecar.proxy import bounds
from sidecar.proxy.tls import TlsServer
from sidecar.settings import Settings
from sidecar.workers.pages import worker_metrics
from tests.certificates import certify

ROOT = Path(__file__).parents[3]
STORE = "redis://127.0.0.1:1"
"""An address without a server."""
_OF_A_SIDECAR = frozenset({"pool"})
"""The label that a sidecar adds to all of its series."""
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def exposed() -> Mapping[str, frozenset[str]]:
    """The labels of every series that a process may expose, by the series' name."""
    with pool_with_all_metrics() as pool:
        sidecar = Sidecar(Settings(config=pool, upstream=Origin("127.0.0.1", 1), store=STORE))
    coordinator = coordinator_with_all_metrics()
    found: dict[str, frozenset[str]] = {}
    process = ProcessCollector(registry=CollectorRegistry())
    with tempfile.TemporaryDirectory() as folder:
        certificate = Certificate(*certify(Path(folder), "exposed"))
    tls = TlsServer(sidecar.manager, certificate, sidecar.settings)
    ours = (*telemetry.FAMILIES, *bounds.FAMILIES)
    for family in (*ours, *coordinator_telemetry.FAMILIES):
        labels = frozenset(family.labels) | ({"le"} if family.kind == "histogram" else set())
        for suffix in _SUFFIXES.get(family.kind, ("",)):
            found[family.name + suffix] = labels | (_OF_A_SIDECAR if family in ours else frozenset())
    for families, more in (
        *((source.metrics(), _OF_A_SIDECAR) for source in sidecar.admin.sources),
        (tls.metrics(), _OF_A_SIDECAR),
        (worker_metrics(0, 0), _OF_A_SIDECAR),
        (coordinator.telemetry.collect(), frozenset()),
        (resource_metrics.families({}, {}, {}, is_synced=True), frozenset()),
        (process.collect(), _OF_A_SIDECAR),
        (BuildInfo().collect(), _OF_A_SIDECAR),
        (InjectorTelemetry(certificate).metrics(), frozenset()),
    ):
        for name, labels in _series(families):
            found[name] = found.get(name, frozenset()) | labels | more
    return found


def _series(families: Iterable[Metric]) -> Iterator[tuple[str, frozenset[str]]]:
    for family in families:
        labels = frozenset(family._labelnames) | ({"le"} if family.type == "histogram" else set())
        for suffix in _SUFFIXES.get(family.type, ("",)):
            yield family.name + suffix, labels
