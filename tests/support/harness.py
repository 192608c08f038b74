"""A sidecar in this process, and a client that sends given bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from runtime.options import Addresses, Origin
from sidecar.__main__ import _parser
from sidecar.app import Sidecar
from sidecar.settings import Settings, read
from tokenpool.store import Store

POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 8}
entitlements:
  - name: g
    pool: chat
    tier: guaranteed
    guarantee: {tokens_per_second: 10000, kv_tokens: 10000, concurrency: 4}
    api_keys: [g-key]
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
  - {name: s, pool: chat, tier: spot, api_keys: [s-key]}
"""


def settings_of(arguments: str) -> Settings:
    """The settings of a command line of ``run``."""
    return read(_parser().parse_args(["run", "--config", "p", *arguments.split()]), {})


@dataclass
class Response:
    """One response at the client."""

    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


@contextlib.asynccontextmanager
async def sidecar_for(
    port: int,
    folder: Path,
    *,
    pool: str = POOL,
    ready: bool = True,
    store: Store | None = None,
    **options: Any,
) -> AsyncIterator[Sidecar]:
    """A started sidecar in front of the engine on ``port``; with ``store``, one of several."""
    file = folder / "pool.yaml"
    file.write_text(pool)
    settings = Settings(
        **{
            "config": file,
            "upstream": Origin("127.0.0.1", port),
            "listen": Addresses.of("127.0.0.1", 0),
            "admin": Addresses.of("127.0.0.1", 0),
            "poll_interval": 0.02,
            "tick": 0.02,
            "drain_timeout": 1.0,
            **options,
        }
    )
    sidecar = Sidecar(settings, store)
    await sidecar.start()
    try:
        if ready:
            await until(lambda: not sidecar.admin.problems())
        yield sidecar
    finally:
        await sidecar.stop()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Run the loop until a condition holds; fail after a time limit."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def request(
    path: str = "/v1/completions",
    body: object = None,
    *,
    key: str | None = "g-key",
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> bytes:
    """The bytes of a valid request."""
    if body is None:
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 5}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: test"]
    if key:
        lines.append(f"authorization: Bearer {key}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if method == "POST":
        lines.append(f"content-length: {len(content)}")
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return head + content if method == "POST" else head


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
STREAM = CHAT | {"stream": True}


@contextlib.asynccontextmanager
async def connected(
    sidecar: Sidecar, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client connection."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", sidecar.listens_on.port, limit=1 << 24, ssl=tls
    )
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def ask(
    sidecar: Sidecar, raw: bytes, *, seconds: float = 5.0, tls: ssl.SSLContext | None = None
) -> Response:
    """Send bytes on a new connection, and read one response."""
    async with asyncio.timeout(seconds), connected(sidecar, tls) as (reader, writer):
        writer.write(raw)
        return await read_response(reader)


async def read_response(reader: asyncio.StreamReader, *, has_body: bool = True) -> Response:
    """Read one response with any framing."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    status = int(first.split()[1])
    body = b""
    if not has_body or status in (204, 304):
        pass
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        body = b"".join([part async for part in read_chunks(reader)])
    else:
        body = await reader.read()
    return Response(status, headers, body)


async def read_chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The chunks of a chunked body."""
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


async def admin(sidecar: Sidecar, path: str) -> tuple[int, str]:
    """A page of the admin port."""
    url = f"http://{sidecar.admin_on}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


def is_whole(sidecar: Sidecar) -> bool:
    """Whether all parts of the ledger are empty."""
    ledger = sidecar.controller.control.ledger
    accounts = sidecar.controller.accounts.values()
    return (
        (ledger.kv_in_use, ledger.concurrency_in_use) == (0, 0)
        and all((a.kv_in_use, a.concurrency_in_use) == (0, 0) for a in accounts)
        and sidecar.controller.limits.is_empty
    )
