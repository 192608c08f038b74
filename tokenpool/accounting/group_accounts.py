"""Group accounts: the use of each group with a ceiling on one sidecar, beside those of its members.

A group account has gauges and a bucket like the account of an entitlement. The ledger moves them with those
of each member. Its limit is the ceiling of the group, so a request needs a part of both limits. With a lease
store, both are leases: the store never grants a group more than its ceiling, on all sidecars together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tokenpool.accounting.account import Account
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement, Group, Pricing, Tier, chain
from tokenpool.pricing.cost import Cost

PREFIX: Final = "group:"
"""The beginning of a group's name in the lease store. No entitlement has a colon in its name."""
MOST: Final = 1e12
"""The number that represents an absent bound in a group's limit: a bucket needs a finite rate."""


def group_limit(ceiling: Amount) -> Amount:
    """The limit of a group with this ceiling."""
    return ceiling.at_most(Amount(MOST, MOST, MOST))


def is_capped(group: Group) -> bool:
    """Whether a group has a ceiling."""
    return min(group.ceiling.values()) < math.inf


def group_name(account: Account) -> str:
    """The name of a group account's group; empty for the account of an entitlement."""
    return account.entitlement.name.removeprefix(PREFIX) if account.is_group else ""


def has_room(group: Account, cost: Cost) -> bool:
    """Whether the limit of a group leaves room for a cost, in the dimensions that its ceiling names."""
    if group.ceiling_rate < math.inf and group.bucket.level <= 0:
        return False
    return (
        group.concurrency_in_use + cost.sequences <= group.limit_sequences
        or group.ceiling_sequences == math.inf
    ) and (group.kv_in_use + cost.kv_tokens <= group.limit_kv or group.ceiling_kv == math.inf)


def group_accounts(groups: Sequence[Group], known: Mapping[str, Account], now: float) -> dict[str, Account]:
    """The accounts of all groups with a ceiling, by name in the lease store. Those ``known`` are kept."""
    found = {}
    for group in groups:
        if is_capped(group):
            name = PREFIX + group.name
            entitlement = Entitlement(name, group.pool, Tier.ELASTIC, ceiling=group.ceiling)
            account = known.get(name)
            if account is None:
                account = Account(entitlement, Pricing(), now)
                account.is_group = True
            account.entitlement = entitlement
            found[name] = account
    return found


def place(accounts: Iterable[Account], groups: Sequence[Group], found: Mapping[str, Account]) -> None:
    """Tell each account the accounts of its groups. Running requests keep those with which they began."""
    by_name = {group.name: group for group in groups}
    above = {
        group.name: tuple(
            found[PREFIX + each.name] for each in chain(group.name, by_name) if PREFIX + each.name in found
        )
        for group in groups
    }
    for account in accounts:
        account.groups = above.get(account.entitlement.group or "", ())


def use_ceilings(accounts: Iterable[Account], now: float) -> None:
    """Set the limits of group accounts on a lone sidecar, which may use each ceiling alone."""
    for account in accounts:
        is_new = account.pool_limit == NOTHING
        account.set_limits(group_limit(account.entitlement.ceiling), NOTHING, 0.0, now, is_full=is_new)
