"""A request that waits: for a larger lease, or for room. It has a deadline and a reason. Pure.

The admission queue and the leases change its fields; its request is the caller's own and is not looked into.
"""

from __future__ import annotations

import enum
import math

from tokenpool.accounting.account import Account
from tokenpool.entitlements import Tier
from tokenpool.pricing.cost import Ask, Cost

RANKS = {Tier.GUARANTEED: 0, Tier.ELASTIC: 1, Tier.SPOT: 2}
"""The order in which tiers are served."""


class WaitsFor(enum.Enum):
    """What a request waits for."""

    LEASE = "lease"
    """A larger lease of its entitlement's limit."""
    ENGINE = "engine"
    """Room on the engine."""
    LIMIT = "limit"
    """Its entitlement's limit: the end of another request, or the refill of the token bucket."""


class PendingRequest:
    """A priced request between its arrival and its decision. It is decided once, or withdrawn."""

    __slots__ = (
        "account",
        "arrived_at",
        "ask",
        "body",
        "cost",
        "deadline",
        "entered_at",
        "first_answer_at",
        "has_left",
        "is_counted",
        "is_listed",
        "is_retimed",
        "number",
        "patience_s",
        "rank",
        "request",
        "retry_in_s",
        "streams",
        "waits_for",
    )

    def __init__(
        self,
        account: Account,
        ask: Ask,
        cost: Cost,
        arrived_at: float,
        *,
        patience_s: float,
        body: bytes = b"",
        request: object = None,
        streams: bool = True,
    ) -> None:
        self.account = account
        self.ask = ask
        self.cost = cost
        self.body = body
        """The bytes by which a retry is recognised."""
        self.request = request
        """The caller's own record of the request."""
        self.streams = streams
        self.arrived_at = arrived_at
        """Seconds by the sidecar's monotonic clock, as all times here."""
        self.patience_s = patience_s
        """The longest wait that the entitlement's tier and SLO allow."""
        self.rank = RANKS[account.entitlement.tier]
        self.number = 0
        """The place in the order of arrival."""
        self.entered_at = arrived_at
        """The time at which the present wait began."""
        self.deadline = arrived_at + patience_s
        self.waits_for = WaitsFor.LIMIT
        self.retry_in_s = math.inf
        """The time after which the request may fit without any event, as a token bucket fills."""
        self.first_answer_at = math.inf
        """The time of the lease store's first answer to a message that asked for this request."""
        self.is_counted = False
        """Whether its offer was counted as demand."""
        self.has_left = False
        """Whether it waits no longer."""
        self.is_listed = self.is_retimed = False
        """Whether the queue has an entry of it for the engine's room, and for ``retry_in_s``."""

    def let_go(self) -> None:
        """Drop the body and the caller's record: the queue's heaps may keep the rest until the deadline."""
        self.body, self.request = b"", None
