"""The engine's own metrics page on the admin port, for scrapers that read ``vllm:*`` before the sidecar came.

The page is relayed as it comes: status, content type, coding and bytes are the engine's. The scraper's
``Accept`` and query reach the engine. The sidecar holds one read of the page at a time, so a slow scraper
takes no memory. Size, duration and number of concurrent readers are bounded.
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web

from sidecar.engine.address import METRICS, EngineAddress
from sidecar.engine.metrics_page import MOST_PAGE_BYTES

MOST_READERS = 4
"""Pages that are relayed at once. A page of 51 kB takes vLLM 0.32 6 ms of CPU, so more readers only wait
there. Prometheus, a second Prometheus and two routers are four."""
_FORWARDED = ("accept", "accept-encoding")
_RELAYED = ("content-type", "content-encoding", "content-length", "vary")


class MetricsRelay:
    """Relays the metrics page of one engine. ``time_limit`` bounds one page, in seconds."""

    def __init__(self, address: EngineAddress, time_limit: float) -> None:
        self._address = address
        self._time_limit = time_limit
        self._session: aiohttp.ClientSession | None = None
        self._readers = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The engine's own metrics page, as the engine writes it: 502 if it cannot be read."""
        if self._readers >= MOST_READERS:
            text = f"{MOST_READERS} readers read the engine's metrics page now; retry in 1 s\n"
            return web.Response(status=503, headers={"retry-after": "1"}, text=text)
        self._readers += 1
        try:
            return await self._relay(request)
        finally:
            self._readers -= 1

    async def close(self) -> None:
        """Close the connections to the engine."""
        if self._session is not None:
            await self._session.close()

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        try:
            async with asyncio.timeout(self._time_limit), self._get(request) as page:
                if (page.content_length or 0) > MOST_PAGE_BYTES:
                    return _unreadable(f"it is larger than {MOST_PAGE_BYTES >> 20} MiB")
                relayed = {name: page.headers[name] for name in _RELAYED if name in page.headers}
                response = web.StreamResponse(status=page.status, headers=relayed)
                await response.prepare(request)
                if request.method != "HEAD":
                    await _copy(page, response)
                    await response.write_eof()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if response is None or not response.prepared:
                late = f"it takes longer than {self._time_limit:g} s"
                return _unreadable(late if isinstance(error, TimeoutError) else str(error) or repr(error))
            # A part was sent. A scraper must not take it for the whole page.
            if request.transport is not None:
                request.transport.abort()
        return response

    def _get(self, request: web.Request) -> aiohttp.client._RequestContextManager:
        address = self._address
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                skip_auto_headers=("accept", "accept-encoding"),
            )
        headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
        # Without the header a server may compress, and the scraper has not said that it can decompress.
        headers.setdefault("accept-encoding", "identity")
        if address.key:
            headers["authorization"] = f"Bearer {address.key}"
        _, mark, query = request.raw_path.partition("?")
        return self._session.get(
            f"{address.origin.url}{METRICS}{mark}{query}",
            ssl=address.context or True,
            server_hostname=address.name,
            headers=headers,
        )


async def _copy(page: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    size = 0
    async for data in page.content.iter_any():
        size += len(data)
        if size > MOST_PAGE_BYTES:
            raise aiohttp.ClientPayloadError(f"it is larger than {MOST_PAGE_BYTES >> 20} MiB")
        await response.write(data)


def _unreadable(why: str) -> web.Response:
    return web.Response(status=502, text=f"the engine's metrics page cannot be read: {why}\n")
