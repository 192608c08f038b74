"""The address of Redis moves to a new server; the old one stays alive. All processes join the new one in 5 s.

A relay has the address. Open connections stay at the old server, as with a DNS name or a load balancer.
Figures go to out/store_failover.txt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio

from experiments.relay import Relay
from tests.integration.cluster.load import Tenant, under_load
from tests.integration.cluster.processes import Cluster
from tests.integration.tokenpool.store.servers import redis_server

pytestmark = [pytest.mark.exclusive, pytest.mark.asyncio(loop_scope="module")]

JOINED_S = 5.0
"""The promise. Alone on two cores it takes 2.3 s at most; beside other tests it took longer than 5 s."""
OUT = Path(__file__).parents[3] / "out" / "store_failover.txt"
Spoil = Callable[[redis.asyncio.Redis, int, int], Awaitable[object]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay() -> AsyncIterator[Relay]:
    made = Relay(0)
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(relay: Relay, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    cluster = Cluster(
        tmp_path_factory.mktemp("failover"),
        sidecars=2,
        store=lambda *_: f"redis://127.0.0.1:{relay.port}",
    )
    relay.target = cluster.redis.port
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("")
    async with cluster.running():
        yield cluster


@pytest.fixture
def old(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """The old server, which will fail: its port and its process."""
    with redis_server(tmp_path) as (port, process):
        try:
            yield port, process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


async def replica(client: redis.asyncio.Redis, process: int, new: int) -> None:
    await client.replicaof("127.0.0.1", new)


async def full(client: redis.asyncio.Redis, process: int, new: int) -> None:
    await client.config_set("maxmemory", 1)


async def without_its_replicas(client: redis.asyncio.Redis, process: int, new: int) -> None:
    await client.config_set("min-replicas-to-write", 1)


async def with_another_password(client: redis.asyncio.Redis, process: int, new: int) -> None:
    await client.config_set("requirepass", "rotated")
    for kind in ("normal", "pubsub"):
        await client.client_kill_filter(_type=kind, skipme=True)


async def hanging(client: redis.asyncio.Redis, process: int, new: int) -> None:
    os.kill(process, signal.SIGSTOP)


@pytest.mark.parametrize(
    ("spoil", "pause_s"),
    [
        (replica, 0.0),
        (replica, 2.0),
        (full, 0.0),
        (full, 2.0),
        (without_its_replicas, 0.0),
        (with_another_password, 0.0),
        (hanging, 0.0),
        (hanging, 2.0),
    ],
    ids=lambda each: getattr(each, "__name__", f"moved_after_{each}_s"),
)
async def test_all_processes_join_the_new_server_of_the_address(
    whole: Cluster, relay: Relay, old: tuple[int, int], spoil: Spoil, pause_s: float
) -> None:
    port, process = old
    relay.target = port
    whole.redis.kill()  # a simple way to move all processes to the server that will fail
    whole.redis.start()
    await whole.until_joined(20)
    async with (
        redis.asyncio.Redis(port=port, single_connection_client=True) as client,
        under_load(whole.session, whole.urls, [Tenant("g", 4)]) as load,
    ):
        await whole.until(lambda: _has_everyone(client), 5)
        await asyncio.sleep(0.5)
        spoilt = time.monotonic()
        await spoil(client, process, whole.redis.port)
        await asyncio.sleep(pause_s)
        relay.target = whole.redis.port
        moved = time.monotonic()
        try:
            joined_s = await whole.until(lambda: _is_joined_at(whole), JOINED_S)
        except AssertionError as error:
            error.add_note(f"at the new server {await _connected(whole)}; at the old one {await _at(client)}")
            raise
        await asyncio.sleep(0.5)
        os.kill(process, signal.SIGCONT)
        await whole.until(lambda: _is_left(client), 2)
    with OUT.open("a") as file:
        file.write(
            f"{spoil.__name__}, address moved after {pause_s:g} s: joined after {joined_s:.2f} s;"
            f" {len(load.outcomes)} requests, {dict(load.statuses())}\n"
        )
    assert load.failures() == []
    # A lease cannot grow without a store, so requests may wait until all processes have joined.
    assert [o for o in load.outcomes if o.status != 200 and not spoilt <= o.began <= moved + joined_s] == []


async def _is_joined_at(cluster: Cluster) -> bool:
    """Whether all sidecars are joined, and all processes use and listen to the new server."""
    async with redis.asyncio.Redis(port=cluster.redis.port, single_connection_client=True) as client:
        sidecars = await client.zcard("tokenpool:{chat}:alive")
        subscribed = await client.pubsub_channels("tokenpool:*")
    return (
        sidecars == len(cluster.sidecars) == len(subscribed)
        and await cluster.is_joined()
        and all([(await cluster.get(f"{page}/readyz")).get("status") == "ready" for page in cluster.pages])
    )


async def _connected(cluster: Cluster) -> str:
    """The state of the new server and of the coordinators, for a person."""
    async with redis.asyncio.Redis(port=cluster.redis.port, single_connection_client=True) as client:
        pages = [await cluster.get(f"{page}/readyz") for page in cluster.pages]
        return f"{await _at(client)}, coordinators {pages}"


async def _at(client: redis.asyncio.Redis) -> str:
    """The connections, sidecars and subscriptions of a server, for a person. A hanging one has no answer."""
    try:
        async with asyncio.timeout(1):
            names = [f"{each['name']} {each['cmd']}" for each in await client.client_list()]
            alive = await client.zrange("tokenpool:{chat}:alive", 0, -1)
            return f"{names}, alive {alive}, {await client.pubsub_channels('tokenpool:*')}"
    except (TimeoutError, redis.exceptions.RedisError) as error:
        return repr(error)


async def _others(client: redis.asyncio.Redis) -> int:
    return len([each for each in await client.client_list() if "M" not in each["flags"]]) - 1


async def _has_everyone(client: redis.asyncio.Redis) -> bool:
    """Whether each of four processes has a connection, and two of them listen."""
    return await _others(client) >= 6


async def _is_left(client: redis.asyncio.Redis) -> bool:
    return await _others(client) == 0
