"""Handover between processes: a peer that is killed, paused, flooded, or has another key, under load.

Three sidecars have four slots each. All requests go to the first sidecar, so most of them run on the other
two. A request is served unless it ran on a lost process. No request runs twice: the engines finish as many
requests as clients receive. The figures go to out/handover.txt.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio

from tests.integration.cluster.load import CUT, Load, Outcome, Tenant, under_load
from tests.integration.cluster.processes import SLOTS, Cluster
from tokenpool.admission.placement import MOST_UNANSWERED

pytestmark = [pytest.mark.exclusive, pytest.mark.asyncio(loop_scope="module")]

POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 100000, kv_tokens: auto, concurrency: 4}
    replicas: {min: 1, max: 8}
entitlements:
  - {name: e, pool: chat, tier: elastic, api_keys: [e-key]}
"""
FIRST = [1.0, 0.0, 0.0]
TENANTS = [Tenant("e", 9, weights=FIRST, tokens=20)]
"""Nine workers for twelve slots. Four of the slots are at the first sidecar."""
FLOOD = 1000
"""The connections that the client keeps open before it closes them all."""
OUT = Path(__file__).parents[3] / "out" / "handover.txt"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("")
    cluster = Cluster(tmp_path_factory.mktemp("handover"), sidecars=3, coordinators=1, pool=POOL)
    async with cluster.running():
        yield cluster


@pytest_asyncio.fixture(loop_scope="module")
async def pool(whole: Cluster) -> AsyncIterator[Cluster]:
    """The cluster, healthy before each test."""
    await whole.until_joined(20)
    yield whole


@contextlib.asynccontextmanager
async def loaded(pool: Cluster, tenants: Sequence[Tenant] = TENANTS) -> AsyncIterator[Load]:
    """The load, from before the context until all requests have ended."""
    async with under_load(pool.session, pool.urls, tenants) as load:
        await asyncio.sleep(1.5)
        yield load
        await asyncio.sleep(1.0)


async def metric(pool: Cluster, number: int, name: str, label: str = "") -> float:
    """The sum of a metric of a sidecar, over the series with this label."""
    async with pool.session.get(f"{pool.admins[number]}/metrics") as response:
        return _sum_of(await response.text(), name, label)


async def finished(pool: Cluster, number: int) -> float:
    """The requests that an engine has finished."""
    url = f"http://127.0.0.1:{pool.engines[number].probe}/metrics"
    async with pool.session.get(url) as response:
        page = await response.text()
    return sum(_sum_of(page, "vllm:request_success_total", f'"{end}"') for end in ("stop", "length"))


def _sum_of(page: str, name: str, label: str) -> float:
    rows = (row for row in page.splitlines() if row.startswith((f"{name} ", f"{name}{{")))
    return sum(float(row.rpartition(" ")[2]) for row in rows if label in row)


def write_down(what: str, load: Load, **more: object) -> None:
    """Write the case and its figures to a file."""
    waits = sorted(o.first - o.began for o in load.outcomes if o.status == 200)
    line = (
        f"{what}: {len(load.outcomes)} requests, {dict(load.statuses())}, time to first byte P50"
        f" {waits[len(waits) // 2] * 1000:.0f} ms, P99 {waits[int(len(waits) * 0.99)] * 1000:.0f} ms; "
        + ", ".join(f"{name} {value}" for name, value in more.items())
    )
    print(line)
    with OUT.open("a") as file:
        file.write(line + "\n")


def ran_there(load: Load, since: float) -> list[Outcome]:
    """The failed requests, which must all have run on the replica that was lost at ``since``."""
    lost = load.failures()
    assert all(o.began < since and (o.status, o.reason) in LOST for o in lost), lost
    assert len(lost) <= SLOTS
    return lost


LOST = {(502, "upstream_error"), (0, CUT)}
"""The failures of a request on a lost replica, before and after its first byte."""


async def test_engines_finish_as_many_requests_as_clients_receive(pool: Cluster) -> None:
    before = [await finished(pool, number) for number in range(3)]
    async with under_load(pool.session, pool.urls, TENANTS) as load:
        await asyncio.sleep(4)
    # At its end the load is cut: the engines abort unfinished requests.
    served = load.statuses()[200]
    after = [await finished(pool, number) for number in range(3)]
    taken = await metric(pool, 0, "tokenpool_handovers_total", "taken")
    ran = [round(late - early) for early, late in zip(before, after, strict=True)]
    write_down("nothing lost", load, engines=ran, handovers=round(taken))
    assert load.failures() == []
    assert served <= sum(ran) <= served + TENANTS[0].workers  # their answers were on the way at the end
    assert ran[1] > 10 < ran[2]
    assert abs(taken - ran[1] - ran[2]) <= TENANTS[0].workers
    assert load.statuses()[429] == 0


async def test_a_peer_is_killed(pool: Cluster) -> None:
    async with loaded(pool) as load:
        pool.sidecars[1].kill()
        killed = time.monotonic()
        await asyncio.sleep(3)
        failed = await metric(pool, 0, "tokenpool_handovers_total", "failed")
        pool.sidecars[1].start()
        await pool.until_joined(6)
        await asyncio.sleep(1)
        assert await metric(pool, 1, "tokenpool_handovers_received_total", "finished") > 0
    lost = ran_there(load, killed)
    write_down("peer killed", load, lost=len(lost), asks_failed=round(failed))
    # Asks at the killed peer failed, and their requests ran elsewhere.
    assert failed > 0
    assert load.of("e", killed + 0.5)


async def test_a_peers_engine_is_killed(pool: Cluster) -> None:
    """Requests that the dead engine cannot have begun are served elsewhere."""
    async with loaded(pool) as load:
        pool.engines[1].kill()
        killed = time.monotonic()
        await asyncio.sleep(2)
        pool.engines[1].start()
        await pool.until_joined(6)
    lost = ran_there(load, killed)
    write_down("peer's engine killed", load, lost=len(lost))


async def test_the_engine_of_the_sidecar_with_all_requests_is_killed(pool: Cluster) -> None:
    """The other two engines serve its requests. Only those that ran on the dead engine fail."""
    before = [await finished(pool, number) for number in (1, 2)]
    async with loaded(pool, [Tenant("e", 7, weights=FIRST, tokens=20)]) as load:  # for the other eight slots
        pool.engines[0].kill()
        killed = time.monotonic()
        await asyncio.sleep(3)
        ran = [await finished(pool, number) for number in (1, 2)]
        pool.engines[0].start()
        await pool.until_joined(6)
    lost = ran_there(load, killed)
    served = [late - early for early, late in zip(before, ran, strict=True)]
    write_down("own engine killed", load, lost=len(lost), engines=[round(number) for number in served])
    assert len(load.of("e", killed + 0.5, killed + 3)) > 20
    assert load.statuses()[503] == 0


async def test_a_peer_is_paused(pool: Cluster) -> None:
    before = [await finished(pool, number) for number in range(3)]
    async with loaded(pool) as load:
        with pool.sidecars[1].paused():
            paused = time.monotonic()
            await asyncio.sleep(4)
            resumed = time.monotonic()
        await pool.until_joined(6)
    write_down("peer paused for 4 s", load)
    # The requests there continue afterwards. No request failed, and new requests did not wait for it.
    assert load.failures() == []
    stuck = [o for o in load.of("e", 0, resumed) if o.ended > paused + 3]
    begun = [o for o in stuck if o.began < resumed - 2.5]
    # It may also have got requests together with their asks, because it had stated room a moment before.
    assert len(begun) <= SLOTS + MOST_UNANSWERED, begun
    assert len(load.of("e", paused + 1, resumed)) > 20
    await _all_came_once(pool, load, before)


async def test_a_peer_has_another_key(pool: Cluster) -> None:
    """If the store loses the secret, a sidecar with another one neither takes nor gives requests."""
    key = "tokenpool:{chat}:secret"
    async with redis.asyncio.Redis(port=pool.redis.port) as own:
        right = await own.get(key)
        await own.set(key, b"w" * 32)
        pool.sidecars[1].kill()
        pool.sidecars[1].start()
        await pool.until_joined(10)
        await own.set(key, right)
        before = await metric(pool, 0, "tokenpool_handovers_total", "failed")
        async with loaded(pool) as load:
            await asyncio.sleep(1)
        failed = await metric(pool, 0, "tokenpool_handovers_total", "failed") - before
        received = await metric(pool, 1, "tokenpool_handovers_received_total")
        rejected = await metric(pool, 1, "tokenpool_peer_connections_rejected_total")
        write_down("peer with another key", load, asks_failed=round(failed), rejected=round(rejected))
        assert load.failures() == []
        assert received == 0
        assert rejected > 0 < failed
        # All sidecars read the secret again within ten seconds.
        async with loaded(pool) as load:
            await pool.until(lambda: _has_received(pool, 1), 10)


async def _has_received(pool: Cluster, number: int) -> bool:
    return await metric(pool, number, "tokenpool_handovers_received_total", "finished") > 0


async def test_a_peer_port_is_flooded(pool: Cluster) -> None:
    port, before = pool.peers[1], [await finished(pool, number) for number in range(3)]
    memory = _memory_mib(pool.sidecars[1].pid)
    floods = 0

    async def flood() -> None:
        nonlocal floods
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            while True:
                made = stack.enter_context(socket.socket())
                made.setblocking(False)
                await loop.sock_connect(made, ("127.0.0.1", port))
                await loop.sock_sendall(made, bytes(floods % 20))
                floods += 1
                if floods % FLOOD == 0:
                    stack.close()

    started = await metric(pool, 1, "tokenpool_handovers_received_total", "finished")
    async with loaded(pool) as load:
        flooding = asyncio.create_task(flood())
        await asyncio.sleep(4)
        during = await metric(pool, 1, "tokenpool_handovers_received_total", "finished") - started
        rejected = await metric(pool, 1, "tokenpool_peer_connections_rejected_total")
        grown = _memory_mib(pool.sidecars[1].pid) - memory
        flooding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await flooding
    write_down(
        "peer port flooded",
        load,
        connections=floods,
        rejected=round(rejected),
        received_meanwhile=round(during),
        memory_mib=round(grown, 1),
    )
    assert load.failures() == []
    assert during > 10
    assert rejected > floods / 2 > 100
    assert grown < 64
    await _all_came_once(pool, load, before)


async def _all_came_once(pool: Cluster, load: Load, before: list[float]) -> None:
    """The engines have finished each served request once, except those that the end of the load cut."""
    after = [await finished(pool, number) for number in range(3)]
    served = load.statuses()[200]
    assert served <= sum(after) - sum(before) <= served + TENANTS[0].workers


def _memory_mib(pid: int) -> float:
    """The resident memory of a process, in MiB."""
    row = next(r for r in Path(f"/proc/{pid}/status").read_text().splitlines() if r.startswith("VmRSS"))
    return int(row.split()[1]) / 1024
