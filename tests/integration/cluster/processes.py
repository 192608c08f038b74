"""The parts of a pool as processes of a test's own, each of which can be killed, stopped and brought back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from demo.engine import free_port
from demo.redis import executable

LIFETIME_S = 1.5
SLOTS = 4
POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 4}
    replicas: {min: 1, max: 8}
entitlements:
  - name: g
    pool: chat
    tier: guaranteed
    guarantee: {tokens_per_second: 20000, kv_tokens: 16384, concurrency: 8}
    api_keys: [g-key]
  - {name: c, pool: chat, tier: elastic, ceiling: {concurrency: 4}, api_keys: [c-key]}
  - {name: s, pool: chat, tier: spot, api_keys: [s-key]}
"""


class Process:
    """One process, its log and its port."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, *, probe: int) -> None:
        self.name = name
        self.probe = probe
        self.log = folder / f"{name}.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it without ceremony."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def terminate(self) -> None:
        """Ask it to end."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(15) == 0, self.log.read_text()
        self._process = None

    def replace(self, old: str, new: str) -> None:
        """Start with another argument from now on."""
        self._command = [new if part == old else part for part in self._command]

    @contextlib.contextmanager
    def paused(self) -> Any:
        """Stop it for a while."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)


class Cluster:
    """A pool of sidecars with engines, coordinators and one Redis."""

    def __init__(
        self,
        folder: Path,
        *,
        sidecars: int = 4,
        coordinators: int = 2,
        pool: str = POOL,
        slots: int = SLOTS,
        step: float = 0.01,
        options: Sequence[str] = (),
        coordinator_options: Sequence[str] = (),
        redis_options: Sequence[str] = (),
        store: Callable[[int, int], str] | None = None,
    ) -> None:
        self.folder = folder
        self.file = folder / "pool.yaml"
        self.file.write_text(pool)
        self.redis_port = free_port()
        self.redis = self._process(
            "redis",
            [
                *(executable(), "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", ""),
                *("--appendonly", "no", "--dir", str(folder), *redis_options),
            ],
            self.redis_port,
        )
        self.engines, self.sidecars, self.coordinators = [], [], []
        self.urls: list[str] = []
        self.admins: list[str] = []
        self.pages: list[str] = []
        where = store or (lambda number, port: f"redis://127.0.0.1:{port}")
        for number in range(sidecars):
            engine, listen, admin = free_port(), free_port(), free_port()
            self.engines.append(
                self._process(
                    f"engine{number}",
                    [
                        *(sys.executable, "-m", "loadgen.engine", "--port", str(engine)),
                        *("--slots", str(slots), "--step", str(step)),
                    ],
                    engine,
                )
            )
            self.sidecars.append(
                self._process(
                    f"sidecar{number}",
                    [
                        *(sys.executable, "-m", "sidecar", "run", "--config", str(self.file)),
                        *("--upstream", f"http://127.0.0.1:{engine}", "--name", f"s{number}"),
                        *("--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}"),
                        *("--store", where(number, self.redis_port), "--drain-timeout", "2", *options),
                    ],
                    admin,
                )
            )
            self.urls.append(f"http://127.0.0.1:{listen}")
            self.admins.append(f"http://127.0.0.1:{admin}")
        for number in range(coordinators):
            port = free_port()
            self.coordinators.append(
                self._process(
                    f"coordinator{number}",
                    [
                        *(sys.executable, "-m", "coordinator", "run", "--config", str(self.file)),
                        *("--store", where(-1, self.redis_port), "--listen", f"127.0.0.1:{port}"),
                        *("--name", f"c{number}", *coordinator_options),
                    ],
                    port,
                )
            )
            self.pages.append(f"http://127.0.0.1:{port}")
        self.session: aiohttp.ClientSession

    def _process(self, name: str, command: Sequence[str], probe: int) -> Process:
        return Process(name, command, self.folder, probe=probe)

    @property
    def everything(self) -> list[Process]:
        return [self.redis, *self.engines, *self.coordinators, *self.sidecars]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Cluster]:
        """All parts, started and joined."""
        async with self.serving():
            await self.until_joined(30)
            yield self

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Cluster]:
        """All parts, started."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=30)
        ) as self.session:
            try:
                for process in self.everything:
                    process.start()
                yield self
            finally:
                for process in reversed(self.everything):
                    process.kill()

    async def get(self, url: str) -> dict[str, Any]:
        """A JSON page; empty where nobody answers."""
        try:
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as response:
                return await response.json()
        except (aiohttp.ClientError, TimeoutError):
            return {}

    async def states(self) -> list[dict[str, Any]]:
        """What every sidecar says of itself."""
        return list(await asyncio.gather(*(self.get(f"{admin}/debug/state") for admin in self.admins)))

    async def modes(self) -> list[str]:
        """How every sidecar stands with the lease store."""
        return [state.get("lease_store", {}).get("mode", "gone") for state in await self.states()]

    async def leaders(self) -> list[int]:
        """Which coordinators lead."""
        pages = await asyncio.gather(*(self.get(f"{page}/debug/state") for page in self.pages))
        return [
            number
            for number, page in enumerate(pages)
            if page and all(pool["leads"] and not pool["error"] for pool in page["pools"].values())
        ]

    async def until(self, condition: Callable[[], Any], seconds: float) -> float:
        """Wait until an async condition holds; how long that took."""
        started = time.monotonic()
        while not await condition():
            assert time.monotonic() < started + seconds, (
                await self.modes(),
                await self.leaders(),
                self.folder,
            )
            await asyncio.sleep(0.05)
        return time.monotonic() - started

    async def is_joined(self) -> bool:
        """Whether everyone is joined, and one coordinator leads."""
        states = await self.states()
        return (
            all(
                state
                and state["lease_store"]["mode"] == "joined"
                and not state["lease_store"]["failures"]
                and state["engine"]["up"]
                and state["lease_store"]["sidecars"] == len(self.sidecars)
                for state in states
            )
            and len(await self.leaders()) == 1
        )

    async def until_joined(self, seconds: float) -> float:
        """Wait until everyone is joined and one leads; how long that took."""
        return await self.until(self.is_joined, seconds)
