"""A web server with the documents of an identity provider, which a test can change at any time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class KeyServer:
    """What the server answers, and what it was asked."""

    port: int = 0
    pages: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """The path and the ``Authorization`` of each request."""
    holds: asyncio.Event = field(default_factory=asyncio.Event)
    """Answers wait until it is set."""

    @property
    def url(self) -> str:
        """Its origin."""
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one request."""
        self.asked.append((request.path, request.headers.get("authorization")))
        await self.holds.wait()
        page = self.pages.get(request.path)
        if page is None:
            return web.Response(status=404)
        return web.Response(status=self.status, body=page, headers=self.headers)


@contextlib.asynccontextmanager
async def key_server(**pages: bytes) -> AsyncIterator[KeyServer]:
    """A running server on a free port, with these pages at ``/NAME``."""
    server = KeyServer(pages={f"/{name}": content for name, content in pages.items()})
    server.holds.set()
    application = web.Application()
    application.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        server.holds.set()
        await runner.cleanup()
