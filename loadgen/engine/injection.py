"""The faults of one request, carried out on its HTTP response. ``faults`` chooses them."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from loadgen.engine.answers import compact, error_body
from loadgen.engine.faults import Drawn, Fault, Faults, Kind

DRAWN = web.RequestKey("drawn", Drawn)
"""The faults of a request, if it has any."""
FAILURE = "EngineCore encountered an issue. See stack trace (above) for the root cause."
_HANG_POLL_S = 0.05
_COMMENT = b": keep-alive\n\n"
_USAGE = re.compile(rb'(,?)"usage":(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|null)(,?)')
_START, _DELTA = b'"message_start"', b'"message_delta"'


async def injected(
    request: web.Request, handler: Handler, drawn: Drawn, faults: Faults, clock: Callable[[], float]
) -> web.StreamResponse:
    """The response to a request with faults."""
    request[DRAWN] = drawn
    hang, delay, status = drawn.of(Kind.HANG), drawn.of(Kind.DELAY), drawn.of(Kind.STATUS)
    while hang is not None and faults.holds(hang, clock()):
        await asyncio.sleep(_HANG_POLL_S)
    if delay is not None:
        await asyncio.sleep(delay.seconds)
    if status is not None:
        return failed(request, status)
    response = await handler(request)
    if isinstance(response, web.Response) and not response.prepared:
        return _unary(request, response, drawn)
    return response


def failed(request: web.Request, fault: Fault) -> web.Response:
    """An error of the engine: an object for an API, a text for a page."""
    if request.method == "POST":
        body, kind = compact(error_body(fault.status, FAILURE)).encode(), "application/json"
    else:
        body, kind = b"Internal Server Error", "text/plain; charset=utf-8"
    return web.Response(body=body, status=fault.status, headers={"content-type": kind})


def close(request: web.Request) -> None:
    """Close the connection of a request. What was written before is still sent."""
    if request.transport is not None:
        request.transport.close()


class Stream:
    """The bytes of a stream, as its faults change them."""

    def __init__(self, drawn: Drawn | None) -> None:
        self.fails = drawn.of(Kind.ERROR_EVENT, Kind.CUT) if drawn else None
        """The fault that ends the stream."""
        self._drawn = drawn
        self._gzip = zlib.compressobj(wbits=31) if drawn and drawn.of(Kind.GZIP) else None

    @property
    def is_compressed(self) -> bool:
        """Whether the stream has the content encoding gzip."""
        return self._gzip is not None

    def changed(self, events: bytes, *, is_last: bool = False) -> bytes:
        """The bytes to send for some events."""
        if self._drawn is None:
            return events
        if self._drawn.of(Kind.NO_USAGE, Kind.SPLIT_USAGE):
            events = b"".join(self._told(event + b"\n\n") for event in events.split(b"\n\n")[:-1])
        if self._drawn.of(Kind.COMMENTS):
            events = _COMMENT + events
        if self._drawn.of(Kind.CRLF):
            events = events.replace(b"\n", b"\r\n")
        if self._gzip is not None:
            flush = zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH
            events = self._gzip.compress(events) + self._gzip.flush(flush)
        return events

    def _told(self, event: bytes) -> bytes:
        assert self._drawn is not None
        if b'"usage"' not in event:
            return event
        if self._drawn.of(Kind.NO_USAGE):
            return b"" if b'"choices":[]' in event else without_usage(event)
        if _START in event:
            return re.sub(rb',"output_tokens":\d+', b"", event)
        return re.sub(rb'"input_tokens":\d+,', b"", event) if _DELTA in event else event


def without_usage(content: bytes) -> bytes:
    """JSON without its usage objects."""
    return _USAGE.sub(lambda found: b"," if found[1] and found[3] else b"", content)


def _unary(request: web.Request, response: web.Response, drawn: Drawn) -> web.StreamResponse:
    failure = drawn.of(Kind.ERROR_EVENT)
    if drawn.of(Kind.CUT):
        close(request)
        return response
    if failure is not None:
        return failed(request, failure)
    body = bytes(response.body) if isinstance(response.body, bytes | bytearray) else b""
    if drawn.of(Kind.NO_USAGE) and response.content_type == "application/json":
        content = json.loads(body)
        if isinstance(content, dict):
            content.pop("usage", None)
        body = compact(content).encode()
    if drawn.of(Kind.BROKEN):
        body = body[: len(body) // 2]
    if drawn.of(Kind.GZIP):
        packed = zlib.compressobj(wbits=31)
        body = packed.compress(body) + packed.flush()
        response.headers["content-encoding"] = "gzip"
    response.body = body
    return response
