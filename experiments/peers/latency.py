"""The latency that a proxy adds: small requests in turn to the engine and through the proxy."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from toolbox.percentiles import percentile

WARM_UP = 10
PROMPT_S = 1.0
"""The longest time of a small request on an idle system."""
_BODY = json.dumps(
    {"model": "small", "messages": [{"role": "user", "content": "ping"}], "max_tokens": 1, "ignore_eos": True}
)


class ProbeFailed(RuntimeError):
    """A small request on an idle system was not served. The text has its status."""


@dataclass(frozen=True)
class Added:
    """The time that a proxy adds to a small request on an idle system, in seconds."""

    p50_s: float
    p99_s: float


def added(engine: int, proxy: int, key: str, pairs: int) -> Added:
    """Compare two ports with so many pairs of requests. Raises ``ProbeFailed``."""
    with _connection(engine) as one, _connection(proxy) as other:
        direct, through = _sender(one, key), _sender(other, key)
        for send in (direct, through):
            for _ in range(WARM_UP):
                send()
        times = [(direct(), through()) for _ in range(pairs)]
    engine_s, proxy_s = zip(*times, strict=True)
    return Added(
        percentile(proxy_s, 0.5) - percentile(engine_s, 0.5),
        percentile(proxy_s, 0.99) - percentile(engine_s, 0.99),
    )


def settled(port: int, key: str, within_s: float) -> None:
    """Wait until a port answers a small request promptly, after a load. Raises ``ProbeFailed``."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(ProbeFailed, OSError, http.client.HTTPException), _connection(port) as one:
            if _sender(one, key)() < PROMPT_S:
                return
        time.sleep(0.2)
    raise ProbeFailed(f"port {port} did not answer a small request within {PROMPT_S:g} s, for {within_s:g} s")


def _connection(port: int) -> contextlib.closing[http.client.HTTPConnection]:
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30))


def _sender(connection: http.client.HTTPConnection, key: str) -> Callable[[], float]:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def send() -> float:
        """Send one request. Returns the time until its end."""
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", _BODY, headers)
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise ProbeFailed(f"a request on the idle system got status {response.status}: {content[:200]!r}")
        return time.perf_counter() - began

    return send
