"""Workers in a pool with Redis: each is a holder of leases, and together they are one replica."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp

from tests.integration.sidecar.workers.pod import CountingEngine, Pod, running, until
from toolbox.ports import free_port
from toolbox.processes import Process, module
from toolbox.redis import RedisProcess


async def test_two_sidecars_with_two_workers_each_are_two_replicas(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path).start()
    store = ("--store", f"redis://127.0.0.1:{redis.port}")
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    port = free_port()
    coordinator = Process(
        "coordinator",
        [
            *(*module("coordinator"), "run", "--config", str(first / "pool.yaml"), *store),
            *("--listen", f"127.0.0.1:{port}"),
        ],
        tmp_path,
    )
    connector = aiohttp.TCPConnector(limit=0)
    try:
        redis.wait_ready(10)
        async with (
            running(first, 2, *store, "--name", "a", is_joined=False) as (pod, engine),
            CountingEngine() as other_engine,
            aiohttp.ClientSession(connector=connector) as session,
        ):
            coordinator.start()
            other = Pod(second, other_engine, session, 2, [*store, "--name", "b"])
            other.process.start()
            try:
                await asyncio.gather(pod.until_ready(2), other.until_ready(2))

                async def is_led() -> bool:
                    page = await pod.get("/debug/state")
                    return bool(page["entitlements"]["e"]["limit"]["concurrency"] == 16)

                await until(is_led, "the limits of two engines")
                end = time.monotonic() + 2
                loads = [each.keep_asking("c", end) for each in (pod, other) for _ in range(4)]
                counts = await asyncio.gather(*loads)
                assert sum(each[200] for each in counts) > 40
                assert engine.most["c"] + other_engine.most["c"] <= 2 * 4
                async with session.get(f"http://127.0.0.1:{port}/metrics") as page:
                    lines = (await page.text()).splitlines()
                assert 'tokenpool_sidecars{pool="chat"} 2.0' in lines
                assert 'tokenpool_engines_up{pool="chat"} 2.0' in lines
                await pod.kill_worker(1)
                assert {await pod.complete("e") for _ in range(6)} <= {(200, True), (0, False)}
                await pod.until_ready(2)
            finally:
                other.process.stop()
    finally:
        coordinator.kill()
        redis.kill()


async def test_workers_without_a_file_wait_for_the_published_one(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path).start()
    store = ("--store", f"redis://127.0.0.1:{redis.port}")
    port = free_port()
    redis.wait_ready(10)
    try:
        async with CountingEngine() as engine, aiohttp.ClientSession() as session:
            pod = Pod(tmp_path, engine, session, 2, store, has_file=False)
            coordinator = Process(
                "coordinator",
                [
                    *(*module("coordinator"), "run", "--config", str(pod.file), *store),
                    *("--listen", f"127.0.0.1:{port}"),
                ],
                tmp_path,
            )
            pod.process.start()
            try:

                async def waits() -> bool:
                    page = await pod.get("/readyz")
                    return page is not None and "no pool file is published" in str(page["problems"])

                await until(waits, "the reason on the page")
                coordinator.start()
                await pod.until_ready(2)
                assert [await pod.complete("e") for _ in range(4)] == [(200, True)] * 4
            finally:
                pod.process.stop()
                coordinator.kill()
    finally:
        redis.kill()
