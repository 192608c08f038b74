"""Sharing of a small real engine: a flood of spot, a guarantee, and an idle guarantee that spot uses."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import aiohttp

from tests.e2e.vllm.conftest import SLOTS, Sidecar

BODY = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 48,
    "ignore_eos": True,
    "stream": True,
}


class Tenant:
    """Sends requests in closed loop, and records their outcomes."""

    def __init__(self, front: Sidecar, name: str) -> None:
        self.front, self.name = front, name
        self.statuses: Counter[int] = Counter()
        self.first_token_s: list[float] = []

    async def ask(self, session: aiohttp.ClientSession) -> int:
        started = time.monotonic()
        headers = {"authorization": f"Bearer {self.name}-key"}
        url = f"{self.front.url}/v1/chat/completions"
        async with session.post(url, json=BODY, headers=headers) as response:
            self.statuses[response.status] += 1
            if response.status == 200:
                async for _ in response.content.iter_any():
                    self.first_token_s.append(time.monotonic() - started)
                    break
                await response.read()
            else:
                await asyncio.sleep(float(response.headers["retry-after-ms"]) / 1000)
            return response.status

    async def loop(self, session: aiohttp.ClientSession, until: Callable[[], bool]) -> None:
        while not until():
            await self.ask(session)


async def under_flood(
    front: Sidecar, workers: int, meanwhile: Callable[[aiohttp.ClientSession], Awaitable[None]]
) -> Tenant:
    """Run something while spot floods the engine."""
    spot, done = Tenant(front, "spot"), asyncio.Event()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        flood = [asyncio.ensure_future(spot.loop(session, done.is_set)) for _ in range(workers)]
        await asyncio.sleep(4.0)  # until the demand of the previous test has decayed
        await meanwhile(session)
        done.set()
        await asyncio.gather(*flood)
    return spot


async def test_a_guaranteed_tenant_is_always_admitted_while_spot_floods(front: Sidecar) -> None:
    guaranteed = Tenant(front, "guaranteed")

    async def steady(session: aiohttp.ClientSession) -> None:
        ends = time.monotonic() + 6
        await asyncio.gather(*(guaranteed.loop(session, lambda: time.monotonic() > ends) for _ in range(3)))

    spot = await under_flood(front, 40, steady)

    assert set(guaranteed.statuses) == {200}
    assert guaranteed.statuses[200] >= 30
    assert spot.statuses[200] > 0
    assert spot.statuses[429] > 0
    front.until_whole()


async def test_a_lone_spot_tenant_uses_the_whole_engine(front: Sidecar) -> None:
    seen: list[int] = []

    async def watch(session: aiohttp.ClientSession) -> None:
        for _ in range(40):
            async with session.get(f"{front.admin}/debug/state") as response:
                state = await response.json()
            seen.append(state["entitlements"]["spot"]["in_use"]["concurrency"])
            await asyncio.sleep(0.05)

    await under_flood(front, 24, watch)

    assert max(seen) == SLOTS
    assert sum(seen) / len(seen) > 0.8 * SLOTS
    front.until_whole()


async def test_a_lent_guarantee_returns_to_its_owner(front: Sidecar) -> None:
    guaranteed = Tenant(front, "guaranteed")

    async def come_back(session: aiohttp.ClientSession) -> None:
        statuses = await asyncio.gather(*(guaranteed.ask(session) for _ in range(4)))
        assert statuses == [200, 200, 200, 200]

    await under_flood(front, 40, come_back)

    assert guaranteed.statuses == {200: 4}
    front.until_whole()


async def test_an_idle_elastic_tenant_is_admitted_while_spot_uses_all_slots(front: Sidecar) -> None:
    elastic = Tenant(front, "elastic")

    async def come(session: aiohttp.ClientSession) -> None:
        assert await elastic.ask(session) == 200

    await under_flood(front, 40, come)
    front.until_whole()
