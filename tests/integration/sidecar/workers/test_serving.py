"""Several workers are one sidecar: for tenants on its port, and for operators on its admin port."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from tests.certificates import certify
from tests.integration.sidecar.workers.pod import POOL, running, until

SPOT_TOKENS = 2000


async def test_the_admin_port_answers_for_all_workers(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as (pod, _):
        answers = [await pod.complete("e") for _ in range(24)]
        assert answers == [(200, True)] * 24

        assert await pod.metric("tokenpool_requests_total") == 24
        assert await pod.metric("tokenpool_workers") == 2
        assert await pod.metric("tokenpool_worker_restarts_total") == 0
        state = await pod.get("/debug/state")
        assert state["entitlements"]["e"]["outcomes"]["finished"] == 24
        assert state["entitlements"]["e"]["in_use"]["concurrency"] == 0
        assert state["entitlements"]["e"]["limit"]["concurrency"] == 8
        assert state["capacity"]["concurrency"] == 8
        assert len({each["pid"] for each in state["workers"]}) == 2
        some = await pod.get("/debug/state?entitlement=c")
        assert list(some["entitlements"]) == ["c"]
        assert "no entitlement" in (await pod.get("/debug/state?entitlement=x"))["error"]
        assert await pod.get("/healthz") == {"status": "ok"}
        assert (await pod.get("/readyz"))["problems"] == []
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{pod.admin}/engine/metrics") as page:
                assert "vllm:num_requests_running" in await page.text()
            async with session.get(f"{pod.admin}/live") as page:
                assert page.status == 200
            async with session.get(f"{pod.admin}/live/events") as events:
                line = await events.content.readuntil(b"\n\n")
                assert b"2 workers" in line


async def test_both_workers_get_connections_and_share_the_engines_room(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as (pod, engine):
        until_then = time.monotonic() + 2
        counts = await asyncio.gather(*(pod.keep_asking("e", until_then) for _ in range(20)))

        assert sum(each[200] for each in counts) > 100
        assert engine.most["all"] <= 8 + 1  # two workers may take the last slot at once
        state = await pod.get("/debug/state")
        assert all(each["handover"]["running_elsewhere"] == 0 for each in state["workers"])


async def test_a_stored_response_is_its_owners_at_each_worker(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as (pod, _):
        made = [await pod.respond("e") for _ in range(4)]

        assert {await pod.retrieve("e", each) for each in made for _ in range(4)} == {200}
        assert {await pod.retrieve("c", each) for each in made for _ in range(4)} == {404}


async def test_a_guarantee_ends_spot_of_any_worker(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as (pod, engine):
        spot = [asyncio.ensure_future(pod.complete("s", SPOT_TOKENS)) for _ in range(8)]

        async def is_full() -> bool:
            return engine.running["s"] == 8

        await until(is_full, "spot runs")
        began = time.monotonic()
        answers = await asyncio.gather(*(pod.complete("g", 5) for _ in range(4)))

        assert answers == [(200, True)] * 4
        assert time.monotonic() - began < SPOT_TOKENS * engine.step / 2
        assert engine.most["all"] <= 9
        for each in spot:
            each.cancel()
        await asyncio.gather(*spot, return_exceptions=True)


async def test_a_changed_pool_file_reaches_all_workers(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as (pod, _):
        assert (await pod.complete("n"))[0] == 401
        pod.file.write_text(POOL + "  - {name: n, pool: chat, tier: elastic, api_keys: [n-key]}\n")
        pod.process.signal(signal.SIGHUP)

        async def is_known() -> bool:
            return {status for status, _ in [await pod.complete("n") for _ in range(8)]} == {200}

        await until(is_known, "the new key is accepted")
        assert (await pod.get("/debug/state"))["entitlements"]["n"]["outcomes"]["finished"] >= 8


async def test_tls_is_served_by_all_workers(tmp_path: Path) -> None:
    cert, key = certify(tmp_path, "sidecar")
    options = ("--tls-cert", str(cert), "--tls-key", str(key))
    async with running(tmp_path, 2, *options, scheme="https") as (pod, _):
        assert [await pod.complete("e") for _ in range(8)] == [(200, True)] * 8


async def test_a_quota_is_one_for_all_workers(tmp_path: Path) -> None:
    pool = POOL + (
        "  - {name: q, pool: chat, tier: elastic, api_keys: [q-key],\n"
        "     quotas: [{tokens: 100, per: day}]}\n"
    )
    async with running(tmp_path, 2, pool=pool) as (pod, _):
        statuses = [(await pod.complete("q", 5))[0] for _ in range(40)]

        assert statuses[0] == 200
        assert statuses[-1] == 429

        async def is_shown() -> bool:
            return 50 < await pod.metric("tokenpool_quota_spent_tokens") <= 115

        await until(is_shown, "the spending is shown")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_all_workers(tmp_path: Path, number: int) -> None:
    async with running(tmp_path, 2) as (pod, engine):
        streams = [asyncio.ensure_future(pod.complete("e", 100)) for _ in range(6)]

        async def do_run() -> bool:
            return engine.running["e"] == 6

        await until(do_run, "the streams run")
        pod.process.signal(number)

        async def is_draining() -> bool:
            page = await pod.get("/readyz")
            return page is not None and page["problems"] == ["draining"]

        await until(is_draining, "the drain")
        assert await asyncio.gather(*streams) == [(200, True)] * 6
        assert await asyncio.to_thread(pod.process.wait, 10) == 0
