"""The longest time for which each periodic job of a sidecar holds its event loop, by number of entitlements.

A sidecar with a lease store serves requests of every entitlement at a constant rate, so all of them are
active. Meanwhile its pages are read, and its pool file changes. The sidecar measures its own jobs
(``sidecar.loop_holds``), in CPU time. So other processes on the machine do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import urlopen

import uvloop

from bench import peers
from bench.load import CHAT_BODY
from bench.machine import LOAD_CORE, PROXY_CORE, BenchError
from bench.upstream import plain_upstream
from toolbox.ports import free_port
from toolbox.processes import Process
from toolbox.redis import RedisProcess

SIZES = (10, 200, 2000, 10_000)
CONNECTIONS = 16
ROUND_S = 1.5
"""Seconds between two changes of the pool file. Each page is read once in between."""
PAGES = ("metrics", "debug/state", "readyz", "live/events")
_SERIES = re.compile(r"^tokenpool_loop_hold_(max_seconds|seconds_count)\{([^}]*)\} (\S+)$", re.MULTILINE)
_JOB = re.compile(r'job="([^"]*)"')


def holds(folder: Path, entitlements: int, seconds: float, *, shared: bool = True) -> dict[str, float]:
    """The longest step of each job in seconds, while all entitlements are active."""
    upstream, port = plain_upstream(folder)
    with ExitStack() as stack:
        stack.enter_context(upstream)
        listen, admin = free_port(), free_port()
        text = peers.pool_file(entitlements).replace(
            "models: [bench]\n", "models: [bench]\n    usage_records: true\n", 1
        )
        text = text.replace(
            "api_keys: [idle-key-", "quotas: [{tokens: 900G, per: day}], api_keys: [idle-key-"
        )
        command = peers.sidecar_command(port, listen, admin, folder, text)
        if shared:
            store = stack.enter_context(RedisProcess(folder, core=LOAD_CORE))
            command += ["--store", store.url, "--usage-spool", str(folder / "spool")]
            stack.enter_context(peers.coordinator(store.url, folder))
        url = f"http://127.0.0.1:{admin}"
        stack.enter_context(Process("holds", command, folder, probe=f"{url}/readyz", core=PROXY_CORE))
        time.sleep(peers.LEARN_S)
        uvloop.run(_disturb(listen, url, folder / "pool.yaml", text, entitlements, seconds))
        return _longest(_get(f"{url}/metrics"))


def _get(url: str) -> str:
    with urlopen(url, timeout=30) as page:
        return bytes(page.read()).decode()


def _longest(page: str) -> dict[str, float]:
    found = {}
    for kind, labels, value in _SERIES.findall(page):
        job = _JOB.search(labels)
        if kind == "max_seconds" and job is not None:
            found[job[1]] = float(value)
    if not found:
        raise BenchError("the metrics page has no tokenpool_loop_hold_max_seconds")
    return found


async def _disturb(port: int, url: str, file: Path, text: str, entitlements: int, seconds: float) -> None:
    """Send requests of all entitlements, read the pages and change the pool file, for this time."""
    ends_at = asyncio.get_running_loop().time() + seconds
    keys = [peers.KEY, *(f"idle-key-{number}" for number in range(entitlements - 1))]
    async with asyncio.TaskGroup() as group:
        for first in range(CONNECTIONS):
            group.create_task(_send(port, keys[first::CONNECTIONS] or [peers.KEY], ends_at))
        group.create_task(_read_pages(url, ends_at))
        group.create_task(_change(file, text, ends_at))


async def _send(port: int, keys: Sequence[str], ends_at: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    clock = asyncio.get_running_loop().time
    while True:
        for key in keys:
            if clock() >= ends_at:
                writer.close()
                return
            writer.write(
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {key}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(CHAT_BODY)}\r\n\r\n"
                f"{CHAT_BODY}".encode()
            )
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"\r\ncontent-length: (\d+)", head)
            if length is None:
                raise BenchError(f"a request failed: {head!r}")
            await reader.readexactly(int(length[1]))
            await asyncio.sleep(0.002)


async def _read_pages(url: str, ends_at: float) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    clock = asyncio.get_running_loop().time
    while clock() < ends_at:
        for page in PAGES:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET /{page} HTTP/1.0\r\nhost: b\r\n\r\n".encode())
            with suppress(TimeoutError):
                async with asyncio.timeout(ROUND_S):  # the live page does not end
                    while await reader.read(65536):
                        pass
            writer.close()


async def _change(file: Path, text: str, ends_at: float) -> None:
    number = 2
    while asyncio.get_running_loop().time() < ends_at:
        await asyncio.sleep(ROUND_S)
        number += 1
        new = file.with_suffix(".new")
        new.write_text("#\n" * number + text.replace("tier: spot", f"tier: spot, weight: {number}", 5))
        os.replace(new, file)


def table(rows: dict[int, dict[str, float]]) -> str:
    """A Markdown table: a row per job, a column per size, in ms of CPU time."""
    lines = [
        "| job | " + " | ".join(f"{size:,}" for size in rows) + " |",
        "| --- |" + " --- |" * len(rows),
    ]
    for job in sorted({job for row in rows.values() for job in row}):
        cells = " | ".join(f"{row.get(job, 0.0) * 1000:.2f}" for row in rows.values())
        lines.append(f"| {job} | {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m bench.holds``: measure each size, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.holds", description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, help="numbers of entitlements")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds per size")
    parser.add_argument("--alone", action="store_true", help="without a lease store")
    given = parser.parse_args(arguments)
    folder = Path(__file__).resolve().parent.parent / "out" / "holds"
    folder.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {LOAD_CORE})
    print(table({n: holds(folder, n, given.seconds, shared=not given.alone) for n in given.sizes}))


if __name__ == "__main__":
    main()
