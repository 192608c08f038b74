"""Usage records for other systems: as CloudEvents 1.0, and as rows of CSV. Pure.

The id of an event is the id of its record. A receiver that gets an event twice drops the second one by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import asdict

from coordinator.usage.periods import utc
from coordinator.usage.reports import as_csv
from tokenpool.usage.record import UsageRecord

TYPE = "io.tokenpool.usage.v1"
"""The type of the events. The data are the fields of ``UsageRecord``; later versions only add fields."""
COLUMNS = UsageRecord.__struct_fields__


def event(record: UsageRecord) -> dict[str, Any]:
    """A record as an event in the JSON format of CloudEvents."""
    return {
        "specversion": "1.0",
        "id": record.id,
        "source": f"/tokenpool/pools/{record.pool}",
        "type": TYPE,
        "subject": record.entitlement,
        "time": utc(record.time),
        "datacontenttype": "application/json",
        "data": asdict(record),
    }


def csv_rows(records: Iterable[UsageRecord], *, has_heads: bool) -> str:
    """Records as CSV. ``tokenpool simulate`` reads them."""
    text = as_csv(({**asdict(each), "time": utc(each.time)} for each in records), COLUMNS)
    return text if has_heads else text.partition("\n")[2]
