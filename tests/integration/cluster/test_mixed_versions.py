"""Processes of an earlier commit and of this one in one pool, as during a rolling update.

The code of the earlier commit comes from the history of the checkout. Without that commit, as in a shallow
clone, the test is skipped. `tests/unit/tokenpool/leases/test_formats.py` and
`tests/integration/tokenpool/store/test_versions.py` check the same formats from files.
"""

from __future__ import annotations

import asyncio
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.integration.cluster.load import Tenant, under_load
from tests.integration.cluster.processes import Cluster
from toolbox.processes import Process

ROOT = Path(__file__).parents[3]
BASELINE = "b046ea5ea1a26796a21364f94500b401e7f0a430"
"""The earlier commit. It has version 1 of all formats. The first release replaces it by its tag."""
PACKAGES = ("tokenpool", "runtime", "dashboard", "sidecar", "coordinator")
POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 4}
    replicas: {min: 1, max: 8}
entitlements:
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
  - {name: c, pool: chat, tier: elastic, ceiling: {concurrency: 2}, api_keys: [c-key]}
"""
ONLY_HERE = "tokenpool_credentials_current"
"""A metric that the earlier commit does not have."""


@pytest.fixture
def former(tmp_path: Path) -> dict[str, str]:
    """The environment in which ``python -m`` runs the earlier commit."""
    command = ["git", "-C", str(ROOT), "archive", BASELINE, *PACKAGES]
    try:
        archive = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except FileNotFoundError:
        pytest.skip("git is not installed, and the earlier commit comes from the history")
    if archive.returncode:
        pytest.skip(f"commit {BASELINE[:7]} is not in this checkout: {archive.stderr.decode().strip()}")
    folder = tmp_path / "former"
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


async def page(cluster: Cluster, url: str) -> str:
    async with cluster.session.get(f"{url}/metrics") as response:
        return await response.text()


async def total(cluster: Cluster, number: int, name: str) -> float:
    """The value of a series of a sidecar, whose name and labels begin like this."""
    rows = (row for row in (await page(cluster, cluster.admins[number])).splitlines() if row.startswith(name))
    return sum(float(row.rpartition(" ")[2]) for row in rows)


async def test_sidecars_and_coordinators_of_two_versions_serve_one_pool(
    tmp_path: Path, former: dict[str, str]
) -> None:
    cluster = Cluster(
        tmp_path,
        sidecars=2,
        coordinators=2,
        pool=POOL,
        environments={"sidecar0": former, "coordinator0": former},
    )
    async with cluster.running():
        assert [ONLY_HERE in await page(cluster, url) for url in cluster.admins] == [False, True]
        assert [ONLY_HERE in await page(cluster, url) for url in cluster.pages] == [False, True]
        # All requests to one of them: most run at the other one, which has the other version.
        for number in range(2):
            only = [float(number == each) for each in range(2)]
            tenants = [Tenant("e", 6, weights=only, tokens=20), Tenant("c", 3, weights=only, tokens=20)]
            async with under_load(cluster.session, cluster.urls, tenants) as load:
                await asyncio.sleep(3)
            assert set(load.statuses("e")) == {200}
            assert set(load.statuses("c")) <= {200, 429}
            assert load.most_at_once("c") <= 2
            handovers = 'tokenpool_handovers_total{pool="chat",result='
            assert await total(cluster, number, f'{handovers}"taken"') > 10
            assert await total(cluster, number, f'{handovers}"failed"') == 0
        # The lead passes from one version to the other and back.
        for _ in range(2):
            [leader] = await cluster.leaders()
            cluster.coordinators[leader].kill()
            await cluster.until(lambda other=1 - leader: _leads(cluster, other), 10)  # type: ignore[misc]
            cluster.coordinators[leader].start()
            await cluster.until_joined(15)
        # The update is completed under load.
        tenants = [Tenant("c", 2, weights=[0.0, 1.0], tokens=20)]
        async with under_load(cluster.session, cluster.urls, tenants) as load:
            old = cluster.sidecars[0]
            old.stop()
            cluster.sidecars[0] = Process("updated", old.command, tmp_path, probe=old.probe).start()
            await cluster.until_joined(20)
        assert set(load.statuses()) == {200}
        assert ONLY_HERE in await page(cluster, cluster.admins[0])


async def _leads(cluster: Cluster, number: int) -> bool:
    return await cluster.leaders() == [number]
