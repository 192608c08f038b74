"""The ticket: the reservation of one admitted request. Only the ledger makes and ends tickets."""

from __future__ import annotations

from typing import NamedTuple

from tokenpool.accounting.account import Account
from tokenpool.accounting.shadow import Shadow
from tokenpool.outcomes import Ending, Verdict
from tokenpool.pricing.cost import Ask, Cost
from tokenpool.quotas.budget import QuotaHold


class TicketEnded(Exception):
    """A ticket was used after its end. This is a defect of the caller, never of the request."""


class SentAsk(NamedTuple):
    """The ask that is sent together with its request. The price of the request is that of its ticket."""

    standing: str
    """The value of ``pending.Standing``."""
    prompt: tuple[tuple[int, int, int], ...]
    """The beginnings of the prompt (``affinity.Cached``)."""


class Place(NamedTuple):
    """The other replica on which a request runs, by handover."""

    peer: str
    """The id of its sidecar."""
    address: str
    """``HOST:PORT`` of its peer port."""
    number: int
    """The number of the ask."""
    asked_at: float
    """The time of that ask, in seconds of the sidecar's monotonic clock."""
    sent: SentAsk | None = None
    """Set if the replica gets the ask together with the request. Otherwise it has offered room."""


class Ticket:
    """The reservation of one admitted request until its settlement. It ends exactly once."""

    __slots__ = (
        "account",
        "admitted_at",
        "ask",
        "charged",
        "cost",
        "ending",
        "groups",
        "has_begun",
        "hold",
        "is_guaranteed",
        "kv_held",
        "kv_seconds_before",
        "output_held",
        "place",
        "streams",
        "surplus",
        "uses_free_capacity",
        "verdict",
    )

    def __init__(
        self, account: Account, ask: Ask, cost: Cost, now: float, place: Place | None = None
    ) -> None:
        self.account = account
        self.groups = account.groups
        """The accounts of its groups that hold the reservation, too."""
        self.ask = ask
        self.cost = cost
        self.admitted_at = now
        self.charged = cost.throughput
        """Throughput tokens taken from the bucket so far."""
        self.kv_held = cost.kv_tokens
        self.kv_seconds_before = 0.0
        """The correction of ``kv_held`` times the seconds since the admission, for earlier values of it."""
        self.output_held = cost.output_tokens
        """Output tokens that the reservation covers, over all sequences."""
        self.place = place
        """The place at which the request runs; ``None`` for the engine of this sidecar."""
        self.hold: QuotaHold | None = None
        """The tokens that it holds of its quotas; ``None`` without quotas."""
        self.ending: Ending | None = None
        """The ending; ``None`` while the request runs."""
        self.streams = True
        """Whether the answer is a stream, so that the sidecar sees its first token."""
        self.has_begun = False
        """Whether the first token has arrived."""
        self.uses_free_capacity = False
        """Whether the request runs beyond its entitlement's limit, on free capacity of the pool."""
        self.is_guaranteed = False
        """Whether the request was inside its entitlement's guarantee when it was admitted."""

        self.verdict: Verdict | None = None
        """The decision that is not enforced; ``None`` for an enforced request."""
        self.surplus: Shadow | None = None
        """The place where the use is counted instead of the account, if enforcement would not run it."""

    def require_running(self) -> None:
        """Raise ``TicketEnded`` if the ticket has ended."""
        if self.ending is not None:
            raise TicketEnded(f"the ticket ended already: {self.ending}")
