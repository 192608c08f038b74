"""The load: wrk for unary requests, and a client that counts the events of many streams."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from bench.machine import LOAD_CORE, BenchError
from bench.peers import KEY, program

CHAT_BODY = json.dumps(
    {
        "model": "bench",
        "messages": [
            {"role": "system", "content": "You answer in one short sentence. " * 4},
            {"role": "user", "content": "What is the difference between a proxy and a gateway? " * 10},
        ],
        "temperature": 0.7,
        "max_tokens": 64,
    }
)
"""A typical chat of 850 bytes."""

_SCRIPT = """
wrk.method = "POST"
wrk.body = [==[{body}]==]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
{delay}
done = function(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
    + summary.errors.timeout))
end
"""


@dataclass(frozen=True)
class Unary:
    """The results of wrk. Latencies in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float


def wrk(port: int, folder: Path, *, connections: int, seconds: float, delay_ms: float = 0.0) -> Unary:
    """POST chats for ``seconds``. With ``delay_ms`` each connection pauses between its requests."""
    script = folder / "load.lua"
    # Random pauses: simultaneous requests of all connections would measure queueing instead of latency.
    delay = f"delay = function() return math.random(0, {round(2 * delay_ms)}) end" if delay_ms else ""
    script.write_text(_SCRIPT.format(body=CHAT_BODY, key=KEY, delay=delay))
    done = subprocess.run(
        [
            *("taskset", "-c", str(LOAD_CORE)),
            *(program("wrk"), "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script)),
            f"http://127.0.0.1:{port}/v1/chat/completions",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    match = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    if match is None:
        raise BenchError(f"wrk failed: {done.stdout}{done.stderr}")
    requests, micros, p50, p99, errors = map(int, match.groups())
    if errors:
        raise BenchError(f"{errors} of {requests} requests failed")
    return Unary(requests, micros / 1e6, p50 / 1e6, p99 / 1e6)


class _Reader(asyncio.Protocol):
    """One streamed chat; counts the events that arrive."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._is_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        self._streams.transports.append(transport)
        body = CHAT_BODY[:-1] + ', "stream": true}'
        transport.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )

    def data_received(self, data: bytes) -> None:
        streams = self._streams
        if not self._is_up:
            self._is_up = True
            if not data.startswith(b"HTTP/1.1 200"):
                streams.failures.append(data)
            streams.up += 1
        streams.events += data.count(b"\n\n")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._streams.is_closing:
            self._streams.failures.append(b"the connection closed")


class Streams:
    """Many streamed chats at once."""

    def __init__(self) -> None:
        self.transports: list[asyncio.Transport] = []
        self.failures: list[bytes] = []
        self.events = 0
        self.up = 0
        self.is_closing = False

    async def open(self, port: int, count: int) -> None:
        """Open ``count`` streams, and wait for the head of each. Raises ``BenchError``."""
        loop = asyncio.get_running_loop()
        for _ in range(count):
            await loop.create_connection(lambda: _Reader(self), "127.0.0.1", port)
        for _ in range(1000):
            if self.up >= count or self.failures:
                break
            await asyncio.sleep(0.02)
        self.check(count)

    def check(self, count: int) -> None:
        """Raise ``BenchError`` unless all streams are open."""
        if self.failures or self.up < count:
            raise BenchError(f"{self.up} of {count} streams opened: {self.failures[:1]!r}")

    def close(self) -> None:
        """Close all streams."""
        self.is_closing = True
        for transport in self.transports:
            transport.abort()
