"""Load on a cluster: workers in closed loop, with a record of each request."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import aiohttp

CUT = "cut"
"""The reason of an answer whose connection was closed within its body."""


@dataclass
class Outcome:
    """The outcome of one request."""

    tenant: str
    sidecar: int
    status: int
    """0 if the connection broke."""
    began: float
    first: float
    """The arrival time of the first byte of the response's body."""
    ended: float
    reason: str = ""


@dataclass
class Tenant:
    """The workers of one tenant."""

    name: str
    workers: int
    sticky: bool = False
    tokens: int = 20
    pause: float = 0.0
    weights: Sequence[float] | None = None
    """The weights of the sidecars for its requests; equal if ``None``."""


@dataclass
class Load:
    """The outcomes of all requests."""

    outcomes: list[Outcome] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    most_held: float = 0.0
    """The most sequences that the lease store recorded for the tenant with a ceiling."""

    def of(self, tenant: str, start: float = 0.0, end: float = float("inf")) -> list[Outcome]:
        return [o for o in self.outcomes if o.tenant == tenant and start <= o.began < end]

    def statuses(self, tenant: str | None = None) -> Counter[int]:
        return Counter(o.status for o in self.outcomes if tenant in (None, o.tenant))

    def failures(self) -> list[Outcome]:
        """The outcomes that no tenant should see."""
        return [o for o in self.outcomes if o.status == 0 or o.status >= 500]

    def most_at_once(self, tenant: str, start: float = 0.0, end: float = float("inf")) -> int:
        """The most requests of a tenant that certainly ran at the same time.

        A request counts from the first byte of its response until shortly before its last byte arrived here,
        because it may have ended at the sidecar before.
        """
        moves = []
        for o in self.of(tenant):
            if o.status == 200 and o.ended - 0.05 > o.first and start <= o.first < end:
                moves += [(o.first, 1), (o.ended - 0.05, -1)]
        most = running = 0
        for _, move in sorted(moves):
            running += move
            most = max(most, running)
        return most


@contextlib.asynccontextmanager
async def under_load(
    session: aiohttp.ClientSession, urls: Sequence[str], tenants: Sequence[Tenant], *, seed: int = 1
) -> AsyncIterator[Load]:
    """Run the tenants' workers during the context."""
    load = Load()
    tasks = [
        asyncio.create_task(
            _work(session, urls, tenant, worker, random.Random(f"{seed} {tenant} {worker}"), load)
        )
        for tenant in tenants
        for worker in range(tenant.workers)
    ]
    try:
        yield load
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _work(
    session: aiohttp.ClientSession,
    urls: Sequence[str],
    tenant: Tenant,
    worker: int,
    chance: random.Random,
    load: Load,
) -> None:
    while True:
        number = worker % len(urls) if tenant.sticky else chance.choices(range(len(urls)), tenant.weights)[0]
        outcome, wait = await ask(session, urls[number], tenant, number)
        load.outcomes.append(outcome)
        await asyncio.sleep(wait * chance.uniform(1.0, 1.5) + tenant.pause * chance.uniform(0.5, 1.5))


async def ask(session: aiohttp.ClientSession, url: str, tenant: Tenant, number: int) -> tuple[Outcome, float]:
    """Send one streamed request. Returns its outcome, and the seconds to wait before the next."""
    body = {"model": "tiny", "prompt": "share " * 8, "max_tokens": tenant.tokens, "stream": True}
    began = first = time.monotonic()
    headers = {"authorization": f"Bearer {tenant.name}-key"}
    try:
        async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
            reason = response.headers.get("x-tokenpool-reason", "")
            wait = float(response.headers.get("retry-after-ms", 0)) / 1000
            seen = False
            async for _ in response.content.iter_any():
                if not seen:
                    first, seen = time.monotonic(), True
            outcome = Outcome(tenant.name, number, response.status, began, first, time.monotonic(), reason)
            return outcome, min(wait, 1.0)
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = CUT if isinstance(error, aiohttp.ClientPayloadError) else repr(error)
        return Outcome(tenant.name, number, 0, began, first, time.monotonic(), reason), 0.1
