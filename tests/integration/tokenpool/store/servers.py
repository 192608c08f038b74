"""A real redis-server of a test's own."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.engine import free_port
from demo.redis import executable


@contextmanager
def redis_server(folder: Path, *options: str, port: int | None = None) -> Iterator[tuple[int, int]]:
    """A server that keeps nothing on disk; yields its port and its process id."""
    port = free_port() if port is None else port
    with (folder / "redis.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(executable(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""),
                *("--appendonly", "no", "--dir", str(folder), *options),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 10
        while not _accepts(port):
            assert process.poll() is None, (folder / "redis.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
