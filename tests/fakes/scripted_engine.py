"""A scripted engine: an HTTP server with responses from a test.

It answers the watcher's polls itself, with numbers that the test may set. Every other request goes to
``answer``, which writes raw bytes. It records all received bytes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import SupportsIndex

USAGE = {"prompt_tokens": 10, "total_tokens": 15, "completion_tokens": 5}


@dataclass
class Received:
    """One received request."""

    raw_head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.raw_head.split(b"\r\n", 1)[0]

    @property
    def headers(self) -> dict[str, str]:
        lines = self.raw_head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.body)
        return found


POLLER = b" aiohttp/"
"""The beginnings of the watcher's polls."""


class _Recorder(asyncio.StreamReader):
    """A reader that records each read except for polls."""

    def __init__(self, number: int, heard: list[tuple[int, bytes]]) -> None:
        super().__init__()
        self._number = number
        self._heard = heard

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        read = bytes(data)
        if POLLER not in read:
            self._heard.append((self._number, read))
        super().feed_data(read)


Answer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def unary(body: object = None, *, status: str = "200 OK", usage: dict[str, int] | None = None) -> bytes:
    """A unary JSON response."""
    content = {"id": "cmpl-1", "choices": [{"text": "x"}], "usage": usage or USAGE} if body is None else body
    text = json.dumps(content).encode()
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n".encode()
        + text
    )


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunk(text: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(text), text)


def token_event(index: int = 0) -> bytes:
    """One streamed token."""
    return (
        b'data: {"id":"c","choices":[{"index":%d,"delta":{"content":"x"},"finish_reason":null}]}\n\n' % index
    )


FINISH_EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def usage_event(prompt: int = 10, completion: int = 5, fingerprint: str | None = "fp") -> bytes:
    """The last event of a stream with usage."""
    event: dict[str, object] = {
        "id": "c",
        "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
    }
    if fingerprint:
        event["system_fingerprint"] = fingerprint
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


async def answer_unary(request: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(unary())


class Held:
    """Unary responses that wait until the test releases them."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, request: Received, writer: asyncio.StreamWriter) -> None:
        await self.go.wait()
        await answer_unary(request, writer)


async def answer_stream(request: Received, writer: asyncio.StreamWriter) -> None:
    """Stream five tokens, and the usage event if requested, like vLLM."""
    writer.write(STREAM_HEAD)
    for _ in range(5):
        writer.write(chunk(token_event()))
    options = request.json().get("stream_options")
    wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    finish = FINISH_EVENT
    if not wants_usage:
        finish = finish.replace(b"}\n\n", b',"system_fingerprint":"fp"}\n\n')
    writer.write(chunk(finish))
    if wants_usage:
        writer.write(chunk(usage_event()))
    writer.write(chunk(DONE) + b"0\r\n\r\n")


@dataclass
class FakeEngine:
    """The scripted engine."""

    answer: Answer = answer_unary
    running: float = 0
    waiting: float = 0
    kv_usage: float = 0
    started_at: float = 1.0
    received: list[Received] = field(default_factory=list)
    heard: list[tuple[int, bytes]] = field(default_factory=list)
    """Every read of a request: the connection, and the bytes. See ``said``."""
    connections: int = 0
    """Connections of requests (not polls) open now."""
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set after the disconnect of a client with a request in progress."""
    is_mute: bool = False
    """Whether polls get no response."""
    pages: dict[str, Answer] = field(default_factory=dict)
    """Other responses to polls, by path: ``/health``, ``/metrics``, ``/v1/models``."""
    polls: list[str] = field(default_factory=list)
    """The paths of all polls, in order."""
    polled_with: set[str] = field(default_factory=set)
    """The ``Authorization`` of polls since a test last cleared it."""
    port: int = 0
    tls: ssl.SSLContext | None = None
    """The TLS context; plain HTTP if ``None``."""

    async def start(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()
        self._numbers = itertools.count()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    def _accept(self) -> asyncio.Protocol:
        return asyncio.StreamReaderProtocol(_Recorder(next(self._numbers), self.heard), self._serve)

    def said(self, since: int = 0) -> list[tuple[int, bytes]]:
        """The sidecar's bytes: runs of reads on one connection, in order.

        ``since`` is an earlier length of ``heard``.
        """
        runs = itertools.groupby(self.heard[since:], key=lambda read: read[0])
        return [(number, b"".join(data for _, data in run)) for number, run in runs]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                request = await self._read(reader)
                if request.line.startswith((b"GET /metrics", b"GET /health ", b"GET /v1/models")) and (
                    "x-test" not in request.headers
                ):
                    await self._poll(request, writer)
                    continue
                self.received.append(request)
                self.connections += 1
                try:
                    await self._answer(request, reader, writer)
                finally:
                    self.connections -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Received:
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
        request = Received(head, b"")
        length = int(request.headers.get("content-length", 0))
        request.body = await reader.readexactly(length)
        return request

    async def _answer(
        self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        answering = asyncio.ensure_future(self.answer(request, writer))
        gone = asyncio.ensure_future(_closed(reader))
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            answering.cancel()
            self.aborted.set()
        gone.cancel()
        await asyncio.gather(answering, gone, return_exceptions=True)
        await writer.drain()

    async def _poll(self, request: Received, writer: asyncio.StreamWriter) -> None:
        path = request.line.split()[1].decode()
        self.polls.append(path)
        self.polled_with.add(request.headers.get("authorization", ""))
        if self.is_mute:
            await asyncio.Event().wait()
        if path in self.pages:
            await self.pages[path](request, writer)
            return
        if request.line.startswith(b"GET /metrics"):
            text = self.metrics()
        elif request.line.startswith(b"GET /v1/models"):
            text = '{"object":"list","data":[{"id":"tiny","max_model_len":2048}]}'
        else:
            text = ""
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())

    def metrics(self) -> str:
        return (
            f"process_start_time_seconds {self.started_at}\n"
            f'vllm:num_requests_running{{engine="0",model_name="tiny"}} {self.running}\n'
            f'vllm:num_requests_waiting{{engine="0",model_name="tiny"}} {self.waiting}\n'
            f'vllm:kv_cache_usage_perc{{engine="0",model_name="tiny"}} {self.kv_usage}\n'
            'vllm:cache_config_info{block_size="16",num_gpu_blocks="4096",model_name="tiny"} 1.0\n'
        )


async def _closed(reader: asyncio.StreamReader) -> None:
    """Return once the peer has closed. A request in progress sends no more bytes."""
    while await reader.read(1):
        pass
