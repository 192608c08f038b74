"""``tokenpool top`` against the live page of a process, and against everything that is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
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
async def served(application: web.Application, port: int = 0) -> AsyncIterator[str]:
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
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
        (missing, "not the admin port of a coordinator (or of a sidecar, for 'tokenpool top')"),
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


class Terminal:
    """``tokenpool top`` in a terminal."""

    def __init__(self, *arguments: str) -> None:
        self._screen, inner = pty.openpty()
        # Without job control, a shell starts processes in the background with SIGINT ignored.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "cli", "top", *arguments]
        environment = {**os.environ, "COLUMNS": "200", "LINES": "50"}
        self._process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
        os.close(inner)
        os.set_blocking(self._screen, False)
        self.shown = ""

    async def until(self, text: str) -> None:
        """Wait until the terminal has got this text, and forget everything up to it."""
        async with asyncio.timeout(30):
            while text not in self.shown:
                self._read()
                await asyncio.sleep(0.02)
        self.shown = self.shown.partition(text)[2]

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self.shown += os.read(self._screen, 65536).decode()

    async def end(self, number: signal.Signals) -> int:
        self._process.send_signal(number)
        async with asyncio.timeout(30):
            while self._process.poll() is None:  # a terminal that is not read stops the process
                self._read()
                await asyncio.sleep(0.02)
        return self._process.returncode

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._screen)


async def test_in_a_terminal_the_table_is_live_and_survives_a_restart() -> None:
    port = free_port()
    terminal: Terminal | None = None
    try:
        async with served(live(), port) as url:
            terminal = Terminal("--url", url, "--interval", "0.1")
            await terminal.until("\x1b[?1049h")
            await terminal.until("acme")
            await terminal.until("acme")  # drawn again
        await terminal.until("trying again")
        async with served(live(), port):
            await terminal.until("acme")
            assert await terminal.end(signal.SIGINT) == 0
        await terminal.until("\x1b[?1049l")  # the screen is as it was
    finally:
        if terminal is not None:
            terminal.close()
