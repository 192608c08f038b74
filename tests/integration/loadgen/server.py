"""A small scripted LLM server on loopback, in the event loop of the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answer = Callable[["Received", web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Received:
    """One received request."""

    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Server:
    """Sends scripted responses, and records the requests."""

    answer: Answer
    received: list[Received] = field(default_factory=list)
    pages: dict[str, Any] = field(default_factory=dict)
    url: str = ""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        received = Received(await request.read(), {k.lower(): v for k, v in request.headers.items()})
        self.received.append(received)
        return await self.answer(received, request)

    async def _page(self, request: web.Request) -> web.Response:
        if request.path not in self.pages:
            return web.Response(status=404)
        return web.json_response(self.pages[request.path])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Server]:
        application = web.Application()
        application.router.add_post("/v1/{route:.*}", self._handle)
        application.router.add_post("/tokenize", self._handle)
        application.router.add_get("/{page:.*}", self._page)
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


def event(body: object) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def opened(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    return response


async def stream(received: Received, request: web.Request) -> web.StreamResponse:
    """Stream the requested number of tokens, and then the usage."""
    asked, response = received.json, await opened(request)
    count = asked["max_tokens"]
    for index in range(count):
        finish = "length" if index == count - 1 else None
        await response.write(event({"choices": [{"index": 0, "text": "a", "finish_reason": finish}]}))
        await asyncio.sleep(0)
    usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": count}
    await response.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    return response


async def shed(received: Received, request: web.Request) -> web.StreamResponse:
    headers = {"retry-after": "1", "retry-after-ms": "50", "x-tokenpool-reason": "concurrency"}
    return web.json_response({"error": {"code": "rate_limit_exceeded"}}, status=429, headers=headers)


async def broken(received: Received, request: web.Request) -> web.StreamResponse:
    response = await opened(request)
    await response.write(event({"choices": [{"text": "a"}]}))
    assert request.transport is not None
    request.transport.abort()
    return response


async def preempted(received: Received, request: web.Request) -> web.StreamResponse:
    response = await opened(request)
    await response.write(event({"choices": [{"text": "a", "finish_reason": None}]}))
    failure = {
        "error": {"message": "a guarantee needed the capacity", "type": "preempted", "code": "preempted"}
    }
    await response.write(event(failure) + b"data: [DONE]\n\n")
    return response
