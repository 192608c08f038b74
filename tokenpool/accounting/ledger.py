"""The ledger: it records the reservations and settlements of admitted requests on one sidecar.

A ``Ticket`` is a reservation that ends exactly once. The admission rules decide whether a request gets a
ticket. The ledger only records it. ``now`` is in seconds of any monotonic clock.
"""

from __future__ import annotations

from typing import Final

from tokenpool.accounting.account import Account
from tokenpool.accounting.meter import RESIDENCE_PRIOR_S
from tokenpool.accounting.shadow import Shadow
from tokenpool.accounting.ticket import Place, Ticket
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Ask, Cost, Usage
from tokenpool.pricing.estimators import Average

_FINISHED: Final = Ending.FINISHED


class Ledger:
    """Makes reservations on accounts, and keeps the sums over all accounts of one sidecar."""

    __slots__ = (
        "away",
        "concurrency_in_use",
        "kv_in_use",
        "preemptible_in_use",
        "residence",
        "spent",
        "surplus_concurrency",
        "surplus_kv",
    )

    def __init__(self) -> None:
        self.kv_in_use = 0
        """KV tokens that running requests hold on the engine of this sidecar."""
        self.concurrency_in_use = 0
        """Sequences that run on this engine."""
        self.preemptible_in_use = 0
        """Sequences on this engine that may be ended for a guarantee."""
        self.away = 0
        """Sequences that run on other replicas, by handover. No other sum here includes them."""
        self.surplus_kv = self.surplus_concurrency = 0
        """KV tokens and sequences on this engine that enforcement would not run (``shadow``). No other sum
        here includes them."""
        self.spent = 0.0
        """Throughput tokens charged less refunds, over all accounts. It may fall."""
        self.residence = Average(RESIDENCE_PRIOR_S)
        """Seconds from admission to the end of a request, over all entitlements and endings."""

    def reconfigure(self, account: Account, entitlement: Entitlement, pricing: Pricing) -> None:
        """Apply a changed entitlement or changed prices. Requests in flight keep their reservations."""
        account.entitlement = entitlement
        account.is_spot = entitlement.tier is Tier.SPOT
        account.is_plain = entitlement.is_plain
        if entitlement.enforce:
            account.shadow = None
        elif account.shadow is None:
            account.shadow = Shadow()
        if entitlement.is_preemptible is not account.is_preemptible:
            account.is_preemptible = entitlement.is_preemptible
            held = account.concurrency_in_use - account.away
            self.preemptible_in_use += held if account.is_preemptible else -held
        account.pricer.reprice(entitlement, pricing)

    def reserve(
        self, account: Account, ask: Ask, cost: Cost, now: float, place: Place | None = None
    ) -> Ticket:
        """Reserve the cost of an admitted request. ``place`` is the other replica that runs it, if any."""
        ticket = Ticket(account, ask, cost, now, place)
        self._hold(ticket, cost.kv_tokens, cost.sequences, now)
        self._charge(ticket, cost.throughput)
        return ticket

    def count_surplus(self, account: Account, shadow: Shadow, ask: Ask, cost: Cost, now: float) -> Ticket:
        """Make a ticket for a request that enforcement would not run. Its use is counted as surplus."""
        ticket = Ticket(account, ask, cost, now)
        ticket.surplus = shadow
        self._hold(ticket, cost.kv_tokens, cost.sequences, now)
        self._charge(ticket, cost.throughput)
        return ticket

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
        self._hold(ticket, kv_tokens - ticket.kv_held, 0, now)
        ticket.kv_seconds_before -= (kv_tokens - ticket.kv_held) * (now - ticket.admitted_at)
        ticket.kv_held = kv_tokens
        self._charge(ticket, charge)
        ticket.charged += charge
        if ticket.hold is not None:
            ticket.hold.grow(charge)

    def move(self, ticket: Ticket, place: Place) -> None:
        """A request that was reserved here runs at another replica. Raises ``TicketEnded``."""
        ticket.require_running()
        account, sequences = ticket.account, ticket.cost.sequences
        ticket.place = place
        self.kv_in_use -= ticket.kv_held
        self.concurrency_in_use -= sequences
        if account.is_preemptible:
            self.preemptible_in_use -= sequences
        self.away += sequences
        account.away += sequences

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
        self._hold(ticket, -ticket.kv_held, -ticket.cost.sequences, now)
        account.give_back()
        tokens = account.pricer.throughput(spent)
        self._charge(ticket, tokens - ticket.charged)
        if ticket.hold is not None:
            ticket.hold.settle(tokens)
        held_s = now - ticket.admitted_at
        if held_s < 0.0:
            held_s = 0.0
        if reported or ticket.has_begun or ending is _FINISHED:
            # The time for which unused room was kept says nothing about the time of a request.
            self.residence.observe(held_s)
        if ending is not _FINISHED:
            account.pricer.learn_cut(ticket.ask, spent.output_tokens)
        elif reported:
            account.meter.residence.observe(held_s)
            for group in ticket.groups:
                group.meter.residence.observe(held_s)
            account.pricer.learn(
                ticket.ask,
                spent,
                ticket.cost,
                ran_here=ticket.place is None,
                running=round(account.concurrency_in_use),
            )

    def _charge(self, ticket: Ticket, tokens: float) -> None:
        if ticket.surplus is not None:
            ticket.surplus.spent += tokens
            return
        ticket.account.charge(tokens)
        for group in ticket.groups:
            group.charge(tokens)
        self.spent += tokens

    def _hold(self, ticket: Ticket, kv_tokens: int, sequences: int, now: float) -> None:
        """Change the gauges of the account and of the sidecar together, so that the sums stay equal."""
        if ticket.surplus is not None:
            ticket.surplus.kv_in_use += kv_tokens
            ticket.surplus.concurrency_in_use += sequences
            self.surplus_kv += kv_tokens
            self.surplus_concurrency += sequences
            return
        account = ticket.account
        account.hold(kv_tokens, sequences, now)
        for group in ticket.groups:
            group.hold(kv_tokens, sequences, now)
        if ticket.place is not None:
            self.away += sequences
            account.away += sequences
            return
        self.kv_in_use += kv_tokens
        self.concurrency_in_use += sequences
        if account.is_preemptible:
            self.preemptible_in_use += sequences
