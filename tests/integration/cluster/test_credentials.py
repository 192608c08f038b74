"""The store's password changes under load: nothing is refused, and no lease is lost."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import redis.asyncio

from tests.integration.cluster.processes import Cluster


def secret(folder: Path, version: str, password: str) -> None:
    """Mount a password as kubelet does: the first call makes the links, each one swaps the folder."""
    (folder / f"..{version}").mkdir(parents=True)
    (folder / f"..{version}" / "password").write_text(password)
    (folder / "..next").symlink_to(f"..{version}")
    os.replace(folder / "..next", folder / "..data")
    if not (folder / "password").is_symlink():
        (folder / "password").symlink_to("..data/password")


@asynccontextmanager
async def load(cluster: Cluster) -> AsyncIterator[Counter[int]]:
    """Requests to all sidecars; the number of responses by status."""
    statuses: Counter[int] = Counter()

    async def client(url: str) -> None:
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
        while True:
            headers = {"authorization": "Bearer g-key"}
            async with cluster.session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
                await response.read()
                statuses[response.status] += 1
            await asyncio.sleep(0.02)

    tasks = [asyncio.ensure_future(client(url)) for url in cluster.urls]
    try:
        yield statuses
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def page(cluster: Cluster, url: str) -> str:
    async with cluster.session.get(url) as response:
        return await response.text()


async def current(cluster: Cluster) -> set[str]:
    """The values of the credentials' metric, at sidecars and coordinators."""
    pages = [await page(cluster, f"{url}/metrics") for url in (*cluster.admins, *cluster.pages)]
    return {
        line.rpartition(" ")[2]
        for text in pages
        for line in text.splitlines()
        if line.startswith('tokenpool_credentials_current{of="store"')
    }


async def test_a_changed_password_refuses_no_request_and_loses_no_lease(tmp_path: Path) -> None:
    folder = tmp_path / "secret"
    secret(folder, "one", "first")
    option = ("--store-password-file", str(folder / "password"))
    cluster = Cluster(
        tmp_path,
        sidecars=2,
        coordinators=2,
        options=option,
        coordinator_options=option,
        redis_options=("--requirepass", "first", "--user", "admin", "on", ">admin", "~*", "&*", "+@all"),
    )
    async with (
        cluster.running(),
        redis.asyncio.Redis(port=cluster.redis.port, username="admin", password="admin") as admin,
        load(cluster) as statuses,
    ):
        holders = {state["lease_store"]["holder"] for state in await cluster.states()}
        # The file changes first, as with a Secret that is written before the server knows the password.
        secret(folder, "two", "second")
        await cluster.until(lambda: _are(cluster, {"0.0"}), 10)
        ready = await page(cluster, f"{cluster.admins[0]}/readyz")
        assert '"status": "degraded"' in ready
        assert "the new credentials of the store cannot be used" in ready
        assert "second" not in ready
        before = {each["id"] for each in await admin.client_list()}
        await admin.config_set("requirepass", "second")
        taken = await cluster.until(lambda: _are(cluster, {"1.0"}), 10)
        print(f"in force after {taken:.1f} s")
        after = {each["id"] for each in await admin.client_list() if each["user"] != "admin"}
        assert not before & after  # no connection of the first password is left
        served = statuses[200]
        await cluster.until(lambda: _has_served(statuses, served + 100), 10)
        states = await cluster.states()
        assert {state["lease_store"]["holder"] for state in states} == holders
        assert await cluster.is_joined()
    assert set(statuses) == {200}


async def _are(cluster: Cluster, values: set[str]) -> bool:
    return await current(cluster) == values


async def _has_served(statuses: Counter[int], number: int) -> bool:
    return statuses[200] >= number
