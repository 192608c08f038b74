"""Effects: the actions that follow from decisions. The driver of the process performs them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import PeerAsk
from tokenpool.admission.rules import Shed

Decision = tuple[PendingRequest, Ticket | Shed]
"""A request that waited, and the decision about it."""


class Effects:
    """The effects of a call, in this order: end the requests ``to_end``, deliver the ``decided``, then ask
    other replicas."""

    __slots__ = ("decided", "has_any", "to_ask", "to_cancel", "to_end")

    def __init__(self) -> None:
        self.has_any = False
        self.to_end: list[Ticket] = []
        """Spot requests to end now. They are settled as preempted."""
        self.decided: list[Decision] = []
        """Requests whose wait has ended: admitted or shed."""
        self.to_ask: list[PeerAsk] = []
        """Asks to send to other replicas."""
        self.to_cancel: list[PeerAsk] = []
        """Asks whose request needs no room any more."""

    def end(self, tickets: Sequence[Ticket]) -> None:
        """End running spot requests."""
        if tickets:
            self.to_end += tickets
            self.has_any = True

    def decide(self, pending: PendingRequest, outcome: Ticket | Shed) -> None:
        """Deliver a decision."""
        self.decided.append((pending, outcome))
        self.has_any = True

    def ask(self, asks: Sequence[PeerAsk]) -> None:
        """Send asks to other replicas."""
        if asks:
            self.to_ask += asks
            self.has_any = True

    def cancel(self, asks: Sequence[PeerAsk]) -> None:
        """Cancel asks."""
        if asks:
            self.to_cancel += asks
            self.has_any = True
