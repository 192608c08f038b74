"""The page of a report: its beginning, its plots, and what makes it readable for everybody."""

from __future__ import annotations

import re

import pytest

from loadgen import goals, headline, page, plots, report
from loadgen.distributions import tail
from loadgen.page import State
from loadgen.plots import Frame, Series, curves, layers, tail_place, thinned
from loadgen.records import Outcome, Run, TenantMeta
from loadgen.summary import summarise
from tests.support.loadgen_builders import ODD_NAMES, attempt, crowd, run
from tests.unit.loadgen.test_report import busy, checked


def told(made: Run, *asked: str) -> list[str]:
    summary = summarise(made)
    judged = goals.judge([goals.parse(text) for text in asked], summary, made.meta.tenants)
    return headline.sentences(made.meta, summary, judged)


def test_three_sentences_say_what_happened() -> None:
    served, slowest, rest = told(busy(), "gold.ttft.p99<=100ms", "spot.served.share>=50%")
    assert (
        served == "Of 200 requests in 10 s, 175 (87.5 %) were served, 25 (12.5 %) refused, and none failed."
    )
    assert slowest == "The largest P99 of the time to first token was 500 ms, of tenant spot (median 500 ms)."
    assert rest == "1 of 2 goals was missed: gold.ttft.p99<=100ms of gold, and the generator kept up."
    for sentence in (served, slowest, rest):
        assert len(sentence.split()) <= 25


def test_the_sentences_of_other_runs() -> None:
    alone = run(attempt(1.0), tenants=[TenantMeta("gold")], is_interrupted=True, ended_s=3.0)
    served, slowest, rest = told(alone)
    assert served.startswith("The run was interrupted after 3 s. Of 1 request in 3 s, 1 (100.0 %) was served")
    assert slowest == "The time to first token was 100 ms at the median and 100 ms at P99."
    assert rest == "No goal was set, and the generator kept up."
    assert told(run())[:2] == ["No request was due.", "No time to first token was measured."]
    late = told(busy(complaints=["could not keep up: late"]), "gold.ttft.p99<=9s")
    assert late[2] == "The goal was met, but this run is not reliable: see the warnings."
    broken = told(busy(), "gold.ttft.p99<=1ms", "spot.ttft.p99<=1ms")[2]
    assert broken.startswith("2 of 2 goals were missed, first gold.ttft.p99<=1ms of gold")
    gone = run(attempt(1.0), attempt(2.0, None, outcome=Outcome.CANCELLED), attempt(3.0, tenant="spot"))
    assert "1 (33.3 %) cancelled by clients, and none failed" in told(gone)[0]


def test_cards_name_reasons_tenants_and_states() -> None:
    made = run(
        attempt(1.0),
        attempt(2.0, None, tenant="spot", outcome=Outcome.SHED, reason="kv_tokens"),
        attempt(3.0, None, tenant="spot", outcome=Outcome.BROKEN, reason="reset"),
        attempt(4.0, 0.4, tenant="spot"),
    )
    summary = summarise(made)
    judged = goals.judge([goals.parse("gold.ttft.p50<=1s")], summary, made.meta.tenants)
    served, refused, failed, worst, _, met = headline.cards(summary, judged)
    assert (served.value, served.state) == ("2", State.PLAIN)
    assert (refused.value, refused.note, refused.state) == ("1", "25.0 %; most: kv_tokens", State.DOUBT)
    assert (failed.value, failed.note, failed.state) == ("1", "25.0 %; most: broken: reset", State.BAD)
    assert (worst.value, worst.note) == ("400 ms", "spot; no interval")
    assert (met.value, met.state) == ("1 of 1", State.GOOD)
    empty = headline.cards(summarise(run()), [])
    assert [card.value for card in empty] == ["0", "0", "0", "-", "0", "none set"]


def test_a_curve_has_gaps_and_a_point_alone_is_a_dot() -> None:
    points = [(0, 1.0), (1, None), (2, 3.0), (3, 4.0), (4, None), (5, 6.0)]
    drawn = curves("t", [Series("a", points)], Frame(6.0), unit="s")
    path = re.search(r'class="line c0"[^>]* d="([^"]*)"', drawn)
    assert path is not None
    assert (path[1].count("M"), path[1].count("L")) == (3, 1)
    wide, narrow = (re.search(rf'<svg class="{name}".*?</svg>', drawn, re.S) for name in ("wide", "narrow"))
    assert wide is not None
    assert narrow is not None
    assert [each[0].count('class="point c0"') for each in (wide, narrow)] == [2, 2]
    assert wide[0].count('class="dot c0"') == 2
    assert "no data" in curves("t", [], Frame(2.0), unit="s")


def test_an_area_of_one_window_has_a_width() -> None:
    drawn = layers("t", [Series("a", [(0.5, 3.0)])], Frame(1.0), unit="tokens/s")
    path = re.search(r'class="area c0" d="M([\d.]+) [\d.]+H([\d.]+)', drawn)
    assert path is not None
    assert float(path[2]) - float(path[1]) > 100


def test_long_lines_keep_their_extremes_and_gaps() -> None:
    points: list[tuple[float, float | None]] = [(float(at), float(at % 7)) for at in range(5000)]
    points[1234] = (1234.0, 99.0)
    points[2000:2100] = [(float(at), None) for at in range(2000, 2100)]
    kept = thinned(points)
    assert len(kept) <= 240
    assert (1234.0, 99.0) in kept
    assert any(value is None for _, value in kept)
    assert list(kept) == sorted(kept, key=lambda point: point[0])
    assert thinned(points[:200]) == points[:200]


def test_many_points_have_no_titles_and_many_series_are_thin() -> None:
    many = [Series(f"s{i}", [(float(at), 1.0) for at in range(200)], i) for i in range(10)]
    drawn = curves("t", many, Frame(200.0), unit="tokens/s")
    assert "<circle" not in drawn
    assert drawn.count("<title>s3</title>") == 2
    thin = [Series(f"s{i}", [(0.0, 1.0), (1.0, 2.0)], is_minor=i > 1) for i in range(5)]
    drawn = curves("t", thin, Frame(1.0), unit="tokens/s")
    assert "3 others" in drawn
    assert drawn.count('class="line minor"') == 2 * 3 + 1


def test_a_plot_says_its_values_in_words() -> None:
    drawn = curves("Limits", [Series("a<b", [(0, 5.0), (1, 8.0)])], Frame(1.0), unit="tokens/s")
    assert drawn.count('aria-label="Limits; a&lt;b: 5 tokens/s to 8 tokens/s"') == 2
    many = curves("t", [Series(f"s{i}", [(0, 1.0)]) for i in range(20)], Frame(1.0), unit="")
    assert "and 8 more" in many


@pytest.mark.parametrize("count", [1, 2, 9, 100, 12345])
def test_a_distribution_ends_with_the_slowest_request(count: int) -> None:
    points = tail([float(value) for value in range(count)])
    assert points[-1] == (pytest.approx(tail_place(count / (count + 1))), count - 1.0)
    assert [place for place, _ in points] == sorted(place for place, _ in points)
    assert len(points) <= 80
    if count == 100:
        assert (pytest.approx(1.0), 89.0) in points  # 90 %
    assert Frame(3.0, unit="of the requests", is_tail=True).told(2.0) == "99 % of the requests"


def test_odd_names_are_text() -> None:
    made = crowd(len(ODD_NAMES), 300, names=ODD_NAMES)
    shown = checked(report.html(made, summarise(made)))
    assert "<script" not in shown
    assert "<i>" not in shown
    assert "&lt;script&gt;" in shown


def test_a_page_of_200_tenants_is_small() -> None:
    made = crowd(200, 2000)
    assert len(checked(report.html(made, summarise(made)))) < 5_000_000


def colours(dark: bool) -> dict[str, str]:
    light, _, rest = page._STYLE.partition("@media(prefers-color-scheme:dark)")
    return dict(re.findall(r"--(\w+):(#[0-9a-f]+)", rest if dark else light))


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_colours_have_enough_contrast(dark: bool) -> None:
    """By WCAG 2.2: 4.5 for text, and 3 for what must be seen in a plot."""
    named = colours(dark)
    for text in ("ink", "soft", "bad", "doubt"):
        assert contrast(named[text], named["page"]) >= 4.5, text
    for ground in ("b0", "b1"):
        assert contrast(named["soft"], named[ground]) >= 4.5
    assert contrast(named["ink"], named["warn"]) >= 4.5
    for index in range(plots.COLOURS):
        assert contrast(named[f"c{index}"], named["page"]) >= 3, index
