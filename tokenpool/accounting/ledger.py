"""The ledger: it records the reservations and settlements of admitted requests on one sidecar.

A ``Ticket`` is a reservation that ends exactly once. The admission rules decide whether a request gets a
ticket. The ledger only records it. ``now`` is in seconds of any monotonic clock.
"""

from __future__ import annotations

from tokenpool.accounting.account import Account
from tokenpool.accounting.meter import RESIDENCE_PRIOR_S
from tokenpool.accounting.ticket import Ticket
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Ask, Cost, Usage
from tokenpool.pricing.estimators import Average


class Ledger:
    """Makes reservations on accounts, and keeps the sums over all accounts of one sidecar."""

    __slots__ = ("concurrency_in_use", "kv_in_use", "preemptible_in_use", "residence")

    def __init__(self) -> None:
        self.kv_in_use = 0
        """KV tokens that running requests hold."""
        self.concurrency_in_use = 0
        """Running sequences."""
        self.preemptible_in_use = 0
        """Running sequences that may be ended for a guarantee."""
        self.residence = Average(RESIDENCE_PRIOR_S)
        """Seconds from admission to the end of a request, over all entitlements and endings."""

    def reconfigure(self, account: Account, entitlement: Entitlement, pricing: Pricing) -> None:
        """Apply a changed entitlement or changed prices. Requests in flight keep their reservations."""
        account.entitlement = entitlement
        account.is_spot = entitlement.tier is Tier.SPOT
        if entitlement.is_preemptible is not account.is_preemptible:
            account.is_preemptible = entitlement.is_preemptible
            held = account.concurrency_in_use
            self.preemptible_in_use += held if account.is_preemptible else -held
        account.pricer.reprice(entitlement, pricing)

    def reserve(self, account: Account, ask: Ask, cost: Cost, now: float) -> Ticket:
        """Reserve the cost of an admitted request."""
        self._hold(account, cost.kv_tokens, cost.sequences, now)
        account.charge(cost.throughput)
        return Ticket(account, ask, cost, now)

    def extend(self, ticket: Ticket, output_tokens: int, block_size: int, now: float) -> None:
        """Extend a reservation to ``output_tokens`` (over all its sequences).

        This is never refused and may exceed the limit: no running request is cut for its length. Raises
        ``TicketEnded`` if the ticket has ended.
        """
        ticket.require_running()
        if output_tokens <= ticket.output_held:
            return
        ticket.output_held = output_tokens
        extra = output_tokens - ticket.cost.output_tokens
        pricer = ticket.account.pricer
        charge = pricer.throughput(pricer.spent_so_far(ticket.cost, output_tokens)) - ticket.charged
        kv_tokens = ticket.cost.kv_tokens + -(-extra // block_size) * block_size
        self._hold(ticket.account, kv_tokens - ticket.kv_held, 0, now)
        ticket.kv_held = kv_tokens
        ticket.account.charge(charge)
        ticket.charged += charge

    def settle(
        self, ticket: Ticket, spent: Usage, ending: Ending, now: float, *, reported: bool = True
    ) -> None:
        """Replace the reservation by the actual usage. Raises ``TicketEnded`` the second time.

        The estimators learn from a finished request whose usage the engine ``reported``. From a request that
        was cut short they learn that its output would have been longer.
        """
        ticket.require_running()
        ticket.ending = ending
        account = ticket.account
        self._hold(account, -ticket.kv_held, -ticket.cost.sequences, now)
        account.charge(account.pricer.throughput(spent) - ticket.charged)
        self.residence.observe(max(now - ticket.admitted_at, 0.0))
        if ending is not Ending.FINISHED:
            account.pricer.learn_cut(ticket.ask, spent.output_tokens)
        elif reported:
            account.meter.residence.observe(max(now - ticket.admitted_at, 0.0))
            account.pricer.learn(ticket.ask, spent, ticket.cost)

    def _hold(self, account: Account, kv_tokens: int, sequences: int, now: float) -> None:
        """Change the gauges of the account and of the sidecar together, so that the sums stay equal."""
        account.hold(kv_tokens, sequences, now)
        self.kv_in_use += kv_tokens
        self.concurrency_in_use += sequences
        if account.is_preemptible:
            self.preemptible_in_use += sequences
