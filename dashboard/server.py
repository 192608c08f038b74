"""The live page's routes: the page itself, and its news as server-sent events. Read-only.

One look, twice a second while a browser listens, serves all listeners. Without listeners a look every two
seconds keeps the history, so that a page shows the last five minutes at once. Nothing is buffered for a
listener: one that reads too slowly misses looks and is told everything at the next; one that does not read at
all is dropped.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import Callable, Iterable
from importlib import resources

import msgspec
from aiohttp import web

from dashboard.history import BUCKET_S
from dashboard.snapshot import Looks, Wanted
from dashboard.view import MOST_ROWS, LiveView, Past, Point, PoolView, Row, Watch

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
SLOW_S = 30.0
"""A listener that takes nothing for so long is dropped. A frozen tab reconnects without a word."""
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
    bucket: int = 0
    points: tuple[Point, ...] | None = None
    past: tuple[Past, ...] = ()
    """The history of rows that ``before`` did not have; it holds the newest bucket, too."""


PastOf = Callable[[Iterable[tuple[str, str]]], tuple[Past, ...]]
"""Gives the history of pools and entitlements."""


def no_past(rows: Iterable[tuple[str, str]]) -> tuple[Past, ...]:
    """The history of nothing."""
    return ()


def changes(before: LiveView, after: LiveView, past: PastOf = no_past) -> Changes:
    """What to tell somebody who has seen ``before``."""
    known = {(row.pool, row.name): row for row in before.rows}
    rows, fresh = [], []
    for row in after.rows:
        key = row.pool, row.name
        seen = known.pop(key, None)
        if seen is None:
            fresh.append(key)
        if seen != row:
            rows.append(row)
    return Changes(
        after.process,
        after.name,
        after.about,
        after.notices,
        after.pools,
        tuple(rows),
        tuple(known),
        after.bucket,
        after.points,
        past(fresh) if fresh else (),
    )


class Frames:
    """The events of one view after another, each encoded once for all listeners."""

    def __init__(self, past: PastOf = no_past) -> None:
        self._past = past
        self.number = 0
        """Of the last view; 0 before the first."""
        self._view = LiveView("", "")
        self._whole: bytes | None = None
        self._changes = b""

    def follow(self, view: LiveView) -> None:
        """Take the next view."""
        self._changes = event("changes", changes(self._view, view, self._past))
        self._view, self._whole = view, None
        self.number += 1

    def since(self, number: int) -> bytes:
        """The event for somebody who has seen the view of that number: what changed, or everything."""
        if number and number == self.number - 1:
            return self._changes
        if self._whole is None:
            shown = [(pool.name, "") for pool in self._view.pools]
            shown += [(row.pool, row.name) for row in self._view.rows]
            self._whole = event("view", msgspec.structs.replace(self._view, past=self._past(shown)))
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
        look: Looks,
        clock: Callable[[], float],
        *,
        look_every_s: float = LOOK_EVERY_S,
        note_every_s: float = BUCKET_S,
        slow_s: float = SLOW_S,
        most_listeners: int = MOST_LISTENERS,
    ) -> None:
        self._look = look
        self._clock = clock
        self._look_every_s = look_every_s
        self._note_every_s = note_every_s
        self._slow_s = slow_s
        self._most_listeners = most_listeners
        self._page = resources.files("dashboard").joinpath("page.html").read_text(encoding="utf-8")
        self._policy = content_security_policy(self._page)
        self._watch = Watch()
        self._frames = Frames(self._watch.past)
        self._listeners: set[_Listener] = set()
        self._arrival = asyncio.Event()
        """Set by a listener that comes while looks are rare."""
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
        application.on_startup.append(self._start)
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
        """Look at once if the last look was one of the rare ones; otherwise show what was seen last."""
        if len(self._listeners) == 1:
            self._arrival.set()
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

    async def _start(self, application: web.Application) -> None:
        self._looking = asyncio.get_running_loop().create_task(self._look_on())

    async def _look_on(self) -> None:
        """Look, and tell the listeners, until the process ends."""
        while True:
            try:
                await self._look_once()
            except Exception:
                # A defect: the page says that it hears nothing, and all else goes on.
                log.critical("looking for the live page failed", exc_info=True)
            else:
                for listener in self._listeners:
                    listener.news.set()
            try:
                async with asyncio.timeout(self._look_every_s if self._listeners else self._note_every_s):
                    await self._arrival.wait()
            except TimeoutError:
                pass
            self._arrival.clear()

    async def _look_once(self) -> None:
        """One look, one view and its frame. Requests are served between the steps."""
        others = MOST_ROWS if self._listeners else 0
        look, now = self._look(Wanted(self._watch.shown(), others)), self._clock()
        steps = self._watch.steps(look, now)
        while True:
            await asyncio.sleep(0)
            try:
                next(steps)
            except StopIteration as done:
                self._frames.follow(done.value)
                return

    async def _close(self, application: web.Application) -> None:
        """End all listeners, or the process would wait for them."""
        self._is_closing = True
        if self._looking is not None:
            self._looking.cancel()
        for listener in list(self._listeners):
            listener.news.set()
            if listener.is_writing:
                listener.drop()
