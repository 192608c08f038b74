"""The live page's routes: the page itself, and its news as server-sent events. Read-only.

One look, twice a second and only while somebody looks on, serves all listeners. Nobody is buffered for: who
reads too slowly misses looks and is told everything at the next, who does not read at all is dropped.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import Callable
from importlib import resources

import msgspec
from aiohttp import web

from service.live.look import Look
from service.live.view import LiveView, PoolView, Row, Watch

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
SLOW_S = 10.0
"""Who takes nothing for so long is dropped."""
MOST_LISTENERS = 32
RETRY_S = 5
"""When to come back, for whom there is no room."""

_INLINE = {
    "script": re.compile(r"<script>(.*?)</script>", re.S),
    "style": re.compile(r"<style>(.*?)</style>", re.S),
}


def content_security_policy(page: str) -> str:
    """What a browser lets this page do: run its own script and style, and speak to where it came from."""
    hashes = {kind: _hash(pattern, page) for kind, pattern in _INLINE.items()}
    return (
        f"default-src 'none'; script-src '{hashes['script']}'; style-src '{hashes['style']}';"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(pattern: re.Pattern[str], page: str) -> str:
    (text,) = pattern.findall(page)
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class Changes(msgspec.Struct, frozen=True):
    """A view without the rows that are as they were."""

    process: str
    name: str
    about: str
    notices: tuple[str, ...]
    pools: tuple[PoolView, ...]
    rows: tuple[Row, ...]
    gone: tuple[tuple[str, str], ...]
    """Rows that are no more: pool and name."""


def changes(before: LiveView, after: LiveView) -> Changes:
    """What to tell somebody who has seen ``before``."""
    known = {(row.pool, row.name): row for row in before.rows}
    rows = tuple(row for row in after.rows if known.pop((row.pool, row.name), None) != row)
    return Changes(
        after.process, after.name, after.about, after.notices, after.pools, rows, gone=tuple(known)
    )


class Frames:
    """The events of one view after another, each encoded once for all listeners."""

    def __init__(self) -> None:
        self.number = 0
        """Of the last view; 0 before the first."""
        self._view = LiveView("", "")
        self._whole: bytes | None = None
        self._changes = b""

    def follow(self, view: LiveView) -> None:
        """Take the next view."""
        self._changes = event("changes", changes(self._view, view))
        self._view, self._whole = view, None
        self.number += 1

    def since(self, number: int) -> bytes:
        """The event for somebody who has seen the view of that number: what changed, or everything."""
        if number and number == self.number - 1:
            return self._changes
        if self._whole is None:
            self._whole = event("view", self._view)
        return self._whole


def event(kind: str, data: msgspec.Struct) -> bytes:
    """One server-sent event. JSON has no line breaks, so the data is one line."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(data))


class _Listener:
    """One browser that looks on."""

    __slots__ = ("is_writing", "news", "transport")

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self.transport = transport
        self.news = asyncio.Event()
        self.is_writing = False

    def drop(self) -> None:
        """Close the connection, whatever is under way."""
        if self.transport is not None:
            self.transport.abort()


class LivePage:
    """The page of one process."""

    def __init__(
        self,
        look: Callable[[], Look],
        clock: Callable[[], float],
        *,
        look_every_s: float = LOOK_EVERY_S,
        slow_s: float = SLOW_S,
        most_listeners: int = MOST_LISTENERS,
    ) -> None:
        self._look = look
        self._clock = clock
        self._look_every_s = look_every_s
        self._slow_s = slow_s
        self._most_listeners = most_listeners
        self._page = resources.files("service.live").joinpath("page.html").read_text(encoding="utf-8")
        self._policy = content_security_policy(self._page)
        self._watch, self._frames = Watch(), Frames()
        self._listeners: set[_Listener] = set()
        self._looking: asyncio.Task[None] | None = None
        self._is_closing = False

    @property
    def listeners(self) -> int:
        """How many look on."""
        return len(self._listeners)

    def add_to(self, application: web.Application) -> None:
        """Serve the page at ``/`` and ``/live``, and end with the application."""
        application.add_routes(
            [
                web.get("/", self.page),
                web.get("/live", self.page),
                web.get("/live/events", self.events, allow_head=False),
            ]
        )
        application.on_shutdown.append(self._close)

    async def page(self, request: web.Request) -> web.Response:
        """The page."""
        return web.Response(
            text=self._page,
            content_type="text/html",
            charset="utf-8",
            headers={
                "content-security-policy": self._policy,
                "cache-control": "no-store",
                "x-content-type-options": "nosniff",
                "referrer-policy": "no-referrer",
            },
        )

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The news, until the browser or this process goes."""
        refusal = self._refusal()
        if refusal:
            return web.Response(
                status=503,
                text=refusal,
                headers={"retry-after": str(RETRY_S), "cache-control": "no-store"},
            )
        listener = _Listener(request.transport)
        self._listeners.add(listener)
        response = web.StreamResponse(
            headers={
                "content-type": "text/event-stream",
                "cache-control": "no-store",
                "x-content-type-options": "nosniff",
                # Proxies in between are asked to pass events on as they come.
                "x-accel-buffering": "no",
            }
        )
        try:
            await response.prepare(request)
            self._begin(listener)
            await self._tell(listener, response)
        except TimeoutError:
            log.info("a listener of the live page was too slow")
            listener.drop()
        except ConnectionError:
            pass  # the browser is gone
        finally:
            self._listeners.discard(listener)
        return response

    def _refusal(self) -> str:
        if self._is_closing:
            return "this process is shutting down"
        if len(self._listeners) >= self._most_listeners:
            return (
                f"{self._most_listeners} browsers look on already, and there is room for no more; close one"
            )
        return ""

    def _begin(self, listener: _Listener) -> None:
        """Begin to look, or show what was seen last."""
        if self._looking is None or self._looking.done():
            self._watch, self._frames = Watch(), Frames()
            self._looking = asyncio.get_running_loop().create_task(self._look_on())
        elif self._frames.number:
            listener.news.set()

    async def _tell(self, listener: _Listener, response: web.StreamResponse) -> None:
        seen = 0
        while True:
            await listener.news.wait()
            if self._is_closing:
                return
            listener.news.clear()
            frame, seen = self._frames.since(seen), self._frames.number
            listener.is_writing = True
            async with asyncio.timeout(self._slow_s):
                await response.write(frame)
            listener.is_writing = False

    async def _look_on(self) -> None:
        """Look, and tell everyone, while there is anyone."""
        while self._listeners:
            try:
                self._frames.follow(self._watch.follow(self._look(), self._clock()))
            except Exception:
                # A defect: the page says that it hears nothing, and all else goes on.
                log.critical("looking for the live page failed", exc_info=True)
            else:
                for listener in self._listeners:
                    listener.news.set()
            await asyncio.sleep(self._look_every_s)

    async def _close(self, application: web.Application) -> None:
        """End all listeners, or the process would wait for them."""
        self._is_closing = True
        if self._looking is not None:
            self._looking.cancel()
        for listener in list(self._listeners):
            listener.news.set()
            if listener.is_writing:
                listener.drop()
