"""The time that handover adds to a request whose engine is full, while another engine is idle."""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import uvloop

from bench import peers
from bench.load import latencies
from bench.machine import LOAD_CORE, PROXY_CORE, BenchError
from bench.upstream import unary_upstream
from toolbox.ports import free_port
from toolbox.processes import Process
from toolbox.redis import RedisProcess

RATE = 300.0
"""Requests per second at both sidecars. They share one core."""
SETTLING = 150
"""The first requests at each sidecar do not count. They open connections, which costs more."""
SLOTS = 10_000
"""The slots of a replica in the pool file."""
LEAST_SHARE = 0.99
"""The least share of requests that are handed over. Below it, the measurement is not valid."""


@dataclass(frozen=True)
class Handover:
    """Latencies in seconds of requests that run where they arrive, and of requests that are handed over."""

    requests: int
    """The number of requests at each sidecar."""
    here_p50: float
    here_p99: float
    elsewhere_p50: float
    elsewhere_p99: float
    share: float
    """The share of the requests at the full engine that were handed over."""


def added(folder: Path, seconds: float) -> Handover:
    """Send requests to the sidecar of an idle engine, and to the sidecar of a full engine, in turn.

    Raises ``BenchError`` if the requests at the full engine were not handed over.
    """
    folders = [folder / name for name in ("idle", "full")]
    for each in folders:
        each.mkdir(exist_ok=True)
    idle, idle_port = unary_upstream(folders[0])
    full, full_port = unary_upstream(folders[1], running=SLOTS)
    ports, admins = [free_port(), free_port()], [free_port(), free_port()]
    store = RedisProcess(folder, core=LOAD_CORE)
    sidecars = [
        Process(
            f"sidecar-{each.name}",
            [*peers.sidecar_command(upstream, port, admin, each, peers.pool_file(20)), "--store", store.url],
            each,
            probe=f"http://127.0.0.1:{admin}/readyz",
            core=PROXY_CORE,
        )
        for each, upstream, port, admin in zip(folders, (idle_port, full_port), ports, admins, strict=True)
    ]
    with idle, full, store, peers.coordinator(store.url, folders[0]), sidecars[0], sidecars[1]:
        time.sleep(peers.LEARN_S)
        here, elsewhere = uvloop.run(latencies(ports, RATE, seconds))
        share = _handed_over(admins[1]) / len(elsewhere)
    here, elsewhere = here[SETTLING:], elsewhere[SETTLING:]
    if share < LEAST_SHARE:
        raise BenchError(f"only {share:.1%} of the requests were handed over")
    here_p50, here_p99 = _percentiles(here)
    elsewhere_p50, elsewhere_p99 = _percentiles(elsewhere)
    return Handover(len(here), here_p50, here_p99, elsewhere_p50, elsewhere_p99, share)


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    """P50 and P99."""
    cuts = quantiles(seconds, n=100)
    return cuts[49], cuts[98]


def _handed_over(admin: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics") as response:
        page = response.read().decode()
    found = re.search(r'tokenpool_handovers_total\{[^}]*result="taken"[^}]*\} (\S+)', page)
    return float(found[1]) if found is not None else 0.0
