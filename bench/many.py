"""Many entitlements: the delay of requests by other work, and the CPU time of an idle sidecar.

A client sends requests of one entitlement at a constant rate and measures each. Meanwhile the sidecar does
other work: it serves its pages to another process, or reads a changed pool file. The result is the longest
request of the run. A run without other work shows the delays of the machine itself.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import peers
from bench.load import CHAT_BODY
from bench.machine import LOAD_CORE, PROXY_CORE, BenchError
from bench.upstream import plain_upstream
from toolbox.ports import free_port
from toolbox.processes import Process
from toolbox.redis import RedisProcess

RATE = 50.0
"""Requests per second."""
CONNECTIONS = 16
SIZES = (20, 200, 2000, 10_000)
DISTURBANCES = ("nothing", "metrics", "state page", "live page", "pool file")
EVERY_S = 1.0
"""Interval between two requests for a page, s."""
SETTLE_S = 15.0
"""Seconds until active entitlements are idle again."""


@dataclass(frozen=True)
class ManyRow:
    """The measurements of one sidecar with ``entitlements``."""

    entitlements: int
    ready_s: float
    idle_cpu: float
    """Share of a core."""
    page_mb: float
    """The size of the metrics page after a request of every entitlement."""
    resident_mb: float
    longest_ms: dict[str, float]
    """The longest request during each kind of other work."""
    longest_used_ms: dict[str, float]
    """The same after a request of every entitlement."""


def measure(folder: Path, entitlements: int, seconds: float, *, shared: bool = False) -> ManyRow:
    """Start a sidecar, measure it under other work, and stop it. ``shared`` uses Redis and a coordinator."""
    upstream, port = plain_upstream(folder)
    with upstream, _lease_store(folder, shared=shared) as store:
        listen, admin = free_port(), free_port()
        text = peers.pool_file(entitlements)
        command = peers.sidecar_command(port, listen, admin, folder, text)
        url = f"http://127.0.0.1:{admin}"
        sidecar = Process("many", [*command, *store], folder, probe=f"{url}/readyz", core=PROXY_CORE)
        began = time.perf_counter()
        with peers.coordinator(store[1], folder) if store else nullcontext(), sidecar as process:
            ready = time.perf_counter() - began
            time.sleep(peers.LEARN_S)
            idle = _cpu(process, 5.0)
            longest = {
                name: uvloop.run(_disturbed(listen, folder, url, name, text, seconds))
                for name in DISTURBANCES
            }
            uvloop.run(use_all_entitlements(listen, entitlements))
            time.sleep(1.0)
            page = len(_get(f"{url}/metrics")) / 1e6
            used = {
                name: uvloop.run(_disturbed(listen, folder, url, name, text, seconds))
                for name in DISTURBANCES
            }
            time.sleep(SETTLE_S)
            idle = max(idle, _cpu(process, 5.0))
            return ManyRow(entitlements, ready, idle, page, process.resident_mb(), longest, used)


@contextmanager
def _lease_store(folder: Path, *, shared: bool) -> Iterator[list[str]]:
    """The sidecar's options for a lease store. The Redis runs as long as the context."""
    if not shared:
        yield []
        return
    with RedisProcess(folder, core=LOAD_CORE) as server:
        yield ["--store", server.url]


def _cpu(process: Process, seconds: float) -> float:
    before = process.cpu_seconds()
    time.sleep(seconds)
    return (process.cpu_seconds() - before) / seconds


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        return bytes(response.read())


class _Client:
    """Requests on a few connections, each measured from its first byte to the last byte of its response."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, key: str) -> float:
        """Send one request, and return its duration in seconds. Raises ``BenchError`` unless it is served."""
        reader, writer = (
            self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        )
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(CHAT_BODY)}\r\n\r\n"
        )
        began = time.perf_counter()
        writer.write((head + CHAT_BODY).encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer.lower())
        body = await reader.readexactly(int(length[1])) if length else b""
        took = time.perf_counter() - began
        if b" 200 " not in answer.split(b"\r\n", 1)[0] + b" ":
            raise BenchError(f"a request was not served: {(answer + body).decode(errors='replace')}")
        self._free.append((reader, writer))
        return took

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def _steady(port: int, seconds: float) -> list[float]:
    """The duration of each request at ``RATE``, in seconds."""
    client, loop = _Client(port), asyncio.get_running_loop()
    await asyncio.gather(*(client.ask(peers.KEY) for _ in range(CONNECTIONS)))
    gc.collect()
    gc.disable()
    started = loop.time()
    sent = []
    for number in range(int(RATE * seconds)):
        await asyncio.sleep(max(started + number / RATE - loop.time(), 0))
        sent.append(loop.create_task(client.ask(peers.KEY)))
    took = await asyncio.gather(*sent)
    gc.enable()
    client.close()
    return took


async def use_all_entitlements(port: int, entitlements: int) -> None:
    """Send one request of every entitlement."""
    client = _Client(port)
    names = iter(range(entitlements - 1))

    async def some() -> None:
        for number in names:
            await client.ask(f"idle-key-{number}")

    await asyncio.gather(*(some() for _ in range(CONNECTIONS)))
    client.close()


async def _disturbed(port: int, folder: Path, url: str, name: str, text: str, seconds: float) -> float:
    """The longest request, in ms, while the sidecar does other work."""
    works: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "nothing": nullcontext,
        "metrics": lambda: _reading(folder, f"{url}/metrics"),
        "state page": lambda: _reading(folder, f"{url}/debug/state"),
        "live page": lambda: _reading(folder, f"{url}/live/events"),
        "pool file": lambda: _changing(folder / "pool.yaml", text),
    }
    with works[name]():
        return 1000 * max(await _steady(port, seconds))


@contextmanager
def _reading(folder: Path, url: str) -> Iterator[None]:
    """A process of low priority reads a page once a second."""
    script = (
        "import os, sys, time, urllib.request\n"
        "os.nice(15)\n"
        "while True:\n"
        "    with urllib.request.urlopen(sys.argv[1]) as page:\n"
        "        while page.read1(65536): pass\n"
        f"    time.sleep({EVERY_S})\n"
    )
    with _beside(folder, [sys.executable, "-c", script, url]):
        yield


@contextmanager
def _changing(file: Path, text: str) -> Iterator[None]:
    """A process changes the pool file every 1.5 s: line numbers shift, and some entitlements change."""
    script = (
        "import itertools, os, sys, time\n"
        "os.nice(15)\n"
        "text = open(sys.argv[2]).read()\n"
        "for number in itertools.count(2):\n"
        "    with open(sys.argv[1] + '.new', 'w') as new:\n"
        "        changed = text.replace('tier: spot', f'tier: spot, weight: {number}', 5)\n"
        "        new.write('#\\n' * number + changed)\n"
        "    os.replace(sys.argv[1] + '.new', sys.argv[1])\n"
        "    time.sleep(1.5)\n"
    )
    original = file.with_suffix(".original")
    original.write_text(text)
    with _beside(file.parent, [sys.executable, "-c", script, str(file), str(original)]):
        yield


def _beside(folder: Path, command: list[str]) -> Process:
    return Process("beside", command, folder, core=LOAD_CORE)


def table(rows: list[ManyRow]) -> str:
    """The rows as text."""
    lines = []
    for row in rows:
        lines.append(
            f"  {row.entitlements:6,} entitlements: ready after {row.ready_s:.2f} s, idle {row.idle_cpu:.1%}"
            f" of a core, {row.resident_mb:.0f} MB, metrics page {row.page_mb:.2f} MB"
        )
        for label, longest in (("one used", row.longest_ms), ("all used", row.longest_used_ms)):
            shown = ", ".join(f"{name} {ms:.1f}" for name, ms in longest.items())
            lines.append(f"         longest request, {label}, ms: {shown}")
    return "\n".join(lines)


def main(sizes: Sequence[int], folder: Path, seconds: float, *, shared: bool) -> list[ManyRow]:
    """Measure every size, and print each result at once."""
    rows = []
    os.sched_setaffinity(0, {LOAD_CORE})
    for size in sizes:
        rows.append(measure(folder, size, seconds, shared=shared))
        print(table(rows[-1:]), flush=True)
    return rows
