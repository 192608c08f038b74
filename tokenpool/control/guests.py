"""Guests: requests of other sidecars that run on the engine here, by handover. Pure.

The sidecar that received such a request keeps its ticket, its lease and its settlement. Here the request only
takes room on the engine. So it belongs to an account without limits, one for each tier, that no planner, page
or metric of entitlements sees. Requests beyond their entitlement's limit have an account of their own, since
they wait behind those within.
"""

from __future__ import annotations

import math

from tokenpool.accounting.account import Account
from tokenpool.amounts import Amount
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.pricing.cost import Ask, Cost

UNLIMITED = Amount(math.inf, math.inf, math.inf)
GUEST_ASK = Ask()


class Guests:
    """The accounts of guests."""

    def __init__(self, now: float) -> None:
        self._accounts = {
            (tier, is_preemptible, is_beyond): _account(tier, is_preemptible, is_beyond, now)
            for tier in Tier
            for is_preemptible in ((False, True) if tier is Tier.SPOT else (False,))
            for is_beyond in (False, True)
        }

    def account(self, tier: Tier, *, is_preemptible: bool, is_beyond: bool = False) -> Account:
        """The account of guests of this tier. Only spot is preemptible.

        ``is_beyond`` states that the request lies beyond its entitlement's limit.
        """
        return self._accounts[tier, is_preemptible and tier is Tier.SPOT, is_beyond]

    def has(self, account: Account) -> bool:
        """Whether an account belongs to guests."""
        return account in self._accounts.values()

    @property
    def sequences(self) -> int:
        """The running sequences of all guests."""
        return sum(account.concurrency_in_use for account in self._accounts.values())


def guest_cost(sequences: int, kv_tokens: int) -> Cost:
    """The price of a guest here: room on the engine, and no throughput tokens."""
    return Cost(0, 0, sequences, 0.0, kv_tokens)


def _account(tier: Tier, is_preemptible: bool, is_beyond: bool, now: float) -> Account:
    name = f"handover:{tier.value}" + ("" if is_preemptible or tier is not Tier.SPOT else ":kept")
    name += ":beyond" if is_beyond else ""
    account = Account(Entitlement(name, "", tier, preemptible=is_preemptible), Pricing(), now)
    account.is_active = True  # no planner sets its limits
    account.limit = account.pool_limit = UNLIMITED
    account.bucket.hold(math.inf)
    return account
