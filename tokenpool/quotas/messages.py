"""The records of the exchange about quotas, between sidecars, the lease store and the coordinator.

A *budget* is one quota of one scope. The store has one record for each budget and window. The records that
the Redis script reads or writes are positional on the wire, so a new field goes to the end of its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import msgspec

from tokenpool.entitlements import Quota

RESTORE_WITHIN_S = 30.0
"""A record whose spending is not restored by a coordinator grants portions after this time, in seconds.

Until then no tenant spends more than the sidecars hold. Later an absent coordinator or usage store would
refuse all requests of tenants with quotas."""
REMEMBER_S = 60.0
"""The time for which a row is kept after the end of its holder's lifetime, in seconds."""
LEVELS = (80, 95, 100)
"""The percentages of a quota at which operators and clients are warned."""
KEEP_RECORD_S = 600.0
"""The time for which a record is kept after the end of its window, for late settlements and pages."""
KEEP_SINCE_S = 40 * 86400.0
"""The time for which the store remembers when it began to keep quotas: longer than any window."""


class Scope(StrEnum):
    """What a quota belongs to."""

    ENTITLEMENT = "entitlement"
    GROUP = "group"
    CREDENTIAL = "credential"


class BudgetId(NamedTuple):
    """The identity of a budget. The number of tokens is no part of it: a changed quota keeps its spending."""

    scope: Scope
    name: str
    """The name of the entitlement or group, or the id of the credential."""
    per: str
    timezone: str

    @property
    def key(self) -> str:
        """The text by which messages and the store name the budget."""
        return f"{self.scope}/{self.per}/{self.timezone.replace('/', ':')}/{self.name}"


def budget_id(scope: Scope, name: str, quota: Quota) -> BudgetId:
    """The identity of one quota of a scope."""
    return BudgetId(scope, name, quota.per.value, quota.timezone)


def parsed_key(key: str) -> BudgetId | None:
    """The identity that a key names; ``None`` if the key is of a later version."""
    scope, _, rest = key.partition("/")
    per, _, rest = rest.partition("/")
    timezone, separator, name = rest.partition("/")
    if not separator or scope not in {each.value for each in Scope}:
        return None
    return BudgetId(Scope(scope), name, per, timezone.replace(":", "/"))


class QuotaRequest(NamedTuple):
    """The spending of one sidecar in one window of a budget, and the portion that it wants.

    All numbers are totals since the window began, never changes. So a lost or doubled message does no harm.
    """

    key: str
    start: float
    """The begin of the window, in epoch seconds."""
    end: float
    tokens: float
    """The quota."""
    settled: float = 0.0
    """Tokens of requests that have ended."""
    held: float = 0.0
    """Tokens that running requests reserve."""
    portion: float = 0.0
    """The portion as the sidecar knows it: what it may spend in this window."""
    needed: float = 0.0
    """The portion that covers the waiting requests, too."""
    wanted: float = 0.0
    """The portion that covers the expected requests, too. A smaller one than before returns the rest."""
    born: float = 0.0
    """The birth of the record that the sidecar knows; 0 without one."""
    counted: float = 0.0
    """The tokens, settled and held, that this record has counted for the sidecar."""


class QuotaPortion(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to a ``QuotaRequest``: the part of the budget that the sidecar may spend."""

    portion: float = 0.0
    free: float = 0.0
    """Tokens that are neither spent nor in a portion. Negative after overspending."""
    spent: float = 0.0
    """Tokens of all requests that have ended."""
    born: float = 0.0
    """When the record was made, by the store's clock. A store that lost its content makes another."""
    holders: int = 0
    """The number of sidecars that have spent from the budget in this window."""
    is_open: bool = False
    """Whether portions are granted. They are not until the record has all earlier spending."""
    crossed: int = 0
    """The level of ``LEVELS`` that was reached first with this message; 0 without one."""


@dataclass(frozen=True, slots=True)
class QuotaMessage:
    """One message of a sidecar about quotas. A message without requests keeps its portions."""

    holder: str
    """The id of the sidecar."""
    number: int
    """Rises with every message. An older message changes nothing after a newer one."""
    requests: Sequence[QuotaRequest] = ()


@dataclass(frozen=True, slots=True)
class QuotaAnswer:
    """The answer to a ``QuotaMessage``: the portions in the order of the requests."""

    portions: Sequence[QuotaPortion] = ()
    at: float = 0.0
    """The store's time in epoch seconds. Windows begin by this clock."""
    since: float = 0.0
    """When the store began to keep quotas. If it changes, the store lost its content."""


class QuotaState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One window of a budget, for the coordinator."""

    key: str
    start: float
    end: float
    tokens: float
    spent: float
    """Tokens of all requests that have ended."""
    portions: float
    """Tokens that sidecars hold beyond that: portions, and reservations of running requests."""
    is_restored: bool
    """Whether the record has all spending since the begin of the window."""
    may_restore: bool
    """Whether all sidecars have stated their spending, so that the rest can be added."""
