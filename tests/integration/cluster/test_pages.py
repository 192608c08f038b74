"""The pages and errors of a coordinator, and those of a sidecar about the lease store."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.cluster.load import Tenant, under_load
from tests.integration.cluster.processes import LIFETIME_S, POOL, Cluster
from toolbox.ports import free_port


@pytest_asyncio.fixture
async def small(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path, sidecars=2, coordinators=1)
    async with cluster.running():
        yield cluster


async def text(cluster: Cluster, url: str) -> tuple[int, str]:
    async with cluster.session.get(url) as response:
        return response.status, await response.text()


async def test_a_coordinators_pages(small: Cluster) -> None:
    page = small.pages[0]
    async with under_load(small.session, small.urls, [Tenant("g", 8), Tenant("s", 20)]):
        await asyncio.sleep(3)
        status, body = await text(small, f"{page}/scale/chat")
        metrics = (await text(small, f"{page}/metrics"))[1]
        state = json.loads((await text(small, f"{page}/debug/state"))[1])
    hint = json.loads(body)
    assert status == 200
    # Eight sequences are guaranteed, with a tenth of headroom, at four per replica. Spot has no demand.
    assert hint["desired_replicas"] == 3
    assert (hint["dimension"], hint["guarantees_need"]) == ("concurrency", 2)
    assert 'tokenpool_desired_replicas{pool="chat"} 3.0' in metrics
    assert 'tokenpool_desired_replicas_reason{dimension="concurrency",pool="chat"} 1.0' in metrics
    assert 'tokenpool_leader{pool="chat"} 1.0' in metrics
    assert 'tokenpool_sidecars{pool="chat"} 2.0' in metrics
    assert 'tokenpool_pool_capacity{dimension="concurrency",pool="chat"} 8.0' in metrics
    pool = state["pools"]["chat"]
    assert pool["entitlements"]["g"]["limit"]["concurrency"] == 8
    assert pool["ticks"]["led"] > 5
    assert len(pool["sidecars"]) == 2
    assert (await text(small, f"{page}/healthz"))[0] == 200
    assert (await text(small, f"{page}/readyz"))[0] == 200
    status, body = await text(small, f"{page}/scale/nothing")
    assert (status, "chat" in body) == (404, True)


async def test_a_sidecar_shows_its_lease_mode(small: Cluster) -> None:
    admin = small.admins[0]
    assert json.loads((await text(small, f"{admin}/readyz"))[1])["status"] == "ready"
    metrics = (await text(small, f"{admin}/metrics"))[1]
    assert 'tokenpool_store_mode{mode="joined",pool="chat"} 1.0' in metrics
    assert 'tokenpool_store_up{pool="chat"} 1.0' in metrics
    small.redis.kill()
    await small.until(lambda: _is_degraded(small, admin), 5)
    status, body = await text(small, f"{admin}/readyz")
    assert status == 200  # requests are served
    assert any("does not answer" in said for said in json.loads(body)["degraded"])
    metrics = (await text(small, f"{admin}/metrics"))[1]
    assert 'tokenpool_store_mode{mode="cut_off",pool="chat"} 1.0' in metrics
    assert 'tokenpool_store_up{pool="chat"} 0.0' in metrics
    page = small.pages[0]
    await asyncio.sleep(5.5)
    status, body = await text(small, f"{page}/readyz")
    assert (status, "pool chat" in body) == (503, True)
    assert (await text(small, f"{page}/scale/chat"))[0] == 503  # an autoscaler keeps the replicas


async def _is_ready(cluster: Cluster, admin: str) -> bool:
    return (await text(cluster, f"{admin}/readyz"))[0] == 200


async def _is_degraded(cluster: Cluster, admin: str) -> bool:
    body = await cluster.get(f"{admin}/readyz")
    return any("cut_off" in said for said in body.get("degraded", []))


async def test_a_sidecar_whose_own_file_differs_enforces_the_published_one(small: Cluster) -> None:
    other = small.folder / "other.yaml"
    other.write_text(POOL.replace("ceiling: {concurrency: 4}", "ceiling: {concurrency: 2}"))
    sidecar = small.sidecars[1]
    assert sidecar.stop() == 0
    sidecar.replace(str(small.file), str(other))
    sidecar.start()
    await small.until_joined(10)

    async def differs() -> bool:
        state = (await small.states())[1]
        return bool(state["lease_store"]["config_differs"]) and (
            state["entitlements"]["c"]["ceiling"]["concurrency"] == 4
        )

    await small.until(differs, 5)
    metrics = (await text(small, f"{small.admins[1]}/metrics"))[1]
    assert 'tokenpool_config_differs{pool="chat"} 1.0' in metrics
    assert "differs from the published one" in sidecar.log.read_text()


async def test_a_graceful_stop_returns_all_leases(small: Cluster) -> None:
    (leader,) = await small.leaders()
    page = f"{small.pages[leader]}/debug/state"
    async with under_load(small.session, small.urls[:1], [Tenant("c", 4)]):
        await asyncio.sleep(1)
        before = await small.get(page)
        assert small.sidecars[0].stop() == 0
    stopped = time.monotonic()

    async def is_returned() -> bool:
        seen = (await small.get(page))["pools"]["chat"]
        held = seen["entitlements"]["c"]["held"]
        return held is None or held["concurrency"] == 0

    assert before["pools"]["chat"]["entitlements"]["c"]["held"]["concurrency"] > 0
    # Long before they expire, and without an unreadable report.
    await small.until(is_returned, 1)
    assert time.monotonic() - stopped < LIFETIME_S
    assert (await small.get(page))["pools"]["chat"]["unreadable_reports"] == []
    assert small.coordinators[leader].stop() == 0
    assert '"stopped"' in small.coordinators[leader].log.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "{pool}"], "--store must be given"),
        (["--config", "{pool}", "--store", "memory"], "--store: memory is for a lone sidecar"),
        (["--config", "/nowhere", "--store", "redis://h"], "/nowhere"),
        (["--config", "{broken}", "--store", "redis://h"], "broken.yaml:1: not YAML"),
        (
            ["--config", "{pool}", "--store", "redis://h", "--leadership-timeout", "0.5"],
            "--leadership-timeout: 0.5 s is less than",
        ),
        (["--config", "{pool}", "--store", "redis://h", "--listen", "x"], "--listen: 'x' is not HOST:PORT"),
        (["--config", "{pool}", "--store", "redis://h", "--name", "a b"], "is not a name of letters"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "pool.yaml").write_text(POOL)
    (tmp_path / "broken.yaml").write_text("pools: {")
    given = [a.format(pool=tmp_path / "pool.yaml", broken=tmp_path / "broken.yaml") for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "coordinator", "run", *given],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr


def test_a_sidecars_leases_must_outlive_its_ticks(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(POOL)
    command = ["run", "--config", str(tmp_path / "pool.yaml"), "--upstream", "http://127.0.0.1:1"]
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", *command, "--tick", "1", "--lease-lifetime", "2"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "--lease-lifetime: 2 s is less than three ticks" in done.stderr


async def test_a_sidecar_without_its_lease_store_at_the_start_serves_from_its_own_file(
    tmp_path: Path,
) -> None:
    cluster = Cluster(
        tmp_path, sidecars=1, coordinators=0, store=lambda *_: f"redis://127.0.0.1:{free_port()}"
    )
    async with cluster.serving():
        await cluster.until(lambda: _is_degraded(cluster, cluster.admins[0]), 10)
        await cluster.until(lambda: _is_ready(cluster, cluster.admins[0]), 10)
        async with under_load(cluster.session, cluster.urls, [Tenant("g", 2)]) as load:
            await asyncio.sleep(1)
    assert load.failures() == []
    assert load.statuses("g")[200] > 2
    assert load.statuses("g")[429] == 0
