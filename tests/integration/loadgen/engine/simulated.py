"""A running simulator on loopback, and a client of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from loadgen.engine.model import Costs, Model
from loadgen.engine.process import Process
from loadgen.engine.scheduler import Scheduler
from loadgen.engine.server import OPEN, Access

FAST = Costs(step_s=0.002, per_sequence_s=0.0, per_prompt_token_s=0.0)
HELD = Costs(step_s=60.0)
"""A step longer than a test, so running sequences make no progress."""


class Client:
    """A running simulator and a session with it."""

    def __init__(self, session: aiohttp.ClientSession, process: Process) -> None:
        self.session = session
        self.process = process
        host, port = process.address
        self.url = f"http://{host}:{port}"

    @property
    def scheduler(self) -> Scheduler:
        """The first core's."""
        return self.process.cores.schedulers[0]

    async def post(self, path: str, **body: object) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json={"model": "tiny", **body}) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.text()

    async def raw(self, path: str, **body: object) -> bytes:
        """The bytes of a whole stream."""
        asked = {"model": "tiny", "stream": True, **body}
        async with self.session.post(self.url + path, json=asked) as response:
            assert response.status == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            return await response.read()

    async def events(self, path: str, **body: object) -> list[Any]:
        """A whole stream; ``None`` is its ``[DONE]``."""
        raw = await self.raw(path, **body)
        assert raw.endswith(b"\n\n")
        lines = [event.split(b"data: ", 1)[1] for event in raw.split(b"\n\n")[:-1]]
        return [None if line == b"[DONE]" else json.loads(line) for line in lines]

    def begin(self, **body: object) -> asyncio.Task[Any]:
        """Send a request in the background."""
        return asyncio.create_task(self.post("/v1/completions", **{"prompt": "hello there", **body}))

    async def until(self, *, running: int, waiting: int = 0) -> None:
        """Wait until so many sequences are running and waiting."""
        async with asyncio.timeout(10):
            while self._load() != (running, waiting):
                await asyncio.sleep(0.002)

    def _load(self) -> tuple[int, int]:
        cores = self.process.cores
        running = sum(len(each.running) for each in cores.schedulers)
        return running, cores.unfinished - running


@contextlib.asynccontextmanager
async def simulated(access: Access = OPEN, **model: Any) -> AsyncIterator[Client]:
    process = Process(Model(**{"costs": FAST} | model), seed=1, access=access)
    async with process.running():
        failing = asyncio.create_task(process.wait())
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                yield Client(session, process)
                assert not failing.done(), failing.exception()
        finally:
            failing.cancel()


@contextlib.asynccontextmanager
async def in_background(*tasks: asyncio.Task[Any]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
