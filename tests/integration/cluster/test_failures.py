"""The failure of each part, one at a time under load: its effect on tenants, and the time to recover.

Four sidecars with simulated engines, two coordinators, a real Redis; requests go to any of the sidecars.
A guaranteed tenant uses seven of its eight sequences, another has a ceiling of four, and spot uses the rest.
In each case the control plane causes no failed response, no guaranteed request is shed, and the ceiling holds
while the lease store answers. All sidecars are joined again within two lifetimes of a lease. The use of a
sidecar that is gone or cut off counts until its leases expire. The figures go to out/failures.txt.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import redis.asyncio

from experiments.relay import Relay
from tests.integration.cluster.load import CUT, Load, Outcome, Tenant, under_load
from tests.integration.cluster.processes import LIFETIME_S, POOL, SLOTS, Cluster

# No guaranteed request may be shed, and a call to the lease store takes 0.5 s at most: both need the machine.
pytestmark = [pytest.mark.exclusive, pytest.mark.asyncio(loop_scope="module")]

RECONVERGED_S = 2 * LIFETIME_S
SHARES = 8
"""The most sequences with a ceiling of four: the expiring leases, and a fallback share of one per sidecar."""
TENANTS = [Tenant("g", 7), Tenant("c", 10), Tenant("s", 12)]
HANDED_OVER = {(502, "upstream_error"), (0, CUT)}
"""The failures of a request that ran on a lost replica, before and after its first byte."""
OUT = Path(__file__).parents[3] / "out" / "failures.txt"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relays() -> AsyncIterator[list[Relay]]:
    """The relays to Redis: one for the first sidecar, one for all other processes."""
    made = [Relay(0), Relay(0)]
    for relay in made:
        await relay.start()
    yield made
    for relay in made:
        await relay.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(relays: list[Relay], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    cluster = Cluster(
        tmp_path_factory.mktemp("cluster"),
        store=lambda number, _: f"redis://127.0.0.1:{relays[0 if number == 0 else 1].port}",
    )
    for relay in relays:
        relay.target = cluster.redis.port
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("")
    async with cluster.running():
        yield cluster


@pytest_asyncio.fixture(loop_scope="module")
async def pool(whole: Cluster) -> AsyncIterator[Cluster]:
    """The cluster, healthy before each test."""
    await whole.until_joined(20)
    yield whole


@contextlib.asynccontextmanager
async def loaded(pool: Cluster) -> AsyncIterator[Load]:
    """The tenants' load, from some time before the context until some time after it."""
    async with under_load(pool.session, pool.urls, TENANTS) as load:
        await asyncio.sleep(1.5)
        watching = asyncio.create_task(_watch(pool, load))
        yield load
        await asyncio.sleep(1.0)
        watching.cancel()


async def _watch(pool: Cluster, load: Load) -> None:
    """Record the sequences held by the tenant with a ceiling of four, as the coordinators read them."""
    while True:
        for page in pool.pages:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, KeyError):
                async with asyncio.timeout(0.3):
                    state = await pool.get(f"{page}/debug/state")
                held = state["pools"]["chat"]["entitlements"]["c"]["held"]
                load.most_held = max(load.most_held, held["concurrency"] if held else 0)
        await asyncio.sleep(0.1)


def write_down(what: str, load: Load, **more: object) -> None:
    """Write the failure and its figures to a file."""
    shed = sum(n for status, n in load.statuses().items() if status == 429)
    refused = [
        f"{o.reason} at {o.began - load.began:.1f} s, after {o.ended - o.began:.2f} s"
        for o in load.of("g")
        if o.status == 429
    ]
    line = (
        f"{what}: {len(load.outcomes)} requests, {load.statuses()[200]} served, {shed} shed"
        f" ({load.statuses('g')[429]} guaranteed), {len(load.failures())} failed, at most"
        f" {load.most_at_once('c')} of 4 at once, {load.most_held:.0f} held; "
        + ", ".join(f"{k} {v}" for k, v in more.items())
        + f" {refused or ''}"
    )
    print(line)
    with OUT.open("a") as file:
        file.write(line + "\n")


def all_is_well(load: Load, gone: float = math.inf) -> None:
    """No request failed, no guarantee was broken. The use of a ``gone`` sidecar counts a lifetime longer."""
    assert load.failures() == []
    kept_waiting = [o for o in load.of("g") if o.status != 200]
    assert [o for o in kept_waiting if not gone - 0.1 <= o.began <= gone + LIFETIME_S] == []
    assert load.statuses("g")[200] > 20
    assert load.statuses("c")[200] > 5


def lost_elsewhere(load: Load, number: int, since: float) -> list[Outcome]:
    """The failed requests that other sidecars than ``number`` received.

    Only requests that ran on the lost replica by handover may fail like this. They began before ``since``,
    when it was lost, and there are no more of them than it has slots.
    """
    lost = [o for o in load.failures() if o.sidecar != number]
    assert len(lost) <= SLOTS, lost
    assert all(o.began < since and (o.status, o.reason) in HANDED_OVER for o in lost), lost
    return lost


async def test_without_a_failure_all_goals_hold(pool: Cluster) -> None:
    async with loaded(pool) as load:
        await asyncio.sleep(2)
    write_down("nothing lost", load)
    all_is_well(load)
    assert load.most_at_once("c") == 4


async def test_redis_killed_and_back_empty(pool: Cluster) -> None:
    async with loaded(pool) as load:
        pool.redis.kill()
        killed = time.monotonic()
        await asyncio.sleep(4)
        modes = await pool.modes()
        pool.redis.start()
        back = time.monotonic()
        took = await pool.until_joined(RECONVERGED_S + 1)
    write_down("Redis killed for 4 s, back empty", load, reconverged_s=round(took, 2))
    assert modes == ["cut_off"] * 4
    all_is_well(load)
    assert load.most_at_once("c", end=killed) <= 4
    assert load.most_at_once("c", killed, back + took + 1) <= SHARES
    assert load.most_at_once("c", start=back + took + 1) <= 4
    assert took <= RECONVERGED_S


async def test_redis_paused_for_ten_seconds(pool: Cluster) -> None:
    async with loaded(pool) as load:
        with pool.redis.paused():
            await asyncio.sleep(10)
            assert set(await pool.modes()) == {"cut_off"}
        took = await pool.until_joined(RECONVERGED_S + 1)
    write_down("Redis paused for 10 s", load, reconverged_s=round(took, 2))
    all_is_well(load)
    assert load.most_at_once("c") <= SHARES
    assert took <= RECONVERGED_S


async def test_redis_slow(pool: Cluster, relays: list[Relay]) -> None:
    async with loaded(pool) as load:
        for relay in relays:
            relay.delay_s = 0.1
        await asyncio.sleep(5)
        modes = await pool.modes()
        for relay in relays:
            relay.delay_s = 0.0
        took = await pool.until_joined(RECONVERGED_S + 1)
    write_down("Redis slow, 200 ms", load, reconverged_s=round(took, 2))
    all_is_well(load)
    assert modes == ["joined"] * 4
    assert load.most_at_once("c") <= 4 >= load.most_held
    assert took <= RECONVERGED_S


async def test_redis_refuses_the_password(pool: Cluster) -> None:
    async with (
        redis.asyncio.Redis(port=pool.redis.port, single_connection_client=True) as own,
        loaded(pool) as load,
    ):
        await own.config_set("requirepass", "changed")
        await own.client_kill_filter(_type="normal", skipme=True)
        await own.client_kill_filter(_type="pubsub", skipme=True)
        await asyncio.sleep(4)
        state = (await pool.states())[1]
        await own.config_set("requirepass", "")
        took = await pool.until_joined(RECONVERGED_S + 1)
    write_down("Redis refused the password for 4 s", load, reconverged_s=round(took, 2))
    assert any("auth" in said.lower() for said in state["lease_store"]["degraded"]), state["lease_store"]
    all_is_well(load)
    assert load.most_at_once("c") <= SHARES
    assert took <= RECONVERGED_S


async def test_the_leader_is_killed(pool: Cluster) -> None:
    async with loaded(pool) as load:
        (leader,) = await pool.leaders()
        pool.coordinators[leader].kill()
        await pool.until(lambda: _leads(pool, 1 - leader), 4)
        pool.coordinators[leader].start()
        took = await pool.until_joined(RECONVERGED_S + 2)
    write_down("leader killed", load, reconverged_s=round(took, 2))
    all_is_well(load)
    assert took <= RECONVERGED_S
    assert load.most_at_once("c") <= 4 >= load.most_held


async def _leads(pool: Cluster, number: int) -> bool:
    return await pool.leaders() == [number]


async def test_the_leader_is_paused_and_resumed(pool: Cluster) -> None:
    async with loaded(pool) as load:
        (leader,) = await pool.leaders()
        before = (await pool.get(f"{pool.pages[leader]}/debug/state"))["pools"]["chat"]["epoch"]
        with pool.coordinators[leader].paused():
            await pool.until(lambda: _leads(pool, 1 - leader), 5)
        await asyncio.sleep(1)
        assert await pool.leaders() == [1 - leader]
        after = (await pool.get(f"{pool.pages[1 - leader]}/debug/state"))["pools"]["chat"]["epoch"]
    write_down("leader paused and resumed", load, epochs=f"{before} to {after}")
    assert after > before
    all_is_well(load)
    assert load.most_at_once("c") <= 4 >= load.most_held


async def test_a_sidecar_is_killed_in_mid_stream(pool: Cluster) -> None:
    async with loaded(pool) as load:
        pool.sidecars[1].kill()
        killed = time.monotonic()
        await asyncio.sleep(2 * LIFETIME_S)
        holders = (await pool.states())[0]["lease_store"]["sidecars"]
        pool.sidecars[1].start()
        took = await pool.until_joined(RECONVERGED_S + 2)
    lost = load.failures()
    write_down("sidecar killed", load, reconverged_s=round(took, 2), streams_lost=len(lost))
    assert holders == 3
    # Only requests at that sidecar failed, and requests that it ran for other sidecars.
    elsewhere = lost_elsewhere(load, 1, killed)
    assert all(o.status in {0, 503} for o in lost if o.sidecar == 1)
    unserved = [o for o in load.of("g") if o.sidecar != 1 and o.status != 200 and o not in elsewhere]
    assert [o for o in unserved if not killed - 0.1 <= o.began <= killed + LIFETIME_S] == []
    # Its leases are free again: the tenant with a ceiling uses all of it.
    assert load.most_at_once("c", killed + LIFETIME_S + 0.5) == 4 >= load.most_held
    assert took <= RECONVERGED_S


async def test_a_sidecar_is_paused_and_resumed(pool: Cluster) -> None:
    async with loaded(pool) as load:
        with pool.sidecars[2].paused():
            await asyncio.sleep(4)
        took = await pool.until_joined(RECONVERGED_S + 1)
    write_down("sidecar paused for 4 s", load, reconverged_s=round(took, 2))
    all_is_well(load)
    # Requests that ran at the sidecar continue in its engine, and are settled after the pause.
    assert load.most_at_once("c") <= 5
    assert took <= RECONVERGED_S


async def test_one_sidecar_is_cut_off(pool: Cluster, relays: list[Relay]) -> None:
    async with loaded(pool) as load:
        relays[0].is_cut = True
        cut = time.monotonic()
        await asyncio.sleep(5)
        modes = await pool.modes()
        relays[0].is_cut = False
        took = await pool.until_joined(RECONVERGED_S + 1)
    write_down("one sidecar cut off from Redis for 5 s", load, reconverged_s=round(took, 2))
    assert modes == ["cut_off", "joined", "joined", "joined"]
    all_is_well(load, gone=cut)
    # The others use all of the limit; the sidecar that is cut off uses its fallback share in addition.
    assert load.most_at_once("c") <= 5
    assert took <= RECONVERGED_S


async def test_an_engine_is_killed_and_returned(pool: Cluster) -> None:
    async with loaded(pool) as load:
        pool.engines[3].kill()
        killed = time.monotonic()
        await asyncio.sleep(3)
        (leader,) = await pool.leaders()
        page = await pool.get(f"{pool.pages[leader]}/debug/state")
        pool.engines[3].start()
        took = await pool.until_joined(RECONVERGED_S + 3)
    failed = load.failures()
    write_down("engine killed for 3 s", load, reconverged_s=round(took, 2))
    assert page["pools"]["chat"]["capacity"]["concurrency"] == 12
    elsewhere = lost_elsewhere(load, 3, killed)
    assert {o.reason for o in failed if o.status == 503} <= {"engine_down"}
    unserved = [o for o in load.of("g") if o.sidecar != 3 and o.status != 200]
    assert [o for o in unserved if o not in elsewhere] == []


async def test_the_pool_file_is_changed_then_broken(pool: Cluster) -> None:
    try:
        async with loaded(pool) as load:
            pool.file.write_text(POOL.replace("ceiling: {concurrency: 4}", "ceiling: {concurrency: 6}"))

            async def is_changed() -> bool:
                states = await pool.states()
                return all(s["entitlements"]["c"]["ceiling"]["concurrency"] == 6 for s in states)

            took = await pool.until(is_changed, 5)
            await asyncio.sleep(2)
            pool.file.write_text("pools: [")
            await asyncio.sleep(2)
            broken = await pool.states()
            pool.file.write_text(POOL)
            await asyncio.sleep(2)
            mended = await pool.states()
    finally:
        pool.file.write_text(POOL)
    write_down("pool file changed, then broken", load, enforced_after_s=round(took, 2))
    assert all(not s["config_is_current"] for s in broken)
    assert all(s["entitlements"]["c"]["ceiling"]["concurrency"] == 6 for s in broken)
    assert all(s["config_is_current"] for s in mended)
    assert all(s["entitlements"]["c"]["ceiling"]["concurrency"] == 4 for s in mended)
    all_is_well(load)
    assert 4 <= load.most_at_once("c") <= 6
