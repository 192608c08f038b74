"""vLLM's HTTP server for running engine cores: routes, and the course of a request. It makes no decisions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Sequential
from dataclasses import dataclass

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from loadgen.engine.answers import Answer, OpenAIAnswer, Stamp
from loadgen.engine.bodies import Body, Refused, read_body
from loadgen.engine.cores import Cores
from loadgen.engine.faults import Faults, Kind
from loadgen.engine.injection import DRAWN, FAILURE, Stream, close, injected
from loadgen.engine.messages import MessagesAnswer, read_count_tokens, read_messages, translated
from loadgen.engine.metrics import Moment, page
from loadgen.engine.pooling import Pooled, read_embeddings, read_rerank, read_score
from loadgen.engine.requests import (
    Request,
    busy,
    read_chat,
    read_completion,
    read_detokenize,
    read_tokenize,
)
from loadgen.engine.responses import ResponsesAnswer, read_responses
from loadgen.engine.sequence import Sequence
from loadgen.engine.tokens import decode

KEEP_ALIVE_S = 5.0
"""Seconds after which vLLM closes idle connections."""
VERSION = "0.32.0+simulated"
_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8"}


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use the server."""

    keys: frozenset[str] = frozenset()
    """API keys of ``/v1`` (``--api-key``); without any, all may use it."""
    origins: frozenset[str] = frozenset({"*"})
    """Origins whose browsers may read responses (``--allowed-origins``); ``*`` stands for all."""


OPEN = Access()
"""No key is needed, and all browsers may read responses."""


class Server:
    """The routes."""

    def __init__(
        self,
        cores: Cores,
        faults: Faults,
        chance: random.Random,
        started_at: float,
        access: Access = OPEN,
    ) -> None:
        self._cores = cores
        self._model = cores.model
        self._faults = faults
        self._chance = chance
        self._started_at = started_at
        self._access = access
        self._ids = itertools.count(1)
        self._numbers = itertools.count(1)
        self._load = 0

    def application(self) -> web.Application:
        """The aiohttp application."""
        application = web.Application(client_max_size=64 << 20, middlewares=[self._guarded])
        generating = [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completions),
            web.post("/v1/responses", self.responses),
            web.post("/v1/messages", self.messages),
            web.post("/v1/messages/count_tokens", self.count_tokens),
        ]
        application.add_routes(
            [
                *([] if self._model.is_encoder else generating),
                web.post("/v1/embeddings", self.embeddings),
                *(web.post(f"{prefix}/rerank", self.rerank) for prefix in ("", "/v1", "/v2")),
                *(web.post(f"{prefix}/score", self.score) for prefix in ("", "/v1")),
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
        moment = Moment(self._started_at, time.time(), self._cores.clock())
        return web.Response(
            body=page(self._cores.schedulers, self._cores.rejections, moment).encode(),
            headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def models(self, request: web.Request) -> web.Response:
        """The model and its LoRA adapters."""
        model = self._model
        entries = [self._entry(model.name, parent=None, window=model.window)]
        entries += [self._entry(name, parent=model.name, window=None) for name in model.adapters]
        return _json({"object": "list", "data": entries})

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
        asked = read_chat(await _body(request), self._model)
        return await self._generate(request, asked, lambda run, stamp: OpenAIAnswer(asked, run, stamp))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Completions."""
        asked = read_completion(await _body(request), self._model)
        return await self._generate(request, asked, lambda run, stamp: OpenAIAnswer(asked, run, stamp))

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """OpenAI's responses."""
        asked = read_responses(await _body(request), self._model)
        return await self._generate(
            request, asked.work, lambda run, stamp: ResponsesAnswer(asked, run, stamp)
        )

    async def messages(self, request: web.Request) -> web.StreamResponse:
        """Anthropic's messages."""
        try:
            asked = read_messages(await _body(request), self._model)
            return await self._generate(request, asked, lambda run, stamp: MessagesAnswer(asked, run, stamp))
        except Refused as refused:
            raise translated(refused) from None

    async def count_tokens(self, request: web.Request) -> web.Response:
        """The prompt tokens of Anthropic's messages."""
        try:
            count = read_count_tokens(await _body(request), self._model)
        except Refused as refused:
            raise translated(refused) from None
        return _json({"input_tokens": count, "context_management": {"original_input_tokens": count}})

    async def embeddings(self, request: web.Request) -> web.Response:
        """Embeddings."""
        return await self._pool(read_embeddings(await _body(request), self._model))

    async def rerank(self, request: web.Request) -> web.Response:
        """Documents in the order of their scores."""
        return await self._pool(read_rerank(await _body(request), self._model))

    async def score(self, request: web.Request) -> web.Response:
        """Scores of pairs of texts."""
        return await self._pool(read_score(await _body(request), self._model))

    async def _generate(
        self,
        request: web.Request,
        asked: Request,
        answer_of: Callable[[Sequential[Sequence], Stamp], Answer],
    ) -> web.StreamResponse:
        self._check_queue(len(asked.prompts) * asked.n)
        sequences = self._sequences(asked)
        answer = answer_of(sequences, self._stamp())
        self._load += 1
        try:
            # A disconnect of the client cancels this task, and so aborts its sequences.
            with self._cores.running(sequences, every_token=asked.streams) as changed:
                if asked.streams:
                    return await _stream(request, answer, changed)
                await _ended(sequences, changed)
                return _json(answer.whole())
        finally:
            self._load -= 1

    async def _pool(self, asked: Pooled) -> web.Response:
        self._check_queue(len(asked.work.prompts))
        sequences = self._sequences(asked.work)
        self._load += 1
        try:
            with self._cores.running(sequences, every_token=False) as changed:
                await _ended(sequences, changed)
                return _json(asked.answer(self._stamp()))
        finally:
            self._load -= 1

    def _stamp(self) -> Stamp:
        model = self._model
        return Stamp(int(time.time()), next(self._ids), model.tells_cached_tokens, model.stream_interval)

    def _entry(self, name: str, *, parent: str | None, window: int | None) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": int(self._started_at),
            "owned_by": "vllm",
            "root": name,
            "parent": parent,
            "max_model_len": window,
        }

    def _check_queue(self, sequences: int) -> None:
        limit = self._cores.limit_reached(sequences)
        if limit is not None:
            raise busy(limit)

    def _sequences(self, asked: Request) -> list[Sequence]:
        now = self._cores.clock()
        return [
            Sequence(
                number=next(self._numbers),
                prompt=prompt,
                bound=bound,
                natural=self._natural_length(asked),
                priority=asked.priority,
                arrived_at=now,
                siblings=asked.n,
                adapter=asked.model if asked.model != self._model.name else "",
            )
            for prompt, bound in zip(asked.prompts, asked.bounds, strict=True)
            for _ in range(asked.n)
        ]

    def _natural_length(self, asked: Request) -> int | None:
        length = None if asked.ignores_end else self._model.natural_length(self._chance)
        return None if length is None else max(length, asked.min_tokens)

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """All that surrounds a route. One frame, because each token of a stream passes all of them."""
        origin = request.headers.get(hdrs.ORIGIN)
        told = None if origin is None else self._told(origin)
        if told is not None:
            if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
                return _preflight(request, told)
            request[CORS] = told
        try:
            if self._access.keys and not self._is_authorized(request):
                response: web.StreamResponse = _json({"error": "Unauthorized"}, status=401)
            elif (drawn := self._faults.drawn(request.path, self._cores.clock())) is not None:
                response = await injected(request, handler, drawn, self._faults, self._cores.clock)
            else:
                response = await handler(request)
        except Refused as refused:
            response = _json(refused.body, status=refused.status)
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
            headers = {name: text for name, text in error.headers.items() if name.lower() == "allow"}
            response = _json({"detail": error.reason}, status=error.status, headers=headers)
        if told and not response.prepared:
            response.headers.update(told)
        return response

    def _is_authorized(self, request: web.Request) -> bool:
        scheme, _, key = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        is_open = not request.path.startswith("/v1") or request.method == hdrs.METH_OPTIONS
        return is_open or (scheme.lower() == "bearer" and key in self._access.keys)

    def _told(self, origin: str) -> dict[str, str]:
        """The CORS headers for an origin; none if its browsers may not read responses."""
        if "*" in self._access.origins:
            return {"access-control-allow-origin": "*"}
        if origin in self._access.origins:
            return {"access-control-allow-origin": origin, "vary": "Origin"}
        return {}


CORS = web.RequestKey("cors", dict[str, str])
"""The CORS headers of a response."""


def _preflight(request: web.Request, told: Mapping[str, str]) -> web.Response:
    """The answer to a browser's question whether it may send a request."""
    if not told:
        return web.Response(status=400, text="Disallowed CORS origin")
    headers = {
        **told,
        "access-control-allow-methods": "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT",
        "access-control-max-age": "600",
    }
    asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
    if asked:
        headers["access-control-allow-headers"] = asked
    return web.Response(text="OK", headers=headers)


async def _ended(sequences: Sequential[Sequence], changed: asyncio.Event) -> None:
    while any(sequence.ending is None for sequence in sequences):
        await changed.wait()
        changed.clear()


async def _stream(request: web.Request, answer: Answer, changed: asyncio.Event) -> web.StreamResponse:
    stream = Stream(request.get(DRAWN))
    more = {"content-encoding": "gzip"} if stream.is_compressed else {}
    response = web.StreamResponse(headers=_STREAM_HEADERS | request.get(CORS, {}) | more)
    # A client may disconnect between two events: its sequences are then aborted.
    with contextlib.suppress(ConnectionResetError):
        await response.prepare(request)
        await _write(request, response, answer, stream, changed)
    return response


async def _write(
    request: web.Request,
    response: web.StreamResponse,
    answer: Answer,
    stream: Stream,
    changed: asyncio.Event,
) -> None:
    fault = stream.fails
    while fault is None or answer.sent < fault.tokens:
        await changed.wait()
        changed.clear()
        events = answer.events()
        if answer.is_complete:
            await response.write(stream.changed(events + answer.last_events(), is_last=True))
            await response.write_eof()
            return
        if events:
            await response.write(stream.changed(events))
    if fault.kind is Kind.CUT:
        close(request)
        return
    failure = answer.failed_events(fault.status, FAILURE)
    await response.write(stream.changed(failure, is_last=True))
    await response.write_eof()


def _json(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """JSON in vLLM's format: compact, with a content type without a charset."""
    body = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    return web.Response(
        body=body, status=status, headers={"content-type": "application/json", **(headers or {})}
    )


async def _body(request: web.Request) -> Body:
    return read_body(request.content_type, await request.read())
