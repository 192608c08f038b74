"""The cost of shared limits: a coordinator's tick, and a sidecar's messages to Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import redis.asyncio
import uvloop

from bench import peers
from bench.load import wrk
from bench.machine import LOAD_CORE, PROXY_CORE
from bench.simulated_pool import TickRow, tick_rows
from bench.upstream import unary_upstream
from toolbox.ports import free_port
from toolbox.processes import Process
from toolbox.redis import RedisProcess

SIZES = ((250, 100), (1000, 10), (1000, 100), (1000, 200), (2000, 100), (4000, 100))
"""Entitlements and sidecars."""
GROUPS = 100
"""Groups in the tick with groups."""
RATE = 500
"""Requests per second to the measured sidecar."""


@dataclass(frozen=True)
class SidecarCost:
    """The load of one sidecar on Redis, per second."""

    requests: float
    calls: float
    bytes_to: float
    bytes_from: float


def ticks(folder: Path, rounds: int) -> list[TickRow]:
    """The tick of each size. All records change between two ticks."""
    return [_tick(folder, entitlements, sidecars, rounds) for entitlements, sidecars in SIZES]


def grouped_tick(folder: Path, rounds: int) -> TickRow:
    """The tick of 1,000 entitlements in ``GROUPS`` groups, with 100 sidecars."""
    return _tick(folder, 1000, 100, rounds, GROUPS)


def _tick(folder: Path, entitlements: int, sidecars: int, rounds: int, groups: int = 0) -> TickRow:
    with RedisProcess(folder, core=PROXY_CORE) as server:
        return uvloop.run(tick_rows(server.url, entitlements, sidecars, rounds * 3, groups, (1.0,)))[0]


def sidecar_traffic(folder: Path, seconds: float) -> dict[str, SidecarCost]:
    """The messages of a sidecar to Redis, idle and with ``RATE`` requests per second."""
    upstream, port = unary_upstream(folder)
    with upstream, RedisProcess(folder, core=LOAD_CORE) as server:
        return asyncio.run(_sidecar_traffic(folder, port, server.url, seconds))


async def _sidecar_traffic(folder: Path, upstream: int, url: str, seconds: float) -> dict[str, SidecarCost]:
    listen, admin = free_port(), free_port()
    command = [*peers.sidecar_command(upstream, listen, admin, folder), "--store", url]
    sidecar = Process("sidecar", command, folder, core=PROXY_CORE, probe=f"http://127.0.0.1:{admin}/readyz")
    with peers.coordinator(url, folder) as coordinator, sidecar:
        await asyncio.sleep(peers.LEARN_S)
        coordinator.stop()
        # The last limits stay valid without a coordinator. So all traffic with Redis is the sidecar's.
        async with redis.asyncio.Redis.from_url(url) as client:
            rest = await _traffic_during(client, asyncio.to_thread(time.sleep, seconds))
            busy = await _traffic_during(client, asyncio.to_thread(_load, listen, folder, seconds))
    return {"idle": rest, f"at {busy.requests:.0f} requests/s": busy}


def _load(port: int, folder: Path, seconds: float) -> float:
    seen = wrk(port, folder, connections=16, seconds=seconds, delay_ms=16 / RATE * 1000)
    return seen.requests / seen.seconds


async def _traffic_during(client: redis.asyncio.Redis, work: Awaitable[float | None]) -> SidecarCost:
    """The traffic of Redis during this work."""
    before, began = await _numbers(client), time.monotonic()
    requests = await work
    after, elapsed = await _numbers(client), time.monotonic() - began
    return SidecarCost(requests or 0.0, *((b - a) / elapsed for a, b in zip(before, after, strict=True)))


async def _numbers(client: redis.asyncio.Redis) -> tuple[float, float, float]:
    """Calls of scripts, bytes received, bytes sent."""
    stats, commands = await client.info("stats"), await client.info("commandstats")
    calls = commands.get("cmdstat_evalsha", {"calls": 0})["calls"]
    return calls, stats["total_net_input_bytes"], stats["total_net_output_bytes"]
