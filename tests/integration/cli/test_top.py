"""``tokenpool top`` against the live page of a process, and against everything that is none."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from cli.__main__ import main
from dashboard.server import LivePage
from dashboard.snapshot import Snapshot, Wanted
from tests.support.snapshots import entitlement, pool, snapshot
from toolbox.ports import free_port


@asynccontextmanager
async def served(application: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def live() -> web.Application:
    def take(wanted: Wanted) -> Snapshot:
        return snapshot(pool(entitlement("acme"), entitlement("beta")))

    application = web.Application()
    LivePage(take, time.monotonic).add_to(application)
    return application


def answering(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.Application:
    application = web.Application()
    application.router.add_get("/{path:.*}", handler)
    return application


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(main, ["top", *arguments])


async def test_once_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    async with served(live()) as url:
        assert await run("--url", url, "--once") == 0

    out = capsys.readouterr().out
    assert {"acme", "beta"} <= {line.split()[0] for line in out.splitlines() if line}


async def test_without_a_terminal_it_prints_once(capsys: pytest.CaptureFixture[str]) -> None:
    async with served(live()) as url:
        assert await run("--url", url, "--json") == 0

    [shown] = json.loads(capsys.readouterr().out)["pools"].values()
    assert set(shown["entitlements"]) == {"acme", "beta"}


async def test_the_url_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(live()) as url:
        monkeypatch.setenv("TOKENPOOL_URL", url)
        assert await run("--once") == 0

    assert "acme" in capsys.readouterr().out


async def test_a_dead_port_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()

    assert await run("--url", f"http://127.0.0.1:{port}", "--once") == 2

    error = capsys.readouterr().err
    assert f"http://127.0.0.1:{port} does not answer" in error
    assert "--url" in error


async def missing(request: web.Request) -> web.Response:
    return web.Response(status=404, text="no such page")


async def page(request: web.Request) -> web.Response:
    return web.Response(text="<html>hello</html>", content_type="text/html")


async def full(request: web.Request) -> web.Response:
    return web.Response(status=503, text="32 browsers show this page, which is the limit")


async def nonsense(request: web.Request) -> web.Response:
    return web.Response(text="event: view\ndata: {]\n\n", content_type="text/event-stream")


async def closing(request: web.Request) -> web.Response:
    return web.Response(text="", content_type="text/event-stream")


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (missing, "not the admin port"),
        (page, "not the admin port"),
        (full, "32 browsers"),
        (nonsense, "/live/events: JSON"),
        (closing, "shutting down"),
    ],
)
async def test_a_wrong_port_is_explained(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with served(answering(handler)) as url:
        assert await run("--url", url, "--once") == 2

    assert words in capsys.readouterr().err


async def test_an_unknown_pool_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    async with served(live()) as url:
        assert await run("--url", url, "--once", "--pool", "other") == 2

    assert "there is no pool 'other'" in capsys.readouterr().err
