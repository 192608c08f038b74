"""The pages of workers that a test plays: one hangs, one answers errors, and one is started again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from sidecar.worker import pages_path
from sidecar.workers.pages import Pages, Times
from tests.integration.sidecar.workers.pod import until

HEAD = "# HELP n_total N.\n# TYPE n_total counter\nn_total "


class Played:
    """The pages of one worker."""

    def __init__(self, folder: Path, index: int) -> None:
        self._path = pages_path(folder, index)
        self.count = 0.0
        self.problems: list[str] = []
        self.hangs = False
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()
        """Whether its metrics were asked for, and whether it answers."""
        self.may_answer.set()
        self.health_asked = 0
        self.pid = 1000 + index

    async def _answer(self, request: web.Request) -> web.Response:
        if self.hangs:
            await asyncio.Event().wait()
        if request.path == "/metrics":
            self.asked.set()
            await self.may_answer.wait()
            return web.Response(text=f"{HEAD}{self.count}\n")
        self.health_asked += request.path == "/healthz"
        if request.path == "/readyz":
            return web.json_response({"status": "", "problems": self.problems, "degraded": []})
        return web.json_response({"error": "no"}, status=404)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        application = web.Application()
        application.add_routes([web.get("/{_:.*}", self._answer)])
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(self._path)).start()
        try:
            yield
        finally:
            await runner.cleanup()


@asynccontextmanager
async def served(pages: Pages) -> AsyncIterator[aiohttp.ClientSession]:
    """The supervisor's pages."""
    runner = web.AppRunner(pages.application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session
    finally:
        await pages.stop()
        await runner.cleanup()


async def total(session: aiohttp.ClientSession) -> float:
    async with session.get("/metrics") as page:
        lines = [line for line in (await page.text()).splitlines() if line.startswith("n_total ")]
    return float(lines[0].split()[1]) if lines else 0.0


async def test_the_counts_of_a_worker_outlive_it(tmp_path: Path) -> None:
    one, two = Played(tmp_path, 0), Played(tmp_path, 1)
    pages = Pages(tmp_path, [one, two], "chat", lambda _: 0, lambda _: None)
    async with served(pages) as session, two.serving():
        async with one.serving():
            one.count, two.count = 5.0, 7.0
            assert await total(session) == 12
            one.count = 6.0
            assert await total(session) == 13
        assert await total(session) == 13  # it does not answer
        pages.ended(0)
        assert await total(session) == 13
        one.count = 1.0
        async with one.serving():
            assert await total(session) == 14


async def test_the_counts_of_a_worker_that_ends_during_a_page_are_shown_once(tmp_path: Path) -> None:
    one, two = Played(tmp_path, 0), Played(tmp_path, 1)
    pages = Pages(tmp_path, [one, two], "chat", lambda _: 0, lambda _: None)
    async with served(pages) as session, one.serving(), two.serving():
        one.count, two.count = 5.0, 7.0
        assert await total(session) == 12
        one.asked.clear()
        two.asked.clear()
        two.may_answer.clear()
        shown = asyncio.ensure_future(total(session))
        await two.asked.wait()
        await one.asked.wait()
        await asyncio.sleep(0.05)  # its answer is read
        pages.ended(0)
        two.may_answer.set()
        assert await shown == 12


async def test_a_sidecar_without_workers_that_answer_says_so(tmp_path: Path) -> None:
    one = Played(tmp_path, 0)
    pages = Pages(tmp_path, [one], "chat", lambda _: 0, lambda _: None)
    async with served(pages) as session:
        async with session.get("/readyz") as page:
            assert (page.status, (await page.json())["problems"]) == (503, ["no worker answers"])
        async with session.get("/debug/state") as page:
            assert (page.status, await page.json()) == (
                503,
                {"error": "no worker serves yet; see /readyz and the log"},
            )
        async with session.get("/engine/metrics") as page:
            assert page.status == 503
        async with one.serving(), session.get("/debug/state?entitlement=x") as page:
            assert (page.status, await page.json()) == (404, {"error": "no"})
        async with one.serving(), session.get("/engine/metrics") as page:
            assert page.status == 404


async def test_a_worker_whose_metrics_take_too_long_is_not_killed(tmp_path: Path) -> None:
    one = Played(tmp_path, 0)
    killed: list[int] = []
    pages = Pages(tmp_path, [one], "chat", lambda _: 0, killed.append, Times(0.05, 0.02, 0.2))
    async with served(pages), one.serving():
        pages.start()

        async def answers() -> bool:
            return pages.answers(0)

        await until(answers, "it answers")
        one.may_answer.clear()

        async def is_asked() -> bool:
            return one.health_asked >= 2 or bool(killed)

        await until(is_asked, "its health is asked for")
        assert not killed
        one.may_answer.set()


async def test_a_worker_that_hangs_is_killed_once(tmp_path: Path) -> None:
    one, two = Played(tmp_path, 0), Played(tmp_path, 1)
    killed: list[int] = []
    pages = Pages(tmp_path, [one, two], "chat", lambda _: 0, killed.append, Times(0.05, 0.02, 0.2))
    async with served(pages) as session, one.serving(), two.serving():
        pages.start()

        async def answer() -> bool:
            return pages.answers(0) and pages.answers(1)

        await until(answer, "both answer")
        two.hangs = True

        async def is_killed() -> bool:
            return killed == [1]

        await until(is_killed, "it is killed")
        async with session.get("/readyz") as page:
            assert (page.status, (await page.json())["degraded"]) == (200, ["worker 1 does not answer"])
        assert killed == [1]
