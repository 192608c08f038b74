"""The order of the columns in every positional record of the lease store, in one table.

Redis scripts read and write these records by position. The positions are derived from the Python types, which
encode in the order of their fields. ``lua_prelude`` turns them into named Lua constants, so no script and no
reader contains a literal position. A new column goes to the end of its type, where a reader of an older
version ignores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from tokenpool.amounts import Amount, Dimension
from tokenpool.leases.messages import Lease, LeaseRequest, Limit, PeerRoom, ReplicaRoom
from tokenpool.planning.idle import IdleTerms


class HolderRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The fields of one sidecar's row that are summed over all sidecars of an entitlement."""

    kv_tokens: float = 0.0
    """KV tokens that count as held: the lease, or more if the holder uses or may use more."""
    concurrency: float = 0.0
    """Sequences that count as held, in the same way."""
    tokens: float = 0.0
    """Throughput tokens granted."""
    kv_in_use: float = 0.0
    concurrency_in_use: float = 0.0
    demand_tokens_per_second: float = 0.0
    demand_kv_tokens: float = 0.0
    demand_concurrency: float = 0.0
    fresh_tokens_per_second: float = 0.0
    """The demand without retries of shed requests."""
    fresh_kv_tokens: float = 0.0
    fresh_concurrency: float = 0.0

    def replaced(self, old: HolderRow, new: HolderRow) -> HolderRow:
        """This sum of rows, after one row changed from ``old`` to ``new``."""
        rows = (msgspec.structs.astuple(row) for row in (self, old, new))
        return HolderRow(*(total - before + after for total, before, after in zip(*rows, strict=True)))

    @property
    def demand(self) -> Amount:
        """The demand in each dimension."""
        return Amount(self.demand_tokens_per_second, self.demand_kv_tokens, self.demand_concurrency)

    @property
    def fresh(self) -> Amount:
        """The demand without retries, in each dimension."""
        return Amount(self.fresh_tokens_per_second, self.fresh_kv_tokens, self.fresh_concurrency)


NO_ROW = HolderRow()


class Layout(NamedTuple):
    """One positional record."""

    prefix: str
    """The prefix of its Lua constants."""
    columns: Sequence[str]
    """The columns in the order of the encoding."""


LAYOUTS = (
    Layout("ROW", HolderRow.__struct_fields__),
    Layout("REQUEST", LeaseRequest._fields),
    Layout("LIMIT", Limit.__struct_fields__),
    Layout("LEASE", Lease.__struct_fields__),
    Layout("ROOM", ReplicaRoom.__struct_fields__),
    Layout("PEER", PeerRoom.__struct_fields__),
    Layout("TERMS", IdleTerms.__struct_fields__),
    Layout("DIM", [dimension.value for dimension in Dimension]),
)
"""The table. ``DIM`` is a ``Vector``: its columns are the dimensions."""


def lua_prelude(layouts: Sequence[Layout]) -> str:
    """Lua text that defines a constant for each column: ``ROW_KV_TOKENS`` is 1, since Lua counts from 1.

    For each layout it defines a function such as ``new_row()`` that returns a record of zeros at its full
    length. Lua would enlarge an empty record five times.
    """
    lines = []
    for layout in layouts:
        names = [f"{layout.prefix}_{column.upper()}" for column in layout.columns]
        numbers = ", ".join(str(position) for position in range(1, len(names) + 1))
        lines.append(f"local {', '.join(names)} = {numbers}")
        zeros = ", ".join("0" for _ in names)
        lines.append(f"local function new_{layout.prefix.lower()}() return {{{zeros}}} end")
    return "\n".join(lines) + "\n"
