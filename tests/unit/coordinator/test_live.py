"""A coordinator's live page: the pool by the lease store's data and the sidecars' reports."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from coordinator.admin import Admin
from coordinator.leader import PoolLeader
from coordinator.settings import Settings
from coordinator.telemetry import Telemetry
from dashboard.snapshot import ShownPool
from dashboard.view import ViewMaker
from tokenpool.amounts import Amount
from tokenpool.entitlements import PoolFile
from tokenpool.leases.messages import LeaseRequest, Message
from tokenpool.leases.wire import MOST_REPORTED, SidecarReport, encode_report
from tokenpool.poolfile.reading import parse
from tokenpool.store import StoreDown
from tokenpool.store.memory import MemoryStore

POOL = """
pools:
  - name: chat
    models: [tiny]
    replica: {tokens_per_second: 1000, kv_tokens: auto, concurrency: 4}
    replicas: {min: 1, max: 2}
entitlements:
  - name: g
    pool: chat
    tier: guaranteed
    guarantee: {tokens_per_second: 500, kv_tokens: 1000, concurrency: 2}
    ceiling: {concurrency: 6}
    api_keys: [g-key]
  - {name: s, pool: chat, tier: spot, api_keys: [s-key]}
"""
REPLICA = Amount(1000, 10_000, 4)
BUSY = LeaseRequest(
    kv_in_use=300, concurrency_in_use=2, kv_wanted=300, concurrency_wanted=3, demand=(700.0, 900.0, 5.0)
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Fading(MemoryStore):
    """A store that may stop answering."""

    is_down = False

    async def lead(self, candidate: str, leadership_s: float) -> int:
        if self.is_down:
            raise StoreDown("no route to the lease store")
        return await super().lead(candidate, leadership_s)


class Pool:
    """One pool, its coordinator and the messages of its sidecars."""

    def __init__(self, file: PoolFile | None = None) -> None:
        self.clock = Clock()
        self.file = file or parse(POOL, name="pool.yaml").file
        self.store = Fading(1.5, self.clock)
        self.leader = self.coordinator("c0")
        self.telemetry = Telemetry(lambda: {"chat": self.leader})
        self.admin = Admin(lambda: {"chat": self.leader}, self.telemetry, self.clock)
        self._numbers = 0

    def coordinator(self, name: str) -> PoolLeader:
        settings = Settings(config=Path("pool.yaml"), store="redis://127.0.0.1")
        return PoolLeader(settings, self.store, self.file, self.file.pools[0], name, self.clock)

    async def tick(self, seconds: float = 0.25) -> None:
        self.clock.now += seconds
        await self.leader.run_tick()

    async def say(self, sidecar: str, report: SidecarReport | bytes, **lease_requests: LeaseRequest) -> None:
        self._numbers += 1
        packed = report if isinstance(report, bytes) else encode_report(report)
        await self.store.exchange(Message(sidecar, self._numbers, lease_requests, True, packed))

    async def opened(self) -> None:
        """A lease store with a leader, which grants leases."""
        await self.tick()
        for _ in range(10):
            for sidecar in ("s0", "s1"):
                await self.say(sidecar, UP, g=BUSY)
            await self.tick()

    def snapshot(self) -> ShownPool:
        return self.admin.snapshot().pools[0]


UP = SidecarReport(REPLICA, REPLICA, engine_up=True, running=2)


async def test_the_pool_is_shown_by_the_data_of_the_lease_store() -> None:
    pool = Pool()
    await pool.opened()
    shown = pool.snapshot()
    assert (pool.admin.snapshot().process, pool.admin.snapshot().name) == ("coordinator", "c0")
    assert shown.leader.startswith("this coordinator (epoch ")
    assert shown.capacity == (2000, 20_000, 8)
    assert shown.in_use == (0, 600, 4)
    replicas = shown.replicas
    assert (replicas.sidecars, replicas.engines_up, replicas.least, replicas.most) == (2, 2, 1, 2)
    assert replicas.desired == 2
    assert replicas.reason
    assert shown.notices == ()


async def test_entitlements_are_shown_as_planned() -> None:
    pool = Pool()
    await pool.opened()
    guaranteed, spot = pool.snapshot().entitlements
    assert (guaranteed.name, guaranteed.tier, spot.name, spot.tier) == ("g", "guaranteed", "s", "spot")
    assert guaranteed.guarantee == (500, 1000, 2)
    assert guaranteed.ceiling == (None, None, 6)
    assert guaranteed.limit[2] == 6
    assert guaranteed.in_use[1:] == (600, 4)
    assert guaranteed.demand == (1400, 1800, 10)


async def test_rates_come_from_all_sidecars() -> None:
    pool, watch = Pool(), ViewMaker()
    await pool.opened()

    async def counted(first: int, second: int) -> None:
        for sidecar, served in (("s0", first), ("s1", second)):
            outcomes = {"g": {"finished": served, "concurrency": served // 10}}
            report = SidecarReport(REPLICA, REPLICA, engine_up=True, outcomes=outcomes)
            await pool.say(sidecar, report, g=BUSY)

    await counted(100, 500)
    await pool.tick()
    watch.follow(pool.admin.snapshot(), pool.clock.now)
    await counted(110, 520)
    await pool.tick(1.0)
    row = watch.follow(pool.admin.snapshot(), pool.clock.now).rows[0]
    assert (row.served_per_s, row.shed_per_s) == (30, 3)
    assert row.sheds[0].why == "sequences: limit 6, in use 4, demand 10"


async def test_first_tokens_come_from_all_sidecars_and_only_those_since_the_page_looks() -> None:
    pool, watch = Pool(), ViewMaker()
    await pool.opened()

    async def counted(seconds: float, count: int) -> None:
        report = SidecarReport(
            REPLICA,
            REPLICA,
            engine_up=True,
            outcomes={"g": {"finished": count}},
            first_tokens={"g": (seconds, (0, 0, 0, 0, count, *(0,) * 8))},
        )
        await pool.say("s0", report, g=BUSY)
        await pool.tick(1.0)

    await pool.say("s0", UP, g=BUSY)
    await pool.tick()
    watch.follow(pool.admin.snapshot(), pool.clock.now)
    await counted(5000.0, 100_000)  # of a sidecar that is older than this page
    assert watch.follow(pool.admin.snapshot(), pool.clock.now).rows[0].first_token_ms is None
    await counted(5000.7, 100_010)
    assert watch.follow(pool.admin.snapshot(), pool.clock.now).rows[0].first_token_ms == (70, 70)


async def test_throughput_in_use_comes_from_the_lease_store() -> None:
    pool, watch = Pool(), ViewMaker()
    await pool.opened()
    watch.follow(pool.admin.snapshot(), pool.clock.now)
    await pool.say("s0", UP, g=BUSY._replace(tokens_spent=250.0))
    await pool.tick(0.5)
    view = watch.follow(pool.admin.snapshot(), pool.clock.now)
    assert view.rows[0].in_use == (500, 600, 4)
    assert view.pools[0].in_use[0] == 500


async def test_a_report_that_may_omit_entitlements_is_marked() -> None:
    pool = Pool()
    await pool.tick()
    full = {f"e{n}": {"finished": 1} for n in range(MOST_REPORTED)}
    await pool.say("s0", SidecarReport(outcomes=full))
    await pool.say("s1", SidecarReport(outcomes={"g": {"finished": 1}}))
    await pool.tick()
    tallies = pool.snapshot().tallies
    assert {name: (tally.outcomes, tally.is_whole) for name, tally in tallies.items()} == {
        "s0": (full, False),
        "s1": ({"g": {"finished": 1}}, True),
    }


async def test_reports_of_an_older_version_count_nothing() -> None:
    pool = Pool()
    await pool.tick()
    await pool.say("s0", b"\x81\xa9engine_up\xc3")
    await pool.tick()
    shown = pool.snapshot()
    assert (shown.replicas.engines_up, dict(shown.tallies["s0"].outcomes)) == (1, {})


async def test_engines_that_are_down_and_draining_sidecars_are_reported() -> None:
    pool = Pool()
    await pool.tick()
    await pool.say("s0", SidecarReport(engine_up=False))
    await pool.say("s1", SidecarReport(REPLICA, REPLICA, engine_up=True, draining=True))
    await pool.say("s2", b"\xff")
    await pool.tick()
    assert pool.snapshot().notices == (
        "1 of 2 engines do not answer",
        "1 of 2 sidecars are draining",
        "reports of s2 cannot be read; their engines are not counted",
    )


async def test_a_pool_without_sidecars_is_reported() -> None:
    pool = Pool()
    await pool.tick()
    shown = pool.snapshot()
    assert shown.notices == ("no sidecar reports",)
    assert (shown.replicas.desired, shown.replicas.reason) == (
        None,
        "the capacity of no engine is known yet",
    )


async def test_guarantees_beyond_the_largest_number_of_replicas_are_reported() -> None:
    small = Amount(200, 10_000, 4)
    pool = Pool()
    await pool.tick()
    await pool.say("s0", SidecarReport(small, small, engine_up=True))
    await pool.tick()
    assert pool.snapshot().notices == ("the guarantees exceed the tokens_per_second of 2 replicas",)


async def test_before_the_first_tick_there_is_little_to_show() -> None:
    shown = Pool().snapshot()
    assert (shown.entitlements, shown.notices) == ((), ("the lease store has not been read yet",))


async def test_a_silent_lease_store_is_reported_with_the_age_of_the_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    pool = Pool()
    await pool.opened()
    pool.store.is_down = True
    await pool.tick(7.0)
    shown = pool.snapshot()
    assert shown.notices == (
        "the lease store does not answer: no route to the lease store; the page is 7 s old",
    )
    assert shown.capacity == (2000, 20_000, 8)


async def test_a_coordinator_that_does_not_lead_reports_it() -> None:
    pool = Pool()
    await pool.tick()
    pool.leader = pool.coordinator("c1")
    await pool.tick()
    assert pool.snapshot().leader == "another coordinator; this one does not lead"
    pool.store.is_down = True
    await pool.tick()
    assert pool.snapshot().leader == "unknown: the lease store does not answer"


async def test_a_pool_file_that_differs_or_is_invalid_is_reported() -> None:
    pool = Pool()
    await pool.tick()
    await pool.say("s0", UP)
    await pool.tick()
    pool.file = parse(POOL.replace("concurrency: 6", "concurrency: 5"), name="pool.yaml").file
    pool.leader = pool.coordinator("c1")
    await pool.tick()
    assert pool.snapshot().notices == ("the pool file in force differs from this coordinator's",)
    pool.telemetry.config_is_current = False
    assert pool.admin.snapshot().notices == (
        "the pool file on disk is invalid; the old one is in force: see the log",
    )


async def test_a_new_entitlement_is_shown_with_its_limit() -> None:
    pool = Pool()
    await pool.opened()
    later = parse(POOL + "  - {name: new, pool: chat, tier: elastic, api_keys: [n-key]}\n", name="p").file
    pool.leader.follow(later, later.pools[0])
    shown = {e.name: e for e in pool.snapshot().entitlements}
    assert set(shown) == {"g", "s", "new"}
    assert shown["new"].limit[2] >= 1
    await pool.tick()
    assert {e.name: e.limit for e in pool.snapshot().entitlements}["new"] == shown["new"].limit
