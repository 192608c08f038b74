"""The rules of quotas in the lease store in Python, for the workers of one pod, the simulation and the tests.

Production runs the same rules as a script in Redis (``tokenpool/store/quotas.lua``). One contract suite sends
the same calls to both. Pure: ``now`` is in epoch seconds of the caller's clock. A *holder* is a sidecar.

- Each budget has a record for each window, and each holder a row in it. All numbers are totals of the window.
- A row counts as its portion, or as its use if that is larger. The record never grants portions by which the
  sum of all rows and of the earlier spending exceeds the quota. It exceeds the quota only by use beyond
  portions. That is the use of requests that outgrow their reservation, and of sidecars without a store.
- A holder that needs no more than its fair part gets at most that. The fair part is the free tokens,
  divided by twice the number of holders. So portions shrink as the quota nears its end. Waiting requests are
  served beyond it.
- A holder without a message for a lifetime loses its unused portion. Its use stays counted. After
  ``REMEMBER_S`` its row becomes a part of the base. It may return later: it states what the record counted.
- A store that lost its content has another ``since``, and records another birth. For one lifetime, holders
  state their use, and nothing is granted. They keep what they claim: their portions, and their reserves.
- A window that began before ``since`` is restored: a coordinator states the spending in the usage store. Then
  the base is that spending, less what the holders state themselves. Until then nothing is granted. A holder
  of the lost store that states its spending later finds it in the base.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenpool.quotas.messages import (
    KEEP_RECORD_S,
    LEVELS,
    REMEMBER_S,
    RESTORE_WITHIN_S,
    QuotaAnswer,
    QuotaMessage,
    QuotaPortion,
    QuotaRequest,
    QuotaState,
)


class _Row:
    """One holder's part of a record, less what the base counts already."""

    __slots__ = ("number", "offset", "portion", "settled", "used")

    def __init__(self, offset: float) -> None:
        self.offset = offset
        """The tokens of the holder's totals that the base has."""
        self.used = 0.0
        """Tokens settled and held."""
        self.settled = 0.0
        self.portion = 0.0
        self.number = -1
        """The number of the message that wrote the row."""

    @property
    def counts(self) -> float:
        """The tokens that the record counts for it."""
        return max(self.portion, self.used)


class _Record:
    """One window of a budget."""

    __slots__ = (
        "base",
        "born",
        "end",
        "is_restored",
        "key",
        "rows",
        "start",
        "tokens",
        "unclaimed",
        "warned",
    )

    def __init__(self, request: QuotaRequest, now: float, since: float) -> None:
        self.key, self.start, self.end = request.key, request.start, request.end
        self.tokens = request.tokens
        self.born = now
        self.base = 0.0
        self.unclaimed = 0.0
        """The part of the base that was restored, and that no holder has stated."""
        self.is_restored = request.start >= since
        self.warned = 0
        self.rows: dict[str, _Row] = {}

    @property
    def spent(self) -> float:
        return self.base + sum(row.settled for row in self.rows.values())

    @property
    def counts(self) -> float:
        return self.base + sum(row.counts for row in self.rows.values())


class ReferenceQuotaStore:
    """The quotas of one pool. ``lifetime_s`` is the lifetime of portions in seconds."""

    def __init__(self, lifetime_s: float) -> None:
        self._lifetime_s = lifetime_s
        self._since: float | None = None
        self._records: dict[tuple[str, float], _Record] = {}
        self._alive: dict[str, float] = {}
        """Holders by the end of their lifetime."""
        self._gone: dict[str, float] = {}
        """Holders whose lifetime has ended, by that time."""

    def exchange(self, message: QuotaMessage, now: float) -> QuotaAnswer:
        """Apply a sidecar's message, and answer with its portions."""
        since = self._begin(now)
        self._expire(now)
        self._alive[message.holder] = now + self._lifetime_s
        self._gone.pop(message.holder, None)
        portions = [self._answer(message, request, since, now) for request in message.requests]
        return QuotaAnswer(portions, now, since)

    def states(self, now: float) -> Sequence[QuotaState]:
        """All windows that have not ended."""
        since = self._begin(now)
        self._expire(now)
        return [
            QuotaState(
                record.key,
                record.start,
                record.end,
                record.tokens,
                record.spent,
                record.counts - record.spent,
                self._is_restored(record, now),
                self._may_restore(since, now),
            )
            for record in self._records.values()
            if record.end > now
        ]

    def restore(self, key: str, start: float, spent: float, now: float) -> bool:
        """Set the spending of a window that the store has lost. Returns whether it could be set."""
        since = self._begin(now)
        record = self._records.get((key, start))
        if record is None or not self._may_restore(since, now):
            return False
        missing = spent - record.spent
        if missing > 0:
            record.base += missing
            record.unclaimed += missing
        record.is_restored = True
        return True

    def _begin(self, now: float) -> float:
        if self._since is None:
            self._since = now
        return self._since

    def _may_restore(self, since: float, now: float) -> bool:
        # A record is younger than the store if nobody had used the quota before.
        return now >= since + self._lifetime_s

    def _is_restored(self, record: _Record, now: float) -> bool:
        return record.is_restored or now >= record.born + RESTORE_WITHIN_S

    def _answer(self, message: QuotaMessage, request: QuotaRequest, since: float, now: float) -> QuotaPortion:
        record = self._records.get((request.key, request.start))
        if record is None:
            record = self._records[request.key, request.start] = _Record(request, now, since)
        is_open = now >= since + self._lifetime_s and self._is_restored(record, now)
        row = record.rows.get(message.holder)
        if row is None:
            is_known = request.born == record.born
            row = record.rows[message.holder] = _Row(request.counted if is_known else 0.0)
            if request.born and not is_known:
                row.offset = min(request.settled, record.unclaimed)
                record.unclaimed -= row.offset
                row.portion = request.portion - row.offset  # the store has lost what it had granted
        if message.number > row.number:
            row.number = message.number
            record.tokens = request.tokens
            self._write(record, row, request, is_open=is_open)
        crossed = 0
        for level in LEVELS:
            if record.spent >= record.tokens * level / 100 and record.warned < level:
                record.warned = crossed = level
        return QuotaPortion(
            row.portion + row.offset,
            record.tokens - record.counts,
            record.spent,
            record.born,
            len(record.rows),
            is_open,
            crossed,
        )

    def _write(self, record: _Record, row: _Row, request: QuotaRequest, *, is_open: bool) -> None:
        before = row.counts
        row.settled = request.settled - row.offset
        row.used = row.settled + request.held
        wanted, needed = request.wanted - row.offset, request.needed - row.offset
        if is_open:
            free = record.tokens - (record.counts - row.counts)
            fair = row.used + max(free - row.used, 0.0) / (2 * len(record.rows))
            wanted = min(wanted, free, max(needed, fair, before))
        else:
            wanted = min(wanted, max(row.portion, request.portion - row.offset))
        row.portion = max(wanted, row.used)

    def _expire(self, now: float) -> None:
        for holder, ends_at in list(self._alive.items()):
            if ends_at <= now:
                del self._alive[holder]
                self._gone[holder] = ends_at
                for row in self._rows_of(holder):
                    row.portion = row.used
        for holder, gone_at in list(self._gone.items()):
            if gone_at + REMEMBER_S <= now:
                del self._gone[holder]
                self._fold(holder)
        for place, record in list(self._records.items()):
            if record.end + KEEP_RECORD_S <= now:
                del self._records[place]

    def _rows_of(self, holder: str) -> list[_Row]:
        return [record.rows[holder] for record in self._records.values() if holder in record.rows]

    def _fold(self, holder: str) -> None:
        """The row of a holder becomes a part of the base."""
        for record in self._records.values():
            row = record.rows.pop(holder, None)
            if row is not None:
                record.base += row.used
