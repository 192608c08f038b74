"""Sidecars without a pool file of their own: they wait for the published one, and follow it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from tests.integration.cluster.processes import POOL
from toolbox.ports import free_port
from toolbox.processes import Process, module
from toolbox.redis import RedisProcess


class Parts:
    """A Redis, an engine, a sidecar without a pool file, and a coordinator that starts later."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "pool.yaml"
        self.file.write_text(POOL.replace("[c-key]", f"[{{file: {folder / 'c-key'}}}]"))
        (folder / "c-key").write_text("first")
        self.redis = RedisProcess(folder)
        engine, listen, admin, port = (free_port() for _ in range(4))
        self.url, self.admin = f"http://127.0.0.1:{listen}", f"http://127.0.0.1:{admin}"
        self.engine = Process(
            "engine", [*module("loadgen.engine"), "--port", str(engine), "--slots", "4"], folder, probe=engine
        )
        self.sidecar = Process(
            "sidecar",
            [
                *(*module("sidecar"), "run", "--pool", "chat", "--store", self.redis.url),
                *("--upstream", f"http://127.0.0.1:{engine}", "--drain-timeout", "1"),
                *("--listen", f"127.0.0.1:{listen}", "--admin", f"127.0.0.1:{admin}"),
            ],
            folder,
            probe=admin,
        )
        self.coordinator = Process(
            "coordinator",
            [
                *(*module("coordinator"), "run", "--config", str(self.file), "--store", self.redis.url),
                *("--listen", f"127.0.0.1:{port}"),
            ],
            folder,
            probe=port,
        )
        self.session: aiohttp.ClientSession

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Parts]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as self.session:
            try:
                yield self
            finally:
                for process in (self.sidecar, self.coordinator, self.engine, self.redis):
                    process.kill()

    async def page(self, path: str) -> tuple[int, str]:
        """The status and the text of a page of the admin port; 0 without an answer."""
        try:
            async with self.session.get(self.admin + path) as response:
                return response.status, await response.text()
        except aiohttp.ClientError:
            return 0, ""

    async def until(self, path: str, status: int, text: str) -> None:
        """Wait for a page with this status and text."""
        seen: tuple[int, str] = (0, "")
        try:
            async with asyncio.timeout(20):
                while not (seen[0] == status and text in seen[1]):
                    seen = await self.page(path)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{path}: {seen}") from None

    async def status_with(self, key: str) -> int:
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 2}
        headers = {"authorization": f"Bearer {key}"}
        async with self.session.post(f"{self.url}/v1/completions", json=body, headers=headers) as response:
            await response.read()
            return response.status

    async def until_status(self, key: str, status: int) -> None:
        async with asyncio.timeout(10):
            while await self.status_with(key) != status:
                await asyncio.sleep(0.05)


async def test_a_sidecar_waits_for_the_published_file_and_follows_it(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    async with parts.running():
        parts.engine.start()
        parts.sidecar.start()
        await parts.until("/readyz", 503, "the lease store does not answer")
        parts.redis.start()
        await parts.until("/readyz", 503, "no pool file is published for pool 'chat'")
        assert (await parts.page("/healthz"))[0] == 200
        assert "tokenpool_build_info" in (await parts.page("/metrics"))[1]
        parts.coordinator.start()
        await parts.until("/readyz", 200, '"ready"')
        assert await parts.status_with("g-key") == 200
        assert await parts.status_with("first") == 200
        # A changed file, and a key file that only the published file names.
        parts.file.write_text(parts.file.read_text().replace("[s-key]", "[new-key]"))
        await parts.until_status("new-key", 200)
        assert await parts.status_with("s-key") == 401
        (tmp_path / "c-key").write_text("second")
        await parts.until_status("second", 200)
        assert await parts.status_with("first") == 401
        assert 'tokenpool_config_differs{pool="chat"} 0.0' in (await parts.page("/metrics"))[1]


async def test_a_sidecar_that_waits_can_be_stopped(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    async with parts.running():
        parts.redis.start()
        parts.sidecar.start()
        await parts.until("/readyz", 503, "no pool file is published")
        assert parts.sidecar.stop(5) == 0
