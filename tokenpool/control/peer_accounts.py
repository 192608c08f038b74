"""The accounts of peer requests: requests of peers that run on the engine here, by handover. Pure.

The sidecar that received such a request keeps its ticket, its lease and its settlement. Here the request only
takes room on the engine. So it belongs to an account without limits. There is one for each tier and standing,
because the assured part differs. No planner, page or metric of entitlements includes them. In the admission
queue each peer request has a line of its own.
"""

from __future__ import annotations

import math

from tokenpool.accounting.account import Account
from tokenpool.admission.pending import Standing
from tokenpool.admission.rules import EngineQueue
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.pricing.cost import Ask, Cost

UNLIMITED = Amount(math.inf, math.inf, math.inf)
ASSURED = Amount(math.inf, 0.0, math.inf)
"""The assured part of such a request: slots of preemptible requests, and no KV cache beyond the free part."""
PEER_ASK = Ask()


class PeerAccounts:
    """The accounts of all peer requests of one sidecar."""

    def __init__(self, now: float) -> None:
        self._accounts = {
            (tier, is_preemptible, standing): _account(tier, is_preemptible, standing, now)
            for tier in Tier
            for is_preemptible in ((False, True) if tier is Tier.SPOT else (False,))
            for standing in Standing
        }

    def account(self, tier: Tier, *, is_preemptible: bool, standing: Standing = Standing.WITHIN) -> Account:
        """The account of requests of this tier and standing. Only spot is preemptible, and never assured."""
        is_spot = tier is Tier.SPOT
        if is_spot and standing is Standing.ASSURED:
            standing = Standing.WITHIN
        return self._accounts[tier, is_preemptible and is_spot, standing]

    @staticmethod
    def engine_queue(account: Account) -> EngineQueue:
        """The part of a full engine's queue that the requests of this account may join."""
        return EngineQueue.BEHIND_PREEMPTIBLE if account.assured.concurrency else EngineQueue.NONE

    def has(self, account: Account) -> bool:
        """Whether this is an account of peer requests."""
        return account.is_of_peers

    @property
    def sequences(self) -> int:
        """The running sequences of all peer requests."""
        return sum(account.concurrency_in_use for account in self._accounts.values())


def peer_cost(sequences: int, kv_tokens: int) -> Cost:
    """The price of a peer request here: room on the engine, and no throughput tokens."""
    return Cost(0, 0, sequences, 0.0, kv_tokens)


def _account(tier: Tier, is_preemptible: bool, standing: Standing, now: float) -> Account:
    name = f"handover:{tier.value}" + ("" if is_preemptible or tier is not Tier.SPOT else ":kept")
    name += "" if standing is Standing.WITHIN else f":{standing.value}"
    is_assured = standing is Standing.ASSURED
    guarantee = ASSURED if is_assured else NOTHING
    entitlement = Entitlement(name, "", tier, preemptible=is_preemptible, guarantee=guarantee)
    account = Account(entitlement, Pricing(), now)
    if is_assured:
        account.assured, account.has_peers = ASSURED, True
    account.is_of_peers = account.is_active = True  # no planner sets its limits
    account.limit = account.pool_limit = UNLIMITED
    account.bucket.hold(math.inf)
    return account
