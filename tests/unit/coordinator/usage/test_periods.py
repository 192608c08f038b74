"""Spans of reports: words and dates, in time zones and around changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from coordinator.usage.periods import PERIODS, SpanInvalid, span, utc

NOON = datetime(2026, 11, 29, 12, 0, tzinfo=UTC).timestamp()


def texts(
    period: str | None, since: str | None = None, until: str | None = None, zone: str = "UTC"
) -> tuple[str, str]:
    made = span(period, since, until, zone, NOON)
    return made.text(made.since), made.text(made.until)


@pytest.mark.parametrize(
    ("period", "since", "until"),
    [
        ("today", "2026-11-29", "2026-11-30"),
        ("yesterday", "2026-11-28", "2026-11-29"),
        ("last-7-days", "2026-11-23", "2026-11-30"),
        ("last-30-days", "2026-10-31", "2026-11-30"),
        ("this-month", "2026-11-01", "2026-12-01"),
        ("last-month", "2026-10-01", "2026-11-01"),
        (None, "2026-11-01", "2026-12-01"),
    ],
)
def test_periods_are_whole_days(period: str | None, since: str, until: str) -> None:
    assert texts(period) == (f"{since}T00:00:00+00:00", f"{until}T00:00:00+00:00")


def test_every_period_is_tested() -> None:
    assert set(PERIODS) == {"today", "yesterday", "last-7-days", "last-30-days", "this-month", "last-month"}


def test_days_are_those_of_the_time_zone() -> None:
    assert texts("today", zone="Pacific/Auckland") == (
        "2026-11-30T00:00:00+13:00",
        "2026-12-01T00:00:00+13:00",
    )


def test_a_month_with_a_change_of_the_clock_has_two_offsets() -> None:
    assert texts("last-month", zone="Europe/Berlin") == (
        "2026-10-01T00:00:00+02:00",
        "2026-11-01T00:00:00+01:00",
    )


def test_dates_and_times_may_be_given() -> None:
    assert texts(None, "2026-11-01", "2026-11-02T06:30", "Europe/Berlin") == (
        "2026-11-01T00:00:00+01:00",
        "2026-11-02T06:30:00+01:00",
    )


def test_a_time_with_an_offset_keeps_it() -> None:
    assert texts(None, "2026-11-01T00:00:00+05:00")[0] == "2026-10-31T19:00:00+00:00"


def test_without_an_end_the_span_ends_now() -> None:
    assert texts(None, "2026-11-29")[1] == "2026-11-29T12:00:00+00:00"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("last-year", None, None, "UTC"), "last-year"),
        (("today", "2026-11-01", None, "UTC"), "remove one"),
        ((None, None, "2026-11-01", "UTC"), "add since"),
        ((None, "1.11.2026", None, "UTC"), "neither a date"),
        ((None, "0001-01-01", None, "Asia/Tokyo"), "not in the years 1970 to 2199"),
        ((None, "2026-11-01", "9999-12-31T23:59:59-12:00", "UTC"), "not in the years 1970 to 2199"),
        ((None, "2026-11-02", "2026-11-01", "UTC"), "not before"),
        ((None, None, None, "Mars/Olympus"), "Europe/Berlin"),
        ((None, None, None, "../etc/passwd"), "Europe/Berlin"),
        ((None, None, None, ""), "Europe/Berlin"),
    ],
)
def test_an_unreadable_span_is_explained(
    given: tuple[str | None, str | None, str | None, str], words: str
) -> None:
    with pytest.raises(SpanInvalid, match=words):
        span(*given, NOON)


def test_times_for_machines_are_utc() -> None:
    assert utc(NOON) == "2026-11-29T12:00:00Z"
    assert utc(NOON + 0.25) == "2026-11-29T12:00:00.250Z"
