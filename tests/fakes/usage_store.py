"""A usage store in memory, for tests of what reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from zoneinfo import ZoneInfo

from coordinator.usage.store import RECORDS_AT_ONCE, START, By, Position, Scope, UsageStoreDown, UsageSum
from tokenpool.usage.record import UsageRecord


@dataclass
class MemoryUsageStore:
    """Keeps records by id, and adds them up on request."""

    kept: dict[str, UsageRecord] = field(default_factory=dict)
    stored_at: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    is_down: bool = False
    breaks_after: float = float("inf")
    """The number of calls of ``records`` after which it is down."""

    async def add(self, records: Sequence[UsageRecord]) -> int:
        before = len(self.kept)
        self.kept = {each.id: each for each in records} | self.kept
        self.stored_at = dict.fromkeys((each.id for each in records), self.now) | self.stored_at
        return len(self.kept) - before

    async def records(
        self,
        since: float,
        until: float,
        *,
        by_storage: bool = False,
        pool: str | None = None,
        after: Position = START,
    ) -> Sequence[tuple[Position, UsageRecord]]:
        self.breaks_after -= 1
        if self.is_down or self.breaks_after < 0:
            raise UsageStoreDown("the usage store does not answer: a test stopped it")
        found = [
            ((self.stored_at[each.id] if by_storage else each.time, each.id), each)
            for each in self.kept.values()
            if pool in (None, each.pool)
        ]
        chosen = [each for each in found if since <= each[0][0] < until and each[0] > after]
        return sorted(chosen, key=lambda each: each[0])[:RECORDS_AT_ONCE]

    async def aggregate(
        self,
        by: Sequence[By],
        since: float,
        until: float,
        *,
        where: Mapping[By, str] | None = None,
        timezone: str = "UTC",
    ) -> Sequence[UsageSum]:
        if self.is_down:
            raise UsageStoreDown("the usage store does not answer: a test stopped it")
        zone = ZoneInfo(timezone)
        sums: dict[tuple[str, ...], UsageSum] = {}
        for each in self.kept.values():
            if since <= each.time < until and all(
                _value(each, column, zone) == value for column, value in (where or {}).items()
            ):
                key = tuple(_value(each, column, zone) for column in by)
                sums[key] = _added(sums.get(key, UsageSum(key)), each)
        return [sums[key] for key in sorted(sums)]

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
        found = await self.spent_by_name(
            scope, pool, since, until, input_weight=input_weight, output_weight=output_weight
        )
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
        sums = await self.aggregate([By(scope.value)], since, until, where={By.POOL: pool})
        return {
            each.key[0]: input_weight * (each.input_tokens - each.cached_tokens)
            + output_weight * each.output_tokens
            for each in sums
        }

    async def forget(self, before: float) -> int:
        kept = {name: each for name, each in self.kept.items() if each.time >= before}
        gone = len(self.kept) - len(kept)
        self.kept = kept
        return gone

    async def identity(self) -> str:
        return "memory"

    async def close(self) -> None:
        pass


def _value(record: UsageRecord, column: By, zone: ZoneInfo) -> str:
    if column is By.DAY:
        return datetime.fromtimestamp(record.time, zone).date().isoformat()
    return str(getattr(record, column.value))


def _added(before: UsageSum, record: UsageRecord) -> UsageSum:
    more = {
        "requests": 1,
        "estimated_requests": int(record.is_estimated),
        "ttft_requests": int(record.ttft_s is not None),
    }
    numbers = {
        each.name: getattr(before, each.name) + more.get(each.name, getattr(record, each.name, 0) or 0)
        for each in fields(UsageSum)[1:]
    }
    return UsageSum(before.key, **numbers)
