"""Measurements of proxies as processes: CPU per request and event, added latency, memory, start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import peers
from bench.load import Streams, wrk
from bench.machine import PROXY_CORE
from bench.upstream import stream_upstream, unary_upstream
from toolbox.ports import free_port
from toolbox.processes import Process

CONNECTIONS = 32
STREAMS, INTERVAL_MS = 150, 10.0
HELD_STREAMS, HELD_INTERVAL_MS = 5000, 5000.0


@dataclass(frozen=True)
class UnaryRow:
    """The results of one proxy with unary requests."""

    per_core: float
    """Requests per second of the proxy's CPU time, which is its rate on a core of its own."""
    rate: float
    """Requests per second of wall-clock time."""
    p99_s: float


def unary(
    folder: Path, rounds: int, seconds: float, proxies: Sequence[peers.Starter] = peers.PEERS
) -> dict[str, UnaryRow]:
    """Unary requests through each proxy in turn. Returns the median round of each."""
    seen: dict[str, list[UnaryRow]] = {}
    upstream, port = unary_upstream(folder)
    with upstream:
        for _ in range(rounds):
            for start in proxies:
                with start(port, folder) as proxy:
                    process = proxy.process
                    wrk(proxy.port, folder, connections=CONNECTIONS, seconds=1)
                    before = process.cpu_seconds()
                    result = wrk(proxy.port, folder, connections=CONNECTIONS, seconds=seconds)
                    cpu = process.cpu_seconds() - before
                row = UnaryRow(result.requests / cpu, result.requests / result.seconds, result.p99)
                seen.setdefault(proxy.name, []).append(row)
    return {
        name: UnaryRow(
            median(r.per_core for r in rows), median(r.rate for r in rows), median(r.p99_s for r in rows)
        )
        for name, rows in seen.items()
    }


def streaming(folder: Path, rounds: int, seconds: float) -> dict[str, float]:
    """CPU seconds per streamed event of each proxy. Returns medians of the rounds."""
    seen: dict[str, list[float]] = {}
    upstream, port = stream_upstream(folder, INTERVAL_MS)
    with upstream:
        for _ in range(rounds):
            for start in peers.PEERS:
                with start(port, folder) as proxy:
                    cost = asyncio.run(_cpu_per_event(proxy.port, proxy.process, seconds))
                seen.setdefault(proxy.name, []).append(cost)
    return {name: median(costs) for name, costs in seen.items()}


async def _cpu_per_event(port: int, process: Process, seconds: float) -> float:
    streams = Streams()
    await streams.open(port, STREAMS)
    await asyncio.sleep(0.5)
    events, cpu = streams.events, process.cpu_seconds()
    await asyncio.sleep(seconds)
    events, cpu = streams.events - events, process.cpu_seconds() - cpu
    streams.check(STREAMS)
    streams.close()
    await asyncio.sleep(0.1)
    return cpu / events


@dataclass(frozen=True)
class Latency:
    """Seconds from request to response."""

    direct_p50: float
    direct_p99: float
    through_p50: float
    through_p99: float


def latency(folder: Path, rounds: int, seconds: float, rate: float) -> Latency:
    """Latency at ``rate`` requests/s, directly to the upstream and through the sidecar, in turn."""
    upstream, port = unary_upstream(folder)
    rows = []
    with upstream, peers.tokenpool(port, folder) as proxy:
        for _ in range(rounds):
            direct, through = (
                wrk(to, folder, connections=16, seconds=seconds, delay_ms=16 / rate * 1000)
                for to in (port, proxy.port)
            )
            rows.append((direct.p50, direct.p99, through.p50, through.p99))
    return Latency(*(median(column) for column in zip(*rows, strict=True)))


def held_streams(folder: Path) -> dict[str, float]:
    """Resident megabytes of each proxy with thousands of open streams."""
    upstream, port = stream_upstream(folder, HELD_INTERVAL_MS)
    resident = {}
    with upstream:
        for start in (peers.nginx, peers.envoy, peers.tokenpool):
            with start(port, folder) as proxy:
                resident[proxy.name] = asyncio.run(_resident(proxy.port, proxy.process))
    return resident


async def _resident(port: int, process: Process) -> float:
    streams = Streams()
    await streams.open(port, HELD_STREAMS)
    await asyncio.sleep(HELD_INTERVAL_MS / 1000 + 1)
    streams.check(HELD_STREAMS)
    resident = process.resident_mb()
    streams.close()
    await asyncio.sleep(0.5)
    return resident


def start(folder: Path, rounds: int) -> tuple[float, float]:
    """Medians of the seconds from the command to a 200 of ``/readyz``, and of the resident megabytes then."""
    upstream, port = unary_upstream(folder)
    times, sizes = [], []
    with upstream:
        for _ in range(rounds):
            listen, admin = free_port(), free_port()
            command = peers.sidecar_command(port, listen, admin, folder, peers.pool_file(20))
            ready = f"http://127.0.0.1:{admin}/readyz"
            began = time.perf_counter()
            with Process("start", command, folder, probe=ready, core=PROXY_CORE) as process:
                times.append(time.perf_counter() - began)
                time.sleep(1.0)
                sizes.append(process.resident_mb())
    return median(times), median(sizes)
