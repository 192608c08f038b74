"""A headless Chromium for tests, controlled over the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import debian

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Page:
    """One page of the browser, with the messages of its console."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self.complaints: list[str] = []
        """Errors and warnings: of scripts, of the console, and of blocked resources."""

    async def read(self) -> None:
        """Read the browser's messages until it ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            waits = self._answers.pop(said.get("id"), None)
            if waits is not None and not waits.done():
                waits.set_result(said)
            self._note(said.get("method", ""), said.get("params", {}))

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(said["args"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Run a command, and return its result."""
        self._number += 1
        waits = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(30):
            said = await waits
        assert "error" not in said, (method, said)
        result: dict[str, Any] = said["result"]
        return result

    async def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        said = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, expression: str, seconds: float = 20.0) -> Any:
        """Wait until an expression is true in the page, and return its value."""
        value: Any = None
        try:
            async with asyncio.timeout(seconds):
                while not (value := await self.value(f"({expression}) || ''")) and value != {}:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            shown = (await self.value("document.body.innerText"))[:3000]
            raise AssertionError(f"never came true: {expression}\n{shown}\n{self.complaints}") from None
        return value

    async def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Show the page at this size, in this colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a screenshot to a PNG file."""
        said = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(said["data"]))


def executable() -> str:
    """The path of Chromium. Skips the test with a reason if there is none."""
    try:
        debian.provide(debian.CHROMIUM)
    except debian.NotInstalled as error:
        pytest.skip(str(error))
    found = shutil.which("chromium")
    assert found is not None
    return found


@contextlib.asynccontextmanager
async def page_at(url: str, folder: Path) -> AsyncIterator[Page]:
    """A browser that has opened a page; ``folder`` keeps its profile and log."""
    chromium = executable()
    profile = folder / "profile"
    profile.mkdir()
    with (folder / "chromium.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            chromium, *_OPTIONS, f"--user-data-dir={profile}", "about:blank", stdout=log, stderr=log
        )
    try:
        port = await _port(profile / "DevToolsActivePort", process, folder / "chromium.log")
        async with aiohttp.ClientSession() as session, _first_page(session, port) as page:
            await page.call("Page.enable")
            await page.call("Runtime.enable")
            await page.call("Log.enable")
            await page.call("Page.navigate", url=url)
            yield page
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _port(file: Path, process: asyncio.subprocess.Process, log: Path) -> int:
    """The port that the browser chose: the first line of a file that it writes."""
    async with asyncio.timeout(60):
        while not (file.exists() and file.read_text().count("\n")):
            assert process.returncode is None, log.read_text()
            await asyncio.sleep(0.05)
    return int(file.read_text().split("\n")[0])


@contextlib.asynccontextmanager
async def _first_page(session: aiohttp.ClientSession, port: int) -> AsyncIterator[Page]:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
        targets = await response.json(content_type=None)
    (address,) = [target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"]
    async with session.ws_connect(address, max_msg_size=1 << 26) as socket:
        page = Page(socket)
        reading = asyncio.get_running_loop().create_task(page.read())
        try:
            yield page
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
