"""One coordinator's controller with an API server, a lease store in memory, and sidecars that report."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from coordinator.leader import PoolLeader
from coordinator.pool_file import EncodedPoolFile
from coordinator.resources.api import Api
from coordinator.resources.controller import Controller
from coordinator.settings import Settings
from tests.support.api_server import ApiServer, kubeconfig
from tokenpool.amounts import Amount
from tokenpool.entitlements import Entitlement, PoolFile
from tokenpool.leases.messages import LeaseRequest, Message
from tokenpool.leases.wire import SidecarReport, decode_file, encode_report
from tokenpool.store.memory import MemoryStore

NAMESPACE = "tenants"
POOL = {"models": ["*"], "replica": {"concurrency": {"fixed": 8}}, "replicas": {"max": 2}}
ELASTIC = {"pool": "chat", "tier": "elastic"}


class World:
    """Everything around one controller."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.server = ApiServer()
        self.stores: dict[str, MemoryStore] = {}
        self.leaders: dict[str, PoolLeader] = {}
        self.files: list[PoolFile] = []
        self.sidecars: tuple[str, ...] = ()
        """The versions of the pool file that the sidecars enforce."""
        self.sequences = 8.0
        """The sequences that one engine runs."""
        self._folder = folder
        self._patch = patch
        self._numbers = 0
        self._name = "c0"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """The API server, at a free port."""
        runner = web.AppRunner(self.server.application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._patch.setenv("KUBECONFIG", str(kubeconfig(self._folder, self._url)))
        try:
            yield
        finally:
            await runner.cleanup()

    @contextlib.asynccontextmanager
    async def coordinator(
        self,
        base: PoolFile | None = None,
        *,
        leads: bool = True,
        until_synced: bool = True,
        scan_s: float = 30.0,
    ) -> AsyncIterator[Controller]:
        """A coordinator with its controller. Its leaders tick ten times a second."""
        self.leaders, self.files = {}, []
        self._name = f"{self._name}x"
        self._base = base
        controller = Controller(
            Api(),
            [NAMESPACE],
            base,
            publish=self._publish,
            last_published=self._last_published,
            leaders=lambda: self.leaders,
            clock=time.monotonic,
            chance=lambda: 0.0,
            scan_s=scan_s,
        )
        ticks = self._tick_forever() if leads else asyncio.Event().wait()
        tasks = [asyncio.create_task(controller.run()), asyncio.create_task(ticks)]  # type: ignore[arg-type]
        try:
            if until_synced:
                await self.until(lambda: controller.is_synced)
            yield controller
            for task in tasks:
                assert not task.done(), task.exception()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for leader in self.leaders.values():
                await leader.resign()

    def _publish(self, made: EncodedPoolFile) -> None:
        settings = Settings(config=Path("pool.yaml"), store="redis://127.0.0.1", tick=0.1)
        encoded = (made.version, made.content)
        self.files.append(made.file)
        for pool in made.file.pools:
            store = self.stores.setdefault(pool.name, MemoryStore(1.5, time.monotonic))
            leader = self.leaders.get(pool.name)
            if leader is None:
                self.leaders[pool.name] = PoolLeader(
                    settings, store, made.file, pool, self._name, time.monotonic, encoded
                )
            else:
                leader.follow(made.file, pool, encoded)
        for name in self.leaders.keys() - {pool.name for pool in made.file.pools}:
            del self.leaders[name]

    async def _last_published(self, pools: Iterable[str]) -> PoolFile | None:
        for pool in pools:
            found = await self.stores[pool].file() if pool in self.stores else None
            if found is not None:
                return decode_file(found[1])
        return None

    async def _tick_forever(self) -> None:
        while True:
            await self._report()
            for leader in list(self.leaders.values()):
                await leader.run_tick()
                assert not leader.error
            await asyncio.sleep(0.1)

    async def _report(self) -> None:
        """The sidecars report; the first one uses two sequences of ``a``."""
        self._numbers += 1
        one = Amount(1000, 10_000, self.sequences)
        for number, version in enumerate(self.sidecars):
            said = encode_report(SidecarReport(one, one, engine_up=True, file_version=version))
            used = LeaseRequest(concurrency_in_use=2, demand=(0, 0, 2.0), fresh=(0, 0, 2.0))
            use = {} if number else {"a": used}
            await self.stores["chat"].exchange(Message(f"s{number}", self._numbers, use, True, said))

    # --- what a test looks at ---
    def apply(self, name: str, **spec: Any) -> None:
        """Create or change an entitlement, by default an elastic one of the pool ``chat``."""
        self.server.apply("entitlements", NAMESPACE, name, ELASTIC | spec)

    def entitlement(self, name: str) -> Entitlement | None:
        """An entitlement of the pool file that was published last."""
        found = {each.name: each for each in self.files[-1].entitlements} if self.files else {}
        return found.get(name)

    def weight(self, name: str) -> float | None:
        """The weight in the pool file that was published last."""
        found = self.entitlement(name)
        return None if found is None else found.weight

    def keys(self, name: str) -> set[str]:
        """The digests of an entitlement's keys."""
        found = self.entitlement(name)
        return set() if found is None else {ref.value for ref in found.api_keys}

    def condition(self, name: str, kind: str, plural: str = "entitlements") -> tuple[str, str]:
        """Status and reason of a condition; empty if it is not there."""
        said = self.server.condition(plural, NAMESPACE, name, kind)
        return said.get("status", ""), said.get("reason", "")

    async def until(self, holds: Callable[[], bool], seconds: float = 8.0) -> float:
        """Wait until a condition holds. Returns the seconds."""
        started = time.monotonic()
        while not holds():
            assert time.monotonic() < started + seconds, "not in time"
            await asyncio.sleep(0.01)
        return time.monotonic() - started
