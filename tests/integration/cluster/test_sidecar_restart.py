"""A sidecar is replaced beside its running engine, as kubelet does when the image of a sidecar changes.

The engine keeps running. The test shows which requests fail, and for how long. Two sidecars serve the pool,
and each worker uses one of them. The figures go to out/sidecar_restart.txt.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.cluster.load import CUT, Tenant, under_load
from tests.integration.cluster.processes import Cluster

pytestmark = pytest.mark.exclusive

POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 4}
    replicas: {min: 1, max: 8}
entitlements:
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
"""
TOKENS = 200
"""A request takes about two seconds, so some run whenever the sidecar is replaced."""
OUT = Path(__file__).parents[3] / "out" / "sidecar_restart.txt"


async def is_ready(cluster: Cluster, number: int) -> bool:
    page = await cluster.get(f"{cluster.admins[number]}/readyz")
    return page.get("status") in ("ready", "degraded")


async def is_draining(cluster: Cluster, number: int) -> bool:
    return bool((await cluster.get(f"{cluster.admins[number]}/debug/state")).get("draining"))


async def started_at(cluster: Cluster, number: int) -> str:
    """The start time that the engine states."""
    async with cluster.session.get(f"http://127.0.0.1:{cluster.engines[number].probe}/metrics") as response:
        page = await response.text()
    [line] = [line for line in page.splitlines() if line.startswith("process_start_time_seconds ")]
    return line


async def test_a_replaced_sidecar_finishes_its_requests_and_the_engine_stays(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, sidecars=2, coordinators=1, pool=POOL, options=["--drain-timeout", "10"])
    async with cluster.running():
        engine = await started_at(cluster, 0)
        tenants = [
            Tenant("e", 3, weights=[1.0, 0.0], tokens=TOKENS),
            Tenant("e", 3, weights=[0.0, 1.0], tokens=TOKENS),
        ]
        async with under_load(cluster.session, cluster.urls, tenants) as load:
            await asyncio.sleep(2)
            asked = time.monotonic()
            # The preStop hook of a native sidecar sends the first signal, and kubelet one after the hook.
            cluster.sidecars[0].signal(signal.SIGTERM)
            await cluster.until(lambda: is_draining(cluster, 0), 5)
            await asyncio.to_thread(cluster.sidecars[0].stop)
            ended = time.monotonic()
            cluster.sidecars[0].start()
            await cluster.until(lambda: is_ready(cluster, 0), 20)
            ready = time.monotonic()
            await cluster.until_joined(20)
            await asyncio.sleep(5)
        assert await started_at(cluster, 0) == engine
    here = [each for each in load.outcomes if each.sidecar == 0]
    begun = [each for each in here if each.began < asked <= each.ended]
    failed = [each for each in load.outcomes if each.status != 200]
    assert begun, "no request ran when the sidecar was stopped"
    assert {each.status for each in begun} == {200}
    assert {each.sidecar for each in failed} == {0}
    assert all(asked <= each.began < ready for each in failed)
    # 503 while it drains, no connection while it starts, and 503 until it has asked the engine. None is cut.
    kinds = Counter(each.reason if each.status else "no connection" for each in failed)
    assert set(kinds) <= {"draining", "no connection", "engine_down"}
    assert CUT not in {each.reason for each in failed}
    after = [each for each in here if each.began >= ready]
    assert {each.status for each in after} == {200}
    line = (
        f"drained in {ended - asked:.1f} s with {len(begun)} running requests, none lost; ready after another"
        f" {ready - ended:.1f} s; refused meanwhile {dict(kinds)}; {len(load.outcomes)} requests in all"
    )
    print(line)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(line + "\n")
