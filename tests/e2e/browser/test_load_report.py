"""The pages of loadgen in a real browser: on a phone and on a desk, light and dark, with any names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen import compare, goals, report
from loadgen.records import Run
from loadgen.summary import summarise
from tests.e2e.browser.browser import Page, page_at
from tests.support.loadgen_builders import ODD_NAMES, attempt, crowd, run

SIZES = ((390, 844), (1280, 900))
IS_READY = "document.readyState === 'complete'"
SHOWN = "[...document.querySelectorAll('body *')].filter(e => e.getClientRects().length)"
OUTSIDE = f"""
{SHOWN}.filter(e => !e.closest('.scroll, svg, pre, details'))
  .filter(e => {{ const r = e.getBoundingClientRect(); return r.left < -1 || r.right > innerWidth + 1 }})
  .map(e => e.outerHTML.slice(0, 200))
"""
"""Elements beyond the edges of the page, outside boxes that scroll."""
CLIPPED_IN_PLOTS = """
[...document.querySelectorAll('svg text')].filter(e => e.getClientRects().length)
  .filter(e => { const r = e.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth })
  .map(e => e.textContent)
"""
CUT_CELLS = """
[...document.querySelectorAll('td, th, li, dd, figcaption, h1, .lead')]
  .filter(e => e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1)
  .map(e => e.textContent.slice(0, 80))
"""
OVERLAPPING = """
[...document.querySelectorAll('.cards li')].filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => e.textContent)
"""


def of_run(made: Run) -> str:
    summary = summarise(made)
    asked = [goals.parse("all.ttft.p99<=300ms"), goals.parse("all.served.share>=1%")]
    return report.html(made, summary, goals.judge(asked, summary, made.meta.tenants))


def compared(made: Run) -> str:
    other = crowd(3, 200, seed=2, label="a label that is longer than any telephone is wide " * 3)
    return compare.html(compare.groups([made, other], [summarise(made), summarise(other)]))


PAGES: dict[str, Callable[[], str]] = {
    "odd names": lambda: of_run(crowd(len(ODD_NAMES), 400, names=ODD_NAMES)),
    "one request": lambda: of_run(run(attempt(1.0))),
    "nothing": lambda: of_run(run()),
    "200 tenants": lambda: of_run(crowd(200, 4000, names=ODD_NAMES)),
    "comparison": lambda: compared(crowd(3, 200, complaints=["could not keep up: late"])),
}


async def opened(page: Page, width: int, height: int, *, dark: bool) -> None:
    await page.resize(width, height, dark=dark)
    await page.until(IS_READY)


@pytest.mark.parametrize("name", PAGES)
async def test_no_page_scrolls_sideways_or_cuts_a_text(name: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(PAGES[name](), encoding="utf-8")
    async with page_at(file.as_uri(), tmp_path) as page:
        for width, height in SIZES:
            await opened(page, width, height, dark=width == 390)
            assert await page.value("document.documentElement.scrollWidth") <= width, width
            assert await page.value(OUTSIDE) == [], width
            assert await page.value(CLIPPED_IN_PLOTS) == [], width
            assert await page.value(CUT_CELLS) == [], width
            assert await page.value(OVERLAPPING) == [], width
        assert page.complaints == []


async def test_the_result_is_seen_before_scrolling_and_tables_keep_their_first_column(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(of_run(crowd(40, 3000)), encoding="utf-8")
    async with page_at(file.as_uri(), tmp_path) as page:
        await opened(page, 390, 844, dark=False)
        bottom = "document.querySelector('.cards').getBoundingClientRect().bottom"
        assert await page.value(bottom) <= 844
        box = "[...document.querySelectorAll('.scroll')].find(e => e.ariaLabel.startsWith('The numbers'))"
        await page.value(f"({box}).scrollTo(300, 500)")
        left, top, moved, lowered = await page.value(
            "((b, at) => [at(b.querySelector('tbody th')).left - at(b).left,"
            " at(b.querySelector('thead th')).top - at(b).top, b.scrollLeft, b.scrollTop])"
            f"({box}, e => e.getBoundingClientRect())"
        )
        assert (moved, lowered) == (300, 500)
        assert 0 <= left <= 2
        assert 0 <= top <= 2


async def test_a_point_alone_is_visible_and_each_plot_has_words(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(of_run(run(attempt(1.0), attempt(8.0))), encoding="utf-8")
    async with page_at(file.as_uri(), tmp_path) as page:
        for width, height in SIZES:
            await opened(page, width, height, dark=False)
            shown = "[...document.querySelectorAll('figure > svg')].filter(e => e.getClientRects().length)"
            found = await page.value(
                f"{shown}.map(e => [e.getAttribute('aria-label'), e.querySelectorAll('.point').length, "
                "[...e.querySelectorAll('.point')].every(p => getComputedStyle(p).fill.startsWith('rgb('))])"
            )
            first = next(each for each in found if each[0].startswith("gold (guaranteed)"))
            assert first[1] == 6  # P50, P95 and P99, twice
            assert all(visible for _, _, visible in found)
            assert all("; " in words for words, _, _ in found), json.dumps(found)
