"""Usage records under faults: sidecars killed, Redis emptied, the database stopped.

Three simulated engines with sidecars, two coordinators, a Redis and a PostgreSQL serve requests without a
pause, and every part fails several times meanwhile. In the end the usage store must agree with the engines'
own token counters. It must have each record once, and each loss must be counted: as a dropped record, or as a
record with the outcome ``lost``. ``python -m experiments usage`` runs it.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import LiteralString

import aiohttp
import psycopg

from experiments.goals import report
from experiments.metrics import by_label, total
from toolbox.ports import free_port
from toolbox.postgres import PostgresProcess
from toolbox.processes import Process, module
from toolbox.redis import RedisProcess

ENGINES = 3
COORDINATORS = 2
CLIENTS = 24
"""Requests at once."""
MOST_ERROR = 0.001
"""The largest deviation from the engines' counters, as a part."""
STORED_S = 90.0
"""The longest wait until the usage store has all records, in seconds."""
MODEL = "small"
POOL = f"""\
pools:
  - name: chat
    models: [{MODEL}]
    replica: {{tokens_per_second: 100000, kv_tokens: 60000, concurrency: 16}}
    replicas: {{min: 1, max: {ENGINES}}}
    usage_records: true
entitlements:
  - {{name: checkout, pool: chat, tier: elastic, api_keys: [checkout-key]}}
  - {{name: batch, pool: chat, tier: elastic, api_keys: [batch-key]}}
"""


@dataclass(frozen=True)
class Sizes:
    """The size of a run."""

    requests: int = 20_000
    rounds: int = 3
    """How often every fault is caused."""
    away_s: float = 3.0
    """The time for which a killed process is away, in seconds."""
    database_away_s: float = 15.0
    """The time for which the database is stopped, in seconds."""


@dataclass
class Result:
    """The results of one run."""

    requests: int = 0
    """Requests with a complete answer."""
    failed: int = 0
    """Requests that a fault ended."""
    refused: int = 0
    faults: int = 0
    records: int = 0
    """Rows in the usage store."""
    summed: int = 0
    """Requests in the sums of the usage store."""
    duplicates: int = 0
    """Records that came again, and were not stored again."""
    finished: int = 0
    """Records with the outcome ``finished``."""
    lost: int = 0
    """Records of requests that ran when their sidecar was killed."""
    dropped: int = 0
    """Records that the sidecars or coordinators counted as dropped, unreadable or refused."""
    engine_tokens: tuple[int, int] = (0, 0)
    """Input and output tokens by the engines' counters."""
    stored_tokens: tuple[int, int] = (0, 0)
    """The same in the records."""
    summed_tokens: tuple[int, int] = (0, 0)
    """The same in the sums."""
    lost_tokens: tuple[int, int] = (0, 0)
    """The estimated tokens of the lost requests."""
    seconds: float = 0.0
    stored_after_s: float = 0.0
    """The time from the last answer until the usage store had all records."""

    @property
    def errors(self) -> tuple[float, float]:
        """The deviations of the stored tokens, as parts of the engines'."""
        return tuple(  # type: ignore[return-value]
            stored / counted - 1
            for stored, counted in zip(self.stored_tokens, self.engine_tokens, strict=True)
        )


def goals(result: Result) -> list[tuple[str, bool]]:
    """The goals, and whether each is reached."""
    of_input, of_output = result.errors
    return [
        (
            f"stored tokens differ from the engines' by {of_input:+.3%} and {of_output:+.3%}, within"
            f" {MOST_ERROR:.1%}",
            max(abs(of_input), abs(of_output)) <= MOST_ERROR,
        ),
        (
            f"{result.records} records, {result.summed} in the sums, each once;"
            f" {result.duplicates} came again",
            result.records == result.summed and result.stored_tokens == result.summed_tokens,
        ),
        (
            f"{result.finished} finished records for {result.requests} complete answers, {result.dropped}"
            f" counted as dropped, {result.lost} as lost",
            result.finished + result.dropped + result.lost >= result.requests and result.dropped == 0,
        ),
    ]


class Parts:
    """All processes of a run."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        pool = folder / "pool.yaml"
        pool.write_text(POOL)
        self.redis = RedisProcess(folder)
        self.database = PostgresProcess(folder)
        stack.callback(self.database.remove)
        stack.enter_context(self.redis)
        stack.enter_context(self.database)
        store = ["--store", self.redis.url, "--log-level", "warning"]
        self.engines, self.sidecars, self.coordinators = list[Process](), list[Process](), list[Process]()
        self.urls, self.pages, self.coordinator_pages = list[str](), list[str](), list[str]()
        self.engine_urls = list[str]()
        for number in range(COORDINATORS):
            page = free_port()
            command = [*module("coordinator"), "run", "--config", str(pool), *store]
            command += ["--listen", f"127.0.0.1:{page}", "--usage-store", self.database.url]
            probe = f"http://127.0.0.1:{page}/readyz"
            self.coordinator_pages.append(f"http://127.0.0.1:{page}/metrics")
            self.coordinators.append(
                stack.enter_context(Process(f"coordinator{number}", command, folder, probe=probe))
            )
        for number in range(ENGINES):
            port, listen, admin = free_port(), free_port(), free_port()
            command = [*module("loadgen.engine"), "--port", str(port), "--slots", "16", "--model", MODEL]
            command += ["--step", "0.004", "--output-tokens", "0"]
            self.engine_urls.append(f"http://127.0.0.1:{port}")
            probe = f"http://127.0.0.1:{port}/health"
            self.engines.append(stack.enter_context(Process(f"engine{number}", command, folder, probe=probe)))
            command = [*module("sidecar"), "run", "--config", str(pool), *store, "--name", f"s{number}"]
            command += ["--upstream", self.engine_urls[-1], "--listen", f"127.0.0.1:{listen}"]
            command += ["--admin", f"127.0.0.1:{admin}", "--usage-spool", str(folder / f"spool{number}")]
            probe = f"http://127.0.0.1:{admin}/readyz"
            self.urls.append(f"http://127.0.0.1:{listen}")
            self.pages.append(f"http://127.0.0.1:{admin}/metrics")
            self.sidecars.append(
                stack.enter_context(Process(f"sidecar{number}", command, folder, probe=probe))
            )

    def faults(self, sizes: Sizes) -> Iterator[Callable[[], None]]:
        """Every fault, in turn."""
        for number in range(sizes.rounds):
            sidecar = self.sidecars[number % ENGINES]
            yield lambda sidecar=sidecar: _restart(sidecar, sizes.away_s)  # type: ignore[misc]
            yield self._empty_redis
            yield lambda: self._stop_database(sizes.database_away_s)
            coordinator = self.coordinators[number % COORDINATORS]
            yield lambda coordinator=coordinator: _restart(coordinator, sizes.away_s)  # type: ignore[misc]
            yield lambda: _restart(self.redis, sizes.away_s)

    def _empty_redis(self) -> None:
        with socket.create_connection(("127.0.0.1", self.redis.port), timeout=5) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            connection.recv(100)

    def _stop_database(self, seconds: float) -> None:
        self.database.stop()
        time.sleep(seconds)
        self.database.start().wait_ready()


def _restart(process: Process, away_s: float) -> None:
    process.kill()
    time.sleep(away_s)
    process.start().wait_ready()


@dataclass
class Load:
    """The clients of a run."""

    parts: Parts
    sizes: Sizes
    seed: int
    result: Result
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.sizes.requests

    async def run(self) -> None:
        """Send all requests."""
        timeout = aiohttp.ClientTimeout(total=60)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._client(session, number) for number in range(CLIENTS)))

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        while self.left > 0:
            self.left -= 1
            body = {
                "model": MODEL,
                "prompt": [5] * chance.randint(8, 160),
                "max_tokens": chance.randint(4, 40),
                "ignore_eos": True,
                "stream": chance.random() < 0.5,
            }
            key = chance.choice(("checkout-key", "batch-key"))
            await self._request(session, chance.choice(self.parts.urls), body, key)

    async def _request(self, session: aiohttp.ClientSession, url: str, body: object, key: str) -> None:
        headers = {"authorization": f"Bearer {key}"}
        try:
            async with session.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
                content = await answer.read()
        except aiohttp.ClientConnectorError:
            self.left += 1  # it has not begun
            await asyncio.sleep(0.1)
            return
        except (aiohttp.ClientError, TimeoutError):
            self.result.failed += 1
            await asyncio.sleep(0.1)  # the sidecar is away
            return
        if answer.status == 200 and (not content.startswith(b"data:") or b"[DONE]" in content):
            self.result.requests += 1
        elif answer.status in (429, 503):
            self.result.refused += 1
            self.left += 1
            await asyncio.sleep(0.05)
        else:
            self.result.failed += 1


async def _with_faults(load: Load) -> None:
    """Run the load, and cause a fault after each equal part of it."""
    faults = list(load.parts.faults(load.sizes))
    running = asyncio.ensure_future(load.run())
    every = load.sizes.requests / (len(faults) + 1)
    for number, fault in enumerate(faults):
        while load.sizes.requests - load.left < every * (number + 1) and not running.done():
            await asyncio.sleep(0.02)
        await asyncio.to_thread(fault)
        load.result.faults += 1
    await running


def run(sizes: Sizes, seed: int, folder: Path) -> Result:
    """Run the experiment once."""
    result = Result()
    with contextlib.ExitStack() as stack:
        parts = Parts(folder, stack)
        before = _engine_tokens(parts)
        began = time.monotonic()
        asyncio.run(_with_faults(Load(parts, sizes, seed, result)))
        result.seconds = time.monotonic() - began
        result.stored_after_s = _wait_until_stored(parts)
        after = _engine_tokens(parts)
        result.engine_tokens = (after[0] - before[0], after[1] - before[1])
        result.duplicates = by_label(
            parts.coordinator_pages, "tokenpool_usage_store_records_total", "result"
        )["duplicate"]
        result.dropped = _dropped(parts)
        _read_store(parts, result)
    return result


def _engine_tokens(parts: Parts) -> tuple[int, int]:
    pages = [f"{url}/metrics" for url in parts.engine_urls]
    first, second = (total(pages, f"vllm:{kind}_tokens_total") for kind in ("prompt", "generation"))
    return round(first), round(second)


def _wait_until_stored(parts: Parts) -> float:
    """Wait until no sidecar has a record that is not confirmed. Returns the seconds."""
    began = time.monotonic()
    empty = 0
    while empty < 3:  # a page may be from before the last write
        time.sleep(0.5)
        left = total(parts.pages, "tokenpool_usage_spool_bytes")
        empty = empty + 1 if not left else 0
        if time.monotonic() - began > STORED_S:
            raise TimeoutError(f"{left:g} bytes of records are not stored after {STORED_S:g} s")
    return time.monotonic() - began


def _dropped(parts: Parts) -> int:
    at_sidecars = by_label(parts.pages, "tokenpool_usage_records_total", "result")
    batches = by_label(parts.pages, "tokenpool_usage_batches_total", "result")
    at_coordinators = by_label(parts.coordinator_pages, "tokenpool_usage_store_records_total", "result")
    return (
        at_sidecars["dropped"]
        + batches["unreadable"]
        + at_coordinators["unreadable"]
        + at_coordinators["refused"]
    )


def _read_store(parts: Parts, result: Result) -> None:
    with psycopg.connect(parts.database.url) as connection:

        def row(statement: LiteralString) -> list[int]:
            found = connection.execute(statement).fetchone()
            assert found is not None
            return [int(value or 0) for value in found]

        result.records, *stored = row(
            "SELECT COUNT(DISTINCT id), SUM(input_tokens), SUM(output_tokens) FROM usage_records"
        )
        result.summed, *summed = row(
            "SELECT SUM(requests), SUM(input_tokens), SUM(output_tokens) FROM usage_sums"
        )
        result.lost, *lost = row(
            "SELECT COUNT(*), SUM(input_tokens), SUM(output_tokens) FROM usage_records WHERE outcome = 'lost'"
        )
        [result.finished] = row("SELECT COUNT(*) FROM usage_records WHERE outcome = 'finished'")
    result.stored_tokens, result.summed_tokens = (stored[0], stored[1]), (summed[0], summed[1])
    result.lost_tokens = (lost[0], lost[1])


def main(argv: Sequence[str]) -> int:
    """Run the experiment, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m experiments usage", description=__doc__)
    parser.add_argument("--requests", type=int, default=Sizes.requests, help=f"requests [{Sizes.requests}]")
    parser.add_argument("--seed", type=int, default=1, help="the seed [1]")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = run(Sizes(requests=arguments.requests), arguments.seed, Path(folder))
    print(json.dumps(asdict(result), indent=2))
    return report(goals(result))
