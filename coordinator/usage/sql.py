"""The usage store in a SQL database."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import structs

from coordinator.usage.database import Database
from coordinator.usage.migrations.migrate import migrate
from coordinator.usage.statements import Statements, places
from coordinator.usage.store import (
    PERIOD_S,
    RECORDS_AT_ONCE,
    START,
    By,
    Position,
    Scope,
    UsageRefused,
    UsageStoreDown,
    UsageSum,
)
from coordinator.usage.transactions import Failures, Transactions
from tokenpool.usage.record import UsageRecord

ANSWER_S = 90.0
"""The longest wait for the result of a call, in seconds: longer than a statement may take."""
ROWS = 500
"""The most records in one transaction: 9,000 values, of which SQLite accepts 32,766."""
FORGOTTEN_AT_ONCE = 5000
"""The most records that one transaction removes, so that no other call waits for long."""

_NAMES = {"group": "group_name"}
"""The columns of the database that have another name: GROUP is a word of SQL."""
_RECORD = tuple(_NAMES.get(each, each) for each in UsageRecord.__struct_fields__)
_STORED_AT = "stored_at"
_KEY = ("period", "pool", "entitlement", "group_name", "credential_id", "model")
_SUMS = tuple(each.name for each in fields(UsageSum) if each.name != "key")


class SqlUsageStore:
    """See ``UsageStore``. A connection brings the schema up to date when it opens."""

    def __init__(self, database: Database, wall_clock: Callable[[], float] = time.time) -> None:
        self.database = database
        self._wall_clock = wall_clock
        self._transactions = Transactions(
            database,
            lambda statements: migrate(statements, database.begin_migration),
            ANSWER_S,
            Failures(UsageStoreDown, UsageRefused),
        )
        self._run = self._transactions.run

    # --- calls ---

    async def add(self, records: Sequence[UsageRecord]) -> int:
        """See ``UsageStore``."""
        # Two coordinators may store the same records. In one order they never wait for each other mutually.
        ordered = sorted(records, key=lambda record: record.id)
        added = 0
        for first in range(0, len(ordered), ROWS):
            part = ordered[first : first + ROWS]
            now = self._wall_clock()
            added += await self._run(lambda each, part=part, now=now: _add(each, part, now))  # type: ignore[misc]
        return added

    async def aggregate(
        self,
        by: Sequence[By],
        since: float,
        until: float,
        *,
        where: Mapping[By, str] | None = None,
        timezone: str = "UTC",
    ) -> Sequence[UsageSum]:
        """See ``UsageStore``."""
        selected = dict(where or {})
        if By.DAY in selected:
            raise ValueError("select days by since and until")
        spans = days(since, until, timezone) if By.DAY in by else [("", since, until)]
        return await self._run(lambda statements: _aggregate(statements, by, spans, selected))

    async def records(
        self,
        since: float,
        until: float,
        *,
        by_storage: bool = False,
        pool: str | None = None,
        after: Position = START,
    ) -> Sequence[tuple[Position, UsageRecord]]:
        """See ``UsageStore``."""
        order = _STORED_AT if by_storage else "time"
        return await self._run(lambda each: _records(each, order, since, until, pool, after))

    async def spent(
        self,
        scope: Scope,
        name: str,
        pool: str,
        since: float,
        until: float,
        *,
        input_weight: float = 1.0,
        output_weight: float = 1.0,
    ) -> float:
        """See ``UsageStore``."""
        weights = (input_weight, output_weight)
        found = await self._run(lambda each: _spent(each, scope, name, pool, since, until, weights))
        return found.get(name, 0.0)

    async def spent_by_name(
        self,
        scope: Scope,
        pool: str,
        since: float,
        until: float,
        *,
        input_weight: float = 1.0,
        output_weight: float = 1.0,
    ) -> Mapping[str, float]:
        """See ``UsageStore``."""
        weights = (input_weight, output_weight)
        return await self._run(lambda each: _spent(each, scope, None, pool, since, until, weights))

    async def forget(self, before: float) -> int:
        """See ``UsageStore``."""
        forgotten = 0
        while removed := await self._run(lambda statements: _forget(statements, before)):
            forgotten += removed
        return forgotten

    async def identity(self) -> str:
        """See ``UsageStore``."""
        return await self._run(_identity)

    async def close(self) -> None:
        """See ``UsageStore``."""
        await self._transactions.close()


def days(since: float, until: float, timezone: str) -> list[tuple[str, float, float]]:
    """The calendar days of a time zone from ``since`` to ``until``: each one's name, begin and end.

    The first begins at ``since``, and the last ends at ``until``. Raises ``ValueError`` for an unknown zone.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{timezone!r} is not a time zone, such as Europe/Berlin") from error
    found = []
    day = datetime.fromtimestamp(since, zone).date()
    begin = since
    while begin < until:
        day, name = day + timedelta(days=1), day.isoformat()
        end = min(_midnight(day, zone), until)
        if end > begin:
            found.append((name, begin, end))
            begin = end
    return found


def _midnight(day: date, zone: ZoneInfo) -> float:
    """The begin of a day. Where a clock change skips midnight, it is the time of that change."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()


def _periods(since: float, until: float) -> tuple[int, int]:
    """The whole periods that a span of time touches, as seconds: the first, and the end of the last."""
    return int(since // PERIOD_S) * PERIOD_S, -int(-until // PERIOD_S) * PERIOD_S


def _add(statements: Statements, records: Sequence[UsageRecord], now: float) -> int:
    rows = [(*_row(record), now) for record in records]
    stored = statements.run(
        f"INSERT INTO usage_records ({', '.join(_RECORD)}, {_STORED_AT}) VALUES {places(rows)}"
        " ON CONFLICT (id) DO NOTHING RETURNING id",
        [value for row in rows for value in row],
    )
    new = {row[0] for row in stored}
    sums: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        if _text(record.id) in new:
            new.discard(_text(record.id))  # the id may occur twice
            _count(sums, record)
    if sums:
        lines = [(*key, *values) for key, values in sorted(sums.items())]
        changes = ", ".join(f"{name} = usage_sums.{name} + excluded.{name}" for name in _SUMS)
        statements.run(
            f"INSERT INTO usage_sums ({', '.join((*_KEY, *_SUMS))}) VALUES {places(lines)}"
            f" ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET {changes}",
            [value for line in lines for value in line],
        )
    return len(stored)


def _count(sums: dict[tuple[Any, ...], list[float]], record: UsageRecord) -> None:
    """Add a record to the sum of its key."""
    texts = (record.pool, record.entitlement, record.group, record.credential_id, record.model)
    key = (int(record.time // PERIOD_S) * PERIOD_S, *map(_text, texts))
    values = (
        *(1, int(record.is_estimated), record.input_tokens, record.output_tokens, record.cached_tokens),
        *(record.kv_token_seconds, record.sequence_seconds, record.queue_s),
        *(record.ttft_s or 0.0, int(record.ttft_s is not None)),
    )
    known = sums.get(key)
    sums[key] = (
        list(values) if known is None else [one + other for one, other in zip(known, values, strict=True)]
    )


def _row(record: UsageRecord) -> tuple[Any, ...]:
    return tuple(_text(value) if isinstance(value, str) else value for value in structs.astuple(record))


def _text(text: str) -> str:
    """A text without the characters that PostgreSQL does not store. A caller chooses the model's name."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _aggregate(
    statements: Statements,
    by: Sequence[By],
    spans: Sequence[tuple[str, float, float]],
    where: Mapping[By, str],
) -> list[UsageSum]:
    columns = [_NAMES.get(each.value, each.value) for each in by if each is not By.DAY]
    conditions = "".join(f" AND {_NAMES.get(each.value, each.value)} = ?" for each in where)
    grouped = f" GROUP BY {', '.join(columns)}" if columns else " HAVING COUNT(*) > 0"
    selected = ", ".join([*columns, *(f"SUM({name})" for name in _SUMS)])
    found = []
    for day, since, until in spans:
        rows = statements.run(
            f"SELECT {selected} FROM usage_sums WHERE period >= ? AND period < ?{conditions}{grouped}",
            [*_periods(since, until), *where.values()],
        )
        for row in rows:
            values = iter(row)
            key = tuple(day if each is By.DAY else str(next(values)) for each in by)
            found.append(UsageSum(key, *_numbers(values)))
    return sorted(found, key=lambda each: each.key)


def _numbers(values: Any) -> list[Any]:
    """The sums of one row: PostgreSQL adds up whole numbers as decimals."""
    return [
        float(v) if name.endswith(("_s", "_seconds")) else int(v)
        for name, v in zip(_SUMS, values, strict=True)
    ]


def _spent(
    statements: Statements,
    scope: Scope,
    name: str | None,
    pool: str,
    since: float,
    until: float,
    weights: tuple[float, float],
) -> dict[str, float]:
    column = _NAMES.get(scope.value, scope.value)
    rows = statements.run(
        f"SELECT {column}, SUM(input_tokens - cached_tokens), SUM(output_tokens) FROM usage_sums"
        f" WHERE pool = ? AND period >= ? AND period < ? AND {column} {'= ?' if name is not None else '<> ?'}"
        f" GROUP BY {column}",
        [pool, *_periods(since, until), name if name is not None else ""],
    )
    input_weight, output_weight = weights
    return {str(row[0]): input_weight * float(row[1]) + output_weight * float(row[2]) for row in rows}


def _records(
    statements: Statements, order: str, since: float, until: float, pool: str | None, after: Position
) -> list[tuple[Position, UsageRecord]]:
    of_pool = "" if pool is None else " AND pool = ?"
    rows = statements.run(
        f"SELECT {order}, {', '.join(_RECORD)} FROM usage_records"
        f" WHERE {order} >= ? AND {order} < ? AND ({order}, id) > (?, ?){of_pool}"
        f" ORDER BY {order}, id LIMIT {RECORDS_AT_ONCE}",
        [since, until, *after, *([] if pool is None else [pool])],
    )
    return [((float(at), str(row[0])), _record(row)) for at, *row in rows]


def _record(row: Sequence[Any]) -> UsageRecord:
    values: list[Any] = [*row[:-1], bool(row[-1])]  # SQLite has no truth values
    return UsageRecord(*values)


def _forget(statements: Statements, before: float) -> int:
    return statements.changed(
        "DELETE FROM usage_records WHERE id IN"
        " (SELECT id FROM usage_records WHERE time < ? ORDER BY time LIMIT ?)",
        [before, FORGOTTEN_AT_ONCE],
    )


def _identity(statements: Statements) -> str:
    return str(statements.run("SELECT identity FROM usage_store")[0][0])
