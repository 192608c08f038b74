"""Large pages: made and sent in slices, so that they block the event loop for less than a millisecond.

A page is an iterator of pieces, each of which takes little time to make.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from aiohttp import web

SLICE_S = 0.0001
"""Seconds after which a slice ends. With its last piece it takes less than 0.3 ms. Other work runs between
slices. A piece that takes longer ends its slice."""
CHUNK = 64 * 1024
"""Characters in one write to the connection: a copy of about 10 µs."""


class _PageLock:
    """Ensures that one page is made at a time. With 50 at once, streams waited 32 ms for their slices."""

    def __init__(self) -> None:
        self._lock: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def lock(self) -> asyncio.Lock:
        """The lock of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._loop is not loop:
            self._lock, self._loop = asyncio.Lock(), loop
        return self._lock


_page_lock = _PageLock()


async def made(pieces: Iterable[str], clock: Callable[[], float] = time.perf_counter) -> list[bytes]:
    """A page's text in chunks. Other work runs between slices; other pages wait."""
    async with _page_lock.lock():
        return await _made(pieces, clock)


async def _made(pieces: Iterable[str], clock: Callable[[], float]) -> list[bytes]:
    chunks: list[bytes] = []
    parts: list[str] = []
    size, began = 0, clock()
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size >= CHUNK:
            chunks.append("".join(parts).encode())
            parts, size = [], 0
        if clock() - began >= SLICE_S:
            await asyncio.sleep(0)
            began = clock()
    chunks.append("".join(parts).encode())
    return chunks


async def send(request: web.Request, chunks: list[bytes], content_type: str) -> web.StreamResponse:
    """Answer with a finished page."""
    response = web.StreamResponse(headers={"content-type": content_type})
    response.content_length = sum(map(len, chunks))
    await response.prepare(request)
    if request.method != "HEAD":
        for chunk in chunks:
            if chunk:
                await response.write(chunk)
                await asyncio.sleep(0)  # a write waits only for a slow reader
        await response.write_eof()
    return response


class SharedPage:
    """A page that is made once for all requests that arrive while it is made."""

    def __init__(self, pieces: Callable[[], Iterator[str]], content_type: str) -> None:
        self._pieces = pieces
        self._content_type = content_type
        self._making: asyncio.Task[list[bytes]] | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The current page, or the one that is being made."""
        if self._making is None or self._making.done():
            self._making = asyncio.get_running_loop().create_task(made(self._pieces()))
        # A client that leaves must not cancel the page for the others.
        chunks = await asyncio.shield(self._making)
        return await send(request, chunks, self._content_type)
