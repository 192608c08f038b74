"""vLLM's HTTP server for a running engine: routes, and the course of a request. It makes no decisions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from loadgen.engine.answers import Answer
from loadgen.engine.metrics import page
from loadgen.engine.model import Model
from loadgen.engine.requests import (
    Body,
    Refused,
    Request,
    busy,
    read_body,
    read_chat,
    read_completion,
    read_detokenize,
    read_tokenize,
)
from loadgen.engine.runner import Runner
from loadgen.engine.scheduler import Scheduler
from loadgen.engine.sequence import Sequence
from loadgen.engine.tokens import decode

KEEP_ALIVE_S = 5.0
"""Seconds after which vLLM closes idle connections."""
VERSION = "0.32.0+simulated"
_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8"}


class Server:
    """The routes."""

    def __init__(self, runner: Runner, chance: random.Random, started_at: float) -> None:
        self._runner = runner
        self._scheduler = runner.scheduler
        self._model = runner.scheduler.model
        self._chance = chance
        self._started_at = started_at
        self._ids = itertools.count(1)
        self._numbers = itertools.count(1)
        self._load = 0

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(client_max_size=64 << 20, middlewares=[_refusals])
        application.add_routes(
            [
                web.post("/v1/chat/completions", self.chat),
                web.post("/v1/completions", self.completions),
                web.post("/tokenize", self.tokenize),
                web.post("/detokenize", self.detokenize),
                web.get("/v1/models", self.models),
                web.get("/health", self.health),
                web.get("/ping", self.health),
                web.post("/ping", self.health),
                web.get("/load", self.load),
                web.get("/version", self.version),
                web.get("/metrics", self.metrics),
            ]
        )
        return application

    async def health(self, request: web.Request) -> web.Response:
        """The health check."""
        return web.Response()

    async def version(self, request: web.Request) -> web.Response:
        """The version of the engine."""
        return _json({"version": VERSION})

    async def load(self, request: web.Request) -> web.Response:
        """The number of requests in progress, as with vLLM's ``--enable-server-load-tracking``."""
        return _json({"server_load": self._load})

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus metrics."""
        return web.Response(
            body=page(self._scheduler, self._started_at, time.time()).encode(),
            headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def models(self, request: web.Request) -> web.Response:
        """The one model."""
        model = self._model
        entry = {
            "id": model.name,
            "object": "model",
            "created": int(self._started_at),
            "owned_by": "vllm",
            "root": model.name,
            "parent": None,
            "max_model_len": model.window,
        }
        return _json({"object": "list", "data": [entry]})

    async def tokenize(self, request: web.Request) -> web.Response:
        """Text to token ids."""
        body = await _body(request)
        tokens = read_tokenize(body, self._model)
        strings = [decode([token]) for token in tokens] if body.flag("return_token_strs") else None
        return _json(
            {
                "count": len(tokens),
                "max_model_len": self._model.window,
                "tokens": tokens,
                "token_strs": strings,
            }
        )

    async def detokenize(self, request: web.Request) -> web.Response:
        """Token ids to arbitrary text."""
        return _json({"prompt": decode(read_detokenize(await _body(request), self._model))})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Chat completions."""
        return await self._serve(request, read_chat(await _body(request), self._model))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Completions."""
        return await self._serve(request, read_completion(await _body(request), self._model))

    async def _serve(self, request: web.Request, asked: Request) -> web.StreamResponse:
        self._check_queue(len(asked.prompts) * asked.n)
        sequences = self._sequences(asked)
        answer = Answer(
            asked,
            sequences,
            name=self._model.name,
            created=int(time.time()),
            tells_cached=self._model.tells_cached_tokens,
            id_=next(self._ids),
        )
        self._load += 1
        try:
            # A disconnect of the client cancels this task, and so aborts its sequences.
            with self._runner.running(sequences, every_token=asked.streams) as changed:
                if asked.streams:
                    return await _stream(request, answer, changed)
                while any(sequence.ending is None for sequence in sequences):
                    await _next(changed)
                return _json(answer.whole())
        finally:
            self._load -= 1

    def _check_queue(self, sequences: int) -> None:
        limit = self._scheduler.limit_reached(sequences)
        if limit is not None:
            self._scheduler.statistics.rejections[limit] += 1
            raise busy(limit)

    def _sequences(self, asked: Request) -> list[Sequence]:
        now = self._runner.clock()
        return [
            Sequence(
                number=next(self._numbers),
                prompt=prompt,
                bound=bound,
                natural=self._natural_length(asked),
                priority=asked.priority,
                arrived_at=now,
                siblings=asked.n,
            )
            for prompt, bound in zip(asked.prompts, asked.bounds, strict=True)
            for _ in range(asked.n)
        ]

    def _natural_length(self, asked: Request) -> int | None:
        length = None if asked.ignores_end else self._model.natural_length(self._chance)
        return None if length is None else max(length, asked.min_tokens)


async def _stream(request: web.Request, answer: Answer, changed: asyncio.Event) -> web.StreamResponse:
    response = web.StreamResponse(headers=_STREAM_HEADERS)
    await response.prepare(request)
    while True:
        await _next(changed)
        events = answer.events()
        if answer.is_complete:
            await response.write(events + answer.last_events())
            await response.write_eof()
            return response
        await response.write(events)


async def _next(changed: asyncio.Event) -> None:
    await changed.wait()
    changed.clear()


def _json(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """JSON in vLLM's format: compact, with a content type without a charset."""
    body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return web.Response(
        body=body, status=status, headers={"content-type": "application/json", **(headers or {})}
    )


async def _body(request: web.Request) -> Body:
    return read_body(request.content_type, await request.read())


@web.middleware
async def _refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refused:
        return _json(refused.body, status=refused.status)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
        headers = {name: text for name, text in error.headers.items() if name.lower() == "allow"}
        return _json({"detail": error.reason}, status=error.status, headers=headers)


async def serve(model: Model, host: str, port: int, seed: int) -> None:
    """Run until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    runner = Runner(Scheduler(model), time.monotonic, random.Random(f"{seed} steps"))
    site = await start(runner, host, port, random.Random(f"{seed} lengths"))
    stepping = loop.create_task(runner.run())
    stepping.add_done_callback(lambda _: stopping.set())
    await stopping.wait()
    stepping.cancel()
    await site.cleanup()
    with contextlib.suppress(asyncio.CancelledError):
        await stepping


async def start(runner: Runner, host: str, port: int, chance: random.Random) -> web.AppRunner:
    """Start listening; ``cleanup`` stops it. A client that disconnects cancels its handler."""
    site = web.AppRunner(
        Server(runner, chance, time.time()).application(),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
        keepalive_timeout=KEEP_ALIVE_S,
    )
    await site.setup()
    await web.TCPSite(site, host, port, backlog=1024).start()
    return site
