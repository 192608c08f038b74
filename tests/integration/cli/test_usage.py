"""``tokenpool usage`` against the pages of a coordinator."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from cli.__main__ import main
from coordinator.usage.pages import UsagePages
from tests.fakes.usage_store import MemoryUsageStore
from tests.support.usage import NOW, november
from tokenpool.entitlements import Prices

PRICES = Prices("EUR", input=2.0, cached_input=0.5, output=8.0)


@asynccontextmanager
async def serving(prices: Prices | None = PRICES) -> AsyncIterator[str]:
    store = MemoryUsageStore()
    await store.add(november())
    application = web.Application()
    UsagePages(lambda: store, lambda: {"chat": prices}, lambda: NOW).add_to(application)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def usage(*arguments: str, status: int = 0, prices: Prices | None = PRICES) -> None:
    async with serving(prices) as url:
        assert await asyncio.to_thread(main, ["usage", "--url", url, *arguments]) == status


async def test_the_table_has_tokens_costs_and_a_sum(capsys: pytest.CaptureFixture[str]) -> None:
    await usage()

    first, heads, acme, beta, whole, note = capsys.readouterr().out.splitlines()
    assert first == "2026-11-01T00:00:00+00:00 to 2026-12-01T00:00:00+00:00 (UTC)"
    assert heads.split()[0] == "entitlement"
    assert acme.split() == [
        "acme",
        "2",
        "4,000,000",
        "1,000,000",
        "500,000",
        "0.000",
        "0.000",
        "0.500",
        "10.50",
        "EUR",
    ]
    assert beta.split()[0] == "beta"
    assert whole.split()[:2] == ["all", "3"]
    assert note == "1 requests have estimated tokens: the engine reported none"


async def test_without_prices_there_is_no_column_of_costs(capsys: pytest.CaptureFixture[str]) -> None:
    await usage(prices=None)

    assert "cost" not in capsys.readouterr().out


async def test_several_columns_and_a_filter(capsys: pytest.CaptureFixture[str]) -> None:
    await usage("--by", "day,credential", "--entitlement", "acme", "--credential", "key-1")

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["day", "credential"]
    assert lines[2].split()[:3] == ["2026-11-05", "key-1", "1"]


async def test_last_month(capsys: pytest.CaptureFixture[str]) -> None:
    await usage("--period", "last-month", "--json")

    found = json.loads(capsys.readouterr().out)
    assert [(row["entitlement"], row["output_tokens"]) for row in found["rows"]] == [("beta", 7)]


async def test_no_usage_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    await usage("--period", "today")

    assert capsys.readouterr().out.splitlines()[-1] == "no usage"


@pytest.mark.parametrize(("kind", "column"), [("csv", "input_tokens"), ("focus", "ConsumedQuantity")])
async def test_csv_goes_to_standard_output(
    kind: str, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await usage("--format", kind)

    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows
    assert int(rows[0][column])


async def test_the_coordinators_words_are_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    await usage("--since", "soon", status=2)

    assert "since: 'soon' is neither a date" in capsys.readouterr().err


async def test_an_unknown_column_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["usage", "--by", "colour"])

    assert (
        "'colour' is not one of day, pool, entitlement, group, credential, model" in capsys.readouterr().err
    )
