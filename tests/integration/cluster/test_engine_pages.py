"""A pool with an engine without a metrics page: its limits are shared like those of other pools."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.fakes.scripted_engine import FakeEngine, Received
from tests.integration.cluster.processes import Cluster

KEYS = ("g-key", "c-key", "s-key")


async def not_found(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")


async def test_an_engine_without_a_metrics_page_serves_its_share_of_the_pool(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.pages["/metrics"] = not_found
    cluster = Cluster(tmp_path, sidecars=2, coordinators=1)
    old = f"http://127.0.0.1:{cluster.engines[0].probe}"
    cluster.sidecars[0].replace(old, f"http://127.0.0.1:{engine.port}")
    async with cluster.running():
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
        for url in cluster.urls * 2:
            for key in KEYS:
                headers = {"authorization": f"Bearer {key}"}
                async with cluster.session.post(f"{url}/v1/completions", json=body, headers=headers) as said:
                    assert (key, said.status) == (key, 200)
        without, other = await cluster.states()
        assert "KV tokens have no bound" in str(
            (await cluster.get(f"{cluster.admins[0]}/readyz"))["degraded"]
        )
        async with cluster.session.get(f"{cluster.pages[0]}/debug/state") as response:
            pool = json.loads(await response.text(), parse_constant=_no_number)["pools"]["chat"]
        # An engine without a KV bound gives no capacity per replica, and then the pool has no bound either.
        assert pool["replica"]["kv_tokens"] == other["capacity"]["kv_tokens"]
        assert pool["replica"]["concurrency"] == 4
        assert without["capacity"]["kv_tokens"] is pool["capacity"]["kv_tokens"] is None
        assert {e["limit"]["kv_tokens"] for e in pool["entitlements"].values()} == {None}
        assert (await cluster.get(f"{cluster.pages[0]}/scale/chat"))["desired_replicas"] >= 1


def _no_number(text: str) -> float:
    raise AssertionError(f"{text} is not valid JSON")
