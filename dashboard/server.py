"""The routes of the live page: the page itself, and its updates as server-sent events. Read-only.

One snapshot every 0.5 s serves all browsers that listen. Without listeners, a snapshot every 2 s keeps the
history, so that a new page shows the last five minutes at once. Nothing is buffered for a listener. A slow
listener misses updates and then receives the whole view. A listener that reads nothing for 30 s is
disconnected.
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
from dashboard.snapshot import TakeSnapshot, Wanted
from dashboard.view import MOST_ROWS, LiveView, Past, Point, PoolView, Row, ViewMaker

log = logging.getLogger(__name__)

SNAPSHOT_EVERY_S = 0.5
SLOW_S = 30.0
"""A listener that reads nothing for so long is disconnected. A suspended tab reconnects by itself."""
MOST_LISTENERS = 32
RETRY_S = 5
"""The value of ``Retry-After`` for a browser beyond ``MOST_LISTENERS``, in seconds."""

_INLINE = {
    "script": re.compile(r"<script>(.*?)</script>", re.S),
    "style": re.compile(r"<style>(.*?)</style>", re.S),
}


def content_security_policy(page: str) -> str:
    """The policy of the page: it may run its own script and style, and connect to its own origin."""
    hashes = {kind: _hash(pattern, page) for kind, pattern in _INLINE.items()}
    return (
        f"default-src 'none'; script-src '{hashes['script']}'; style-src '{hashes['style']}';"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(pattern: re.Pattern[str], page: str) -> str:
    (text,) = pattern.findall(page)
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class Changes(msgspec.Struct, frozen=True):
    """The difference of two views: all of the later one but its unchanged rows."""

    process: str
    name: str
    about: str
    notices: tuple[str, ...]
    pools: tuple[PoolView, ...]
    rows: tuple[Row, ...]
    gone: tuple[tuple[str, str], ...]
    """Pool and name of rows that were removed."""
    bucket: int = 0
    points: tuple[Point, ...] | None = None
    past: tuple[Past, ...] = ()
    """The history of new rows, with the newest bucket."""


PastOf = Callable[[Iterable[tuple[str, str]]], tuple[Past, ...]]
"""Returns the history of pools and entitlements."""


def no_past(rows: Iterable[tuple[str, str]]) -> tuple[Past, ...]:
    """A ``PastOf`` without history."""
    return ()


def changes(before: LiveView, after: LiveView, past: PastOf = no_past) -> Changes:
    """The update for a listener that has received ``before``."""
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
    """The events of consecutive views, each encoded once for all listeners."""

    def __init__(self, past: PastOf = no_past) -> None:
        self._past = past
        self.number = 0
        """The number of the last view; 0 before the first."""
        self._view = LiveView("", "")
        self._whole: bytes | None = None
        self._changes = b""

    def follow(self, view: LiveView) -> None:
        """Use the next view."""
        self._changes = event("changes", changes(self._view, view, self._past))
        self._view, self._whole = view, None
        self.number += 1

    def since(self, number: int) -> bytes:
        """The event for a listener that has the view of that number: the changes, or the whole view."""
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
    """One browser that listens."""

    __slots__ = ("is_writing", "transport", "update")

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self.transport = transport
        self.update = asyncio.Event()
        self.is_writing = False

    def drop(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            self.transport.abort()


class LivePage:
    """The page of one process."""

    def __init__(
        self,
        take_snapshot: TakeSnapshot,
        clock: Callable[[], float],
        *,
        snapshot_every_s: float = SNAPSHOT_EVERY_S,
        history_every_s: float = BUCKET_S,
        slow_s: float = SLOW_S,
        most_listeners: int = MOST_LISTENERS,
    ) -> None:
        self._take_snapshot = take_snapshot
        self._clock = clock
        self._snapshot_every_s = snapshot_every_s
        self._history_every_s = history_every_s
        self._slow_s = slow_s
        self._most_listeners = most_listeners
        self._page = resources.files("dashboard").joinpath("page.html").read_text(encoding="utf-8")
        self._policy = content_security_policy(self._page)
        self._views = ViewMaker()
        self._frames = Frames(self._views.past)
        self._listeners: set[_Listener] = set()
        self._first_listener = asyncio.Event()
        """Set by the first listener, to end the wait for the next snapshot."""
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False

    @property
    def listeners(self) -> int:
        """The number of browsers that listen."""
        return len(self._listeners)

    def add_to(self, application: web.Application) -> None:
        """Serve the page at ``/`` and ``/live`` for as long as the application runs."""
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
        """The updates, until the browser or this process ends the connection."""
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
                # Asks proxies in between not to buffer the events.
                "x-accel-buffering": "no",
            }
        )
        try:
            await response.prepare(request)
            self._welcome(listener)
            await self._send_updates(listener, response)
        except TimeoutError:
            log.info("a browser read nothing of the live page for too long and was disconnected")
            listener.drop()
        except ConnectionError:
            pass  # the browser disconnected
        finally:
            self._listeners.discard(listener)
        return response

    def _refusal(self) -> str:
        if self._is_closing:
            return "this process is shutting down"
        if len(self._listeners) >= self._most_listeners:
            return f"{self._most_listeners} browsers show this page, which is the limit; close one and retry"
        return ""

    def _welcome(self, listener: _Listener) -> None:
        """Take a snapshot at once for the first listener; send the last view to any other."""
        if len(self._listeners) == 1:
            self._first_listener.set()
        elif self._frames.number:
            listener.update.set()

    async def _send_updates(self, listener: _Listener, response: web.StreamResponse) -> None:
        seen = 0
        while True:
            await listener.update.wait()
            if self._is_closing:
                return
            listener.update.clear()
            frame, seen = self._frames.since(seen), self._frames.number
            listener.is_writing = True
            async with asyncio.timeout(self._slow_s):
                await response.write(frame)
            listener.is_writing = False

    async def _start(self, application: web.Application) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Take snapshots and notify the listeners until cancelled."""
        while True:
            try:
                await self._update()
            except Exception:
                # A defect: the page reports that it has no updates; the process goes on.
                log.critical("a snapshot for the live page failed", exc_info=True)
            else:
                for listener in self._listeners:
                    listener.update.set()
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._first_listener.wait()
            except TimeoutError:
                pass
            self._first_listener.clear()

    @property
    def _interval_s(self) -> float:
        return self._snapshot_every_s if self._listeners else self._history_every_s

    async def _update(self) -> None:
        """Take one snapshot and make its view and frame. Requests are served between the steps."""
        others = MOST_ROWS if self._listeners else 0
        snapshot, now = self._take_snapshot(Wanted(self._views.shown(), others)), self._clock()
        steps = self._views.steps(snapshot, now)
        while True:
            await asyncio.sleep(0)
            try:
                next(steps)
            except StopIteration as done:
                self._frames.follow(done.value)
                return

    async def _close(self, application: web.Application) -> None:
        """End all listeners. The process would wait for them otherwise."""
        self._is_closing = True
        if self._task is not None:
            self._task.cancel()
        for listener in list(self._listeners):
            listener.update.set()
            if listener.is_writing:
                listener.drop()
