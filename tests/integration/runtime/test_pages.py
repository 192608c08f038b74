"""Large pages are made in slices, once for all concurrent requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp import ClientSession, web

from runtime.pages import CHUNK, SLICE_S, SharedPage, made


class Clock:
    """Every look takes so long."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.mark.parametrize(("step", "turns"), [(SLICE_S * 1.01, 100), (SLICE_S / 10.5, 9), (0.0, 0)])
async def test_others_have_their_turn_once_a_slice_is_over(step: float, turns: int) -> None:
    had = 0

    async def other() -> None:
        nonlocal had
        while True:
            await asyncio.sleep(0)
            had += 1

    task = asyncio.create_task(other())
    chunks = await made(iter(["x"] * 100), Clock(step))
    task.cancel()

    assert b"".join(chunks) == b"x" * 100
    assert turns - 1 <= had <= turns + 1


async def test_a_page_comes_in_chunks() -> None:
    chunks = await made(iter(["é" * 1000] * 200))

    assert b"".join(chunks).decode() == "é" * 200_000
    assert all(len(chunk) <= 2 * (CHUNK + 1000) for chunk in chunks)
    assert len(chunks) == 4


async def test_requests_that_come_while_a_page_is_made_share_it() -> None:
    begun = 0

    def pieces() -> Iterator[str]:
        nonlocal begun
        begun += 1
        for number in range(2000):
            yield f"{number}\n"

    page = SharedPage(pieces, "text/plain; charset=utf-8")
    application = web.Application()
    application.router.add_get("/", page.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port, *_ = runner.addresses[0]

    async def ask(method: str = "GET") -> tuple[str, str, str]:
        async with ClientSession() as session, session.request(method, f"http://{host}:{port}/") as answer:
            return await answer.text(), answer.headers["content-type"], answer.headers["content-length"]

    try:
        answers = await asyncio.gather(*(ask() for _ in range(8)))
        while_asked = begun
        head = await ask("HEAD")
    finally:
        await runner.cleanup()

    text = "".join(f"{number}\n" for number in range(2000))
    assert {answer[0] for answer in answers} == {text}
    assert answers[0][1:] == ("text/plain; charset=utf-8", str(len(text)))
    assert while_asked < 8
    assert head == ("", "text/plain; charset=utf-8", str(len(text)))


async def test_one_page_is_made_at_a_time() -> None:
    order: list[str] = []

    def pieces(name: str) -> Iterator[str]:
        for _ in range(5):
            order.append(name)
            yield name

    clock = iter(range(1000))
    await asyncio.gather(*(made(pieces(name), lambda: float(next(clock))) for name in "ab"))
    assert order == ["a"] * 5 + ["b"] * 5
