"""A sidecar in a limited control group: all its bounds are filled at once, and the kernel does not end it.

Control groups need root. Both versions are supported.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.certificates import certify
from tests.fakes import scripted_engine as fake
from tests.fakes.scripted_engine import FakeEngine, Received
from tests.support.harness import STREAM, request
from toolbox.ports import free_port
from toolbox.processes import Process, module

MIB = 1 << 20
TENANTS = {"a": 130, "b": 130, "c": 300}
"""The kilobytes of an answer. Of 130, 70 are in the kernel. The other 60 are a little less than counts."""
POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 10000000, kv_tokens: auto, concurrency: 4000}
entitlements:
""" + "".join(
    f"  - {{name: {name}, pool: chat, tier: elastic, api_keys: [{name}-key]}}\n" for name in TENANTS
)
BODY = 14 * MIB
LINGER_S = 2.5
"""A little more than the time for which the sidecar keeps a refused connection."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Group:
    """A control group with a limit."""

    folder: Path
    peak: str
    """The file with the most bytes that were in use."""

    def command(self, command: list[str]) -> list[str]:
        """The same command, inside the group."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *command]

    def peak_bytes(self) -> int:
        """The most bytes that its processes had at a time."""
        return int((self.folder / self.peak).read_text())


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A group with the limit that the test's parameter gives, in bytes."""
    name = f"tokenpool-test-{os.getpid()}"
    mounted = Path("/sys/fs/cgroup")
    versions = [
        (mounted / "memory" / name, "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
        (mounted / name, "memory.max", "memory.peak"),
    ]
    for folder, limit, peak in versions:
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / limit).exists():
                (folder / limit).write_text(str(request.param))
                yield Group(folder, peak)
                folder.rmdir()
                return
            folder.rmdir()
    pytest.skip("no control group for memory can be made; it takes root and a writable hierarchy")


async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
    """Answer a stream with as many bytes as it asks for, and then with nothing. Never answer others."""
    asked = received.json()
    if not asked.get("stream"):
        await asyncio.Event().wait()
    writer.write(fake.STREAM_HEAD)
    for _ in range(asked["max_tokens"]):
        writer.write(fake.chunk(b"data: " + b"x" * 1000 + b"\n\n"))
        await writer.drain()
    await asyncio.Event().wait()


async def connection(port: int, *, tls: bool) -> Streams:
    """A connection that reads nothing after the handshake, with a small buffer in the kernel."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    name = "localhost" if tls else None
    reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=name)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return reader, writer


@pytest.mark.parametrize(
    ("group", "tls"),
    [(256 * MIB, False), (256 * MIB, True)],
    indirect=["group"],
    ids=["plain", "tls"],
)
async def test_full_bounds_fit_into_the_memory_limit(
    engine: FakeEngine, tmp_path: Path, group: Group, tls: bool
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    engine.answer = answer
    (tmp_path / "pool.yaml").write_text(POOL)
    listen, admin = free_port(), free_port()
    cert, key = certify(tmp_path, "sidecar")
    command = [
        *(*module("sidecar"), "run", "--config", str(tmp_path / "pool.yaml")),
        *("--upstream", f"http://127.0.0.1:{engine.port}", "--large-body-rate", str(1 << 30)),
        *("--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}"),
        *(("--tls-cert", str(cert), "--tls-key", str(key)) if tls else ()),
    ]
    process = Process("sidecar", group.command(command), tmp_path, probe=f"http://127.0.0.1:{admin}/readyz")
    opened: list[Streams] = []
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * BODY}}
    body = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": [image]}]}
    # Every connection has an unread answer, and the head of a further request without its end.
    unfinished = request(headers={"x-filling": "y" * 30_000})[:30_000]
    process.start()
    try:
        # The engine runs in this loop, so the wait for readiness must not block it.
        await asyncio.to_thread(process.wait_ready, 30)
        async with aiohttp.ClientSession() as session:
            most_connections, most_bytes = bounds(process.log)
            for name in ("a", "b"):
                opened.append(await connection(listen, tls=tls))
                opened[-1][1].write(request("/v1/chat/completions", body, key=f"{name}-key"))
            await asyncio.sleep(LINGER_S)
            for share, (name, kilobytes) in enumerate(TENANTS.items(), 1):
                stream = STREAM | {"max_tokens": kilobytes}
                first = request("/v1/chat/completions", stream, key=f"{name}-key")
                for _ in range(most_connections // 2**share):
                    opened.append(await connection(listen, tls=tls))
                    opened[-1][1].write(first + unfinished)
                await asyncio.sleep(LINGER_S)
            open_now = await total(session, admin, "tokenpool_connections")
            buffered = await total(session, admin, "tokenpool_buffered_bytes")
        print(
            f"{open_now:.0f} of {most_connections} connections, {buffered / MIB:.0f} of"
            f" {most_bytes / MIB:.0f} MiB buffered, at most {group.peak_bytes() / MIB:.0f} MiB of memory"
        )
        assert open_now > 0.7 * most_connections
        assert buffered > 2 * BODY
        process.until(lambda: True, 0)  # fails if the process has ended
    finally:
        for _, writer in opened:
            writer.transport.abort()
        process.kill()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def bounds(log: Path) -> tuple[int, int]:
    """The bounds in force: connections and bytes. The log states them."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    [found] = [record for record in records if record["message"] == "listening"]
    return found["max_connections"], found["max_buffered_bytes"]


async def total(session: aiohttp.ClientSession, port: int, name: str) -> float:
    """The sum of a metric over its labels."""
    async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
        found = re.findall(rf"^{name}{{.*}} (.+)$", await response.text(), re.MULTILINE)
        return sum(map(float, found))
