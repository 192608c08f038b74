"""A TCP relay in front of Redis that delays or loses bytes, like a network.

python -m experiments.relay TARGET PORT DELAY_S
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import uvloop


class Relay:
    """Relays bytes to a port. ``delay_s`` delays each direction. ``is_cut`` drops bytes without an error."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.delay_s = 0.0
        self.is_cut = False
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> None:
        """Listen on ``port``, or on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and close all connections."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        inner: asyncio.StreamWriter | None = None
        try:
            answers, inner = await asyncio.open_connection("127.0.0.1", self.target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, inner))
                group.create_task(self._carry(answers, writer))
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            if inner is not None:
                inner.transport.abort()
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one direction. Each piece is delayed; the order stays."""
        loop = asyncio.get_running_loop()
        while data := await reader.read(1 << 16):
            if self.is_cut:
                continue
            if self.delay_s:
                loop.call_later(self.delay_s, _write, writer, data)
            else:
                _write(writer, data)
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.transport.is_closing():
        writer.write(data)


async def relay(target: int, port: int, delay_s: float) -> None:
    """Relay with a delay in each direction until the process ends."""
    made = Relay(target)
    made.delay_s = delay_s
    await made.start(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(relay(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
