"""The reports of usage over HTTP: their parameters, formats and errors."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from coordinator.usage import pages
from coordinator.usage.pages import UsagePages
from tests.fakes.usage_store import MemoryUsageStore
from tests.support.usage import NOW, november
from tokenpool.entitlements import Prices

PRICES = {"chat": Prices("EUR", input=2.0, cached_input=0.5, output=8.0)}


@asynccontextmanager
async def serving(store: MemoryUsageStore | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    if store is None:
        store = MemoryUsageStore()
        await store.add(november())
    application = web.Application()
    UsagePages(lambda: store, lambda: PRICES, lambda: NOW).add_to(application)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


async def report(**query: Any) -> dict[str, Any]:
    async with serving() as session, session.get("/usage/report", params=query) as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        return found


async def test_the_current_month_by_entitlement_is_the_default() -> None:
    found = await report()

    assert (found["since"], found["by"]) == ("2026-11-01T00:00:00+00:00", ["entitlement"])
    assert [(row["entitlement"], row["requests"], row["cost"]) for row in found["rows"]] == [
        ("acme", 2, 2 * 3.0 + 0.5 + 4.0),
        ("beta", 1, 0.0006),
    ]
    assert found["total"]["requests"] == 3
    assert found["total"]["cost"] == pytest.approx(10.5006)


async def test_days_are_those_of_the_time_zone() -> None:
    found = await report(by="day", timezone="Europe/Berlin", since="2026-11-01", until="2026-11-08")

    assert [(row["day"], row["requests"]) for row in found["rows"]] == [
        ("2026-11-01", 1),
        ("2026-11-05", 1),
        ("2026-11-06", 2),
    ]


async def test_usage_is_selected_by_name() -> None:
    found = await report(by="day,credential_id", entitlement="acme", credential_id="key-2")

    assert [(row["credential_id"], row["estimated_requests"]) for row in found["rows"]] == [("key-2", 1)]


async def test_a_period_without_usage_has_no_rows() -> None:
    found = await report(period="today")

    assert (found["rows"], found["total"]["requests"], found["total"]["cost"]) == ([], 0, None)


async def test_csv_and_json_agree() -> None:
    plain = await report(by="day,entitlement")
    async with serving() as session:
        answer = await session.get("/usage/report", params={"by": "day,entitlement", "format": "csv"})
        rows = list(csv.DictReader(io.StringIO(await answer.text())))

    assert answer.content_type == "text/csv"
    assert [row["output_tokens"] for row in rows] == [str(row["output_tokens"]) for row in plain["rows"]]


async def test_focus_has_a_charge_for_each_day_key_and_kind_of_token() -> None:
    async with serving() as session:
        answer = await session.get("/usage/report", params={"format": "focus"})
        rows = list(csv.DictReader(io.StringIO(await answer.text())))

    assert len(rows) == 3 + 1 + 2
    assert sum(float(row["BilledCost"]) for row in rows) == pytest.approx(10.5006)
    assert {row["BillingPeriodStart"] for row in rows} == {"2026-11-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"by": "colour"}, "'colour' is not one of day, pool, entitlement"),
        ({"by": "day", "since": "2000-01-01", "until": "2026-01-01"}, "more than 3700 days"),
        ({"format": "focus", "since": "2000-01-01", "until": "2026-01-01"}, "more than 3700 days"),
        ({"format": "pdf"}, "'pdf' is not one of json, csv, focus"),
        ({"period": "never"}, "'never' is not one of today"),
        ({"since": "x"}, "neither a date"),
        ({"timezone": "Nowhere"}, "Europe/Berlin"),
    ],
)
async def test_a_wrong_parameter_is_explained(query: dict[str, str], words: str) -> None:
    async with serving() as session, session.get("/usage/report", params=query) as answer:
        assert answer.status == 400
        assert words in (await answer.json())["error"]


async def test_a_usage_store_that_does_not_answer_is_503() -> None:
    async with (
        serving(MemoryUsageStore(is_down=True)) as session,
        session.get("/usage/report") as answer,
    ):
        assert answer.status == 503
        assert "does not answer" in (await answer.json())["error"]


async def test_a_report_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MOST_ROWS", 1)
    async with serving() as session, session.get("/usage/report") as answer:
        assert answer.status == 400
        assert "choose a shorter period" in (await answer.json())["error"]


async def test_the_page_runs_its_own_script_only() -> None:
    async with serving() as session, session.get("/usage") as answer:
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "http://" not in (await answer.text()).replace("http://www.w3.org/2000/svg", "")
