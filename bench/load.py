"""The load: wrk for unary requests, and a client that counts the events of many streams."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import time
from collections.abc import Sequence
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


ANSWERED_S = 1.0
"""Seconds for the last answers."""


class _Caller(asyncio.Protocol):
    """One connection for unary chats, one at a time. Measures each in seconds."""

    def __init__(self, latencies: list[float], idle: list[_Caller]) -> None:
        self.latencies = latencies
        self._idle = idle
        self._transport: asyncio.Transport | None = None
        self._sent_at = 0.0
        self._missing = 0
        """Bytes of the response's body that have not arrived; 0 before its head."""

    def itself(self) -> _Caller:
        """The factory of its connection."""
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        """Send a chat."""
        assert self._transport is not None
        self._sent_at = time.monotonic()
        self._transport.write(_UNARY)

    def data_received(self, data: bytes) -> None:
        if not self._missing:
            head, _, data = data.partition(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
            if not head.startswith(b"HTTP/1.1 200") or length is None:
                raise BenchError(f"a request failed: {head[:200]!r}")
            self._missing = int(length[1])
        self._missing -= len(data)
        if not self._missing:
            self.latencies.append(time.monotonic() - self._sent_at)
            self._idle.append(self)


_UNARY = (
    f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n"
    f"content-type: application/json\r\ncontent-length: {len(CHAT_BODY)}\r\n\r\n{CHAT_BODY}"
).encode()


async def latencies(ports: Sequence[int], rate: float, seconds: float) -> list[list[float]]:
    """POST chats to these ports in turn, and return the seconds of each request, by port.

    They arrive at random, ``rate`` per second in all. So each port is measured in the same moments of the
    machine. Raises ``BenchError`` if a request fails.
    """
    loop = asyncio.get_running_loop()
    failures: list[BaseException] = []
    loop.set_exception_handler(lambda _, context: failures.append(context.get("exception") or BenchError()))
    found: list[list[float]] = [[] for _ in ports]
    idle: list[list[_Caller]] = [[] for _ in ports]
    gaps = random.Random(1)
    number, opened, at = 0, 0, time.monotonic()
    ends_at = at + seconds
    while at < ends_at and not failures:
        at += gaps.expovariate(rate)
        await asyncio.sleep(max(at - time.monotonic(), 0.0))
        which = number % len(ports)
        number += 1
        if idle[which]:
            caller = idle[which].pop()
        else:
            caller = _Caller(found[which], idle[which])
            await loop.create_connection(caller.itself, "127.0.0.1", ports[which])
            opened += 1
        caller.send()
    await asyncio.sleep(ANSWERED_S)
    if failures or sum(map(len, idle)) < opened:
        raise BenchError(f"requests failed, or had no answer: {failures[:1]}")
    return found
