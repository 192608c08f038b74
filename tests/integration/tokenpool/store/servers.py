"""A real redis-server for one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
