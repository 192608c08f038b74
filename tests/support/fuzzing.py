"""Shared parts of all fuzzing: mutations, the time limit of each part, and an arena for a live sidecar.

``FUZZ_SECONDS`` is the time of all parts together (``make fuzz``: minutes, or an hour). The ``test_fuzz*``
modules have the examples and the invariants. Each finding becomes a case there.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("FUZZ_SECONDS", "12"))
LIMITS: dict[str, Any] = {
    "head_timeout": 0.2,
    "body_timeout": 0.2,
    "idle_timeout": 0.2,
    "max_body_bytes": 1 << 20,
    "poll_timeout": 10.0,
}
LONGEST_S = 10.0
BATCH = 60
"""Concurrent connections. Some examples wait for timeouts of the sidecar, so they wait in parallel."""

_Example = TypeVar("_Example")


def fuzz(
    what: str,
    share: float,
    strategy: st.SearchStrategy[_Example],
    check: Callable[[_Example], None],
    capsys: pytest.CaptureFixture[str],
    *,
    size: int = 1,
) -> None:
    """Check examples for a share of the time, and print their number. ``size`` is the size of an example."""
    seconds = SECONDS * share
    ends_at = time.monotonic() + seconds
    played = 0
    failed: list[Exception] = []

    @settings(
        max_examples=5 if size > 1 else 100,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def play(example: _Example) -> None:
        nonlocal played
        if failed or (size > 1 and played and time.monotonic() >= ends_at):
            return
        played += size
        try:
            check(example)
        except Exception as error:
            if size == 1:
                raise
            failed.append(error)  # the message names the example, so no shrinking is needed

    while time.monotonic() < ends_at and not failed:
        play()
    if failed:
        raise failed[0]
    with capsys.disabled():
        print(f"\nfuzzed {played} {what} in {seconds:g} s")


def mutated(draw: st.DrawFn, data: bytes, tokens: list[bytes], most: int = 4) -> bytes:
    """The bytes with a few mutations."""
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["insert", "insert", "delete", "flip", "double"]))
        size = draw(st.integers(1, 12))
        if kind == "insert":
            data = data[:at] + draw(st.sampled_from(tokens) | st.binary(max_size=8)) + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + size :]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        elif kind == "double":
            data = data[: at + size] + data[at:]
    return data


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes, split at these positions."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


class Arena:
    """An event loop and a folder for live sidecars, shared by all examples."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = folder
        self._crashes: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, crash: self._crashes.append(crash))

    def run(self, example: Coroutine[None, None, None]) -> None:
        """Run an example, and fail if a callback of the sidecar raised an exception."""
        self._crashes.clear()
        self.loop.run_until_complete(example)
        assert self._crashes == []


async def send(port: int, parts: list[bytes]) -> bytes:
    """All bytes until the sidecar closes the connection. Raises ``TimeoutError`` if it does not."""
    async with asyncio.timeout(LONGEST_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            return await reader.read(-1)
        except ConnectionError:
            return b""
        finally:
            writer.close()
