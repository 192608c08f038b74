"""The ledger: what each entitlement holds and has spent on one sidecar.

An ``Account`` per entitlement keeps a token bucket with a signed level and two gauges; a ``Ticket`` is a
reservation that ends exactly once. Whether a request may have a ticket is ``admission``'s decision; the
ledger only books it. ``now`` is seconds on any monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tokenpool.accounting.retries import Retries
from tokenpool.amounts import NOTHING, Amount
from tokenpool.entitlements import Entitlement, Pricing, Tier
from tokenpool.outcomes import Ending
from tokenpool.planning import debt as debts_of
from tokenpool.planning.allocation import IdleTerms
from tokenpool.planning.planner import Report, idle_share
from tokenpool.pricing.cost import Ask, Cost, Pricer, Usage
from tokenpool.pricing.estimators import Average

BUCKET_SECONDS = 1.0
"""A bucket holds at least this long at its rate (design: shallower ones cost sparse tenants their share)."""
BUCKET_REQUESTS = 2.0
"""... and at least this many typical requests."""
DEMAND_MEMORY_S = 1.0
"""Time constant over which offered load is averaged into demand."""
RESIDENCE_PRIOR_S = 1.0
"""How long a request stays in the engine, until some have."""
IDLE_BELOW = 0.25
"""Who offers nothing and whose demand has faded below so many sequences is idle: all of it is lent."""
LARGEST_MEMORY_S = 30.0
"""Time constant with which the memory of a large request fades."""


class TicketEnded(Exception):
    """A ticket was used after its end: a defect in the caller, never in the request."""


class TokenBucket:
    """A bucket of throughput tokens whose level may go below zero.

    It admits while the level is above zero and is charged the whole cost, so that a large request is
    never starved by a small bucket and the long-run rate still holds.
    """

    __slots__ = ("_filled_at", "depth", "level", "rate")

    def __init__(self, now: float) -> None:
        self.level = 0.0
        self.rate = 0.0
        self.depth = 0.0
        self._filled_at = now

    def refill(self, now: float) -> float:
        """Bring the level up to date and return it."""
        if now > self._filled_at:
            level = self.level + self.rate * (now - self._filled_at)
            self.level = level if level < self.depth else self.depth
            self._filled_at = now
        return self.level

    def resize(self, rate: float, depth: float, now: float) -> None:
        """Change the rate (tokens/s) and the depth (tokens). A new bucket starts full."""
        is_new = self.depth == 0.0
        self.refill(now)
        self.rate, self.depth = rate, depth
        self.level = depth if is_new else min(self.level, depth)

    def add(self, tokens: float) -> None:
        """Refund (positive) or charge (negative); never above the depth."""
        level = self.level + tokens
        self.level = level if level < self.depth else self.depth

    def fill(self) -> None:
        """Be full."""
        self.level = self.depth

    def hold(self, tokens: float) -> None:
        """Become a purse: exactly so many tokens, with nothing flowing in."""
        self.level, self.rate, self.depth = tokens, 0.0, math.inf

    def forget(self) -> None:
        """Become as new: the next size fills it."""
        self.level = self.rate = self.depth = 0.0


class Meter:
    """What an entitlement offered and used since the last tick, for the planner.

    Demand follows Little's law: each offered request asks for its tokens, and for its KV tokens and
    sequences for as long as this entitlement's requests stay. So the demand's direction is the true mix
    of the requests, whatever share of them was shed.
    """

    __slots__ = (
        "_charged",
        "_held_at",
        "_largest_kv",
        "_largest_sequences",
        "_offered_kv",
        "_offered_sequences",
        "_offered_tokens",
        "_reported_at",
        "_reported_concurrency_s",
        "_reported_kv_s",
        "_retried_kv",
        "_retried_sequences",
        "_retried_tokens",
        "concurrency_seconds",
        "demand",
        "fresh",
        "kv_seconds",
        "peak_concurrency",
        "peak_kv",
        "residence",
        "spent",
        "typical_tokens",
    )

    def __init__(self, now: float) -> None:
        self._reported_at = self._held_at = now
        self._offered_tokens = self._offered_kv = self._offered_sequences = 0.0
        self.kv_seconds = self.concurrency_seconds = 0.0
        """KV-token-seconds and sequence-seconds held, since the beginning."""
        self._reported_kv_s = self._reported_concurrency_s = 0.0
        self._retried_tokens = self._retried_kv = self._retried_sequences = 0.0
        self.spent = 0.0
        """Throughput tokens charged less those refunded, since the beginning. It may fall."""
        self._charged = 0.0
        """How much of ``spent`` was reported."""
        self.peak_kv = self.peak_concurrency = 0
        """The most that was in use at once, since whoever reads it last set it."""
        self._largest_kv = self._largest_sequences = 0.0
        self.demand = NOTHING
        """What was offered of late, shed requests included."""
        self.fresh = NOTHING
        """The same without the retries of what was shed."""
        self.residence = Average(RESIDENCE_PRIOR_S)
        """Seconds from admission to the end of a request."""
        self.typical_tokens = Average(0.0)
        """Throughput cost of a request."""

    def offer(self, cost: Cost, *, is_retry: bool = False) -> None:
        """Count one priced request, admitted or shed."""
        _, _, sequences, throughput, kv_tokens, _ = cost
        self._offered_tokens += throughput
        self._offered_kv += kv_tokens
        self._offered_sequences += sequences
        if kv_tokens > self._largest_kv:
            self._largest_kv = float(kv_tokens)
        if sequences > self._largest_sequences:
            self._largest_sequences = float(sequences)
        self.typical_tokens.observe(throughput)
        if is_retry:
            self._retried_tokens += throughput
            self._retried_kv += kv_tokens
            self._retried_sequences += sequences

    @property
    def is_idle(self) -> bool:
        """Whether nothing was offered since the last report, and nothing of late."""
        return self._offered_sequences == 0 and self.demand == NOTHING

    @property
    def unreported(self) -> float:
        """Throughput tokens charged since the last report."""
        return max(self.spent - self._charged, 0.0)

    @property
    def floor(self) -> Amount:
        """The largest request of late, at least one sequence."""
        return Amount(0.0, self._largest_kv, max(self._largest_sequences, 1.0))

    def hold(self, kv_tokens: int, concurrency: int, now: float) -> None:
        """Integrate what was held until now; call before either gauge changes."""
        elapsed = now - self._held_at
        if elapsed > 0:
            self.kv_seconds += kv_tokens * elapsed
            self.concurrency_seconds += concurrency * elapsed
            self._held_at = now

    def report(self, kv_in_use: int, concurrency_in_use: int, now: float) -> Report:
        """Close the interval and say what it saw. An interval of no length repeats the last demand."""
        self.hold(kv_in_use, concurrency_in_use, now)
        # Before it fades: a floor a little below the largest request would shut just that one out.
        floor = self.floor
        elapsed = now - self._reported_at
        service = NOTHING
        if elapsed > 0:
            self._remember_demand(elapsed)
            spent = self.unreported
            kv_held = self.kv_seconds - self._reported_kv_s
            concurrency_held = self.concurrency_seconds - self._reported_concurrency_s
            service = Amount(spent, kv_held, concurrency_held) * (1 / elapsed)
            # Refunds beyond what was charged since are taken off the next report.
            self._charged += spent
            self._reported_kv_s, self._reported_concurrency_s = self.kv_seconds, self.concurrency_seconds
            self._reported_at = now
        held = Amount(0.0, kv_in_use, concurrency_in_use)
        self.demand = self.demand.at_least(held)
        self.fresh = self.fresh.at_least(held)
        return Report(demand=self.demand, service=service, floor=floor)

    def rest(self, until: float) -> None:
        """Let an idle stretch pass at once, as reports without an offer or a hold would."""
        elapsed = until - self._reported_at
        if elapsed > 0:
            faded = math.exp(-elapsed / LARGEST_MEMORY_S)
            self._largest_kv *= faded
            self._largest_sequences *= faded
            self._reported_at = until
            if until > self._held_at:
                self._held_at = until

    def _remember_demand(self, elapsed: float) -> None:
        residence = self.residence.value
        offered = Amount(
            self._offered_tokens,
            self._offered_kv * residence,
            self._offered_sequences * residence,
        ) * (1 / elapsed)
        retried = Amount(
            self._retried_tokens,
            self._retried_kv * residence,
            self._retried_sequences * residence,
        ) * (1 / elapsed)
        kept = math.exp(-elapsed / DEMAND_MEMORY_S)
        self.demand = self.demand * kept + offered * (1 - kept)
        self.fresh = self.fresh * kept + (offered - retried) * (1 - kept)
        if self._offered_sequences == 0 and self.demand.concurrency < IDLE_BELOW:
            self.demand = self.fresh = NOTHING
        self._retried_tokens = self._retried_kv = self._retried_sequences = 0.0
        self._offered_tokens = self._offered_kv = self._offered_sequences = 0.0
        faded = math.exp(-elapsed / LARGEST_MEMORY_S)
        self._largest_kv *= faded
        self._largest_sequences *= faded


def bucket_depth(rate: float, typical_tokens: float) -> float:
    """How many tokens a bucket holds, for a rate in tokens/s and a typical request's cost."""
    return max(rate * BUCKET_SECONDS, typical_tokens * BUCKET_REQUESTS, 1.0)


class Account:
    """One entitlement on this sidecar: its limit, its bucket, its gauges and what was learned of it."""

    __slots__ = (
        "assured",
        "bucket",
        "concurrency_elsewhere",
        "concurrency_in_use",
        "debt",
        "depth",
        "entitlement",
        "has_peers",
        "is_active",
        "is_preemptible",
        "is_spot",
        "kv_elsewhere",
        "kv_in_use",
        "level_elsewhere",
        "limit",
        "meter",
        "plan",
        "planned_at",
        "pool_limit",
        "pricer",
        "retries",
    )

    def __init__(self, entitlement: Entitlement, pricing: Pricing, now: float) -> None:
        self.entitlement = entitlement
        self.is_spot = entitlement.tier is Tier.SPOT
        self.is_preemptible = entitlement.is_preemptible
        """As the ledger counts it; see ``Ledger.retier``."""
        self.is_active = False
        """Whether it is one of ``Ledger.active``, which alone changes this."""
        self.plan = 0
        """The number of the plan that its limits are of, as ``ActiveAccounts`` counts them."""
        self.planned_at = now
        """When that plan was made: of an idle account, until when its debt was moved."""
        self.has_peers = False
        """Whether the pool has other engines, where a request may run that finds this one full."""
        self.pricer = Pricer(entitlement, pricing)
        self.bucket = TokenBucket(now)
        self.meter = Meter(now)
        self.retries = Retries()
        self.limit = NOTHING
        """What may be used here. The rate is the pool's: the bucket holds this sidecar's part of it."""
        self.assured = NOTHING
        self.pool_limit = NOTHING
        """What may be used at all sidecars together: the same, for a lone one."""
        self.depth = 0.0
        """Tokens that the whole bucket holds."""
        self.level_elsewhere = self.kv_elsewhere = self.concurrency_elsewhere = 0.0
        """What the bucket holds beyond this sidecar's part, and what others have in use."""
        self.debt = 0.0
        self.kv_in_use = 0
        self.concurrency_in_use = 0

    def apply(self, limit: Amount, assured: Amount, debt: float, now: float) -> None:
        """Take over what the planner decided for a lone sidecar."""
        self.limit, self.assured, self.debt = limit, assured, debt
        self.pool_limit = limit
        self.level_elsewhere = self.kv_elsewhere = self.concurrency_elsewhere = 0.0
        rate = limit.tokens_per_second
        self.depth = bucket_depth(rate, self.meter.typical_tokens.value)
        self.bucket.resize(rate, self.depth, now)

    @property
    def level(self) -> float:
        """Of the whole bucket, in tokens, as far as is known here."""
        return self.bucket.level + self.level_elsewhere

    def is_inside_guarantee(
        self, sequences: int = 0, kv_tokens: int = 0, *, counts_elsewhere: bool = True
    ) -> bool:
        """Whether what is in use, and so much more, lies inside the entitlement's guarantee.

        Other sidecars' part is counted as far as it is known here; without ``counts_elsewhere`` the question
        is whether it may, should they have nothing in use. A guarantee that names no KV tokens is not bounded
        by them.
        """
        guarantee = self.entitlement.guarantee
        sequences += self.concurrency_in_use
        kv_tokens += self.kv_in_use
        others = (self.concurrency_elsewhere, self.kv_elsewhere) if counts_elsewhere else (0.0, 0.0)
        return (
            sequences + others[0] <= guarantee.concurrency
            and (kv_tokens + others[1] <= guarantee.kv_tokens or not guarantee.kv_tokens)
            and self.entitlement.tier is not Tier.SPOT
        )

    def report(self, now: float) -> Report:
        """What the planner needs to know of the time since the last report."""
        return self.meter.report(self.kv_in_use, self.concurrency_in_use, now)


class Ticket:
    """A reservation: what one admitted request holds until it is settled."""

    __slots__ = (
        "account",
        "admitted_at",
        "ask",
        "charged",
        "cost",
        "ending",
        "has_begun",
        "is_guaranteed",
        "kv_held",
        "output_held",
        "streams",
    )

    def __init__(self, account: Account, ask: Ask, cost: Cost, now: float) -> None:
        self.account = account
        self.ask = ask
        self.cost = cost
        self.admitted_at = now
        self.charged = cost.throughput
        self.kv_held = cost.kv_tokens
        self.output_held = cost.output_tokens
        """Output tokens that the reservation covers, over all sequences."""
        self.ending: Ending | None = None
        self.streams = True
        """Whether the answer is a stream, so that its first token is seen."""
        self.has_begun = False
        """Whether the first token has come."""
        self.is_guaranteed = False
        """Whether the request was inside its entitlement's guarantee when it was admitted."""


class ActiveAccounts:
    """The accounts that periodic work has to look at: a tick's work follows these, not all that exist.

    An account becomes active at its first offer: ``touch``, before a limit is read. It becomes idle again
    when the owner of the periodic work retires it: see ``can_rest``.

    A lone sidecar hands the terms of each plan to ``planned``. An idle account has the limits that a plan
    with it would give, its bucket is full, and its debt and its largest request fade. ``refresh`` works that
    out when the account is touched or shown. Without terms (limits come from the lease store) it changes
    nothing.
    """

    __slots__ = ("_accounts", "_debt_decay_s", "_plan", "_planned_at", "_planned_before", "_terms")

    def __init__(self) -> None:
        self._accounts: dict[Account, None] = {}
        self._terms: IdleTerms | None = None
        self._debt_decay_s = 1.0
        self._plan = 0
        self._planned_at = self._planned_before = -math.inf

    def __iter__(self) -> Iterator[Account]:
        """In the order in which they became active. Copy what is iterated over while accounts retire."""
        return iter(self._accounts)

    def __len__(self) -> int:
        return len(self._accounts)

    def touch(self, account: Account, now: float) -> None:
        """The account is about to offer or hold something. Free for one that is active."""
        if not account.is_active:
            self.refresh(account, now)
            account.is_active = True
            self._accounts[account] = None

    def can_rest(self, account: Account, now: float) -> bool:
        """Whether an active account needs no tick: no demand, nothing held, and a full bucket.

        Ask after its report and its limits were taken. Nothing is lost by retiring it then, debt included.
        """
        return (
            account.concurrency_in_use == 0
            and account.kv_in_use == 0
            and account.meter.is_idle
            and account.bucket.refill(now) >= account.bucket.depth
        )

    def retire(self, account: Account) -> None:
        """Look at an account no more until it is touched."""
        if account in self._accounts:
            del self._accounts[account]
            account.is_active = False
            account.plan, account.planned_at = self._plan, self._planned_at

    def expel(self, account: Account) -> None:
        """The account's entitlement is gone from the pool file: it is not planned for any more.

        Requests of it that are under way settle as they began; one that still waits does not bring it back.
        """
        self._accounts.pop(account, None)
        account.is_active = True

    def planned(self, terms: IdleTerms, now: float, debt_decay_s: float) -> None:
        """A lone sidecar's plan was made: what it leaves for idle accounts."""
        self._terms = terms
        self._debt_decay_s = debt_decay_s
        self._plan += 1
        self._planned_before, self._planned_at = self._planned_at, now

    def refresh(self, account: Account, now: float) -> None:
        """Bring an idle account's limits, bucket and debt up to date. Does nothing to an active one."""
        terms = self._terms
        if terms is None or account.is_active or account.plan == self._plan:
            return
        # A report's floor is as of the report before it.
        account.meter.rest(self._planned_before)
        floor = account.meter.floor
        account.meter.rest(self._planned_at)
        share = idle_share(account.entitlement, terms, floor)
        elapsed = self._planned_at - account.planned_at
        debt = account.debt
        if debt != 0 and elapsed > 0:
            debt = debts_of.decayed(debt, elapsed, self._debt_decay_s)
        account.apply(share.limit, share.assured, debt, now)
        account.bucket.fill()
        account.plan, account.planned_at = self._plan, self._planned_at


class Ledger:
    """All accounts of one sidecar, and what they hold together."""

    __slots__ = ("active", "concurrency_in_use", "kv_in_use", "preemptible_in_use", "residence")

    def __init__(self) -> None:
        self.active = ActiveAccounts()
        self.kv_in_use = 0
        self.concurrency_in_use = 0
        self.preemptible_in_use = 0
        """Sequences among them that may be ended for a guarantee."""
        self.residence = Average(RESIDENCE_PRIOR_S)
        """Seconds from admission to the end of a request, over all entitlements and endings."""

    def retier(self, account: Account) -> None:
        """Count an account whose entitlement was changed as what it is now."""
        entitlement = account.entitlement
        account.is_spot = entitlement.tier is Tier.SPOT
        if entitlement.is_preemptible is not account.is_preemptible:
            account.is_preemptible = entitlement.is_preemptible
            held = account.concurrency_in_use
            self.preemptible_in_use += held if account.is_preemptible else -held

    def reserve(self, account: Account, ask: Ask, cost: Cost, now: float) -> Ticket:
        """Book an admitted request."""
        self._hold(account, cost.kv_tokens, cost.sequences, now)
        self._charge(account, cost.throughput)
        return Ticket(account, ask, cost, now)

    def extend(self, ticket: Ticket, output_tokens: int, block_size: int, now: float) -> None:
        """Grow a running reservation so that it covers ``output_tokens`` (over all its sequences).

        It is never refused and may pass the limit: nothing in flight is cut for its length.
        """
        _require_running(ticket)
        if output_tokens <= ticket.output_held:
            return
        ticket.output_held = output_tokens
        extra = output_tokens - ticket.cost.output_tokens
        pricer = ticket.account.pricer
        charge = pricer.throughput(pricer.spent_so_far(ticket.cost, output_tokens)) - ticket.charged
        kv_tokens = ticket.cost.kv_tokens + -(-extra // block_size) * block_size
        self._hold(ticket.account, kv_tokens - ticket.kv_held, 0, now)
        ticket.kv_held = kv_tokens
        self._charge(ticket.account, charge)
        ticket.charged += charge

    def settle(
        self, ticket: Ticket, spent: Usage, ending: Ending, now: float, *, reported: bool = True
    ) -> None:
        """Replace the reservation by what was really spent. Raises ``TicketEnded`` the second time.

        What the engine ``reported`` of a finished request teaches the estimators; of one that was cut short
        they learn that its output would have been longer.
        """
        _require_running(ticket)
        ticket.ending = ending
        account = ticket.account
        self._hold(account, -ticket.kv_held, -ticket.cost.sequences, now)
        self._charge(account, account.pricer.throughput(spent) - ticket.charged)
        self.residence.observe(max(now - ticket.admitted_at, 0.0))
        if ending is not Ending.FINISHED:
            account.pricer.learn_cut(ticket.ask, spent.output_tokens)
        elif reported:
            account.meter.residence.observe(max(now - ticket.admitted_at, 0.0))
            account.pricer.learn(ticket.ask, spent)

    def _hold(self, account: Account, kv_tokens: int, sequences: int, now: float) -> None:
        """Move every gauge. The numbers stand beside each other, so that they never part."""
        account.meter.hold(account.kv_in_use, account.concurrency_in_use, now)
        account.kv_in_use += kv_tokens
        account.concurrency_in_use += sequences
        meter = account.meter
        if account.kv_in_use > meter.peak_kv:
            meter.peak_kv = account.kv_in_use
        if account.concurrency_in_use > meter.peak_concurrency:
            meter.peak_concurrency = account.concurrency_in_use
        self.kv_in_use += kv_tokens
        self.concurrency_in_use += sequences
        if account.is_preemptible:
            self.preemptible_in_use += sequences

    @staticmethod
    def _charge(account: Account, tokens: float) -> None:
        account.bucket.add(-tokens)
        account.meter.spent += tokens


def _require_running(ticket: Ticket) -> None:
    if ticket.ending is not None:
        raise TicketEnded(f"the ticket ended already: {ticket.ending}")
