"""The usage store: the database of usage records, behind one protocol.

Reports and quotas read sums over periods of ``PERIOD_S``. All time zones are whole periods from UTC, so every
hour, day and month of every zone begins with a period.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from tokenpool.usage.record import UsageRecord

PERIOD_S = 900
"""The seconds of one period. Sums are stored by period, so that a month is read in milliseconds."""


class By(StrEnum):
    """What usage can be added up by. The value is the name of the column in reports."""

    DAY = "day"
    """A calendar day, such as 2026-11-29."""
    POOL = "pool"
    ENTITLEMENT = "entitlement"
    GROUP = "group"
    CREDENTIAL = "credential_id"
    MODEL = "model"


class Scope(StrEnum):
    """The owner of a quota."""

    ENTITLEMENT = "entitlement"
    GROUP = "group"
    CREDENTIAL = "credential_id"


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The sum of some usage records."""

    key: tuple[str, ...] = ()
    """The values of the columns by which usage was added up, in their order."""
    requests: int = 0
    estimated_requests: int = 0
    """The requests whose tokens are estimated. The sums of tokens include them."""
    input_tokens: int = 0
    """All input tokens, with those from the prefix cache."""
    output_tokens: int = 0
    cached_tokens: int = 0
    kv_token_seconds: float = 0.0
    sequence_seconds: float = 0.0
    queue_s: float = 0.0
    ttft_s: float = 0.0
    """The sum of the times to first token."""
    ttft_requests: int = 0
    """The requests with a time to first token."""


Position = tuple[float, str]
"""The place of a record in an order: a time in seconds since 1970, and its id."""
START: Position = (-1.0, "")
"""Before every record."""
RECORDS_AT_ONCE = 1000
"""The most records of one call of ``records``: 0.3 MB."""


class UsageStoreDown(ConnectionError):
    """The database did not do the work. The text names it and the reason, without a password."""


class UsageRefused(ValueError):
    """The database refuses a value. The call would fail again."""


class UsageStore(Protocol):
    """The database of usage records. Every call may raise ``UsageStoreDown``.

    ``since`` and ``until`` are seconds since 1970; ``until`` is not included. Both are whole periods:
    otherwise ``since`` means the beginning of its period, and ``until`` the end of its period.
    """

    async def add(self, records: Sequence[UsageRecord]) -> int:
        """Store records. Returns how many are new: a record whose id is stored already changes nothing.

        Raises ``UsageRefused`` if the database cannot have one of them. The others may be stored then.
        """

    async def aggregate(
        self,
        by: Sequence[By],
        since: float,
        until: float,
        *,
        where: Mapping[By, str] | None = None,
        timezone: str = "UTC",
    ) -> Sequence[UsageSum]:
        """The usage in a span of time, added up by some columns, and in the order of their values.

        ``where`` selects the usage with these values. ``timezone`` is a name of the IANA database, for the
        days. An empty ``by`` gives one sum, or none without usage. Raises ``ValueError`` for an unknown
        time zone, and for a day in ``where``.
        """

    async def records(
        self,
        since: float,
        until: float,
        *,
        by_storage: bool = False,
        pool: str | None = None,
        after: Position = START,
    ) -> Sequence[tuple[Position, UsageRecord]]:
        """The next records of a span of time, at most ``RECORDS_AT_ONCE``, in the order of their positions.

        The span is exact. It selects times of settlement; with ``by_storage``, times at which records were
        stored. ``after`` is the last position that was read. Records that were forgotten are left out.
        """

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
        """The weighted tokens of one owner in one pool: computed input and output, as a quota counts them.

        Input from the prefix cache is not computed, and counts nothing.
        """

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
        """The same for every owner with usage, in one query."""

    async def forget(self, before: float) -> int:
        """Remove the records of settlements before a time. Their sums stay. Returns their number."""

    async def identity(self) -> str:
        """A random name that the database keeps."""

    async def close(self) -> None:
        """Close the connection."""
