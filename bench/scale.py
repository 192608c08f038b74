"""Growth with entitlements and sidecars: ``python -m bench.scale`` measures each curve of docs/scale.md.

The sections are ``ticks``, ``traffic``, ``memory`` and ``pool-file``. Sidecars beyond the measured one are
simulated: they are holders in Redis, with rows, reports and rooms, whose messages this process sends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import redis.asyncio
import uvloop

from bench import machine, peers
from bench.load import CHAT_BODY
from bench.machine import LOAD_CORE, PROXY_CORE, BenchError
from bench.many import SETTLE_S, use_all_entitlements
from bench.simulated_pool import LIFETIME_S, REPLICA, TickRow, tick_rows
from bench.upstream import unary_upstream
from tokenpool.leases.messages import Message, ReplicaRoom
from tokenpool.leases.wire import SidecarReport, encode_report
from tokenpool.store.redis import RedisStore
from toolbox.pictures import Line, Panel, Picture, keep
from toolbox.ports import free_port
from toolbox.processes import Process
from toolbox.redis import RedisProcess

FOLDER = Path(__file__).resolve().parent.parent / "out" / "scale"
SIZES = ((10, 1), (100, 10), (1000, 100), (1000, 1000), (10_000, 100), (10_000, 1000))
"""Entitlements and sidecars of the ticks."""
GROUPED = ((1000, 100), (10_000, 1000))
"""The sizes that are measured in groups of ten entitlements, too."""
ENTITLEMENTS = (10, 100, 1000, 10_000)
SIDECARS = (1, 10, 100, 1000)
CHANGED = (1.0, 0.1, 0.0)
"""The parts of the entitlements whose records change between two ticks."""
RATE = 100.0
"""Requests per second to the measured sidecar."""
CONNECTIONS = 4000
SETTLED_S = 3.0
"""The wait after a start or a burst of requests, before memory or traffic is measured."""
LONGEST_WAIT_S = 30.0


def ticks(rounds: int) -> list[TickRow]:
    """The ticks of every size, each with several parts of changed records."""
    rows = []
    for (entitlements, sidecars), groups in _tick_sizes():
        with RedisProcess(FOLDER, core=PROXY_CORE) as server:
            few = max(3, min(rounds, rounds * 1000 // entitlements))
            made = uvloop.run(tick_rows(server.url, entitlements, sidecars, few, groups, CHANGED))
        rows += made
        for row in made:
            grouped = f" in {groups:,} groups" if groups else ""
            steps = f"read {row.read:.1f}, plan {row.plan:.1f}, publish {row.publish:.1f}"
            print(
                f"  {entitlements:6,} entitlements{grouped} x {sidecars:5,} sidecars, {row.changed:4.0%}"
                f" changed: {row.coordinator:7.1f} ms ({steps}), Redis {row.redis:.1f} ms,"
                f" wall {row.wall:.1f} ms",
                flush=True,
            )
    return rows


def _tick_sizes() -> Iterator[tuple[tuple[int, int], int]]:
    for size in SIZES:
        yield size, 0
        if size in GROUPED:
            yield size, size[0] // 10


# --- one sidecar ---


@dataclass(frozen=True)
class TrafficRow:
    """The traffic of one sidecar with Redis, per second: at rest, and with requests."""

    entitlements: int
    sidecars: int
    idle_calls: float
    idle_bytes: float
    busy_calls: float
    busy_bytes: float


@dataclass(frozen=True)
class MemoryRow:
    """The resident memory of a sidecar in MB."""

    entitlements: int
    idle: float
    used: float
    """After a request of every entitlement."""
    connected: float
    """With ``CONNECTIONS`` open client connections, too."""


@dataclass(frozen=True)
class FileRow:
    """Seconds until a changed pool file is enforced."""

    entitlements: int
    alone: float
    """By a sidecar that reads the file."""
    published: float
    """By a sidecar that gets it from a coordinator through Redis."""


@contextmanager
def _sidecar(entitlements: int, *options: str, reads_file: bool = True) -> Iterator[tuple[Process, int]]:
    upstream, port = unary_upstream(FOLDER)
    listen, admin = free_port(), free_port()
    command = peers.sidecar_command(port, listen, admin, FOLDER, peers.pool_file(entitlements))
    if not reads_file:
        place = command.index("--config")
        command[place : place + 2] = ["--pool", "bench"]
    process = Process(
        "scale", [*command, *options], FOLDER, core=PROXY_CORE, probe=f"http://127.0.0.1:{admin}/readyz"
    )
    with upstream, process:
        yield process, listen


def traffic(seconds: float) -> list[TrafficRow]:
    """The traffic of one sidecar with more entitlements, and with more sidecars."""
    sizes = [*((size, 1) for size in ENTITLEMENTS), *((100, count) for count in SIDECARS[1:])]
    rows = []
    for entitlements, sidecars in sizes:
        with RedisProcess(FOLDER, core=LOAD_CORE) as server:
            rows.append(uvloop.run(_traffic(server.url, entitlements, sidecars, seconds)))
        row = rows[-1]
        print(
            f"  {entitlements:6,} entitlements, {sidecars:5,} sidecars: at rest {row.idle_calls:.1f} calls"
            f" and {row.idle_bytes / 1000:.1f} kB per second; at {RATE:.0f} requests/s"
            f" {row.busy_calls:.1f} and {row.busy_bytes / 1000:.1f} kB",
            flush=True,
        )
    return rows


async def _traffic(url: str, entitlements: int, sidecars: int, seconds: float) -> TrafficRow:
    async with redis.asyncio.Redis.from_url(url) as client:
        store = RedisStore(client, "bench", LIFETIME_S)
        report = encode_report(SidecarReport(REPLICA, REPLICA, True))
        for number in range(sidecars - 1):
            room = ReplicaRoom(9e4, 8, address=f"127.0.0.1:{number + 1}")
            await store.exchange(Message(f"simulated-{number}", 0, {}, True, report, room=room))
        with _sidecar(entitlements, "--store", url) as (_, listen):
            with peers.coordinator(url, FOLDER):
                await asyncio.sleep(peers.LEARN_S)
                await _requests(listen, entitlements, SETTLED_S)
            # The last limits stay valid without a coordinator. So all traffic with Redis is the sidecar's.
            busy = await _during(client, _requests(listen, entitlements, seconds))
            await asyncio.sleep(SETTLE_S)
            idle = await _during(client, asyncio.sleep(seconds))
    return TrafficRow(entitlements, sidecars, *idle, *busy)


async def _requests(port: int, entitlements: int, seconds: float) -> None:
    """Requests of all entitlements in turn, at ``RATE``."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in range(int(RATE * seconds)):
        await asyncio.sleep(max(began + number / RATE - loop.time(), 0))
        await asyncio.to_thread(_ask, port, f"idle-key-{number % (entitlements - 1)}")


async def _during(client: redis.asyncio.Redis, work: Awaitable[None]) -> tuple[float, float]:
    """Calls and bytes per second, both ways, during this work."""
    before, began = await _counted(client), time.monotonic()
    await work
    after, elapsed = await _counted(client), time.monotonic() - began
    return (after[0] - before[0]) / elapsed, (after[1] - before[1]) / elapsed


async def _counted(client: redis.asyncio.Redis) -> tuple[float, float]:
    stats, commands = await client.info("stats"), await client.info("commandstats")
    calls = commands.get("cmdstat_evalsha", {"calls": 0})["calls"]
    return calls, stats["total_net_input_bytes"] + stats["total_net_output_bytes"]


def memory() -> list[MemoryRow]:
    """The memory of one sidecar with more entitlements, and with open connections."""
    rows = []
    _allow_connections()
    for entitlements in ENTITLEMENTS:
        with _sidecar(entitlements) as (process, listen):
            time.sleep(SETTLED_S)
            idle = process.resident_mb()
            uvloop.run(use_all_entitlements(listen, entitlements))
            time.sleep(SETTLED_S)
            used = process.resident_mb()
            connections = [socket.create_connection(("127.0.0.1", listen)) for _ in range(CONNECTIONS)]
            time.sleep(SETTLED_S)
            rows.append(MemoryRow(entitlements, idle, used, process.resident_mb()))
            for connection in connections:
                connection.close()
        print(
            f"  {entitlements:6,} entitlements: {idle:.1f} MB, {used:.1f} MB after a request of each,"
            f" {rows[-1].connected:.1f} MB with {CONNECTIONS:,} open connections",
            flush=True,
        )
    least, most = rows[0], rows[-1]
    more = most.entitlements - least.entitlements
    print(
        f"  per entitlement {1000 * (most.idle - least.idle) / more:.2f} kB, used"
        f" {1000 * (most.used - least.used) / more:.2f} kB; per connection"
        f" {1000 * median(row.connected - row.used for row in rows) / CONNECTIONS:.2f} kB"
    )
    return rows


def _allow_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchError(f"{wanted} files must be allowed (ulimit -n is {hard}): raise the limit")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def pool_files(rounds: int) -> list[FileRow]:
    """Seconds from a changed pool file to the first request that it allows."""
    rows = []
    for entitlements in ENTITLEMENTS:
        with _sidecar(entitlements) as (_, listen):
            alone = _enforced(listen, entitlements, rounds)
        with (
            RedisProcess(FOLDER, core=LOAD_CORE) as server,
            _published(entitlements, server.url),
            _sidecar(entitlements, "--store", server.url, reads_file=False) as (_, listen),
        ):
            published = _enforced(listen, entitlements, rounds)
        rows.append(FileRow(entitlements, alone, published))
        print(
            f"  {entitlements:6,} entitlements: enforced after {alone:.2f} s by a sidecar with the file,"
            f" {published:.2f} s through a coordinator and Redis",
            flush=True,
        )
    return rows


def _published(entitlements: int, url: str) -> Process:
    """A coordinator that publishes the pool file."""
    (FOLDER / "pool.yaml").write_text(peers.pool_file(entitlements))
    return peers.coordinator(url, FOLDER)


def _enforced(port: int, entitlements: int, rounds: int) -> float:
    """The median time until a new key of the last entitlement is accepted."""
    file, text = FOLDER / "pool.yaml", peers.pool_file(entitlements)
    time.sleep(peers.LEARN_S)
    taken = []
    for number in range(rounds):
        key = f"new-key-{number}"
        changed = text.replace("api_keys: [bench-key]", f"api_keys: [bench-key, {key}]")
        (FOLDER / "pool.new").write_text(changed)
        time.sleep(0.37)  # at another moment of the interval in which the file is looked at
        os.replace(FOLDER / "pool.new", file)
        began = time.monotonic()
        while _ask(port, key) != 200:
            if time.monotonic() - began > LONGEST_WAIT_S:
                raise BenchError(f"a changed pool file was not enforced within {LONGEST_WAIT_S:.0f} s")
            time.sleep(0.01)
        taken.append(time.monotonic() - began)
    return median(taken)


def _ask(port: int, key: str) -> int:
    """The status of one request."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        CHAT_BODY.encode(),
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the named sections, print them, and write ``result.json``."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="ticks, traffic, memory, pool-file")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5.0, help="of traffic, for each of two measurements")
    given = parser.parse_args(arguments)
    sections: dict[str, Callable[[], Sequence[TickRow | TrafficRow | MemoryRow | FileRow]]] = {
        "ticks": lambda: ticks(given.rounds),
        "traffic": lambda: traffic(given.seconds),
        "memory": memory,
        "pool-file": lambda: pool_files(max(given.rounds // 3, 1)),
    }
    if unknown := set(given.sections) - set(sections):
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {LOAD_CORE})
    file = FOLDER / "result.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    print(f"{machine.describe()}; a million additions in {machine.pace_ms():.0f} ms")
    for name in given.sections or sections:
        print(f"{name}:", flush=True)
        result[name] = [asdict(row) for row in sections[name]()]
        result[f"{name} on"] = f"{machine.describe()}; a million additions in {machine.pace_ms():.0f} ms"
        file.write_text(json.dumps(result, indent=1))
    keep(picture(result), FOLDER / "scale.curves.svg")
    return 0


def picture(result: Mapping[str, Any]) -> Picture:
    """The curves over the number of entitlements, of the sections that were measured."""
    rows = result.get("ticks", ())
    lines = [
        Line(
            f"{part:.0%} of the records changed" + (", in groups of ten" if grouped else ""),
            tuple(
                (each["entitlements"], each["read"] + each["plan"] + each["publish"] + each["redis"])
                for each in rows
                if each["changed"] == part
                and bool(each["groups"]) == grouped
                and each["sidecars"] == max(each["entitlements"] // 10, 1)
            ),
            is_dashed=grouped,
        )
        for part in CHANGED
        for grouped in (False, True)
    ]
    panels = [_panel("CPU of one tick, coordinator and Redis, ms", lines)] if rows else []
    if rows := [row for row in result.get("traffic", ()) if row["sidecars"] == 1]:
        panels.append(_panel("Traffic of one sidecar with Redis, kB/s", _lines(rows, _TRAFFIC, 0.001)))
    if rows := result.get("memory", ()):
        panels.append(_panel("Resident memory of one sidecar, MB", _lines(rows, _MEMORY)))
    if rows := result.get("pool-file", ()):
        panels.append(_panel("Time to enforce a changed pool file, s", _lines(rows, _FILE)))
    return Picture("Growth with the number of entitlements", "", "entitlements", tuple(panels), is_log=True)


_TRAFFIC = {"idle_bytes": "at rest", "busy_bytes": f"at {RATE:.0f} requests/s"}
_MEMORY = {
    "idle": "after the start",
    "used": "after a request of each",
    "connected": f"with {CONNECTIONS:,} open connections",
}
_FILE = {"alone": "by a sidecar with the file", "published": "through a coordinator and Redis"}


def _lines(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], factor: float = 1.0) -> list[Line]:
    return [
        Line(text, tuple((row["entitlements"], row[name] * factor) for row in rows))
        for name, text in names.items()
    ]


def _panel(title: str, lines: Sequence[Line]) -> Panel:
    return Panel(title, tuple(line for line in lines if line.points), is_log=True, has_dots=True)


if __name__ == "__main__":
    sys.exit(main())
