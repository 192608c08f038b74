"""An arrival: one priced request as it is offered to the admission control. Pure."""

from __future__ import annotations

from tokenpool.accounting.account import Account
from tokenpool.admission.pending import PendingRequest
from tokenpool.pricing.cost import Ask, Cost


class Arrival:
    """What the caller of ``AdmissionControl.offer`` states about a request."""

    __slots__ = ("account", "arrived_at", "ask", "body", "cost", "request", "streams")

    def __init__(
        self,
        account: Account,
        ask: Ask,
        cost: Cost,
        body: bytes,
        request: object,
        *,
        streams: bool,
        arrived_at: float | None,
    ) -> None:
        self.account = account
        self.ask = ask
        self.cost = cost
        self.body = body
        self.request = request
        self.streams = streams
        self.arrived_at = arrived_at
        """The time of its arrival, if it was admitted before and is placed again; ``None`` for a new one."""

    def pending(self, longest_wait_s: float, now: float) -> PendingRequest:
        """The request in the form in which it waits, for ``longest_wait_s`` seconds from its arrival."""
        is_new = self.arrived_at is None
        pending = PendingRequest(
            self.account,
            self.ask,
            self.cost,
            now if self.arrived_at is None else self.arrived_at,
            longest_wait_s=longest_wait_s,
            body=self.body,
            request=self.request,
            streams=self.streams,
        )
        pending.is_counted = not is_new
        pending.may_prefer = is_new
        return pending
