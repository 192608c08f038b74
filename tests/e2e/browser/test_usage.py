"""The page of usage in a real browser: its plot and table, on a telephone too, and no console errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from msgspec.structs import replace

from coordinator.usage.pages import UsagePages
from tests.e2e.browser.browser import Page, page_at
from tests.fakes.usage_store import MemoryUsageStore
from tests.support.usage import NOW, november
from tokenpool.entitlements import Prices
from tokenpool.usage.record import UsageRecord

HOSTILE = "<script>alert(1)</script>&<b>bold</b>"
PRICES = {"chat": Prices("EUR", input=2.0, cached_input=0.5, output=8.0)}


@asynccontextmanager
async def shown(
    folder: Path, records: Sequence[UsageRecord], width: int = 1280
) -> AsyncIterator[tuple[Page, MemoryUsageStore]]:
    """The page with the usage of these records."""
    store = MemoryUsageStore()
    await store.add(records)
    application = web.Application()
    UsagePages(lambda: store, lambda: PRICES, lambda: NOW).add_to(application)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with page_at(f"http://127.0.0.1:{runner.addresses[0][1]}/usage", folder) as page:
            await page.resize(width, 900)
            yield page, store
    finally:
        await runner.cleanup()


def chosen(name: str, value: str) -> str:
    """A JavaScript expression that chooses a value of a field, as a person does."""
    return (
        f"(() => {{ const field = document.forms[0].elements[{json.dumps(name)}];"
        f" field.value = {json.dumps(value)};"
        " field.dispatchEvent(new Event('change', {bubbles: true})); return true; })()"
    )


ROWS = "[...document.querySelectorAll('#rows tr')].map(row => row.cells[0].textContent).join()"
BARS = "document.querySelectorAll('#plot rect').length"


async def test_the_page_has_bars_a_table_and_costs(tmp_path: Path) -> None:
    async with shown(tmp_path, november()) as (page, _):
        await page.until(f"{ROWS} === 'acme,beta'")
        assert await page.value(BARS) == 2  # beta's 150 tokens are less than a pixel, but a bar
        assert "10.50 EUR" in await page.value("document.querySelector('#rows tr').textContent")
        assert "2026-11-01 00:00 to 2026-12-01 00:00" in await page.value(
            "document.querySelector('#span').textContent"
        )
        assert await page.value("document.querySelectorAll('#legend li').length") == 2
        assert await page.value("document.querySelector('#focus').href.includes('format=focus')")
        assert page.complaints == []


async def test_choices_change_the_page(tmp_path: Path) -> None:
    async with shown(tmp_path, november()) as (page, _):
        await page.until(f"{ROWS} === 'acme,beta'")
        await page.value(chosen("by", "credential_id"))
        await page.until(f"{ROWS} === '(none),key-1,key-2'")
        await page.value(chosen("number", "cost"))
        assert "cost by day, at most" in await page.value("document.querySelector('#plot').ariaLabel")
        await page.value(chosen("period", "today"))
        await page.until("!document.querySelector('#empty').hidden")
        assert await page.value(BARS) == 0
        await page.value(chosen("timezone", "Nowhere"))
        await page.until("document.querySelector('#problem').textContent.includes('Europe/Berlin')")
        await page.value(chosen("timezone", "Europe/Berlin"))
        await page.until("document.querySelector('#problem').hidden")


async def test_many_names_share_one_colour(tmp_path: Path) -> None:
    records = [
        replace(november()[0], id=f"r{n}", entitlement=f"tenant-{n:02}", output_tokens=1000 - n)
        for n in range(20)
    ]
    async with shown(tmp_path, records) as (page, _):
        await page.until("document.querySelectorAll('#rows tr').length === 20")
        legend = await page.value("[...document.querySelectorAll('#legend li')].at(-1).textContent")
        assert legend == "all others"
        assert await page.value(BARS) == 8


@pytest.mark.parametrize("width", [390, 1280])
async def test_the_page_fits_its_window(width: int, tmp_path: Path) -> None:
    long = replace(november()[0], id="r9", entitlement="a" * 63, model=HOSTILE)
    async with shown(tmp_path, [*november(), long], width) as (page, _):
        await page.until("document.querySelectorAll('#rows tr').length === 3")
        assert await page.value("document.documentElement.scrollWidth") <= width
        await page.screenshot(tmp_path / f"usage-{width}.png", whole=True)
        assert page.complaints == []


async def test_a_name_is_never_markup(tmp_path: Path) -> None:
    async with shown(tmp_path, [replace(november()[0], model=HOSTILE)]) as (page, _):
        await page.until(f"{ROWS} === 'acme'")
        await page.value(chosen("by", "model"))
        await page.until(f"{ROWS} === {json.dumps(HOSTILE)}")
        assert await page.value("document.querySelectorAll('main b, main script').length") == 0
        assert page.complaints == []


async def test_a_usage_store_that_is_down_is_said(tmp_path: Path) -> None:
    async with shown(tmp_path, november()) as (page, store):
        await page.until(f"{ROWS} === 'acme,beta'")
        store.is_down = True
        await page.value(chosen("period", "last-month"))
        await page.until("document.querySelector('#problem').textContent.includes('does not answer')")
