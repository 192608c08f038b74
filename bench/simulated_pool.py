"""A simulated pool in one Redis, and the cost of a coordinator's tick for it."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import redis.asyncio

from tokenpool.amounts import Amount
from tokenpool.entitlements import Entitlement, Group, Tier
from tokenpool.leases.messages import LeaseRequest, Message, PoolSnapshot, ReplicaRoom
from tokenpool.leases.tick import NO_MEMORY, tick
from tokenpool.leases.wire import SidecarReport, encode_report
from tokenpool.store.redis import RedisStore

LIFETIME_S = 600.0
HOLDERS = 4
"""The most sidecars with requests of one entitlement."""
AT_ONCE = 250
"""The most entitlements in one message."""
REPLICA = Amount(5000, 200_000, 64)


@dataclass(frozen=True)
class TickRow:
    """The CPU time of one tick in ms, by step, and that of Redis."""

    entitlements: int
    sidecars: int
    groups: int
    changed: float
    read: float
    plan: float
    publish: float
    redis: float
    wall: float

    @property
    def coordinator(self) -> float:
        """The CPU time of the coordinator."""
        return self.read + self.plan + self.publish

    @property
    def total(self) -> float:
        """The CPU time of the coordinator and of Redis."""
        return self.coordinator + self.redis


class _Pool:
    """A simulated pool in one Redis: its entitlements, and the messages of its sidecars."""

    def __init__(self, store: RedisStore, count: int, sidecars: int, groups: int) -> None:
        self.store, self._sidecars = store, sidecars
        self.entitlements = {
            f"tenant-{n:05}": Entitlement(
                f"tenant-{n:05}",
                "bench",
                (Tier.GUARANTEED, Tier.ELASTIC, Tier.SPOT)[n % 3],
                weight=1.0 + n % 4,
                guarantee=Amount(50, 2000, 1) * min(1000 / count, 1.0) if n % 3 == 0 else Amount(),
                group=f"group-{n % groups:04}" if groups else None,
            )
            for n in range(count)
        }
        self.groups = [Group(f"group-{n:04}", "bench", weight=1.0 + n % 2) for n in range(groups)]
        self._names = list(self.entitlements)
        self._spent = 0.0
        self._number = 0
        # Demand is three times the capacity.
        self._demand = REPLICA * (3 * sidecars / count)

    async def begin(self) -> None:
        """Each sidecar states its report, its room and its entitlements."""
        report = encode_report(
            SidecarReport(REPLICA, REPLICA, True, outcomes={"tenant-00000": {"finished": 9}})
        )
        for sidecar in range(self._sidecars):
            await self.store.exchange(Message(f"s{sidecar}", 0, {}, True, report, room=ReplicaRoom(9e4, 8)))
        for holder in range(min(HOLDERS, self._sidecars)):
            await self.change(1.0, holder)

    async def change(self, part: float, holder: int = 0) -> None:
        """Sidecars send messages about this part of the entitlements: use, demand and spending change."""
        self._number += 1
        self._spent += 100.0
        chosen = self._names[: round(part * len(self._names))]
        by_sidecar: dict[int, list[str]] = {}
        for number, name in enumerate(chosen):
            by_sidecar.setdefault((number + holder) % self._sidecars, []).append(name)
        for sidecar, names in by_sidecar.items():
            for start in range(0, len(names), AT_ONCE):
                requests = {name: self._request() for name in names[start : start + AT_ONCE]}
                self._number += 1
                await self.store.exchange(
                    Message(f"s{sidecar}", self._number, requests, False, room=ReplicaRoom(9e4, 8))
                )

    def _request(self) -> LeaseRequest:
        held = min(HOLDERS, self._sidecars)
        rate, kv_tokens, sequences = (self._demand * (1 / held)).values()
        return LeaseRequest(
            *(kv_tokens * 0.3, sequences * 0.3, kv_tokens * 0.4, sequences * 0.4, kv_tokens, sequences),
            *(self._spent, rate),
            demand=(rate * (1 + self._number % 3 / 50), kv_tokens, sequences),
            kv_seconds=self._spent * 30,
            concurrency_seconds=self._spent * 0.01,
            fresh=(rate, kv_tokens, sequences),
            floor=(100.0, 640.0, 1.0),
        )


async def tick_rows(
    url: str, count: int, sidecars: int, rounds: int, groups: int, parts: Sequence[float]
) -> list[TickRow]:
    """Ticks of a pool in which all entitlements have demand, three times the capacity. Medians.

    Before each tick, this part of the records changes, for each of ``parts``.
    """
    client = redis.asyncio.Redis.from_url(url)
    store = RedisStore(client, "bench", LIFETIME_S)
    await store.read()  # the store opens
    await client.hset("tokenpool:{bench}:meta", "opens_at", "0")
    pool = _Pool(store, count, sidecars, groups)
    await pool.begin()
    before: PoolSnapshot | None = None
    memory, rows = NO_MEMORY, []
    for part in parts:
        taken = []
        for number in range(rounds + 1):
            await pool.change(part)
            gc.collect()
            gc.freeze()
            busy, began, cpu = await _redis_cpu(client), time.perf_counter(), time.thread_time()
            snapshot = await store.read(whole=before is None)
            read = time.thread_time()
            made = tick(snapshot, pool.entitlements, before, memory=memory, groups=pool.groups)
            before, memory = snapshot, made.memory
            planned = time.thread_time()
            assert await store.publish(made.limits, made.plan.idle, 1, whole=number == 0 and part == parts[0])
            published, wall = time.thread_time(), time.perf_counter() - began
            busy = await _redis_cpu(client) - busy
            taken.append((read - cpu, planned - read, published - planned, busy, wall))
        columns = zip(*taken[1:], strict=True)
        rows.append(TickRow(count, sidecars, groups, part, *(1000 * median(column) for column in columns)))
    await store.close()
    return rows


async def _redis_cpu(client: redis.asyncio.Redis) -> float:
    used = await client.info("cpu")
    return float(used["used_cpu_sys"] + used["used_cpu_user"])
