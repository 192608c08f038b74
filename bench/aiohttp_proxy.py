"""A plain aiohttp proxy, one of the peers of tokenpool: ``aiohttp_proxy.py PORT UPSTREAM_PORT``."""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

_DROPPED = {"host", "content-length", "transfer-encoding", "connection"}


async def relay(request: web.Request) -> web.StreamResponse:
    """Forward the request to the upstream, and its response to the client part by part."""
    session = request.app[SESSION]
    body = await request.read()
    headers = {k: v for k, v in request.headers.items() if k.lower() not in _DROPPED}
    url = request.app[UPSTREAM] + request.path_qs
    async with session.request(request.method, url, headers=headers, data=body) as upstream:
        if upstream.content_length is not None:
            content = await upstream.read()
            return web.Response(status=upstream.status, body=content, headers=_kept(upstream))
        response = web.StreamResponse(status=upstream.status, headers=_kept(upstream))
        await response.prepare(request)
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


def _kept(upstream: aiohttp.ClientResponse) -> dict[str, str]:
    return {k: v for k, v in upstream.headers.items() if k.lower() not in _DROPPED}


SESSION = web.AppKey("session", aiohttp.ClientSession)
UPSTREAM = web.AppKey("upstream", str)


async def _serve(port: int, upstream: int) -> None:
    application = web.Application(client_max_size=32 << 20)
    application[UPSTREAM] = f"http://127.0.0.1:{upstream}"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        application[SESSION] = session
        application.router.add_route("*", "/{path:.*}", relay)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
