"""The span of a report: words such as ``last-month``, or dates, become seconds.

Pure: the current time is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from coordinator.usage.store import PERIOD_S

DEFAULT = "this-month"
YEARS = range(1970, 2200)
"""The years of a span. All times of a report must have a date in any time zone."""


class SpanInvalid(ValueError):
    """The span of a report cannot be read. The text names the value and the fix."""


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time, in seconds since 1970. ``until`` is not included."""

    since: float
    until: float
    timezone: str = "UTC"

    def whole(self) -> Span:
        """The span of all periods of the usage store that it touches. Sums exist for whole periods only."""
        since, until = (int(at // PERIOD_S) * PERIOD_S for at in (self.since, self.until + PERIOD_S - 1e-6))
        return Span(since, until, self.timezone)

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of its days."""
        return ZoneInfo(self.timezone)

    def text(self, at: float) -> str:
        """A time of the span in its time zone, as ISO 8601."""
        return datetime.fromtimestamp(at, self.zone).isoformat()


def _month(day: date, months: int) -> date:
    """The first day of the month that is ``months`` after the month of a day."""
    number = day.year * 12 + day.month - 1 + months
    return date(number // 12, number % 12 + 1, 1)


_DAY = timedelta(days=1)
PERIODS: Mapping[str, Callable[[date], tuple[date, date]]] = {
    "today": lambda day: (day, day + _DAY),
    "yesterday": lambda day: (day - _DAY, day),
    "last-7-days": lambda day: (day - 6 * _DAY, day + _DAY),
    "last-30-days": lambda day: (day - 29 * _DAY, day + _DAY),
    "this-month": lambda day: (_month(day, 0), _month(day, 1)),
    "last-month": lambda day: (_month(day, -1), _month(day, 0)),
}
"""From today to the first day of the period, and the first day after it."""


def span(period: str | None, since: str | None, until: str | None, timezone: str, now: float) -> Span:
    """The span that the parameters of a report name. Raises ``SpanInvalid``.

    ``since`` and ``until`` are dates or times of ISO 8601; a date is its first moment. Without ``until`` the
    span ends now. Without any parameter it is the current month.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise SpanInvalid(f"timezone: {timezone!r} is unknown; write a name such as Europe/Berlin") from error
    if period is not None and (since is not None or until is not None):
        raise SpanInvalid("period, and since or until, are given; remove one of them")
    if since is None and until is not None:
        raise SpanInvalid("until is given without since; add since")
    if since is not None:
        made = Span(_moment("since", since, zone), _end(until, zone, now), timezone)
    else:
        made = _named(period or DEFAULT, zone, timezone, now)
    if made.since >= made.until:
        raise SpanInvalid(f"since {since} is not before until {until or 'now'}; until is not included")
    return made


def _named(period: str, zone: ZoneInfo, timezone: str, now: float) -> Span:
    if period not in PERIODS:
        raise SpanInvalid(f"period: {period!r} is not one of {', '.join(PERIODS)}")
    first, after = PERIODS[period](datetime.fromtimestamp(now, zone).date())
    return Span(_midnight(first, zone), _midnight(after, zone), timezone)


def _end(until: str | None, zone: ZoneInfo, now: float) -> float:
    return now if until is None else _moment("until", until, zone)


def _moment(name: str, text: str, zone: ZoneInfo) -> float:
    try:
        found = datetime.combine(date.fromisoformat(text), time(), zone)
    except ValueError:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise SpanInvalid(f"{name}: {text!r} is neither a date, such as 2026-11-01, nor a time") from None
    if found.year not in YEARS:
        raise SpanInvalid(f"{name}: {text!r} is not in the years {YEARS.start} to {YEARS.stop - 1}")
    return (found if found.tzinfo is not None else found.replace(tzinfo=zone)).timestamp()


def _midnight(day: date, zone: ZoneInfo) -> float:
    return datetime.combine(day, time(), zone).timestamp()


def utc(at: float) -> str:
    """A time as FOCUS and CloudEvents write it, in UTC with whole seconds or milliseconds."""
    found = datetime.fromtimestamp(at, UTC)
    return found.isoformat(timespec="milliseconds" if found.microsecond else "seconds").replace("+00:00", "Z")
