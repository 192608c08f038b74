"""Upstreams that use little CPU: nginx for unary requests, a small protocol for streams.

Both answer the sidecar's watcher like a large and idle vLLM.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import cast

import uvloop

from bench.machine import LOAD_CORE
from bench.peers import program
from toolbox.ports import free_port
from toolbox.processes import Process, module
from toolbox.stub_engine import metrics, models, pages, serve

MODEL = "bench"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-5b0e2d1c7d3a4f6e9a8b7c6d5e4f3a2b",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "token " * 60},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 180, "total_tokens": 240, "completion_tokens": 60},
    },
    separators=(",", ":"),
)
_EVENT_JSON = (
    '{"id":"chatcmpl-5b0e2d1c7d3a4f6e9a8b7c6d5e4f3a2b","object":"chat.completion.chunk",'
    '"created":1760000000,"model":"bench","choices":[{"index":0,"delta":{"content":"token"},'
    '"logprobs":null,"finish_reason":null,"token_ids":null}]}'
)
EVENT = f"data: {_EVENT_JSON}\n\n".encode()
"""About 230 bytes, like an event of vLLM."""


def unary_upstream(folder: Path, running: int = 0) -> tuple[Process, int]:
    """An nginx that answers every chat with the same response. Its metrics state ``running`` sequences."""
    port = free_port()
    configuration = folder / "upstream.conf"
    configuration.write_text(
        f"""
daemon off; master_process off; pid {folder}/upstream.pid; error_log {folder}/upstream.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; default_type application/json;
  client_body_temp_path {folder}/ub; proxy_temp_path {folder}/up; fastcgi_temp_path {folder}/uf;
  uwsgi_temp_path {folder}/uu; scgi_temp_path {folder}/us;
  server {{
    listen 127.0.0.1:{port};
    location = /metrics {{ return 200 '{metrics(MODEL, running)}'; }}
    location = /health {{ return 200 ''; }}
    location = /v1/models {{ return 200 '{models(MODEL)}'; }}
    location / {{ return 200 '{ANSWER}'; }}
  }}
}}
"""
    )
    command = [program("nginx"), "-c", str(configuration), "-p", str(folder)]
    return Process("upstream", command, folder, probe=port, core=LOAD_CORE), port


def stream_upstream(folder: Path, interval_ms: float) -> tuple[Process, int]:
    """A server that sends one event per interval to each stream, as long as the context."""
    port = free_port()
    command = [*module("bench.upstream"), str(port), str(interval_ms)]
    return Process("streams", command, folder, probe=port, core=LOAD_CORE), port


def plain_upstream(folder: Path) -> tuple[Process, int]:
    """A server in Python that answers every chat with the same response."""
    port = free_port()
    command = [*module("bench.upstream"), str(port), "0"]
    return Process("answers", command, folder, probe=port, core=LOAD_CORE), port


_POLLS = pages(MODEL)
_CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


class _Streamer(asyncio.Protocol):
    """One connection: a page for the watcher, or an endless stream."""

    def __init__(self, slots: list[set[_Streamer]]) -> None:
        self._slots = slots
        self._slot: set[_Streamer] | None = None
        self._text = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._text += data
        head, end, body = self._text.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(b"GET "):
            self.transport.write(_POLLS.get(head.split(b" ", 2)[1], _POLLS[b"/health"]))
            self._text = b""
        elif body.endswith(b"}") and self._slot is None:
            self.transport.write(_STREAM_HEAD)
            self._slot = min(self._slots, key=len)
            self._slot.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._slot is not None:
            self._slot.discard(self)


async def _serve(port: int, interval_ms: float) -> None:
    """Spread the streams evenly over the interval; without one, send unary responses."""
    loop = asyncio.get_running_loop()
    if not interval_ms:
        await serve(port, 0.0, MODEL, ANSWER)
    slots: list[set[_Streamer]] = [set() for _ in range(max(round(interval_ms), 1))]
    await loop.create_server(lambda: _Streamer(slots), "127.0.0.1", port, backlog=4096)
    started, ticks = loop.time(), 0
    while True:
        for streamer in list(slots[ticks % len(slots)]):
            streamer.transport.write(_CHUNK)
        ticks += 1
        await asyncio.sleep(max(started + ticks * 0.001 - loop.time(), 0))


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
