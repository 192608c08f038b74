"""A sidecar's live page: the lone one whole, one of several for its part, and what its reports count."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from sidecar.app import Sidecar
from sidecar.report import COUNT_EVERY_S, FIRST_TOKENS_STAY_S, FirstTokenTotals, OutcomeTotals, Reporter
from tests.fakes.scripted_engine import FakeEngine, Held
from tests.support.harness import POOL, admin, ask, request, sidecar_for, until
from tokenpool.leases.messages import Limit
from tokenpool.leases.settings import Mode
from tokenpool.leases.wire import SidecarReport, decode_report, encode_report
from tokenpool.outcomes import Reason
from tokenpool.planning.idle import IdleTerms
from tokenpool.store.memory import MemoryStore
from toolbox.ports import free_port


@asynccontextmanager
async def events(sidecar: Sidecar) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The events of the live page from now on."""
    url = f"http://{sidecar.admin_on}/live/events"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        yield _data(response)


async def _data(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


async def first(news: AsyncIterator[dict[str, Any]], name: str, key: str) -> dict[str, Any]:
    """The first row of an entitlement in which ``key`` holds something."""
    async with asyncio.timeout(10):
        async for said in news:
            for row in said["rows"]:
                if row["name"] == name and row[key]:
                    return row
    raise AssertionError("the events ended")


async def test_a_lone_sidecar_shows_itself(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        status, text = await admin(sidecar, "/live")
        snapshot = sidecar.admin.snapshot()
    pool = snapshot.pools[0]
    assert (status, "<title>tokenpool live</title>" in text) == (200, True)
    assert (snapshot.process, snapshot.notices) == ("sidecar", ())
    assert pool.leader == "none: a lone sidecar plans for itself"
    assert pool.capacity == (100_000, 65_536, 8)
    assert (pool.replicas.engines_up, pool.replicas.desired) == (1, None)
    assert [e.name for e in pool.entitlements] == ["g", "e", "s"]
    assert pool.entitlements[0].guarantee == (10_000, 10_000, 4)
    assert pool.entitlements[0].limit[2] == 8


async def test_use_shows_while_requests_run(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = held = Held()
    async with sidecar_for(engine.port, tmp_path) as sidecar, events(sidecar) as news:
        asking = [asyncio.ensure_future(ask(sidecar, request())) for _ in range(2)]
        async with asyncio.timeout(10):
            async for said in news:
                rows = {row["name"]: row for row in said["rows"]}
                if "g" in rows and rows["g"]["in_use"][2] == 2:
                    break
        assert said["pools"][0]["in_use"][2] == 2
        held.go.set()
        await asyncio.gather(*asking)
        row = await first(news, "g", "served_per_s")
        first_token = await first(news, "g", "first_token_ms")
    assert row["served_per_s"] > 0
    assert row["sheds"] == []
    mean, high = first_token["first_token_ms"]
    assert 0 < mean <= high


async def test_a_shed_shows_with_its_reason(engine: FakeEngine, tmp_path: Path) -> None:
    pool = POOL.replace("tier: elastic,", "tier: elastic, ceiling: {concurrency: 1},")
    engine.answer = held = Held()
    async with sidecar_for(engine.port, tmp_path, pool=pool) as sidecar, events(sidecar) as news:
        running = asyncio.ensure_future(ask(sidecar, request(key="e-key")))
        await until(lambda: sidecar.controller.control.ledger.concurrency_in_use == 1)
        shed = await ask(sidecar, request(key="e-key"))
        row = await first(news, "e", "sheds")
        held.go.set()
        await running
    assert shed.headers["x-tokenpool-reason"] == row["sheds"][0]["reason"] == "concurrency"
    assert row["sheds"][0]["why"].startswith("sequences: limit 1, in use ")
    assert row["dimension"] == 2


async def test_an_engine_that_is_down_shows_as_the_reason(tmp_path: Path) -> None:
    async with sidecar_for(free_port(), tmp_path, ready=False) as sidecar, events(sidecar) as news:
        said = await anext(news)
        await ask(sidecar, request())
        row = await first(news, "g", "sheds")
    assert "the engine does not answer" in said["notices"]
    assert said["pools"][0]["capacity"] == [0, 0, 0]
    assert (row["sheds"][0]["reason"], row["sheds"][0]["why"]) == (
        "engine_down",
        "engine down: 0 of 1 answer",
    )


async def test_refusals_that_are_no_sheds_are_not_shown_as_sheds(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        await ask(sidecar, request(body=b"{"))
        await ask(sidecar, request(body={"model": "other", "prompt": "x"}))
        counted = sidecar.admin.snapshot().pools[0].tallies[""].outcomes
        assert sidecar.telemetry.outcomes("g") == {"malformed": 1, "unknown_model": 1}
    assert counted["g"] == {}


async def test_an_invalid_pool_file_shows(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        (tmp_path / "pool.yaml").write_text("pools: nonsense")
        await sidecar.pool_file_watcher.reload()
        assert sidecar.admin.snapshot().notices == (
            "the pool file on disk is invalid; the old one is in force: see the log",
        )


async def test_a_sidecar_stops_though_pages_are_open(engine: FakeEngine, tmp_path: Path) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar, events(sidecar) as news:
        await anext(news)
        started = time.monotonic()
        await sidecar.stop()
        assert time.monotonic() - started < 3
        assert [said async for said in news if said["rows"] is None] == []


TERMS = IdleTerms((100.0, 1000.0, 4.0), (100.0, 1000.0, 4.0))


async def test_the_page_of_one_of_several_sidecars_explains_itself(
    engine: FakeEngine, tmp_path: Path
) -> None:
    store = MemoryStore(1.5, time.monotonic)
    async with sidecar_for(engine.port, tmp_path, store=store) as sidecar:
        sync = sidecar.driver.sync
        assert sync is not None
        await until(lambda: sync.answered_at is not None)
        before = sidecar.admin.snapshot()
        await store.publish({"g": Limit(100, 1000, 4, depth=100)}, TERMS, 1)
        await until(lambda: sync.leases.has_limits and sync.limits_age_s < 1.0)
        led = sidecar.admin.snapshot()
        sync.limits_age_s = 60.0
        unled = sidecar.admin.snapshot()
    assert before.name == sync.holder
    assert before.about.startswith("one of several sidecars")
    assert [snapshot.pools[0].leader for snapshot in (before, led, unled)] == [
        "no coordinator yet",
        "a coordinator",
        "no coordinator now; the last limits stay in force",
    ]


async def test_reports_carry_what_was_served_and_shed(engine: FakeEngine, tmp_path: Path) -> None:
    store = MemoryStore(0.3, time.monotonic)
    await store.publish({"g": Limit(1e5, 1e5, 4, depth=1e5)}, TERMS, 1)
    async with sidecar_for(engine.port, tmp_path, store=store, lease_lifetime=0.3) as sidecar:
        leases, sync = sidecar.control.leases, sidecar.driver.sync
        assert leases is not None
        assert sync is not None
        await until(lambda: leases.mode is Mode.JOINED)
        await ask(sidecar, request())
        await ask(sidecar, request(body=b"{"))
        spot = sidecar.controller.accounts["s"]
        sidecar.telemetry.refused(spot, Reason.CONCURRENCY)
        reporter = Reporter(sidecar.engine, leases, sidecar.telemetry, sidecar.lifecycle)
        once = decode_report(reporter.report(100.0)).outcomes
        sidecar.telemetry.refused(spot, Reason.CONCURRENCY)
        soon = decode_report(reporter.report(100.0 + 0.9 * COUNT_EVERY_S)).outcomes
        later = decode_report(reporter.report(100.0 + COUNT_EVERY_S)).outcomes
        at_last = {"g": {"finished": 1}, "s": {"concurrency": 2}}
        await until(lambda: _reported(store, sync.holder) == at_last)
    # Later outcomes are counted half a second later.
    assert once == soon == {"g": {"finished": 1}, "s": {"concurrency": 1}}
    assert later == at_last


def _reported(store: MemoryStore, holder: str) -> Mapping[str, Mapping[str, int]]:
    packed = store.rules.read(time.monotonic()).reports.get(holder)
    return decode_report(packed).outcomes if packed else {}


KNOWN = {"a", "b", "c"}


def test_reports_count_what_is_not_zero_and_known_to_the_page() -> None:
    totals = OutcomeTotals()
    counts = {"a": {"finished": 2, "malformed": 9, "kv_tokens": 0}, "b": {"unknown_key": 1}}
    said = totals.follow(counts, KNOWN)
    assert said == {"a": {"finished": 2}}


def test_beyond_the_limit_the_entitlements_that_changed_last_are_reported() -> None:
    totals = OutcomeTotals(most=2)
    one = {"finished": 1}
    assert list(totals.follow({"a": one, "b": one, "c": one}, KNOWN)) == ["b", "c"]
    assert list(totals.follow({"a": {"finished": 2}, "b": one, "c": one}, KNOWN)) == ["c", "a"]
    assert list(totals.follow({"a": {"finished": 2}, "b": one, "c": one}, KNOWN)) == ["c", "a"]


def test_a_removed_entitlement_is_not_reported() -> None:
    totals = OutcomeTotals()
    totals.follow({"a": {"finished": 1}, "b": {"finished": 1}}, KNOWN)
    assert totals.follow({}, {"b"}) == {"b": {"finished": 1}}


def test_first_tokens_are_reported_while_they_change_and_shortly_after() -> None:
    totals = FirstTokenTotals()
    some, more, none = (1.0, (0, 3)), (2.0, (0, 5)), (0.0, (0, 0))
    assert totals.follow({"a": some, "b": none}, 0.0) == {"a": some}
    assert totals.follow({"a": some, "b": none}, FIRST_TOKENS_STAY_S) == {}
    assert totals.follow({"a": more, "b": none}, 4.0) == {"a": more}
    assert totals.follow({"a": more}, 6.0) == {"a": more}


def test_a_report_keeps_its_counts_on_the_wire() -> None:
    outcomes = {"a": {"finished": 3, "engine_full": 1}}
    report = SidecarReport(outcomes=outcomes, first_tokens={"a": (0.5, (1, 2))})
    assert decode_report(encode_report(report)) == report


def test_a_large_report_stays_small() -> None:
    counts = {"finished": 1_000_000, "tokens_per_second": 100_000, "engine_full": 100_000}
    many = {f"tenant-number-{n}": counts for n in range(5000)}
    every = OutcomeTotals().follow(many, many)
    assert len(encode_report(SidecarReport(outcomes=every))) < 25_000
