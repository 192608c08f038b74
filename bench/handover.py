"""The time that handover adds to a request whose engine is full, while another engine is idle."""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import peers
from bench.load import wrk
from bench.machine import LOAD_CORE, PROXY_CORE, BenchError
from bench.upstream import unary_upstream
from toolbox.ports import free_port
from toolbox.processes import Process
from toolbox.redis import RedisProcess

RATE = 300
"""Requests per second. Both sidecars share one core."""
CONNECTIONS = 8
SLOTS = 10_000
"""The slots of a replica in the pool file."""
LEAST_SHARE = 0.99
"""The least share of requests that are handed over. Below it, the measurement is not valid."""


@dataclass(frozen=True)
class Handover:
    """Latencies in seconds of requests that run where they arrive, and of requests that are handed over."""

    here_p50: float
    here_p99: float
    elsewhere_p50: float
    elsewhere_p99: float
    share: float
    """The share of the requests at the full engine that were handed over."""


def added(folder: Path, rounds: int, seconds: float) -> Handover:
    """Send the same requests to the sidecar of an idle engine, and to the sidecar of a full engine, in turn.

    Raises ``BenchError`` if the requests at the full engine were not handed over.
    """
    rows: list[tuple[float, float, float, float]] = []
    sent = 0
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
        pause_ms = CONNECTIONS / RATE * 1000
        for _ in range(rounds):
            here, elsewhere = (
                wrk(to, folder, connections=CONNECTIONS, seconds=seconds, delay_ms=pause_ms) for to in ports
            )
            rows.append((here.p50, here.p99, elsewhere.p50, elsewhere.p99))
            sent += elsewhere.requests
        share = _handed_over(admins[1]) / sent
    if share < LEAST_SHARE:
        raise BenchError(f"only {share:.1%} of the requests were handed over")
    here_p50, here_p99, elsewhere_p50, elsewhere_p99 = (median(column) for column in zip(*rows, strict=True))
    return Handover(here_p50, here_p99, elsewhere_p50, elsewhere_p99, share)


def _handed_over(admin: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics") as response:
        page = response.read().decode()
    found = re.search(r'tokenpool_handovers_total\{[^}]*result="taken"[^}]*\} (\S+)', page)
    return float(found[1]) if found is not None else 0.0
