"""Calendar windows: in several time zones, and where clocks change."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenpool.entitlements import Quota, Window
from tokenpool.quotas.windows import Span, UnknownZone, span, text_of, zone

HOUR = 3600.0
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/Sao_Paulo", "Australia/Lord_Howe", "Africa/Cairo")


def at(zone_name: str, *parts: int, fold: int = 0) -> float:
    year, month, day, *rest = parts
    return datetime(
        year, month, day, *rest, tzinfo=ZoneInfo(zone_name), fold=fold  # type: ignore[misc]
    ).timestamp()  # fmt: skip


def window(per: Window, zone_name: str, *parts: int, fold: int = 0) -> Span:
    return span(Quota(1, per, zone_name), at(zone_name, *parts, fold=fold))


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York"])
def test_windows_begin_by_the_local_calendar(name: str) -> None:
    moment = (2026, 8, 19, 15, 40, 7)
    assert window(Window.HOUR, name, *moment) == (at(name, 2026, 8, 19, 15), at(name, 2026, 8, 19, 16))
    assert window(Window.DAY, name, *moment) == (at(name, 2026, 8, 19), at(name, 2026, 8, 20))
    assert window(Window.WEEK, name, *moment) == (at(name, 2026, 8, 17), at(name, 2026, 8, 24))
    assert window(Window.MONTH, name, *moment) == (at(name, 2026, 8, 1), at(name, 2026, 9, 1))


def test_the_same_instant_lies_in_different_days() -> None:
    instant = at("UTC", 2026, 8, 31, 23, 30)
    assert text_of(span(Quota(1, Window.MONTH, "UTC"), instant).end) == "2026-09-01T00:00:00Z"
    berlin = span(Quota(1, Window.MONTH, "Europe/Berlin"), instant)
    assert (text_of(berlin.start), text_of(berlin.end)) == ("2026-08-31T22:00:00Z", "2026-09-30T22:00:00Z")


@pytest.mark.parametrize(
    ("day", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2026, 3, 28), 24), ((2026, 10, 26), 24)]
)
def test_a_day_of_a_clock_change_has_another_length(day: tuple[int, ...], hours: int) -> None:
    start, end = window(Window.DAY, "Europe/Berlin", *day, 12)
    assert end - start == hours * HOUR


def test_a_repeated_hour_is_another_window() -> None:
    first = window(Window.HOUR, "Europe/Berlin", 2026, 10, 25, 2, 30)
    second = window(Window.HOUR, "Europe/Berlin", 2026, 10, 25, 2, 30, fold=1)
    assert first.end == second.start == first.start + HOUR == second.end - HOUR


def test_a_skipped_hour_has_no_window() -> None:
    before = window(Window.HOUR, "Europe/Berlin", 2026, 3, 29, 1, 59)
    after = window(Window.HOUR, "Europe/Berlin", 2026, 3, 29, 3, 0)
    assert before.end == after.start == before.start + HOUR


def test_clocks_that_change_by_half_an_hour_make_a_longer_window() -> None:
    name = "Australia/Lord_Howe"  # 2:00 becomes 1:30 on 2026-04-05, and 2:00 becomes 2:30 on 2026-10-04
    for moment in ((2026, 4, 5, 1, 45), (2026, 10, 4, 1, 45)):
        start, end = window(Window.HOUR, name, *moment)
        assert end - start == 1.5 * HOUR


def test_a_day_whose_midnight_is_skipped_begins_at_the_change() -> None:
    start, end = window(Window.DAY, "Africa/Cairo", 2026, 4, 24, 12)  # 0:00 becomes 1:00
    assert (start, end - start) == (at("Africa/Cairo", 2026, 4, 24, 1), 23 * HOUR)


def test_months_have_their_own_lengths_and_weeks_begin_on_monday() -> None:
    start, end = window(Window.MONTH, "UTC", 2028, 2, 29)
    assert (end - start) / HOUR / 24 == 29
    assert window(Window.MONTH, "UTC", 2026, 12, 31).end == at("UTC", 2027, 1, 1)
    assert window(Window.WEEK, "UTC", 2026, 11, 29).start == at("UTC", 2026, 11, 23)


@given(
    st.sampled_from(ZONES),
    st.sampled_from(Window),
    st.integers(at_first := 1_700_000_000, at_first + 6 * 366 * 86400),
)
def test_windows_have_no_gaps_and_never_overlap(name: str, per: Window, instant: int) -> None:
    quota = Quota(1, per, name)
    start, end = span(quota, instant)
    assert start <= instant < end
    assert span(quota, start) == span(quota, end - 1) == (start, end)
    assert span(quota, end).start == end
    assert span(quota, start - 1).end == start


@pytest.mark.parametrize("name", ["Mars/Base", "", "../etc/passwd", "Europe", "a\0b"])
def test_a_name_that_is_no_zone(name: str) -> None:
    with pytest.raises(UnknownZone):
        zone(name)
