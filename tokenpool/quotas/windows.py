"""The calendar windows of quotas. Pure: each function has the time as an argument.

A window is a half-open interval of instants, in seconds since 1970-01-01 UTC (*epoch seconds*). It begins
and ends by the calendar of its time zone, so its length differs where clocks change. A day of a clock change
has 23 or 25 hours. Windows never overlap and have no gaps.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tokenpool.entitlements import Quota, Window

_QUARTER_S = 900
"""All offsets from UTC in use are multiples of a quarter of an hour."""
_HOUR_S = 3600


class UnknownZone(ValueError):
    """The name is no IANA time zone that this machine knows."""


class Span(NamedTuple):
    """One window, in epoch seconds. ``end`` is the first instant of the next one."""

    start: float
    end: float


@cache
def zone(name: str) -> ZoneInfo:
    """The time zone of a name. Raises ``UnknownZone``."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # a text with odd characters, a folder, or an unknown name
        raise UnknownZone(name) from None


def span(quota: Quota, at: float) -> Span:
    """The window of a quota at an instant, in epoch seconds. Raises ``UnknownZone``."""
    where = zone(quota.timezone)
    if quota.per is Window.HOUR:
        return _hour(where, at)
    day = datetime.fromtimestamp(at, where).date()
    if quota.per is Window.WEEK:
        first = day - timedelta(days=day.weekday())
        following = first + timedelta(days=7)
    elif quota.per is Window.MONTH:
        first = day.replace(day=1)
        following = (first + timedelta(days=31)).replace(day=1)
    else:
        first, following = day, day + timedelta(days=1)
    return Span(_midnight(where, first), _midnight(where, following))


def _midnight(where: ZoneInfo, day: date) -> float:
    """The first instant of a day. Where clocks skip midnight, it is the instant of the change."""
    return datetime(day.year, day.month, day.day, tzinfo=where).timestamp()


def _hour(where: ZoneInfo, at: float) -> Span:
    start = _start_of_hour(where, at)
    end = start + _QUARTER_S
    while _start_of_hour(where, end) == start:
        end += _QUARTER_S
    return Span(start, end)


def _start_of_hour(where: ZoneInfo, at: float) -> float:
    """The last instant until ``at`` at which the local clock showed a whole hour.

    An hour that a clock change repeats is another window. Where clocks change by half an hour, one window
    has an hour and a half.
    """
    offset = _offset(where, at)
    start = (at + offset) // _HOUR_S * _HOUR_S - offset
    before = _offset(where, start)
    return start if before == offset else (start + before) // _HOUR_S * _HOUR_S - before


def _offset(where: ZoneInfo, at: float) -> float:
    offset = datetime.fromtimestamp(at, where).utcoffset()
    return offset.total_seconds() if offset is not None else 0.0


def text_of(at: float) -> str:
    """An instant in ISO 8601, in UTC and whole seconds, for messages and logs."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
