"""A baseline: a proxy with a fixed token rate per key, as in common gateways.

``python -m experiments.fixed_limit --upstream URL --port N --limit TOKENS_PER_MINUTE KEY=TOKENS ...``
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import deque

import aiohttp
from aiohttp import web

WINDOW_S = 60.0


class Window:
    """Tokens of the last minute."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._spent: deque[tuple[float, float]] = deque()
        self._total = 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until the window has room; 0 if it has room."""
        while self._spent and self._spent[0][0] <= now - WINDOW_S:
            self._total -= self._spent.popleft()[1]
        return self._spent[0][0] + WINDOW_S - now if self._total >= self.limit and self._spent else 0.0

    def charge(self, tokens: float, now: float) -> None:
        """Count the tokens of a request."""
        self._spent.append((now, tokens))
        self._total += tokens


class Proxy:
    """Relays requests within the limit of their key, and refuses others."""

    def __init__(self, upstream: str, limits: dict[str, float]) -> None:
        self._upstream = upstream
        self._windows = {key: Window(limit) for key, limit in limits.items()}

    async def session(self, application: web.Application) -> object:
        """aiohttp: one client session for the lifetime of the proxy."""
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._session:
            yield

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Check the limit, charge the request and relay it."""
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        window = self._windows.get(key)
        body = await request.read()
        if window is not None and (wait := window.wait_s(time.monotonic())) > 0:
            error = {"message": "rate limit", "type": "rate_limit_error", "code": "rate_limit_exceeded"}
            headers = {"retry-after": str(math.ceil(wait))}
            return web.json_response({"error": error}, status=429, headers=headers)
        if window is not None:
            asked = json.loads(body)
            window.charge(len(asked.get("prompt", ())) + asked.get("max_tokens", 16), time.monotonic())
        async with self._session.request(
            request.method,
            self._upstream + request.path_qs,
            data=body,
            headers={"content-type": "application/json"},
        ) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        await response.write_eof()
        return response


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.fixed_limit")
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("limits", nargs="+", metavar="KEY=TOKENS_PER_MINUTE")
    arguments = parser.parse_args()
    limits = {key: float(value) for key, _, value in (text.rpartition("=") for text in arguments.limits)}
    proxy = Proxy(arguments.upstream, limits)
    application = web.Application(client_max_size=64 << 20, handler_args={"handler_cancellation": True})
    application.cleanup_ctx.append(proxy.session)  # type: ignore[arg-type]
    application.router.add_route("*", "/{path:.*}", proxy.serve)
    web.run_app(application, host="127.0.0.1", port=arguments.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
