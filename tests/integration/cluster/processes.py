"""The parts of a pool as processes, each of which a test can kill, pause and restart."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from toolbox.ports import free_port
from toolbox.processes import Process, module
from toolbox.redis import RedisProcess

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
        environments: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """``environments`` has more variables for some processes, by their names."""
        self._environments = environments or {}
        self.folder = folder
        self.file = folder / "pool.yaml"
        self.file.write_text(pool)
        self.redis = RedisProcess(folder, *redis_options)
        self.engines, self.sidecars, self.coordinators = [], [], []
        self.urls: list[str] = []
        self.admins: list[str] = []
        self.pages: list[str] = []
        self.peers: list[int] = []
        """The peer ports of the sidecars."""
        where = store or (lambda number, port: f"redis://127.0.0.1:{port}")
        for number in range(sidecars):
            # A peer port that the system chooses could be one of the ports that are free now.
            engine, listen, admin, peer = (free_port() for _ in range(4))
            self.peers.append(peer)
            self.engines.append(
                self._process(
                    f"engine{number}",
                    [
                        *(*module("loadgen.engine"), "--port", str(engine)),
                        *("--slots", str(slots), "--step", str(step)),
                    ],
                    engine,
                )
            )
            self.sidecars.append(
                self._process(
                    f"sidecar{number}",
                    [
                        *(*module("sidecar"), "run", "--config", str(self.file)),
                        *("--upstream", f"http://127.0.0.1:{engine}", "--name", f"s{number}"),
                        *("--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}"),
                        *("--peer", f"127.0.0.1:{peer}"),
                        *("--store", where(number, self.redis.port), "--drain-timeout", "2", *options),
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
                        *(*module("coordinator"), "run", "--config", str(self.file)),
                        *("--store", where(-1, self.redis.port), "--listen", f"127.0.0.1:{port}"),
                        *("--name", f"c{number}", *coordinator_options),
                    ],
                    port,
                )
            )
            self.pages.append(f"http://127.0.0.1:{port}")
        self.session: aiohttp.ClientSession

    def _process(self, name: str, command: Sequence[str], probe: int) -> Process:
        environment = self._environments.get(name)
        return Process(name, command, self.folder, probe=probe, environment=environment)

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
        """A JSON page; empty without a response."""
        try:
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as response:
                return await response.json()
        except (aiohttp.ClientError, TimeoutError):
            return {}

    async def states(self) -> list[dict[str, Any]]:
        """The state page of every sidecar."""
        return list(await asyncio.gather(*(self.get(f"{admin}/debug/state") for admin in self.admins)))

    async def modes(self) -> list[str]:
        """The lease mode of every sidecar."""
        return [state.get("lease_store", {}).get("mode", "gone") for state in await self.states()]

    async def leaders(self) -> list[int]:
        """The coordinators that lead."""
        pages = await asyncio.gather(*(self.get(f"{page}/debug/state") for page in self.pages))
        return [
            number
            for number, page in enumerate(pages)
            if page and all(pool["leads"] and not pool["error"] for pool in page["pools"].values())
        ]

    async def until(self, condition: Callable[[], Any], seconds: float) -> float:
        """Wait until an async condition holds, and return the seconds."""
        started = time.monotonic()
        while not await condition():
            if time.monotonic() >= started + seconds:
                stands = [state and (state["lease_store"], state["engine"]) for state in await self.states()]
                ended = [f"{each.name}: {each.last_lines()}" for each in self.everything if each.has_ended]
                raise AssertionError(
                    f"not within {seconds:g} s: {stands}, leaders {await self.leaders()}, ended {ended}"
                )
            await asyncio.sleep(0.05)
        return time.monotonic() - started

    async def is_joined(self) -> bool:
        """Whether all sidecars are joined, and one coordinator leads."""
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
        """Wait until all sidecars are joined and one coordinator leads, and return the seconds."""
        return await self.until(self.is_joined, seconds)
