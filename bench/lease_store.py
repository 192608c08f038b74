"""The cost of shared limits: a coordinator's tick, and a sidecar's messages to Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import redis.asyncio
import uvloop

from bench import peers
from bench.load import wrk
from bench.machine import LOAD_CORE, PROXY_CORE
from bench.upstream import unary_upstream
from tokenpool.amounts import Amount
from tokenpool.entitlements import Entitlement, Group, Tier
from tokenpool.leases.messages import LeaseRequest, Message, PoolSnapshot
from tokenpool.leases.tick import NO_MEMORY, tick
from tokenpool.leases.wire import SidecarReport, encode_report
from tokenpool.store.redis import RedisStore
from toolbox.ports import free_port
from toolbox.processes import Process
from toolbox.redis import RedisProcess

LIFETIME_S = 600.0
ACTIVE = 0.2
"""The share of all entitlements with requests at a given sidecar."""
SIZES = ((250, 100), (1000, 10), (1000, 100), (1000, 200), (2000, 100), (4000, 100))
"""Entitlements and sidecars."""
GROUPS = 100
"""Groups in the tick with groups."""
RATE = 500
"""Requests per second to the measured sidecar."""
REPLICA = Amount(5000, 200_000, 64)


@dataclass(frozen=True)
class TickCost:
    """Seconds of one tick, by step."""

    read: float
    plan: float
    publish: float

    @property
    def total(self) -> float:
        """The sum of all steps."""
        return self.read + self.plan + self.publish


@dataclass(frozen=True)
class SidecarCost:
    """The load of one sidecar on Redis, per second."""

    requests: float
    calls: float
    bytes_to: float
    bytes_from: float


def ticks(folder: Path, rounds: int) -> dict[tuple[int, int], TickCost]:
    """One tick for each size. Returns medians."""
    costs = {}
    for entitlements, sidecars in SIZES:
        with RedisProcess(folder, core=PROXY_CORE) as server:
            costs[entitlements, sidecars] = uvloop.run(_tick(server.url, entitlements, sidecars, rounds * 3))
    return costs


def grouped_tick(folder: Path, rounds: int) -> TickCost:
    """One tick of 1,000 entitlements in ``GROUPS`` groups, with 100 sidecars. Returns medians."""
    with RedisProcess(folder, core=PROXY_CORE) as server:
        return uvloop.run(_tick(server.url, 1000, 100, rounds * 3, GROUPS))


async def _tick(url: str, count: int, sidecars: int, rounds: int, groups: int = 0) -> TickCost:
    client = redis.asyncio.Redis.from_url(url)
    store = RedisStore(client, "bench", LIFETIME_S)
    entitlements = [
        Entitlement(
            f"tenant-{n:04}",
            "bench",
            (Tier.GUARANTEED, Tier.ELASTIC, Tier.SPOT)[n % 3],
            weight=1.0 + n % 4,
            guarantee=Amount(50, 2000, 1) if n % 3 == 0 else Amount(),
            group=f"group-{n % groups:03}" if groups else None,
        )
        for n in range(count)
    ]
    folders = [Group(f"group-{n:03}", "bench", weight=1.0 + n % 2) for n in range(groups)]
    report = encode_report(SidecarReport(REPLICA, REPLICA, True))
    await store.read()  # the store opens
    await client.hset("tokenpool:{bench}:meta", "opens_at", "0")
    spread = max(round(count * ACTIVE), 1)
    for number in range(sidecars):
        lease_requests = {
            entitlements[(number * 7 + n * 3) % count].name: LeaseRequest(
                32.0,
                1.0,
                64.0,
                2.0,
                64.0,
                2.0,
                100.0,
                50.0,
                demand=(37.0 + n % 11, 640.0, 1.5),
                kv_seconds=320.0,
                concurrency_seconds=0.7,
                fresh=(30.0, 600.0, 1.2),
                floor=(100.0, 64.0, 1.0),
            )
            for n in range(spread)
        }
        await store.exchange(Message(f"s{number}", 1, lease_requests, True, report))
    reads, plans, publishes = [], [], []
    before: PoolSnapshot | None = None
    known, memory = {each.name: each for each in entitlements}, NO_MEMORY
    for _ in range(rounds + 1):
        began = time.perf_counter()
        snapshot = await store.read()
        read = time.perf_counter()
        made = tick(snapshot, known, before, memory=memory, groups=folders)
        before, memory = snapshot, made.memory
        planned = time.perf_counter()
        assert await store.publish(made.limits, made.plan.idle, 1)
        published = time.perf_counter()
        reads.append(read - began)
        plans.append(planned - read)
        publishes.append(published - planned)
    await store.close()
    # The first tick finds no limits yet.
    return TickCost(median(reads[1:]), median(plans[1:]), median(publishes[1:]))


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
