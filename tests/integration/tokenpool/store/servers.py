"""A real redis-server for one test, and a store that is served over a Unix socket."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tokenpool.store import Store
from tokenpool.store.local import LocalStore, StoreServer
from toolbox.redis import RedisProcess


@contextmanager
def redis_server(folder: Path, *options: str, port: int | None = None) -> Iterator[tuple[int, int]]:
    """A server without persistence; yields its port and its process id."""
    server = RedisProcess(folder, *options, port=port).start()
    try:
        server.wait_ready(10)
        yield server.port, server.pid
    finally:
        server.kill()


@asynccontextmanager
async def served(store: Store, timeout_s: float = 5.0) -> AsyncIterator[LocalStore]:
    """A store, as another process of the machine uses it."""
    with tempfile.TemporaryDirectory(
        prefix="tp-"
    ) as folder:  # a short path: a socket's has 108 bytes at most
        path = Path(folder) / "store"
        server, client = StoreServer(store), LocalStore(path, timeout_s)
        await server.start(path)
        try:
            yield client
        finally:
            await client.close()
            await server.stop()
