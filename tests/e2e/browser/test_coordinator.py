"""A coordinator's live page with real processes: the counts of all sidecars, and a clean shutdown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.integration.cluster.load import Tenant, under_load
from tests.integration.cluster.processes import Cluster


async def looks(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, dict[str, Any]]]:
    """The rows of every event, by entitlement."""
    async for line in response.content:
        if line.startswith(b"data: "):
            yield {row["name"]: row for row in json.loads(line.removeprefix(b"data: "))["rows"]}


async def test_a_coordinator_shows_the_sheds_of_all_sidecars_and_shuts_down_with_open_pages(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path, sidecars=2, coordinators=1)
    async with cluster.running(), cluster.session.get(f"{cluster.pages[0]}/live/events") as response:
        async with (
            under_load(cluster.session, cluster.urls, [Tenant("g", 6), Tenant("s", 16)]),
            asyncio.timeout(20),
        ):
            shed: dict[str, Any] = {}
            served = 0.0
            async for rows in looks(response):
                served = max(served, rows["g"]["served_per_s"] or 0.0) if "g" in rows else served
                shed = rows["s"] if "s" in rows and rows["s"]["sheds"] else shed
                if served and shed:
                    break
        assert shed["shed_per_s"] > 0
        assert all(each["why"] and each["per_s"] > 0 for each in shed["sheds"])
        assert await asyncio.to_thread(cluster.coordinators[0].stop) == 0
        async with asyncio.timeout(5):
            async for _ in looks(response):
                pass
