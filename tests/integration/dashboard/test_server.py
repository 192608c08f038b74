"""The live page over HTTP: its headers, its events, its listeners and their end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from dashboard.server import LivePage, content_security_policy
from dashboard.snapshot import ShownPool, Snapshot, Wanted
from dashboard.view import MOST_ROWS
from tests.support.snapshots import entitlement, pool, snapshot


@dataclass
class Served:
    """A live page in this process, and the snapshots that it takes."""

    base: str = ""
    snapshots: int = 0
    wanted: list[Wanted] = field(default_factory=list)
    broken: bool = False
    shown: list[ShownPool] = field(default_factory=lambda: [pool()])
    page: LivePage | None = None
    session: aiohttp.ClientSession | None = None
    runner: web.AppRunner | None = None

    def snapshot(self, wanted: Wanted) -> Snapshot:
        self.snapshots += 1
        self.wanted.append(wanted)
        if self.broken:
            raise RuntimeError("a defect")
        return snapshot(*self.shown)

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])


@contextlib.asynccontextmanager
async def serving(clock: Callable[[], float] = time.monotonic, **options: Any) -> AsyncIterator[Served]:
    served = Served()
    served.page = LivePage(served.snapshot, clock, **{"snapshot_every_s": 0.01, **options})
    application = web.Application()
    served.page.add_to(application)
    served.runner = web.AppRunner(application, access_log=None)
    await served.runner.setup()
    await web.TCPSite(served.runner, "127.0.0.1", 0).start()
    served.base = f"http://127.0.0.1:{served.runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession() as served.session:
            yield served
    finally:
        await served.runner.cleanup()


async def next_event(response: aiohttp.ClientResponse) -> tuple[str, dict[str, Any]]:
    """One event of a stream."""
    async with asyncio.timeout(60):
        kind = (await response.content.readline()).decode().removeprefix("event: ").strip()
        data = (await response.content.readline()).decode().removeprefix("data: ")
        assert await response.content.readline() == b"\n"
    return kind, json.loads(data)


async def until_no_listeners(served: Served) -> None:
    assert served.page is not None
    async with asyncio.timeout(60):
        while served.page.listeners:
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("path", ["/", "/live"])
async def test_the_page_may_run_its_own_script_and_style_and_nothing_else(path: str) -> None:
    async with serving() as served, served.session.get(served.base + path) as response:
        text = await response.text()
    policy = response.headers["content-security-policy"]
    assert (response.status, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        (inline,) = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


async def test_the_page_loads_nothing_from_elsewhere_and_writes_no_markup() -> None:
    async with serving() as served, served.session.get(served.base) as response:
        text = await response.text()
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    assert all(link.startswith("data:") or link in ("http://www.w3.org/2000/svg", "usage") for link in links)
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "@import",
        "style=",
    ):
        assert way not in text


def test_a_page_with_a_second_script_has_no_policy() -> None:
    with pytest.raises(ValueError, match="too many values"):
        content_security_policy("<style></style><script>a</script><script>b</script>")


async def test_events_begin_with_everything_and_go_on_with_what_changed() -> None:
    async with serving() as served:
        served.shown = [pool(entitlement("a"), entitlement("b"))]
        async with served.session.get(f"{served.base}/live/events") as response:
            kind, view = await next_event(response)
            await next_event(response)
            _, still = await next_event(response)
            served.shown = [pool(entitlement("a", debt=1.5))]
            changed = still
            while not changed["rows"]:
                kind_after, changed = await next_event(response)
    assert (response.status, response.headers["content-type"]) == (200, "text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert kind == "view"
    assert [row["name"] for row in view["rows"]] == ["a", "b"]
    assert view["pools"][0]["capacity"] == [1000, 10000, 8]
    assert kind_after == "changes"
    assert still["rows"] == []
    assert [(row["name"], row["debt"]) for row in changed["rows"]] == [("a", 1.5)]
    assert changed["gone"] == [["chat", "b"]]


async def test_one_snapshot_serves_all_listeners() -> None:
    async with serving(snapshot_every_s=60) as served, contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            response = await stack.enter_async_context(served.session.get(f"{served.base}/live/events"))
            assert (await next_event(response))[0] == "view"
        assert served.snapshots == 2  # one when the process began, and one for the first listener


async def test_snapshots_are_rare_without_listeners() -> None:
    async with serving(history_every_s=60) as served:
        async with served.session.get(f"{served.base}/live/events") as response:
            await next_event(response)
        await until_no_listeners(served)
        await asyncio.sleep(0.05)
        before = served.snapshots
        await asyncio.sleep(0.1)
        assert served.snapshots == before


async def test_a_page_that_is_opened_shows_what_was_before() -> None:
    async with serving(history_every_s=0.001, snapshot_every_s=0.01, clock=Fast()) as served:
        async with asyncio.timeout(60):
            while served.snapshots < 40:
                served.shown = [pool(entitlement("a", spent=served.snapshots * 100.0))]
                await asyncio.sleep(0.001)
        async with served.session.get(f"{served.base}/live/events") as response:
            kind, view = await next_event(response)
            told: list[Any] = []
            while not told:
                _, news = await next_event(response)
                told = news["points"] or []
    past = {(each["pool"], each["name"]): each["series"] for each in view["past"]}
    assert kind == "view"
    assert set(past) == {("chat", ""), ("chat", "a")}
    assert len(past["chat", "a"]) == 4
    assert max(past["chat", "a"][0]) > 0
    assert news["bucket"] > view["bucket"]
    assert told[0][:2] == ["chat", ""]


class Fast:
    """A clock that advances by a second at every reading."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


async def test_a_snapshot_has_the_shown_entitlements_and_fills_up_only_for_listeners() -> None:
    async with serving(history_every_s=0.01) as served:
        served.shown = [pool(entitlement("a"), entitlement("b"))]
        async with asyncio.timeout(60):
            while len(served.wanted) < 3:
                await asyncio.sleep(0.005)
        quiet = served.wanted[-1]
        async with served.session.get(f"{served.base}/live/events") as response:
            for _ in range(2):
                await next_event(response)
    assert (set(quiet.names), quiet.others) == ({"a", "b"}, 0)
    assert served.wanted[-1].others == MOST_ROWS


async def test_a_page_that_comes_back_later_gets_everything_again() -> None:
    async with serving() as served:
        for _ in range(2):
            async with served.session.get(f"{served.base}/live/events") as response:
                assert (await next_event(response))[0] == "view"
            await until_no_listeners(served)
            await asyncio.sleep(0.03)


async def test_the_number_of_listeners_is_limited() -> None:
    async with serving(most_listeners=2) as served, contextlib.AsyncExitStack() as stack:
        url = f"{served.base}/live/events"
        for _ in range(2):
            await next_event(await stack.enter_async_context(served.session.get(url)))
        async with served.session.get(url) as refused:
            text = await refused.text()
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert text == "2 browsers show this page, which is the limit; close one and retry"
        await stack.aclose()
        await until_no_listeners(served)
        async with served.session.get(url) as response:
            assert (await next_event(response))[0] == "view"


async def test_events_are_read_only_and_have_no_head() -> None:
    async with serving() as served:
        for method in ("POST", "HEAD", "DELETE"):
            async with served.session.request(method, f"{served.base}/live/events") as response:
                assert response.status == 405
        async with served.session.head(served.base) as response:
            assert response.status == 200


def _many(number: int) -> list[ShownPool]:
    """A pool whose event is some megabytes long, different with every number."""
    return [pool(*(entitlement(f"{n}-{'x' * 10_000}", debt=number + 1.0) for n in range(200)))]


@contextlib.contextmanager
def deaf(served: Served) -> Any:
    """A listener that never reads."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", served.port))
        client.sendall(b"GET /live/events HTTP/1.1\r\nhost: test\r\n\r\n")
        yield client


async def test_a_listener_that_reads_nothing_is_disconnected_and_others_stay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(slow_s=0.1, snapshot_every_s=0.05) as served:
        served.shown = _many(0)
        with deaf(served):
            async with asyncio.timeout(60):
                while not served.page.listeners:
                    await asyncio.sleep(0.005)
                while served.page.listeners:
                    served.shown = _many(served.snapshots)
                    await asyncio.sleep(0.01)
        async with served.session.get(f"{served.base}/live/events", read_bufsize=1 << 25) as response:
            assert await response.content.readline() == b"event: view\n"
    assert "a browser read nothing of the live page for too long" in caplog.text


async def test_a_slow_listener_misses_updates_and_gets_the_whole_view() -> None:
    async with serving(slow_s=60) as served:  # without listeners, snapshots would be rare
        served.shown = _many(0)
        async with served.session.get(f"{served.base}/live/events", read_bufsize=1 << 25) as response:
            content = response.content
            kinds = [(await content.readline()).decode().strip()]
            response.connection.transport.pause_reading()
            at = served.snapshots
            async with asyncio.timeout(60):
                while served.snapshots < at + 20:
                    served.shown = _many(served.snapshots)
                    await asyncio.sleep(0.005)
            response.connection.transport.resume_reading()
            async with asyncio.timeout(60):
                for _ in range(6):
                    await content.readline()
                    await content.readline()
                    kinds.append((await content.readline()).decode().strip())
    assert kinds[0] == "event: view"
    assert "event: view" in kinds[1:]


@pytest.mark.parametrize("reads", [True, False])
async def test_listeners_end_with_the_process(reads: bool) -> None:
    async with serving(slow_s=30) as served, contextlib.AsyncExitStack() as stack:
        served.shown = [pool()] if reads else _many(0)
        if reads:
            response = await stack.enter_async_context(served.session.get(f"{served.base}/live/events"))
            await next_event(response)
        else:
            stack.enter_context(deaf(served))
            async with asyncio.timeout(60):
                while served.snapshots < 5:
                    served.shown = _many(served.snapshots)
                    await asyncio.sleep(0.01)
        started = time.monotonic()
        await served.runner.cleanup()
        assert time.monotonic() - started < 2
        assert served.page.listeners == 0
        if reads:
            rest = await response.content.read()
            assert rest == b"" or rest.endswith(b"\n\n")


async def test_a_listener_is_refused_while_the_process_ends() -> None:
    async with serving() as served:
        served.page._is_closing = True
        async with served.session.get(f"{served.base}/live/events") as response:
            assert (response.status, await response.text()) == (503, "this process is shutting down")


async def test_a_failed_snapshot_is_logged_and_the_next_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served, served.session.get(f"{served.base}/live/events") as response:
        await next_event(response)
        served.broken = True
        at = served.snapshots
        async with asyncio.timeout(60):
            while served.snapshots < at + 3:
                await asyncio.sleep(0.005)
        served.broken = False
        for _ in range(5):
            await next_event(response)
    assert "a snapshot for the live page failed" in caplog.text
