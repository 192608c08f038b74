"""A TCP relay that fails: it simulates a network or an engine that fails during a response."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator


class FlakyRelay:
    """Relays connections. It breaks some connections with requests, and lets others hang.

    The sidecar's polls pass, so the engine stays healthy while requests fail.
    """

    def __init__(self, port: int, seed: int, *, kills: float, stalls: float) -> None:
        self._upstream = port
        self._chance = random.Random(seed)
        self._kills, self._stalls = kills, stalls
        self._tasks: set[asyncio.Task[None]] = set()
        self.killed = self.stalled = 0
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        engine, forth = await asyncio.open_connection("127.0.0.1", self._upstream)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up = asyncio.ensure_future(self._forward(client, forth))
        down = asyncio.ensure_future(self._backward(engine, back, up))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
            down.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            forth.transport.abort()
            back.transport.abort()
            self._tasks.discard(task)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            if data.startswith(b"POST "):
                draw = self._chance.random()
                if draw < self._kills / 2:
                    self.killed += 1
                    return  # before the engine receives it
                if draw < self._kills:
                    self.killed += 1
                    asyncio.get_running_loop().call_later(self._chance.uniform(0, 0.3), source.feed_eof)
                elif draw < self._kills + self._stalls:
                    self.stalled += 1
                    await asyncio.Event().wait()
            sink.write(data)
            await sink.drain()

    async def _backward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, forward: asyncio.Future[None]
    ) -> None:
        while (data := await source.read(65536)) and not forward.done():
            sink.write(data)
            await sink.drain()
