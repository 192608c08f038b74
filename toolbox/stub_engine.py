"""A stub engine that answers every completion with the same text after a fixed time, at any load.

It uses little CPU, so the measured latency is that of the sidecars. It answers a sidecar's polls like a large
and idle vLLM.

    python -m toolbox.stub_engine PORT SERVICE_S
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from functools import partial
from typing import cast

import uvloop

MODEL = "stub"
_ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "text": "word " * 20, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 24, "completion_tokens": 20, "total_tokens": 44},
    }
)


def metrics(model: str, running: int = 0) -> str:
    """The page ``/metrics`` of a large engine. By default the engine is idle."""
    label = f'{{model_name="{model}"}}'
    return (
        "process_start_time_seconds 1.0\n"
        f"vllm:num_requests_running{label} {running}.0\n"
        f"vllm:num_requests_waiting{label} 0.0\n"
        f"vllm:kv_cache_usage_perc{label} 0.0\n"
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="10000000"} 1.0\n'
    )


def models(model: str) -> str:
    """The page ``/v1/models``."""
    return f'{{"object":"list","data":[{{"id":"{model}","max_model_len":262144}}]}}'


def response(text: str, kind: str = "application/json") -> bytes:
    """A whole HTTP response."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(text.encode())}\r\n\r\n"
    return (head + text).encode()


def pages(model: str) -> dict[bytes, bytes]:
    """The responses to a sidecar's polls, by path."""
    return {
        b"/metrics": response(metrics(model), "text/plain"),
        b"/health": response(""),
        b"/v1/models": response(models(model)),
    }


class StubConnection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, polls: Mapping[bytes, bytes], answer: bytes, service_s: float) -> None:
        self._polls = polls
        self._answer = answer
        self._service_s = service_s
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: a part of a request."""
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        page = self._polls.get(head.split(b" ", 2)[1])
        if page is not None:
            self._write(page)
        elif self._service_s:
            asyncio.get_running_loop().call_later(self._service_s, self._write, self._answer)
        else:
            self._write(self._answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client disconnected."""
        self._transport = None

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def serve(port: int, service_s: float, model: str = MODEL, answer: str = _ANSWER) -> None:
    """Answer completions with this JSON text, on ``port``, until the process ends."""
    made = partial(StubConnection, pages(model), response(answer), service_s)
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2])))
