"""The demo's tenants: workers that send requests to the sidecars like any client."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from toolbox.percentiles import percentile


@dataclass
class Tenant:
    """One tenant under load, with its answers and latencies."""

    name: str
    tier: str
    key: str
    workers: int
    pause: float
    """Mean seconds between a worker's requests."""
    active: float
    """Seconds of load in every ``period``."""
    period: float = 20.0
    answers: Counter[int] = field(default_factory=Counter)
    first_token_ms: list[float] = field(default_factory=list)
    alone_count: int | None = None
    """The number of its first tokens until the other tenants began to send; ``None`` before."""

    def is_active(self, elapsed: float) -> bool:
        """Whether the tenant sends at this time. Guaranteed and elastic tenants pause."""
        return elapsed % self.period < self.active

    def median_first_token(self) -> float | None:
        """The median time to first token of the last hundred responses, in ms."""
        recent = self.first_token_ms[-100:]
        return statistics.median(recent) if recent else None

    def alone_and_crowded(self) -> tuple[Sequence[float], Sequence[float]]:
        """Times to first token before and after the other tenants began to send, in ms."""
        began = self.alone_count if self.alone_count is not None else len(self.first_token_ms)
        return self.first_token_ms[:began], self.first_token_ms[began:]


LEAST = 5
"""The fewest values for a 95th percentile."""


def p95(values: Sequence[float]) -> float | None:
    """The 95th percentile; ``None`` for too few values."""
    return percentile(values, 0.95) if len(values) >= LEAST else None


TENANTS = (
    Tenant("checkout", "guaranteed", "demo-checkout", workers=4, pause=0.3, active=12),
    Tenant("search", "elastic", "demo-search", workers=6, pause=0.1, active=16),
    Tenant("batch", "spot", "demo-batch", workers=16, pause=0.0, active=20),
)


async def run(tenant: Tenant, urls: Sequence[str], model: str, *, seed: int) -> None:
    """Run the tenant's workers until cancelled. Each request goes to a random sidecar."""
    async with (
        aiohttp.ClientSession(
            headers={"authorization": f"Bearer {tenant.key}"},
            connector=aiohttp.TCPConnector(limit=tenant.workers),
            timeout=aiohttp.ClientTimeout(total=60),
        ) as session,
        asyncio.TaskGroup() as group,
    ):
        for worker in range(tenant.workers):
            chance = random.Random(f"{seed}-{tenant.name}-{worker}")
            group.create_task(_work(tenant, session, urls, model, chance))


async def warm_up(tenant: Tenant, urls: Sequence[str], model: str) -> None:
    """Send two requests to every engine, because its first responses take longer. They do not count."""
    like = Tenant(tenant.name, tenant.tier, tenant.key, workers=1, pause=0.0, active=tenant.period)
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {tenant.key}"}) as session:
        for url in [*urls, *urls]:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await _ask(like, session, url, model, random.Random(0))


async def _work(
    tenant: Tenant,
    session: aiohttp.ClientSession,
    urls: Sequence[str],
    model: str,
    chance: random.Random,
) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        if not tenant.is_active(loop.time() - started):
            await asyncio.sleep(0.2)
            continue
        wait = tenant.pause * chance.uniform(0.5, 1.5)
        try:
            wait += await _ask(tenant, session, chance.choice(urls), model, chance)
        except (aiohttp.ClientError, TimeoutError):
            tenant.answers[0] += 1
            wait += 0.5
        await asyncio.sleep(wait)


async def _ask(
    tenant: Tenant, session: aiohttp.ClientSession, url: str, model: str, chance: random.Random
) -> float:
    """One streamed request. Returns the seconds to wait before the next one."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Whose turn is it? " * chance.randint(1, 8)}],
        "max_tokens": chance.randint(16, 96),
        "ignore_eos": True,
        "stream": True,
    }
    started = asyncio.get_running_loop().time()
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        tenant.answers[response.status] += 1
        if response.status != 200:
            return float(response.headers.get("retry-after-ms", 500)) / 1000
        first = True
        async for _ in response.content.iter_any():
            if first:
                first = False
                tenant.first_token_ms.append((asyncio.get_running_loop().time() - started) * 1000)
    return 0.0
