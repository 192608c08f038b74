"""Several workers against one: CPU per event, added latency, exact limits and refusals.

    python -m bench.workers [--workers 1,2,4,8] [--rounds 3] [--seconds 4] [--only events,latency,limits]

Each count of workers is measured in turn, and the rounds alternate. CPU time is that of all processes of the
sidecar. All of them have one core, and the load has another one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import uvloop

from bench import machine
from bench.load import Streams, wrk
from bench.machine import PROXY_CORE
from bench.peers import pool_file, sidecar_command
from bench.upstream import stream_upstream, unary_upstream
from tests.integration.sidecar.workers.pod import POOL, CountingEngine, Pod
from toolbox.ports import free_port
from toolbox.processes import Process

FOLDER = Path(__file__).resolve().parent.parent / "out" / "workers"
STREAMS, INTERVAL_MS = 50, 20.0
"""The streams of each worker: 2,500 events/s, so that one core has room for those of eight in every build."""
RATE = 100
CLIENTS = 4
CEILING = 4
"""The ceiling of the tenant whose requests are counted."""


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process and of all below it, with nanosecond resolution."""
    total = 0
    for each in tree(pid):
        for task in Path(f"/proc/{each}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def page(admin: int, path: str) -> Any:
    """A JSON page of the admin port."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}{path}", timeout=5) as response:
        return json.load(response)


@contextlib.contextmanager
def sidecar(upstream: int, workers: int) -> Iterator[tuple[Process, int, int]]:
    """A sidecar with so many workers that serve: its process, its port and its admin port."""
    listen, admin = free_port(), free_port()
    command = sidecar_command(upstream, listen, admin, FOLDER, pool_file(20))
    command += ["--workers", str(workers)]
    with Process(f"sidecar-{workers}", command, FOLDER, probe=listen, core=PROXY_CORE) as process:
        process.until(lambda: _serves(admin, workers), 60)
        yield process, listen, admin


def _serves(admin: int, workers: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        shown = page(admin, "/debug/state").get("workers")
        are_joined = shown is None or all(
            (each["lease_store"] or {}).get("mode") == "joined" for each in shown
        )
        return are_joined and (shown is None or len(shown) == workers) and _is_ready(admin)
    return False


def _is_ready(admin: int) -> bool:
    return bool(page(admin, "/readyz")["status"] != "unready")


async def _cost_of_event(port: int, pid: int, workers: int, seconds: float) -> float:
    streams = Streams()
    await streams.open(port, STREAMS * workers)
    await asyncio.sleep(1.0)
    events, cpu = streams.events, cpu_seconds(pid)
    await asyncio.sleep(seconds)
    events, cpu = streams.events - events, cpu_seconds(pid) - cpu
    streams.check(STREAMS * workers)
    streams.close()
    await asyncio.sleep(0.1)
    return cpu / events


async def _idle(pid: int, seconds: float) -> float:
    """CPU seconds per second without load."""
    await asyncio.sleep(1.0)
    before = cpu_seconds(pid)
    await asyncio.sleep(seconds)
    return (cpu_seconds(pid) - before) / seconds


def events(counts: Sequence[int], rounds: int, seconds: float) -> None:
    """CPU per streamed event, and without load."""
    costs: dict[int, list[float]] = {count: [] for count in counts}
    idle: dict[int, list[float]] = {count: [] for count in counts}
    upstream, port = stream_upstream(FOLDER, INTERVAL_MS)
    with upstream:
        for _ in range(rounds):
            for count in counts:
                with sidecar(port, count) as (process, listen, _):
                    idle[count].append(asyncio.run(_idle(process.pid, seconds)))
                    costs[count].append(asyncio.run(_cost_of_event(listen, process.pid, count, seconds)))
    one = median(costs[counts[0]])
    each = STREAMS / INTERVAL_MS * 1000
    print(f"CPU per event at {each:,.0f} events/s for each worker, median of {rounds} rounds")
    for count in counts:
        rounded = ", ".join(f"{cost * 1e6:.1f}" for cost in costs[count])
        print(
            f"  {count} workers: {median(costs[count]) * 1e6:6.1f} µs, {median(costs[count]) / one:.3f} x;"
            f" without load {median(idle[count]):.1%} of a core; rounds {rounded}"
        )


def latency(counts: Sequence[int], rounds: int, seconds: float) -> None:
    """Latency at a low rate, against one that goes to the engine directly."""
    seen: dict[int, list[tuple[float, float]]] = {count: [] for count in (0, *counts)}
    upstream, port = unary_upstream(FOLDER)
    with upstream:
        for _ in range(rounds):
            for count in (0, *counts):
                context = sidecar(port, count) if count else contextlib.nullcontext((None, port, 0))
                with context as (_, listen, _):
                    pause = CLIENTS / RATE * 1000
                    made = wrk(listen, FOLDER, connections=CLIENTS, seconds=seconds, delay_ms=pause)
                    seen[count].append((made.p50, made.p99))
    print(f"latency at {RATE} requests/s over {CLIENTS} connections, ms (median of {rounds} rounds)")
    for count, rows in seen.items():
        p50, p99 = (median(column) * 1000 for column in zip(*rows, strict=True))
        print(f"  {f'{count} workers' if count else 'directly'}: p50 {p50:.2f}, p99 {p99:.2f}")


async def _limits(workers: int, seconds: float) -> str:
    """Load beyond a ceiling, with a worker killed in the middle; then fewer clients than the ceiling."""
    folder = FOLDER / f"limits-{workers}"
    folder.mkdir(parents=True, exist_ok=True)
    connector = aiohttp.TCPConnector(limit=0)
    async with CountingEngine() as engine, aiohttp.ClientSession(connector=connector) as session:
        pod = Pod(folder, engine, session, workers, pool=POOL)
        pod.process.start()
        try:
            if workers > 1:
                await pod.until_ready(workers)
            else:
                await asyncio.to_thread(pod.process.wait_ready, 30)
                await asyncio.sleep(1.0)
            idle = await _asked(pod, {"e": 3, "c": 3}, seconds)
            engine.begin()
            busy = asyncio.ensure_future(_asked(pod, {"c": 12, "e": 6, "g": 2}, seconds))
            await asyncio.sleep(seconds / 2)
            most, after = engine.most["c"], 0
            if workers > 1:
                await pod.kill_worker(workers - 1)
                await asyncio.sleep(0.5)
            engine.begin()
            counts = await busy
            after, in_engine = engine.most["c"], engine.most["all"]
            return (
                f"  {workers} workers: most of {CEILING} in use {most}, after a kill {after}; most in the"
                f" engine of 8 slots {in_engine}; refused while idle {_refused(idle)} of"
                f" {sum(idle.values())}; under load {counts[200]} served, {_refused(counts)} refused,"
                f" {counts[0]} lost"
            )
        finally:
            pod.process.stop()


def _refused(counts: Counter[int]) -> int:
    return sum(count for status, count in counts.items() if status not in (0, 200))


async def _asked(pod: Pod, clients: dict[str, int], seconds: float) -> Counter[int]:
    end = time.monotonic() + seconds
    loads = [pod.keep_asking(user, end) for user, number in clients.items() for _ in range(number)]
    total: Counter[int] = Counter()
    for each in await asyncio.gather(*loads):
        total += each
    return total


def limits(counts: Sequence[int], seconds: float) -> None:
    """Limits under load and after a kill, and refusals while there is room."""
    print("limits and refusals")
    for count in counts:
        print(uvloop.run(_limits(count, seconds)), flush=True)


def main() -> None:
    """Measure what the options select."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__.splitlines()[0])
    parser.add_argument("--workers", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", default="events,latency,limits")
    chosen = parser.parse_args()
    counts = [int(each) for each in chosen.workers.split(",")]
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(
        f"{machine.describe()}; compiled: {machine.is_compiled()}; pace {machine.pace_ms():.0f} ms",
        flush=True,
    )
    for what in chosen.only.split(","):
        if what == "events":
            events(counts, chosen.rounds, chosen.seconds)
        elif what == "latency":
            latency(counts, chosen.rounds, chosen.seconds)
        elif what == "limits":
            limits(counts, chosen.seconds)
        else:
            parser.error(f"--only: {what!r} is not events, latency or limits")


if __name__ == "__main__":
    main()
