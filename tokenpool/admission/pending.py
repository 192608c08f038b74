"""A pending request: it waits for a larger lease or for room, with a deadline and a reason. Pure.

The admission queue and the leases change its fields. They do not read the caller's record of the request.
"""

from __future__ import annotations

import enum
import math

from tokenpool.accounting.account import Account
from tokenpool.amounts import Dimension
from tokenpool.entitlements import Tier
from tokenpool.pricing.cost import Ask, Cost
from tokenpool.quotas.budget import Budget, QuotaHold

RANKS = {Tier.GUARANTEED: 0, Tier.ELASTIC: 1, Tier.SPOT: 3}
"""The order of the tiers in the admission queue."""
RANK_BEYOND = 2
"""The rank of a request beyond its entitlement's limit, except for spot. It uses room that other requests do
not need."""
MOST_RANKS = 4


class Standing(enum.Enum):
    """The capacity that a request may use on the other replica when it is handed over."""

    ASSURED = "assured"
    """The request is inside its guarantee: preemptible requests may be ended for it."""
    WITHIN = "within"
    """The request is within its entitlement's limit."""
    BEYOND = "beyond"
    """The request is beyond that limit, so it waits behind all others except spot."""


class WaitsFor(enum.Enum):
    """The reason of a wait."""

    LEASE = "lease"
    """A larger lease of its entitlement's limit."""
    ENGINE = "engine"
    """Room on the engine."""
    LIMIT = "limit"
    """Its entitlement's limit: the end of another request, or the refill of the token bucket."""


class PendingRequest:
    """A priced request between its arrival and its decision. It is decided or withdrawn, once."""

    __slots__ = (
        "account",
        "arrived_at",
        "ask",
        "body",
        "budgets",
        "cost",
        "deadline",
        "entered_at",
        "first_answer_at",
        "has_left",
        "hold",
        "is_counted",
        "is_listed",
        "is_of_peer",
        "is_retimed",
        "lacks",
        "leaves_by",
        "limited_by",
        "line",
        "longest_wait_s",
        "may_prefer",
        "number",
        "places_until",
        "probed",
        "rank",
        "request",
        "retry_in_s",
        "streams",
        "tier",
        "waits_for",
    )

    def __init__(
        self,
        account: Account,
        ask: Ask,
        cost: Cost,
        arrived_at: float,
        *,
        longest_wait_s: float,
        body: bytes = b"",
        request: object = None,
        streams: bool = True,
        is_of_peer: bool = False,
    ) -> None:
        self.account = account
        self.ask = ask
        self.cost = cost
        self.body = body
        """The bytes by which a retry is recognised."""
        self.request = request
        """The caller's record of the request."""
        self.streams = streams
        """Whether the answer is a stream, so that the sidecar sees its first token."""
        self.is_of_peer = is_of_peer
        """Whether it is a request of another sidecar. It waits at that sidecar, too."""
        self.arrived_at = arrived_at
        """The time of arrival. All times here are in seconds of the sidecar's monotonic clock."""
        self.longest_wait_s = longest_wait_s
        """The longest wait in seconds that the entitlement's tier and SLO allow."""
        self.leaves_by = self.deadline = arrived_at + longest_wait_s
        """The time at which its waits for room end at the latest, and that of the current wait."""
        self.tier = account.entitlement.tier
        self.rank = RANKS[self.tier]
        self.number = 0
        """The position in the order of arrival."""
        self.entered_at = arrived_at
        """The start of the current wait."""
        self.line = account.entitlement.name
        """The line in which it waits for room: that of its entitlement. Each peer request gets its own."""
        self.waits_for = WaitsFor.LIMIT
        self.lacks = Dimension.CONCURRENCY
        """The dimension in which the engine had no room for it at the last try."""
        self.retry_in_s = math.inf
        """The seconds after which the request may fit without an event, because a token bucket fills."""
        self.first_answer_at = math.inf
        """The time of the lease store's first answer to a message that asked for this request."""
        self.places_until = -math.inf
        """The time until which the request looks for room on other replicas. Then it may join the queue of
        the engine here."""
        self.probed: tuple[str, ...] = ()
        """The replicas that were probed for it (``placement.MOST_PROBED``)."""
        self.may_prefer = True
        """Whether it may go to the replica that has its prompt in its cache."""
        self.budgets: tuple[Budget, ...] = ()
        """The budgets of its quotas, while it waits for portions of them."""
        self.hold: QuotaHold | None = None
        """The tokens that it holds of its quotas; ``None`` without quotas, or while it waits for them."""
        self.limited_by = ""
        """The id of the caller's credential, if that has a limit of its own, which counts this request."""
        self.is_counted = False
        """Whether its offer was counted as demand."""
        self.has_left = False
        """Whether the current wait has ended."""
        self.is_listed = self.is_retimed = False
        """Whether the queue's heaps have an entry for its need of the engine, and for ``retry_in_s``."""

    def drop_body(self) -> None:
        """Drop the body and the caller's record. The queue's heaps may keep the rest until the deadline."""
        self.body, self.request = b"", None
