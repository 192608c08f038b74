"""The meter: one entitlement's demand, spending and use on one sidecar. It makes the planner's reports.

``now`` is in seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from typing import Final

from tokenpool.accounting.report import Report
from tokenpool.amounts import NOTHING, Amount
from tokenpool.pricing.cost import Cost
from tokenpool.pricing.estimators import Average

DEMAND_MEMORY_S: Final = 1.0
"""Time constant in seconds of the average that turns offered load into demand."""
RESIDENCE_PRIOR_S: Final = 1.0
"""The assumed time of a request in the engine, in seconds, before the first request ends."""
IDLE_BELOW: Final = 0.25
"""An entitlement without offers is idle if its demand is below this number of sequences. Others may
use all of its limit."""
LARGEST_MEMORY_S: Final = 30.0
"""Time constant in seconds with which the remembered size of the largest request decays."""


class Meter:
    """The demand and the service of one entitlement since the last report.

    Demand follows Little's law. Each offered request demands its tokens. It also demands its KV tokens and
    sequences for the mean time of this entitlement's requests in the engine. So the proportions of the demand
    are the true mix of the requests, for any share of shed requests.
    """

    __slots__ = (
        "_charged",
        "_held_at",
        "_largest_kv",
        "_largest_sequences",
        "_offered_kv",
        "_offered_sequences",
        "_offered_tokens",
        "_peak_concurrency",
        "_peak_kv",
        "_reported_at",
        "_reported_concurrency_s",
        "_reported_kv_s",
        "_retried_kv",
        "_retried_sequences",
        "_retried_tokens",
        "concurrency_seconds",
        "demand",
        "free_tokens",
        "fresh",
        "kv_seconds",
        "residence",
        "spent",
        "typical_tokens",
    )

    def __init__(self, now: float) -> None:
        self._reported_at = self._held_at = now
        self._offered_tokens = self._offered_kv = self._offered_sequences = 0.0
        self.kv_seconds = self.concurrency_seconds = 0.0
        """KV-token-seconds and sequence-seconds held, since the account exists."""
        self._reported_kv_s = self._reported_concurrency_s = 0.0
        self._retried_tokens = self._retried_kv = self._retried_sequences = 0.0
        self.spent = 0.0
        """Throughput tokens charged less refunds, since the account exists. It may fall."""
        self.free_tokens = 0.0
        """The part of ``spent`` that the pool's free capacity pays, since the account exists."""
        self._charged = 0.0
        """The part of ``spent`` that is reported."""
        self._peak_kv = self._peak_concurrency = 0
        """The highest use since the last ``take_peaks``."""
        self._largest_kv = self._largest_sequences = 0.0
        self.demand = NOTHING
        """The recent offered load, shed requests included."""
        self.fresh = NOTHING
        """The demand without the retries of shed requests."""
        self.residence = Average(RESIDENCE_PRIOR_S)
        """Mean seconds from the admission to the end of a request."""
        self.typical_tokens = Average(0.0)
        """Mean throughput cost of a request, in weighted tokens."""

    def offer(self, cost: Cost, *, is_retry: bool = False) -> None:
        """Count one priced request, admitted or shed."""
        sequences, throughput, kv_tokens = cost.sequences, cost.throughput, cost.kv_tokens
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
        """Whether no request was offered since the last report, and demand was zero at that report."""
        return self._offered_sequences == 0 and self.demand == NOTHING

    @property
    def unreported(self) -> float:
        """Throughput tokens charged since the last report."""
        return max(self.spent - self._charged, 0.0)

    @property
    def floor(self) -> Amount:
        """The largest recent request in KV tokens and sequences, at least one sequence."""
        return Amount(0.0, self._largest_kv, max(self._largest_sequences, 1.0))

    def integrate(self, kv_tokens: int, concurrency: int, now: float) -> None:
        """Integrate both gauges over the time since the last call. Call it before a gauge changes."""
        elapsed = now - self._held_at
        if elapsed > 0:
            self.kv_seconds += kv_tokens * elapsed
            self.concurrency_seconds += concurrency * elapsed
            self._held_at = now

    def note_peaks(self, kv_tokens: int, concurrency: int) -> None:
        """Remember the highest use. Call it after a gauge changed."""
        if kv_tokens > self._peak_kv:
            self._peak_kv = kv_tokens
        if concurrency > self._peak_concurrency:
            self._peak_concurrency = concurrency

    def take_peaks(self, kv_tokens: int, concurrency: int) -> tuple[int, int]:
        """The highest KV tokens and sequences in use since the last call. Peaks restart at these gauges."""
        peaks = self._peak_kv, self._peak_concurrency
        self._peak_kv, self._peak_concurrency = kv_tokens, concurrency
        return peaks

    def report(self, kv_in_use: int, concurrency_in_use: int, now: float, held: Amount) -> Report:
        """Close the interval and report it. An interval of zero length repeats the last demand.

        The demand is at least ``held``.
        """
        self.integrate(kv_in_use, concurrency_in_use, now)
        # Read before the decay: a floor slightly below the largest request would exclude that request.
        floor = self.floor
        elapsed = now - self._reported_at
        service = NOTHING
        if elapsed > 0:
            self._remember_demand(elapsed)
            spent = self.unreported
            kv_held = self.kv_seconds - self._reported_kv_s
            concurrency_held = self.concurrency_seconds - self._reported_concurrency_s
            service = Amount(spent, kv_held, concurrency_held) * (1 / elapsed)
            # A refund beyond the charges of this interval reduces the next report.
            self._charged += spent
            self._reported_kv_s, self._reported_concurrency_s = self.kv_seconds, self.concurrency_seconds
            self._reported_at = now
        self.demand = self.demand.at_least(held)
        self.fresh = self.fresh.at_least(held)
        return Report(demand=self.demand, service=service, floor=floor)

    def skip_idle_time(self, until: float) -> None:
        """Skip an idle time. The result equals that of reports without an offer or a running request."""
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
