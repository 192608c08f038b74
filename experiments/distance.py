"""The cost of a distant lease store, by tenants and sidecars, on an idle pool and under contention.

Each row starts real processes: Redis behind a relay that delays both directions, a coordinator, sidecars, one
stub engine.

On an idle pool, engines have many free slots and tenants have no ceilings. So the sidecars cause every
refusal, and all time that is added to a direct request.

With ``--contended``, tenants request twice the capacity of the pool. For each class, the served share may be
at most 10 points below that of the memory form: one sidecar with all slots, without Redis.

    python -m experiments.distance --tenants 50,200,500,1500 --sidecars 1,2,8 --distance-ms memory,0,6,12,40
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import uvloop

from toolbox import contended
from toolbox.percentiles import percentile
from toolbox.ports import free_port
from toolbox.processes import Process, module
from toolbox.redis import RedisProcess

OUT = Path(__file__).parent.parent / "out" / "distance"
MOST_REFUSED = 0.001
NOISE_S = 0.015
"""Tolerance for two cores that a dozen processes share. Without Redis, the added P99 was 3 to 13 ms."""
SHARE_NOISE = 0.1
"""A class's served share may be this much lower than in the memory form, because arrivals are random."""
PROMPT = "share " * 16
MEMORY = -1.0
"""A value of the distance: one sidecar with the store in its memory."""
JOINED_S = 4.0
"""Seconds until every sidecar has joined and read all limits twice."""


@dataclass(frozen=True)
class Row:
    """One run."""

    tenants: int
    sidecars: int
    distance_ms: float
    """Round trip to the store, or ``MEMORY``."""
    rate: float
    requests: int
    refused: int
    reasons: dict[str, int]
    p50_ms: float
    """P50 of served requests, minus the P50 of direct requests."""
    p99_ms: float
    served: dict[str, float]
    """The served share of the requests of each class."""

    @property
    def has_no_cost(self) -> bool:
        """Whether nearly all are served, and the added P99 is at most two round trips and ``NOISE_S``."""
        most = 2 * max(self.distance_ms, 0.0) + 1000 * NOISE_S
        return self.refused <= MOST_REFUSED * self.requests and self.p99_ms <= most

    def is_as_fair_as(self, memory: Row) -> bool:
        """Whether the guaranteed tenants are served, and the others as much as in the memory form."""
        light, greedy = (memory.served[kind] - self.served[kind] for kind in ("light", "greedy"))
        return self.served["guaranteed"] >= 1 - MOST_REFUSED and max(light, greedy) <= SHARE_NOISE


class Load(NamedTuple):
    """The load of a pool, and its size."""

    service_s: float
    """The engine's time for a request, s."""
    slots: int
    """Sequences that the whole pool runs; 0 means ``IDLE_SLOTS`` for each sidecar."""


IDLE = Load(0.05, 0)
CONTENDED = Load(0.5, 48)
"""200 requests/s are twice the capacity of this pool."""
IDLE_SLOTS = 64


class Tenant(NamedTuple):
    """One entitlement, and its share of the arrivals."""

    name: str
    kind: str
    terms: str
    """Its terms in the pool file."""
    arrivals: float


def idle_tenants(count: int, slots: int) -> list[Tenant]:
    """Elastic tenants without ceilings, and one in ten with a guarantee: a quarter of the pool in total."""
    guarantee = f"{{concurrency: {slots / max(count // 10, 1) / 4:.4f}}}"
    return [
        Tenant(f"t{n}", "guaranteed", f"tier: guaranteed, guarantee: {guarantee}", 1.0)
        if n % 10 == 0
        else Tenant(f"t{n}", "light", "tier: elastic", 1.0)
        for n in range(count)
    ]


def contending_tenants(count: int) -> list[Tenant]:
    """Ten guaranteed tenants with 5 % of the arrivals, five greedy and many light ones."""
    made = []
    for kind, number, sequences, arrivals in contended.classes(count):
        guarantee = f"tier: guaranteed, guarantee: {{concurrency: {sequences}}}"
        terms = guarantee if sequences else "tier: elastic"
        made += [Tenant(f"{kind}{n}", kind, terms, arrivals) for n in range(number)]
    return made


def pool_file(tenants: Sequence[Tenant], sidecars: int, slots: int) -> str:
    """The pool file. Each engine has ``slots``."""
    rows = [f"  - {{name: {t.name}, pool: p, api_keys: [{t.name}-key], {t.terms}}}" for t in tenants]
    return "\n".join(
        [
            "pools:",
            f"  - {{name: p, models: [stub], replicas: {{min: {sidecars}, max: {sidecars}}},",
            f"     replica: {{tokens_per_second: 1000000, kv_tokens: auto, concurrency: {slots}}}}}",
            "entitlements:",
            *rows,
        ]
    )


@contextlib.contextmanager
def pool(
    folder: Path, tenants: Sequence[Tenant], sidecars: int, slots: int, distance_ms: float, engine: int
) -> Iterator[list[int]]:
    """Start all parts but the engine. Yields the ports of the sidecars, each with ``slots``."""
    file = folder / "pool.yaml"
    file.write_text(pool_file(tenants, sidecars, slots))
    with contextlib.ExitStack() as stack:
        store: list[str] = []
        if distance_ms != MEMORY:
            far, page = free_port(), free_port()
            redis = stack.enter_context(RedisProcess(folder))
            relay = [*module("experiments.relay"), str(redis.port), str(far), str(distance_ms / 2000)]
            stack.enter_context(Process("relay", relay, folder, probe=far))
            store = ["--store", f"redis://127.0.0.1:{far}"]
            lead = [*module("coordinator"), "run", "--config", str(file), *store]
            lead += ["--listen", f"127.0.0.1:{page}", "--log-level", "warning"]
            probe = f"http://127.0.0.1:{page}/healthz"
            stack.enter_context(Process("coordinator", lead, folder, probe=probe))
        ports, parts = [], []
        for number in range(sidecars):
            listen, admin = free_port(), free_port()
            run = [*module("sidecar"), "run", "--config", str(file), "--log-level", "error", *store]
            run += ["--upstream", f"http://127.0.0.1:{engine}", "--name", f"s{number}"]
            run += ["--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}"]
            parts.append(Process(f"sidecar{number}", run, folder, probe=f"http://127.0.0.1:{admin}/readyz"))
            ports.append(listen)
        for part in parts:
            stack.enter_context(part)
        time.sleep(JOINED_S)
        yield ports


def request(tenant: str) -> bytes:
    """A small completion."""
    body = json.dumps({"model": "stub", "prompt": PROMPT, "max_tokens": 32}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant}-key\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connections:
    """Keep-alive connections to some ports."""

    def __init__(self) -> None:
        self._idle: dict[int, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {}

    async def ask(self, port: int, data: bytes) -> tuple[int, str]:
        """Send one request. Returns its status and reason."""
        idle = self._idle.setdefault(port, [])
        pair = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        reader, writer = pair
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        await reader.readexactly(int(fields["content-length"]))
        if fields.get("connection") == "close":
            writer.close()
        else:
            idle.append(pair)
        return int(lines[0].split()[1]), fields.get("x-tokenpool-reason", "")

    def close(self) -> None:
        """Close all idle connections."""
        for pairs in self._idle.values():
            for _, writer in pairs:
                writer.close()


@dataclass
class Outcome:
    """The outcomes of the requests of a run."""

    latencies: list[float]
    """Seconds of each served request."""
    failures: Counter[str]
    """Failed requests by reason: status and reason header, or the name of the error."""
    asked: Counter[str]
    served: Counter[str]
    """Counts by class of tenants."""


async def drive(
    ports: Sequence[int], tenants: Sequence[Tenant], rate: float, seconds: float, seed: int
) -> Outcome:
    """Send Poisson arrivals, each of a random tenant to a random port."""
    chance, connections = random.Random(f"distance {seed}"), Connections()
    outcome = Outcome([], Counter(), Counter(), Counter())
    requests = {tenant.name: request(tenant.name) for tenant in tenants}
    parts = list(itertools.accumulate(tenant.arrivals for tenant in tenants))

    async def one(port: int, tenant: Tenant) -> None:
        began = time.perf_counter()
        outcome.asked[tenant.kind] += 1
        try:
            async with asyncio.timeout(10):
                status, reason = await connections.ask(port, requests[tenant.name])
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            outcome.failures[type(error).__name__] += 1
            return
        if status == 200:
            outcome.latencies.append(time.perf_counter() - began)
            outcome.served[tenant.kind] += 1
        else:
            outcome.failures[f"{status} {reason}"] += 1

    started, due = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        while due < seconds:
            due += chance.expovariate(rate)
            await asyncio.sleep(max(started + due - time.perf_counter(), 0.0))
            group.create_task(one(chance.choice(ports), chance.choices(tenants, cum_weights=parts)[0]))
    connections.close()
    return outcome


def measure(
    folder: Path, engine: int, case: tuple[int, int, float], rate: float, seconds: float, load: Load = IDLE
) -> Row:
    """Measure one row. ``case``: numbers of tenants and sidecars, and the round trip to the store in ms."""
    count, sidecars, distance_ms = case
    slots = -(-load.slots // sidecars) or IDLE_SLOTS
    tenants = contending_tenants(count) if load.slots else idle_tenants(count, sidecars * slots)
    direct = uvloop.run(drive([engine], tenants, rate, min(seconds, 4.0), 0))
    with pool(folder, tenants, sidecars, slots, distance_ms, engine) as ports:
        seen = uvloop.run(drive(ports, tenants, rate, seconds, 1))
    usual = percentile(direct.latencies, 0.5)
    return Row(
        count,
        sidecars,
        distance_ms,
        rate,
        seen.asked.total(),
        seen.failures.total(),
        dict(seen.failures),
        1000 * (percentile(seen.latencies, 0.5) - usual),
        1000 * (percentile(seen.latencies, 0.99) - usual),
        {kind: seen.served[kind] / asked for kind, asked in seen.asked.items()},
    )


HEAD = "tenants  sidecars  store, ms   requests  refused   added P50    P99 ms   served"


def line(row: Row, *, is_good: bool) -> str:
    """A row of the table."""
    where = "memory" if row.distance_ms == MEMORY else f"{row.distance_ms:g}"
    served = ", ".join(f"{kind} {part:.1%}" for kind, part in sorted(row.served.items()))
    return (
        f"{row.tenants:7} {row.sidecars:9} {where:>10} {row.requests:10} {row.refused:8}"
        f" {row.p50_ms:11.1f} {row.p99_ms:9.1f}   {served}  {'' if is_good else 'MISSED '}{row.reasons or ''}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all rows, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.distance", description=__doc__)
    parser.add_argument("--tenants", default="50,200,500,1500")
    parser.add_argument("--sidecars", default="1,2,8")
    parser.add_argument("--distance-ms", default="memory,0,6,12,40", help="memory: one sidecar, no store")
    parser.add_argument("--rate", type=float, default=200.0, help="requests/s in total [200]")
    parser.add_argument("--seconds", type=float, default=12.0, help="of load in each row [12]")
    parser.add_argument(
        "--contended",
        action="store_true",
        help="request twice the pool's capacity, and compare with the memory form",
    )
    arguments = parser.parse_args(argv)
    load = CONTENDED if arguments.contended else IDLE
    begins = arguments.sidecars.startswith("1") and arguments.distance_ms.startswith("memory")
    if arguments.contended and not begins:
        parser.error(
            "--contended compares with the memory form; begin --sidecars with 1 and --distance-ms with memory"
        )
    cases = itertools.product(
        [int(n) for n in arguments.tenants.split(",")],
        [int(n) for n in arguments.sidecars.split(",")],
        [MEMORY if n == "memory" else float(n) for n in arguments.distance_ms.split(",")],
    )
    engine, rows = free_port(), []
    memory: dict[int, Row] = {}
    missed = 0
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        stub = [*module("toolbox.stub_engine"), str(engine), str(load.service_s)]
        with Process("engine", stub, Path(folder), probe=f"http://127.0.0.1:{engine}/health"):
            for number, case in enumerate(cases):
                if case[2] == MEMORY and case[1] > 1:
                    continue
                own = Path(folder) / str(number)
                own.mkdir()
                row = measure(own, engine, case, arguments.rate, arguments.seconds, load)
                rows.append(row)
                if row.distance_ms == MEMORY:
                    memory[row.tenants] = row
                compared = memory.get(row.tenants, row)
                is_good = row.is_as_fair_as(compared) if arguments.contended else row.has_no_cost
                missed += not is_good
                print(line(row, is_good=is_good), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    name = "contended.json" if arguments.contended else "idle.json"
    (OUT / name).write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
