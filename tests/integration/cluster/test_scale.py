"""Two coordinators behind one address: an autoscaler reads the same hint from both during failures.

Real processes, real Redis. The test reads each coordinator twenty times a second, which is stricter
than reads through one address. Figures go to out/scale.txt.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.integration.cluster.load import Tenant, under_load
from tests.integration.cluster.processes import POOL, Cluster

OUT = Path(__file__).parents[3] / "out" / "scale.txt"
DOWN_S = 6.0
SMALL = POOL.replace("concurrency: 8}", "concurrency: 2}")
"""A pool whose guarantee needs one replica."""


@dataclass
class Seen:
    """The hints of both coordinators over time."""

    numbers: dict[int, int | None] = field(default_factory=dict)
    all_numbers: set[int] = field(default_factory=set)
    longest_s: float = 0.0
    """The longest time with two different numbers."""
    unanswered: int = 0
    answered: int = 0
    both_led: int = 0
    history: list[tuple[float, int, int | None]] = field(default_factory=list)
    _differs_since: float | None = None

    def follow(self, who: int, number: int | None) -> None:
        now = time.monotonic()
        if self.numbers.get(who, -1) != number:
            self.history.append((now, who, number))
        self.numbers[who] = number
        self.answered += number is not None
        self.unanswered += number is None
        told = {each for each in self.numbers.values() if each is not None}
        self.all_numbers |= told
        if len(told) < 2:
            self._differs_since = None
            return
        self._differs_since = self._differs_since or now
        self.longest_s = max(self.longest_s, now - self._differs_since)


@contextlib.asynccontextmanager
async def watched(pool: Cluster) -> AsyncIterator[Seen]:
    seen = Seen()

    async def scale(who: int) -> None:
        while True:
            body = await pool.get(f"{pool.pages[who]}/scale/chat")
            seen.follow(who, body.get("desired_replicas"))
            await asyncio.sleep(0.05)

    async def lead() -> None:
        while True:
            led = await asyncio.gather(*(_leads(pool, page) for page in pool.pages))
            seen.both_led += sum(led) > 1
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(each) for each in (scale(0), scale(1), lead())]
    try:
        yield seen
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()


async def _leads(pool: Cluster, page: str) -> bool:
    try:
        async with asyncio.timeout(1), pool.session.get(f"{page}/metrics") as response:
            return 'tokenpool_leader{pool="chat"} 1.0' in await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return False


def write_down(what: str, seen: Seen) -> None:
    line = (
        f"{what}: differed for at most {seen.longest_s:.2f} s; {seen.answered} answers,"
        f" {seen.unanswered} without a number; numbers {sorted(seen.all_numbers)};"
        f" both led {seen.both_led} times"
    )
    print(line)
    OUT.parent.mkdir(exist_ok=True)
    with OUT.open("a") as file:
        file.write(line + "\n")


async def test_answers_never_differ_for_longer_than_a_second(tmp_path: Path) -> None:
    OUT.unlink(missing_ok=True)
    options = ("--scale-down-window", str(DOWN_S))
    pool = Cluster(tmp_path, sidecars=2, pool=SMALL, coordinator_options=options)
    first, late = pool.coordinators
    burst = [Tenant("g", 8, tokens=100), Tenant("c", 4, tokens=100)]
    async with pool.serving():
        late.kill()
        await pool.until(lambda: _number(pool, 0), 20)
        async with watched(pool) as seen:
            async with under_load(pool.session, pool.urls, burst):
                await asyncio.sleep(3)
                late.start()
                await asyncio.sleep(3)
            await asyncio.sleep(0.8)
            async with under_load(pool.session, pool.urls, burst):
                await asyncio.sleep(0.6)  # a spike
            killed = time.monotonic()
            first.kill()
            await pool.until(lambda: _leads(pool, pool.pages[1]), 5)
            took_s = time.monotonic() - killed
            first.start()
            await asyncio.sleep(DOWN_S + 2)
            # The new leader is paused for longer than its leadership timeout.
            with late.paused():
                await asyncio.sleep(4)
            await asyncio.sleep(2)
            # Redis is paused for longer than a lease.
            with pool.redis.paused():
                await asyncio.sleep(4)
                assert not any([await _leads(pool, page) for page in pool.pages])
                assert list(seen.numbers.values()) == [None, None]
            await asyncio.sleep(4)
    write_down(f"late start, leader killed (replaced after {took_s:.1f} s), paused, Redis paused", seen)
    assert seen.longest_s <= 1.0, seen.history
    assert seen.both_led == 0
    assert len(seen.all_numbers) >= 2  # the hint rose, and fell again
    assert seen.numbers[0] == seen.numbers[1] == min(seen.all_numbers)


async def _number(pool: Cluster, who: int) -> bool:
    return "desired_replicas" in await pool.get(f"{pool.pages[who]}/scale/chat")
