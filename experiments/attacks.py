"""The attacks of a hostile client on a proxy. Each is a process that reports its actions.

``python -m experiments.attacks KIND --url http://127.0.0.1:PORT --key KEY``. An attack is as fast as one core
allows, up to ``MOST_PER_S``, and uses loopback addresses only. ``hostile`` measures its effect.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import logging
import resource
import secrets
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

MOST_PER_S = 10_000
OPEN = 64
"""Requests that a fast attack leaves open before it cancels the oldest."""
SLOW = 1000
"""Connections of a slow attack."""
HELD = 5000
"""Silent connections that a flood holds before it closes the oldest."""
BODY_BYTES = 16 << 20
_USUAL = json.dumps({"model": "small", "prompt": [5] * 16, "max_tokens": 64}).encode()
_RESET = struct.pack("ii", 1, 0)


class Target:
    """The target of an attack, the time of its end, and counts of its actions."""

    def __init__(self, url: str, key: str, seconds: float, most_per_s: float = MOST_PER_S) -> None:
        parts = urlsplit(url)
        self.address = (parts.hostname or "", parts.port or 80)
        if not ipaddress.ip_address(self.address[0]).is_loopback:
            raise ValueError(f"{url} is not on loopback; attacks use loopback addresses only")
        self.key = key
        self.began = time.monotonic()
        self.until = self.began + seconds
        self.most_per_s = most_per_s
        self.actions: Counter[str] = Counter()

    @property
    def is_over(self) -> bool:
        """Whether the attack is over."""
        return time.monotonic() >= self.until

    def keep_pace(self, done: int) -> None:
        """Wait if ``done`` actions are more than ``most_per_s`` allows."""
        ahead = done / self.most_per_s - (time.monotonic() - self.began)
        if ahead > 0.001:
            time.sleep(ahead)

    def connect(self) -> socket.socket | None:
        """A new connection that closes with a reset; ``None`` if it cannot be opened."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        made.settimeout(0.5)
        try:
            made.connect(self.address)
        except OSError:
            made.close()
            self.actions["could not connect"] += 1
            return None
        return made

    def request(self, body: bytes, key: str | None = None, path: str = "/v1/completions") -> bytes:
        """A request's bytes."""
        return self.head(len(body), key, path) + body

    def head(self, length: int, key: str | None = None, path: str = "/v1/completions") -> bytes:
        """A request's head."""
        return (
            f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key or self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        ).encode()


def flood_connections(target: Target) -> None:
    """Open connections and send nothing."""
    held: deque[socket.socket] = deque()
    while not target.is_over:
        target.keep_pace(target.actions.total())
        if len(held) >= HELD:
            held.popleft().close()
        if (made := target.connect()) is not None:
            held.append(made)
            target.actions["opened"] += 1


def cancel(target: Target) -> None:
    """Send requests, and disconnect before the responses."""
    body = json.dumps({"model": "small", "prompt": [5] * 16, "max_tokens": 64, "stream": True}).encode()
    _send_and_disconnect(target, lambda: target.request(body), "cancelled")


def guess_keys(target: Target) -> None:
    """Send requests with random keys."""
    body = b'{"model":"small","prompt":"a"}'
    _send_and_disconnect(target, lambda: target.request(body, secrets.token_hex(16)), "keys tried")


def _send_and_disconnect(target: Target, request: Callable[[], bytes], what: str) -> None:
    sent: deque[socket.socket] = deque()
    while not target.is_over:
        target.keep_pace(target.actions.total())
        if len(sent) >= OPEN:
            sent.popleft().close()
        if (made := target.connect()) is None:
            continue
        with contextlib.suppress(OSError):
            made.send(request())
        sent.append(made)
        target.actions[what] += 1


def use(target: Target) -> None:
    """Send two requests at a time, as the ceiling allows."""
    asyncio.run(_run_clients(target, lambda: _send_repeatedly(target, target.request(_USUAL)), 2))


def shed(target: Target) -> None:
    """Send requests on many connections without a pause, and ignore the responses."""
    asyncio.run(_run_clients(target, lambda: _send_repeatedly(target, target.request(_USUAL)), OPEN))


async def _send_repeatedly(target: Target, request: bytes) -> None:
    reader, writer = await asyncio.open_connection(*target.address)
    with contextlib.closing(writer):
        while not target.is_over:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            target.actions[f"answered {head.split(b' ', 2)[1].decode()}"] += 1


def slow_heads(target: Target) -> None:
    """Send heads at a byte per second."""
    asyncio.run(_run_clients(target, lambda: _send_slowly(target, target.head(10)), SLOW))


def slow_bodies(target: Target) -> None:
    """Announce bodies of a megabyte with a valid key, and send a byte per second."""
    asyncio.run(_run_clients(target, lambda: _send_slowly(target, b" " * 99, target.head(1 << 20)), SLOW))


async def _send_slowly(target: Target, slowly: bytes, at_once: bytes = b"") -> None:
    reader, writer = await asyncio.open_connection(*target.address)
    with contextlib.closing(writer):
        target.actions["opened"] += 1
        writer.write(at_once)
        for byte in slowly:
            if target.is_over or reader.at_eof():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(1)


def slow_reads(target: Target) -> None:
    """Pipeline requests with long responses, and read none of them."""
    asyncio.run(_run_clients(target, lambda: _read_nothing(target), SLOW))


async def _read_nothing(target: Target) -> None:
    """Every other connection begins with a stream. The refusals of the other requests have long bodies."""
    loop = asyncio.get_running_loop()
    streams = target.actions["opened"] % 2 == 0
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    made.setblocking(False)
    body = b'{"model":"small","prompt":"a","n":%d}' % (1 << 30)
    stream = b'{"model":"small","prompt":"a","max_tokens":2000,"stream":true}'
    try:
        await loop.sock_connect(made, target.address)
        target.actions["opened"] += 1
        if streams:
            await loop.sock_sendall(made, target.request(stream))
        while not target.is_over:
            await asyncio.wait_for(loop.sock_sendall(made, target.request(body) * 8), 1)
            target.actions["requests"] += 8
    except TimeoutError:
        await asyncio.sleep(max(target.until - time.monotonic(), 0))
    finally:
        made.close()


def giant_bodies(target: Target) -> None:
    """Send the largest bodies that are allowed, of shapes that are expensive to parse."""
    filled = BODY_BYTES - 100
    shapes = (
        b'{"model":"small","max_tokens":1,"prompt":"%b"}' % (b"hello wor " * (filled // 10)),
        b'{"model":"small","max_tokens":1,"prompt":[%b1]}' % (b"1," * (filled // 2)),
        b'{"model":"small","max_tokens":1,"prompt":"a","x":[%b1]}' % (b"{}," * (filled // 3)),
        b'{"model":"small","max_tokens":1,"prompt":[%b""]}' % (b'"",' * (filled // 3)),
    )
    asyncio.run(
        _run_clients(target, lambda: _send_whole(target, [("/v1/completions", shape) for shape in shapes]), 4)
    )


def expensive_bodies(target: Target) -> None:
    """Send bodies that cost little and take long to parse, each within every limit on a single body."""
    empty = b"{},".join([b""] * 4000)
    shapes = (
        ("/v1/completions", b'{"model":"small","max_tokens":1,"prompt":"a","x":[%b{}]}' % (b"{}," * 80_000)),
        ("/v1/completions", b'{"model":"small","max_tokens":1,"prompt":[%b1]}' % (b"1," * 30_000)),
        ("/v1/chat/completions", b'{"model":"small","max_tokens":1,"messages":[%b{}]}' % empty),
        ("/v1/chat/completions", b'{"model":"small","messages":[{"content":[%b{}]}]}' % empty),
        ("/tokenize", b'{"model":"small","prompt":"%b"}' % (b"hello wor " * 6000)),
    )
    asyncio.run(_run_clients(target, lambda: _send_whole(target, shapes), 16))


async def _send_whole(target: Target, shapes: Sequence[tuple[str, bytes]]) -> None:
    while not target.is_over:
        for path, body in shapes:
            reader, writer = await asyncio.open_connection(*target.address)
            with contextlib.closing(writer):
                writer.write(target.head(len(body), path=path))
                with contextlib.suppress(ConnectionError):
                    for start in range(0, len(body), 1 << 18):
                        writer.write(memoryview(body)[start : start + (1 << 18)])
                        await writer.drain()
                        if target.is_over:
                            return
                status = (await reader.readline())[9:12].decode() or "nothing"
                target.actions[f"answered {status}"] += 1


async def _run_clients(target: Target, client: Callable[[], Coroutine[None, None, None]], count: int) -> None:
    """Run so many clients at once. A client whose connection is closed reconnects after 0.1 s."""

    async def reconnect_repeatedly() -> None:
        while not target.is_over:
            try:
                await client()
            except (OSError, EOFError, ValueError):
                target.actions["disconnected"] += 1
            await asyncio.sleep(0.1)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(target.until - time.monotonic()), asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(reconnect_repeatedly())
                if number % 50 == 49:
                    await asyncio.sleep(0.01)


ORDINARY = "ordinary use"
"""No attack: the reference for the others."""


class Attack(NamedTuple):
    """One kind of attack."""

    run: Callable[[Target], None]
    least_per_s: float
    """The least rate of actions; a lower rate means that the attack actions not work."""


KINDS = {
    "connection flood": Attack(flood_connections, 500),
    "slow heads": Attack(slow_heads, 20),
    "slow bodies": Attack(slow_bodies, 20),
    "slow reads": Attack(slow_reads, 1000),
    "giant bodies": Attack(giant_bodies, 1),
    "expensive bodies": Attack(expensive_bodies, 5),
    "cancels": Attack(cancel, 500),
    "sheds": Attack(shed, 100),
    "random keys": Attack(guess_keys, 500),
}


def main() -> None:
    """Attack, and print the counts of actions."""
    parser = argparse.ArgumentParser(prog="python -m experiments.attacks", description=__doc__)
    parser.add_argument("kind", choices=(ORDINARY, *KINDS))
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--most-per-s", type=float, default=MOST_PER_S)
    arguments = parser.parse_args()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        target = Target(arguments.url, arguments.key, arguments.seconds, arguments.most_per_s)
    except ValueError as error:
        parser.error(str(error))
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # asyncio logs every connection that is closed
    attack = KINDS[arguments.kind].run if arguments.kind in KINDS else use
    attack(target)
    print(json.dumps(target.actions))


if __name__ == "__main__":
    main()
