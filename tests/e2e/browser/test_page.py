"""The live page of a running sidecar in a real browser: changing values, sheds, and no console errors."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from dashboard.server import LivePage
from dashboard.snapshot import ShownHandover, Snapshot, TakeSnapshot, Wanted
from runtime.options import Addresses
from sidecar.app import Sidecar
from tests.e2e.browser.browser import Page, page_at
from tests.fakes.scripted_engine import FakeEngine, Held
from tests.support.harness import POOL, ask, request, sidecar_for, until
from tests.support.snapshots import entitlement, pool

HOSTILE = "<script>alert(1)</script>&<b>bold</b>"
BOUNDED = POOL.replace("tier: elastic,", "tier: elastic, ceiling: {concurrency: 1},")


def row(name: str) -> str:
    """A JavaScript expression for the row of an entitlement."""
    is_it = f"r => r.querySelector('.name').textContent === {json.dumps(name)}"
    return f"[...document.querySelectorAll('tbody tr')].find({is_it})"


def text(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})?.textContent"


IS_LIVE = text("#connection") + " === 'live'"


@asynccontextmanager
async def shown(engine: FakeEngine, folder: Path, file: str = POOL) -> AsyncIterator[tuple[Sidecar, Page]]:
    """A lone sidecar and its live page, connected."""
    async with (
        sidecar_for(engine.port, folder, pool=file) as sidecar,
        page_at(f"http://{sidecar.admin_on}/live", folder) as page,
    ):
        await page.resize(1280, 900)
        await page.until(IS_LIVE)
        yield sidecar, page


async def test_values_change_and_a_shed_shows_with_its_reason(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = held = Held()
    async with shown(engine, tmp_path, BOUNDED) as (sidecar, page):
        await page.until(f"{row('g')}.querySelector('.use').textContent.startsWith('0 of 8 sequences')")
        running = [asyncio.ensure_future(ask(sidecar, request(), seconds=60)) for _ in range(3)]
        running.append(asyncio.ensure_future(ask(sidecar, request(key="e-key"), seconds=60)))
        await page.until(f"{row('g')}.querySelector('.use').textContent.startsWith('3 of')")
        width = await page.value(f"{row('g')}.querySelector('.in-use').style.width")
        assert float(width.removesuffix("%")) == 37.5
        assert (await ask(sidecar, request(key="e-key"))).status == 429
        why = await page.until(f"{row('e')}.querySelector('.why').textContent")
        assert "sequences: limit 1, in use 1" in why
        assert await page.value(f"{row('e')}.classList.contains('is-shed')")
        assert not await page.value(f"{row('g')}.classList.contains('is-shed')")
        assert "1 with sheds" in await page.value(text("#count"))
        held.go.set()
        await asyncio.gather(*running)
        await page.until(f"!{row('g')}.querySelector('.use').textContent.startsWith('3 of')")
        tokens, first = (f"{row('g')}.querySelector('.{each}" for each in ("tokens", "first"))
        spent = f"{tokens} .now').textContent"
        assert float(await page.until(f"Number({spent}) > 0 && {spent}")) > 0
        await page.until(f"{first} .now').textContent.endsWith('s')")
        await page.until(f"{tokens} path').getAttribute('d')")
        await page.until(f"{first} path:not(.high)').getAttribute('d')")
        told = f"{tokens} svg').getAttribute('aria-label')"
        assert "tokens per second, the last five minutes: at most " in await page.value(told)
        await page.until(f"!{row('e')}.classList.contains('is-shed')")
        assert page.complaints == []


QUIET_S = 5
"""The seconds without an event after which a visible page shows a lost connection; see page.html."""


@asynccontextmanager
async def page_of(
    snapshot: Snapshot | TakeSnapshot,
    folder: Path,
    *,
    clock: Callable[[], float] = time.monotonic,
    **options: float,
) -> AsyncIterator[tuple[Page, LivePage]]:
    """A page with snapshots that no sidecar has."""
    application = web.Application()
    server = LivePage(
        (lambda wanted: snapshot) if isinstance(snapshot, Snapshot) else snapshot, clock, **options
    )
    server.add_to(application)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with page_at(f"http://127.0.0.1:{runner.addresses[0][1]}/", folder) as page:
            await page.until(IS_LIVE)
            yield page, server
    finally:
        await runner.cleanup()


TILES = "[...document.querySelectorAll('.tile')].filter(t => !t.hidden).map(t => t.innerText)"


async def test_the_queue_and_handover_of_a_sidecar_have_tiles(tmp_path: Path) -> None:
    results = (("taken", 1204), ("refused", 12), ("cancelled", 1190), ("failed", 3))
    shown = pool(
        entitlement(in_use=(None, 0.0, 3.0)),
        waiting=(("guaranteed", 1), ("elastic", 4), ("spot", 0)),
        handover=ShownHandover(peers=3, results=results, elsewhere=5, guests=2, guests_waiting=6),
    )
    async with page_of(Snapshot("sidecar", "s0", (shown,)), tmp_path) as (page, _):
        await page.resize(1280, 900)
        waiting, handed_over, guests = (await page.value(TILES))[-3:]
        assert waiting.split("\n") == ["Waiting now", "5", "guaranteed 1, elastic 4, spot 0"]
        assert handed_over.split("\n")[:2] == ["Handed over since the start", "1.2K"]
        assert "5 run elsewhere now; 3 other replicas known" in handed_over
        assert "12 refused, 1.19K cancelled, 3 failed" in handed_over
        assert guests.split("\n")[:2] == ["From other replicas now", "2"]
        assert "6 of their requests wait here" in guests
        assert page.complaints == []


async def test_a_coordinators_page_has_no_tiles_of_one_sidecar(tmp_path: Path) -> None:
    async with page_of(Snapshot("coordinator", "c0", (pool(),)), tmp_path) as (page, _):
        assert len(await page.value(TILES)) == 4


async def test_names_and_notices_are_text(tmp_path: Path) -> None:
    # The pool file does not allow such a name, but the page does not rely on that.
    hostile = pool(entitlement(HOSTILE, tier=HOSTILE), name=HOSTILE, leader=HOSTILE, notices=(HOSTILE,))
    async with page_of(Snapshot(HOSTILE, HOSTILE, (hostile,), (HOSTILE,)), tmp_path) as (page, _):
        await page.until(row(HOSTILE))
        for selector in (".pool h2", ".pool .notices li", "#notices li", ".tier"):
            assert await page.value(text(selector)) == HOSTILE
        assert await page.value("document.querySelectorAll('script').length") == 1
        assert await page.value("document.querySelectorAll('#process *, .name *, h2 b, li *').length") == 0
        assert page.complaints == []


async def test_thousands_of_entitlements_stay_usable(tmp_path: Path) -> None:
    many = [entitlement(f"tenant-{n:03}", in_use=(None, 0.0, float(n > 300))) for n in range(500)]
    async with page_of(Snapshot("coordinator", "c0", (pool(*many, total=10_000),)), tmp_path) as (page, _):
        await page.until("document.querySelectorAll('tbody tr').length === 200")
        said = "… and 9,800 more, all idle; the filter searches only the rows above"
        assert await page.value(text("#hidden")) == said
        await page.value("document.querySelector('#filter').focus()")
        await page.call("Input.insertText", text="tenant-49")
        await page.until("document.querySelectorAll('tbody tr:not([hidden])').length === 10")
        await page.value(
            "window.touched = 0; new MutationObserver(found => { window.touched += found.length })"
            ".observe(document.querySelector('tbody'), {subtree: true, childList: true, attributes: true,"
            " characterData: true})"
        )
        await asyncio.sleep(1.5)
        assert await page.value("window.touched") == 0
        assert page.complaints == []


async def test_rows_are_filtered_and_sorted(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = held = Held()
    async with shown(engine, tmp_path) as (sidecar, page):
        names = (
            "[...document.querySelectorAll('tbody tr:not([hidden]) .name')].map(n => n.textContent).join()"
        )
        running = asyncio.ensure_future(ask(sidecar, request(key="s-key"), seconds=60))
        await page.until(f"{names} === 's,e,g'")  # by sheds, of which there are none; then by use
        await page.value("document.querySelector('button[data-sort=name]').click()")
        assert await page.value(names) == "e,g,s"
        assert await page.value(text("th[aria-sort=ascending]")) == "Entitlement"
        await page.value("document.querySelector('button[data-sort=name]').click()")
        assert await page.value(names) == "s,g,e"
        await page.value("const f = document.querySelector('#filter'); f.focus(); f.select()")
        await page.call("Input.insertText", text="guaranteed")
        assert await page.value(names) == "g"
        assert await page.value(text("#count")) == "1 of 3, none with sheds"
        await page.value("document.querySelector('#shedding').click()")
        assert await page.value(text("#empty")) == "No entitlement has sheds."
        await page.value("document.querySelector('#shedding').click()")
        await page.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab")
        assert await page.value("document.activeElement.id") == "dimension"
        held.go.set()
        await running
        assert page.complaints == []


async def test_a_page_that_loses_its_sidecar_shows_this_and_reconnects(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with shown(engine, tmp_path) as (sidecar, page):
        where = sidecar.admin_on
        await sidecar.stop()
        said = await page.until(f"{text('#connection')}?.includes(':') && {text('#connection')}")
        assert said.startswith("not connected: ")
        assert said.endswith("; retrying")
        assert await page.value("document.body.classList.contains('is-stale')")
        folder = tmp_path / "again"
        folder.mkdir()
        async with sidecar_for(engine.port, folder, admin=Addresses((where,))):
            await page.until(IS_LIVE)
            assert not await page.value("document.body.classList.contains('is-stale')")
            assert await page.value("document.querySelectorAll('tbody tr').length") == 3


async def until_silent(server: LivePage) -> None:
    """Wait until the server has disconnected the page."""
    async with asyncio.timeout(30):
        while server.listeners:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("is_dropped", [False, True], ids=["kept", "dropped by the server"])
async def test_a_page_that_the_browser_throttles_is_not_shown_as_disconnected(
    tmp_path: Path, is_dropped: bool
) -> None:
    snapshots = 0

    def snapshot(wanted: Wanted) -> Snapshot:
        nonlocal snapshots
        snapshots += 1
        # Many notices of a kind fill the connection that nobody reads.
        notices = tuple(f"{snapshots}-{n}" + "x" * 500 for n in range(400 * is_dropped))
        return Snapshot("sidecar", "s0", (pool(entitlement(debt=float(snapshots)), notices=notices),))

    async with page_of(snapshot, tmp_path, slow_s=0.5) as (page, server):
        await page.value(
            "window.said = []; const at = document.querySelector('#connection');"
            " new MutationObserver(() => window.said.push(at.textContent))"
            ".observe(at, {childList: true, subtree: true, characterData: true})"
        )
        await page.call("Page.setWebLifecycleState", state="frozen")
        if is_dropped:
            await until_silent(server)
        before = snapshots
        await asyncio.sleep(QUIET_S + 1)
        assert snapshots > before
        await page.call("Page.setWebLifecycleState", state="active")
        at = await page.value(text(".debt"))
        await page.until(f"{text('.debt')} !== {json.dumps(at)}")
        await asyncio.sleep(1.5)
        assert await page.value(text("#connection")) == "live"
        assert await page.value("window.said.join()") == ""
        assert server.listeners == 1


async def test_a_throttled_page_without_a_server_shows_the_lost_connection(tmp_path: Path) -> None:
    async with page_of(Snapshot("sidecar", "s0", (pool(),)), tmp_path) as (page, server):
        await page.call("Page.setWebLifecycleState", state="frozen")
        await server._close(web.Application())
        await page.call("Page.setWebLifecycleState", state="active")
        await asyncio.sleep(3)
        assert await page.value("document.hidden")
        assert (
            await page.value(text("#connection")) == "live"
        )  # the page is hidden: it does not show this yet
        await page.value("Object.defineProperty(document, 'hidden', { value: false })")
        await page.value("document.dispatchEvent(new Event('visibilitychange'))")
        said = await page.until(f"{text('#connection')}?.includes(':') && {text('#connection')}")
        assert said == "not connected: this process is shutting down; retrying"


async def test_a_page_that_opens_later_shows_the_last_minutes(tmp_path: Path) -> None:
    spent = 0.0

    def snapshot(wanted: Wanted) -> Snapshot:
        nonlocal spent
        spent += 1000.0
        busy = entitlement("busy", spent=spent)
        return Snapshot("sidecar", "s0", (pool(busy, entitlement("idle"), spent_from_zero=True),))

    began = time.monotonic()
    clock = lambda: began + 100 * (time.monotonic() - began)  # noqa: E731
    async with page_of(snapshot, tmp_path, clock=clock, history_every_s=0.02) as (page, _):
        drawn = f"{row('busy')}.querySelector('.tokens path').getAttribute('d').split('L').length"
        await page.until(f"{drawn} > 20", seconds=5)
        assert await page.value(f"{row('idle')}.querySelector('.tokens path').getAttribute('d')") in (
            None,
            "",
        )
        idle = f"{row('idle')}.querySelector('.tokens svg').getAttribute('aria-label')"
        assert await page.value(idle) == "tokens per second, the last five minutes: nothing"
        assert page.complaints == []


async def test_rows_keep_their_height_while_charts_change(engine: FakeEngine, tmp_path: Path) -> None:
    heights = "[...document.querySelectorAll('tbody tr')].map(r => r.getBoundingClientRect().height).join()"
    async with shown(engine, tmp_path) as (sidecar, page):
        await page.until("document.querySelectorAll('tbody tr').length === 3")
        before = await page.value(heights)
        for _ in range(5):
            await ask(sidecar, request())
        await page.until(f"{row('g')}.querySelector('.tokens path').getAttribute('d')")
        assert await page.value(heights) == before


async def test_a_page_beyond_the_limit_of_browsers_shows_the_reason(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async with sidecar_for(engine.port, tmp_path) as sidecar:
        sidecar.admin.live._most_listeners = 0
        async with page_at(f"http://{sidecar.admin_on}/", tmp_path) as page:
            said = await page.until(f"{text('#connection')}?.includes(':') && {text('#connection')}")
            assert "browsers show this page, which is the limit" in said
            sidecar.admin.live._most_listeners = 1
            await page.until(IS_LIVE)
            await until(lambda: sidecar.admin.live.listeners == 1)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
async def test_nothing_is_cut_off(engine: FakeEngine, tmp_path: Path, width: int, dark: bool) -> None:
    long = "a-tenant-with-a-name-that-goes-on-and-on.and-does-not-end-soon"
    async with shown(engine, tmp_path, POOL.replace("name: s,", f"name: {long},")) as (_, page):
        await page.resize(width, 900, dark=dark)
        await page.until(row(long))
        assert await page.value("document.documentElement.scrollWidth") <= width
        is_cut = (
            "e => e.clientWidth && getComputedStyle(e).overflow !== 'hidden'"
            " && e.scrollWidth > e.clientWidth + 1"
        )
        cut = f"[...document.querySelectorAll('main *')].filter({is_cut}).map(e => e.className).join()"
        assert await page.value(cut) == ""
