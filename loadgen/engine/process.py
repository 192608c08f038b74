"""One simulated engine as a process: its listener, its cores, its stalls and restarts.

A restart is what the clients of a killed engine see: their connections break, the port refuses connections
for some seconds, and the new engine has no requests, no cache and new counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine

from aiohttp import web

from loadgen.engine.cores import Cores
from loadgen.engine.faults import Fault, Faults, Kind
from loadgen.engine.model import Model
from loadgen.engine.server import KEEP_ALIVE_S, OPEN, Access, Server

SOONEST_CHECK_S = 3600.0
"""The wait without any coming fault; a new fault ends it."""


class Process:
    """A running engine that can be restarted."""

    def __init__(
        self,
        model: Model,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 0,
        access: Access = OPEN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.clock = clock
        self.faults = Faults(random.Random(f"{seed} faults"))
        self.restarts = 0
        self._host, self._port, self._access = host, port, access
        self._steps = random.Random(f"{seed} steps")
        self._lengths = random.Random(f"{seed} lengths")
        self._changed = asyncio.Event()
        self._failed = asyncio.Event()
        self._failure: BaseException | None = None
        self._site: web.AppRunner | None = None
        self._stepping: asyncio.Task[None] | None = None
        self.cores = Cores(model, clock, self._steps)

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port on which it listens."""
        return self._host, self._port

    @property
    def is_up(self) -> bool:
        """Whether it listens."""
        return self._site is not None

    def inject(self, fault: Fault) -> int:
        """Add a fault; returns its number."""
        number = self.faults.add(fault, self.clock())
        self._changed.set()
        return number

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen during the context. Raises ``OSError`` if the port is taken."""
        await self._start()
        watching = self._watched(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            await self._stop()

    async def wait(self) -> None:
        """Wait until the engine fails; raises its error."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def restart(self, seconds: float) -> None:
        """Break all connections, be away for so many seconds, and start again."""
        await self._stop()
        await asyncio.sleep(seconds)
        self.cores = Cores(self.model, self.clock, self._steps)
        await self._start()
        self.restarts += 1

    async def _watch(self) -> None:
        """Carry out the faults of the whole engine when they are due."""
        while True:
            for fault in self.faults.due(self.clock()):
                if fault.kind is Kind.STALL:
                    self.cores.stall(fault.seconds)
                else:
                    await self.restart(fault.seconds)
            self._changed.clear()
            due = self.faults.next_at()
            wait = SOONEST_CHECK_S if due is None else max(due - self.clock(), 0.0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait)

    async def _start(self) -> None:
        server = Server(self.cores, self.faults, self._lengths, time.time(), self._access)
        site = web.AppRunner(
            server.application(),
            access_log=None,
            # A client that disconnects cancels its handler.
            handler_cancellation=True,
            shutdown_timeout=0.1,
            keepalive_timeout=KEEP_ALIVE_S,
        )
        await site.setup()
        try:
            await web.TCPSite(site, self._host, self._port, backlog=1024, reuse_address=True).start()
        except OSError:
            await site.cleanup()
            raise
        self._port = site.addresses[0][1]
        self._site = site
        self._stepping = self._watched(self.cores.run())

    async def _stop(self) -> None:
        """Stop listening and break all connections."""
        site, stepping = self._site, self._stepping
        self._site = self._stepping = None
        if site is not None:
            for connection in site.server.connections if site.server else []:
                if connection.transport is not None:
                    connection.transport.abort()
            await site.cleanup()
        if stepping is not None:
            stepping.cancel()
            await asyncio.wait([stepping])

    def _watched(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """A task whose error ends the engine."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._failed.set()
