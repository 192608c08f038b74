"""A sidecar with several workers as real processes, and an engine in the test that counts what it runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from toolbox.ports import free_port
from toolbox.processes import Process, module
from toolbox.stub_engine import metrics, models

POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000000, kv_tokens: 1000000, concurrency: 8}
entitlements:
  - name: g
    pool: chat
    tier: guaranteed
    guarantee: {tokens_per_second: 100000, kv_tokens: 100000, concurrency: 4}
    api_keys: [g-key]
  - {name: c, pool: chat, tier: elastic, ceiling: {concurrency: 4}, api_keys: [c-key]}
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
  - {name: s, pool: chat, tier: spot, api_keys: [s-key]}
"""
PATIENCE_S = 30.0


class CountingEngine:
    """Streams ``max_tokens`` tokens, one each ``step`` seconds, and counts the running requests by user."""

    def __init__(self, step: float = 0.01) -> None:
        self.port = free_port()
        self.step = step
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        """The most requests of each user that ran at once."""
        self._responses = 0
        self._runner: web.AppRunner

    def begin(self) -> None:
        """Count the most from now on."""
        self.most = Counter(self.running)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        user, tokens = asked["user"], int(asked["max_tokens"])
        self.running[user] += 1
        self.running["all"] += 1
        for each in (user, "all"):
            self.most[each] = max(self.most[each], self.running[each])
        try:
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            for _ in range(tokens):
                await asyncio.sleep(self.step)
                await response.write(b'data: {"choices":[{"index":0,"text":"x "}]}\n\n')
            usage = {"prompt_tokens": 2, "completion_tokens": tokens, "total_tokens": tokens + 2}
            await response.write(b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
            await response.write(b"data: [DONE]\n\n")
            return response
        finally:
            self.running[user] -= 1
            self.running["all"] -= 1

    async def _respond(self, request: web.Request) -> web.Response:
        """Make a response, which can be retrieved by its id."""
        self._responses += 1
        usage = {"input_tokens": 2, "output_tokens": 3, "total_tokens": 5}
        return web.json_response(
            {"id": f"resp_{self._responses}", "object": "response", "status": "completed", "usage": usage}
        )

    async def _page(self, request: web.Request) -> web.Response:
        if request.path == "/metrics":
            return web.Response(text=metrics("tiny", self.running["all"]))
        return web.Response(text=models("tiny") if request.path == "/v1/models" else "")

    async def __aenter__(self) -> CountingEngine:
        application = web.Application()
        application.add_routes(
            [
                web.post("/v1/completions", self._complete),
                web.post("/v1/responses", self._respond),
                web.get("/{_:.*}", self._page),
            ]
        )
        self._runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


class Pod:
    """One sidecar with several workers."""

    def __init__(
        self,
        folder: Path,
        engine: CountingEngine,
        session: aiohttp.ClientSession,
        workers: int,
        options: Sequence[str] = (),
        pool: str = POOL,
        scheme: str = "http",
        has_file: bool = True,
    ) -> None:
        """``has_file``: it has a pool file of its own."""
        self.file = folder / "pool.yaml"
        self.file.write_text(pool)
        self._session = session
        listen, admin = free_port(), free_port()
        self.url, self.admin = f"{scheme}://127.0.0.1:{listen}", f"http://127.0.0.1:{admin}"
        self.process = Process(
            "sidecar",
            [
                *(*module("sidecar"), "run", "--workers", str(workers)),
                *(("--config", str(self.file)) if has_file else ("--pool", "chat")),
                *("--upstream", f"http://127.0.0.1:{engine.port}", "--listen", f"127.0.0.1:{listen}"),
                *("--admin", f"127.0.0.1:{admin}", "--drain-timeout", "5", *options),
            ],
            folder,
            probe=admin,
        )

    async def get(self, path: str) -> Any:
        """A JSON page of the admin port; ``None`` without an answer."""
        try:
            async with self._session.get(self.admin + path) as response:
                return await response.json()
        except (aiohttp.ClientError, TimeoutError):
            return None

    async def workers(self) -> list[dict[str, Any]]:
        """The workers in ``/debug/state``."""
        page = await self.get("/debug/state")
        found: list[dict[str, Any]] = page["workers"] if page is not None and "workers" in page else []
        return found

    async def metric(self, name: str) -> float:
        """The sum of a metric's series."""
        async with self._session.get(self.admin + "/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))
        )

    async def complete(self, user: str, tokens: int = 5) -> tuple[int, bool]:
        """One streamed request over a connection of its own: its status, and whether it came whole."""
        body = {"model": "tiny", "prompt": "hi", "max_tokens": tokens, "stream": True, "user": user}
        headers = {"authorization": f"Bearer {user}-key", "connection": "close"}
        try:
            async with self._session.post(
                f"{self.url}/v1/completions", json=body, headers=headers, ssl=False
            ) as response:
                text = await response.read()
                return response.status, text.endswith(b"[DONE]\n\n")
        except (aiohttp.ClientError, ConnectionError):
            return 0, False

    async def respond(self, user: str) -> str:
        """The id of a response over a connection of its own."""
        headers = {"authorization": f"Bearer {user}-key", "connection": "close"}
        body = {"model": "tiny", "input": "hi", "max_output_tokens": 5}
        async with self._session.post(f"{self.url}/v1/responses", json=body, headers=headers) as response:
            made: str = (await response.json())["id"]
            return made

    async def retrieve(self, user: str, response_id: str) -> int:
        """The status of the request for a response, over a connection of its own."""
        headers = {"authorization": f"Bearer {user}-key", "connection": "close"}
        async with self._session.get(f"{self.url}/v1/responses/{response_id}", headers=headers) as response:
            return response.status

    async def keep_asking(self, user: str, until: float, tokens: int = 5) -> Counter[int]:
        """Requests one after the other until this time: their number by status. 0: broken."""
        found: Counter[int] = Counter()
        while time.monotonic() < until:
            status, is_whole = await self.complete(user, tokens)
            found[status if is_whole or status != 200 else 0] += 1
            if status == 429:
                await asyncio.sleep(0.02)
        return found

    async def kill_worker(self, index: int = 0) -> int:
        """Kill one worker; returns its process id."""
        pid: int = (await self.workers())[index]["pid"]
        os.kill(pid, signal.SIGKILL)
        return pid

    async def until_ready(self, workers: int) -> None:
        """Wait until all workers hold leases of each other's store, and serve."""

        async def are_joined() -> bool:
            shown = await self.workers()
            joined = [each for each in shown if (each.get("lease_store") or {}).get("mode") == "joined"]
            page = await self.get("/readyz")
            return len(joined) == workers and page is not None and page["status"] != "unready"

        await until(are_joined, f"{self.process.log}")


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    workers: int,
    *options: str,
    pool: str = POOL,
    step: float = 0.01,
    scheme: str = "http",
    is_joined: bool = True,
) -> AsyncIterator[tuple[Pod, CountingEngine]]:
    """A sidecar with its engine, ready to serve unless it cannot have joined its pool yet."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=20)
    async with (
        CountingEngine(step) as engine,
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
    ):
        pod = Pod(folder, engine, session, workers, options, pool, scheme)
        pod.process.start()
        try:
            if is_joined:
                await pod.until_ready(workers)
            yield pod, engine
        finally:
            pod.process.stop()
