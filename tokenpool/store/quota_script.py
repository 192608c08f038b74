"""The Redis script of quotas, with the columns of its records. It needs nothing of the other scripts."""

from __future__ import annotations

import msgspec

from tokenpool.leases.row_layout import Layout
from tokenpool.quotas.messages import QuotaPortion, QuotaRequest, QuotaState
from tokenpool.store.scripts import Script

QUOTA_LAYOUTS = (
    Layout("REQUEST", QuotaRequest._fields),
    Layout("PORTION", QuotaPortion.__struct_fields__),
    Layout("STATE", QuotaState.__struct_fields__),
)
"""The positional records of the script."""


class QuotaResult(msgspec.Struct, array_like=True):
    """The result of an exchange: a ``QuotaAnswer``."""

    portions: list[QuotaPortion]
    at: float
    since: float


class QuotaPage(msgspec.Struct, array_like=True):
    """Some of the states, and the number of records that were read for them."""

    states: list[QuotaState]
    read: int


QUOTAS = Script("quotas", layouts=QUOTA_LAYOUTS, needs_common=False)
