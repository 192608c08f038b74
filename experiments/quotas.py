"""Quotas at full load: every tenant spends its quota, with and without an emptied Redis at half of it.

Sidecars with simulated engines, a coordinator with a usage store, and a Redis serve more requests than the
quotas allow. The clients add up what the engines report. Each tenant must stop close to its quota.
``python -m experiments quotas`` runs it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp

from experiments.goals import report
from toolbox.ports import free_port
from toolbox.processes import Process, module
from toolbox.redis import RedisProcess

MODEL = "small"
SLOTS = 16
MOST_ERROR, MOST_ERROR_EMPTIED = 0.005, 0.01
"""The largest deviation of a tenant's spending from its quota, without and with an emptied Redis."""
REFUSED_LAST = 6
"""A client ends after this number of refusals in turn, of small requests."""


@dataclass(frozen=True)
class Sizes:
    """The size of a run."""

    sidecars: int = 8
    tenants: int = 50
    clients: int = 4
    """Clients of each tenant. Each has one request at a time."""
    quota: int = 150_000
    """Weighted tokens per tenant and window."""
    longest_s: float = 900.0


@dataclass
class Result:
    """The results of one run."""

    quota: int
    spent: dict[str, int] = field(default_factory=dict)
    """Tokens that the engines reported, by tenant."""
    requests: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """Refusals by their reason."""
    failed: int = 0
    was_emptied: bool = False
    seconds: float = 0.0

    @property
    def deviations(self) -> list[float]:
        """The deviation of each tenant's spending from its quota, as a part of it."""
        return [spent / self.quota - 1 for spent in self.spent.values()]


def goals(result: Result) -> list[tuple[str, bool]]:
    """The goals, and whether each is reached."""
    most = MOST_ERROR_EMPTIED if result.was_emptied else MOST_ERROR
    found = result.deviations
    what = "Redis emptied at half" if result.was_emptied else "Redis kept"
    return [
        (
            f"{what}: {len(found)} tenants spent {min(found):+.2%} to {max(found):+.2%} of their quota,"
            f" within {most:.1%}",
            max(map(abs, found)) <= most,
        ),
        (f"{what}: {result.failed} requests failed", result.failed == 0),
    ]


def pool_file(sizes: Sizes) -> str:
    """The pool file. The day of its time zone ends many hours from now."""
    hours = (12 - time.gmtime().tm_hour) % 24
    offset = hours if hours <= 12 else hours - 24
    zone = f"Etc/GMT{-offset:+d}" if offset else "UTC"
    head = f"""\
pools:
  - name: chat
    models: [{MODEL}]
    replica: {{tokens_per_second: 1000000, kv_tokens: 200000, concurrency: {SLOTS}}}
    replicas: {{min: 1, max: {sizes.sidecars}}}
    usage_records: true
entitlements:
"""
    quotas = f"[{{tokens: {sizes.quota}, per: day, timezone: {zone}}}]"
    return head + "".join(
        f"  - {{name: t{n}, pool: chat, tier: elastic, api_keys: [key-{n}], quotas: {quotas}}}\n"
        for n in range(sizes.tenants)
    )


class Parts:
    """All processes of a run."""

    def __init__(self, sizes: Sizes, folder: Path, stack: contextlib.ExitStack) -> None:
        pool = folder / "pool.yaml"
        pool.write_text(pool_file(sizes))
        self.redis = stack.enter_context(RedisProcess(folder))
        store = ["--store", self.redis.url, "--log-level", "warning"]
        page = free_port()
        command = [*module("coordinator"), "run", "--config", str(pool), *store]
        command += ["--listen", f"127.0.0.1:{page}", "--usage-store", f"{folder}/usage.db"]
        self.page = f"http://127.0.0.1:{page}/metrics"
        stack.enter_context(Process("coordinator", command, folder, probe=f"http://127.0.0.1:{page}/readyz"))
        self.urls: list[str] = []
        self.pages: list[str] = []
        for number in range(sizes.sidecars):
            port, listen, admin = free_port(), free_port(), free_port()
            command = [*module("loadgen.engine"), "--port", str(port), "--slots", str(SLOTS)]
            command += ["--model", MODEL, "--step", "0.01", "--output-tokens", "0"]
            probe = f"http://127.0.0.1:{port}/health"
            stack.enter_context(Process(f"engine{number}", command, folder, probe=probe))
            command = [*module("sidecar"), "run", "--config", str(pool), *store, "--name", f"s{number}"]
            command += ["--upstream", f"http://127.0.0.1:{port}", "--listen", f"127.0.0.1:{listen}"]
            command += ["--admin", f"127.0.0.1:{admin}", "--usage-spool", str(folder / f"spool{number}")]
            stack.enter_context(
                Process(f"sidecar{number}", command, folder, probe=f"http://127.0.0.1:{admin}/readyz")
            )
            self.urls.append(f"http://127.0.0.1:{listen}")
            self.pages.append(f"http://127.0.0.1:{admin}/metrics")

    def empty_redis(self) -> None:
        """Remove everything from Redis."""
        with socket.create_connection(("127.0.0.1", self.redis.port), timeout=5) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            connection.recv(100)


class Load:
    """The clients of a run."""

    def __init__(self, parts: Parts, sizes: Sizes, seed: int, result: Result, *, empties: bool) -> None:
        self._parts, self._sizes, self._seed, self._result = parts, sizes, seed, result
        self._empties = empties
        self._refused: Counter[str] = Counter()
        self._ends_at = time.monotonic() + sizes.longest_s

    async def run(self) -> None:
        """Send requests until each tenant is refused."""
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(
                *(
                    self._client(session, tenant, number)
                    for tenant in range(self._sizes.tenants)
                    for number in range(self._sizes.clients)
                )
            )
        self._result.refused = dict(self._refused)

    async def _client(self, session: aiohttp.ClientSession, tenant: int, number: int) -> None:
        chance = random.Random(f"{self._seed} {tenant} {number}")
        refusals = 0
        self._result.spent.setdefault(f"t{tenant}", 0)
        while refusals < REFUSED_LAST and time.monotonic() < self._ends_at:
            # After a refusal smaller requests follow: they use the rest of the quota.
            prompt = chance.randint(20, 600) if not refusals else 20
            body = {
                "model": MODEL,
                "prompt": [chance.randint(3, 30_000) for _ in range(prompt)],
                "max_tokens": chance.randint(10, 40) if not refusals else 10,
                "ignore_eos": True,
            }
            is_refused = await self._request(session, chance.choice(self._parts.urls), body, tenant)
            refusals = refusals + 1 if is_refused else 0
            if is_refused:
                await asyncio.sleep(0.5)

    async def _request(self, session: aiohttp.ClientSession, url: str, body: object, tenant: int) -> bool:
        """Send one request. Returns whether its quota is spent."""
        result = self._result
        headers = {"authorization": f"Bearer key-{tenant}"}
        try:
            async with session.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
                content = await answer.json()
        except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError):
            result.failed += 1
            return False
        if answer.status == 200:
            usage = content["usage"]
            details = usage.get("prompt_tokens_details") or {}
            tokens = usage["prompt_tokens"] - (details.get("cached_tokens") or 0)
            result.spent[f"t{tenant}"] += tokens + usage["completion_tokens"]
            result.requests += 1
            self._empty_at_half()
            return False
        self._refused[answer.headers.get("x-tokenpool-reason", str(answer.status))] += 1
        if answer.status != 429:
            result.failed += 1
        if content.get("error", {}).get("code") == "insufficient_quota":
            return True
        await asyncio.sleep(0.2)
        return False

    def _empty_at_half(self) -> None:
        result = self._result
        half = self._sizes.quota * self._sizes.tenants / 2
        if self._empties and not result.was_emptied and sum(result.spent.values()) >= half:
            result.was_emptied = True
            self._parts.empty_redis()


def run(sizes: Sizes, seed: int, folder: Path, *, empties: bool) -> Result:
    """Run the experiment once. ``empties``: Redis loses its content when half of all quotas is spent."""
    result = Result(sizes.quota)
    with contextlib.ExitStack() as stack:
        parts = Parts(sizes, folder, stack)
        began = time.monotonic()
        asyncio.run(Load(parts, sizes, seed, result, empties=empties).run())
        result.seconds = time.monotonic() - began
    return result


def main(argv: Sequence[str]) -> int:
    """Run the experiment, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m experiments quotas", description=__doc__)
    parser.add_argument("--quota", type=int, default=Sizes.quota, help=f"tokens [{Sizes.quota}]")
    parser.add_argument("--tenants", type=int, default=Sizes.tenants, help=f"tenants [{Sizes.tenants}]")
    parser.add_argument("--sidecars", type=int, default=Sizes.sidecars, help=f"[{Sizes.sidecars}]")
    parser.add_argument("--seed", type=int, default=1, help="the seed [1]")
    arguments = parser.parse_args(argv)
    sizes = Sizes(arguments.sidecars, arguments.tenants, quota=arguments.quota)
    reached: list[tuple[str, bool]] = []
    for empties in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            result = run(sizes, arguments.seed, Path(folder), empties=empties)
        print(json.dumps(asdict(result)), flush=True)
        reached += goals(result)
    return report(reached)
