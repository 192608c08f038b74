"""A stub engine that answers every completion after a fixed time, at any load.

It uses little CPU, so the measured latency is that of the sidecars.

    python -m experiments.stub_engine PORT SERVICE_S
"""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from typing import cast

import uvloop

_METRICS = (
    "process_start_time_seconds 1.0\n"
    'vllm:num_requests_running{model_name="stub"} 0.0\n'
    'vllm:num_requests_waiting{model_name="stub"} 0.0\n'
    'vllm:kv_cache_usage_perc{model_name="stub"} 0.0\n'
    'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000000"} 1.0\n'
)
_MODELS = '{"data":[{"id":"stub","max_model_len":32768}]}'
_ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "text": "word " * 20, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 24, "completion_tokens": 20, "total_tokens": 44},
    }
)


class StubConnection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, service_s: float) -> None:
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
        path = head.split(b" ", 2)[1]
        if path == b"/metrics":
            self._answer(_METRICS, "text/plain")
        elif path in (b"/health", b"/v1/models"):
            self._answer(_MODELS)
        else:
            asyncio.get_running_loop().call_later(self._service_s, self._answer, _ANSWER)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the client disconnected."""
        self._transport = None

    def _answer(self, text: str, kind: str = "application/json") -> None:
        if self._transport is not None:
            body = text.encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
                % (kind.encode(), len(body), body)
            )


async def serve(port: int, service_s: float) -> None:
    """Answer on ``port`` until the process ends."""
    made = partial(StubConnection, service_s)
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2])))
