"""Telemetry: what the sidecar counts, and its Prometheus page.

The request path adds to plain numbers; they become metrics only when the page is asked for, so that no
request pays for a lock or a label look-up. Labels are entitlements, tiers and closed enums: bounded.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sidecar.reported import NoUsage
from tokenpool.amounts import Dimension
from tokenpool.cost import Usage
from tokenpool.ledger import Account, Ticket
from tokenpool.outcomes import Ending, Reason
from tokenpool.wire import FIRST_TOKEN_BOUNDS_S

NOBODY = "none"
"""The label of requests that belong to no entitlement: no or unknown key, probes."""

_OVERHEAD_BUCKETS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 0.1)
_RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)


class Histogram:
    """Counts by upper bound; thread-unsafe, for one event loop."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
        rows, running = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            running += count
            rows.append(("+Inf" if bound == float("inf") else repr(bound), float(running)))
        return rows


class Tally:
    """The counts of one entitlement."""

    __slots__ = (
        "cached",
        "first_token",
        "input",
        "input_ratio",
        "outcomes",
        "outgrown",
        "output",
        "output_ratio",
        "tier",
        "without_usage",
    )

    def __init__(self, tier: str) -> None:
        self.tier = tier
        self.outcomes: Counter[str] = Counter()
        self.input = self.output = self.cached = 0
        self.without_usage: Counter[str] = Counter()
        """Finished answers without usage, by what was the matter."""
        self.outgrown = 0
        """Requests whose output was more than was reserved for it."""
        self.first_token = Histogram(FIRST_TOKEN_BOUNDS_S)
        self.input_ratio = Histogram(_RATIO_BUCKETS)
        self.output_ratio = Histogram(_RATIO_BUCKETS)


class Telemetry(Collector):
    """All counts of one sidecar."""

    def __init__(self) -> None:
        self.clock = time.monotonic
        self.limits_computed = 0
        self.reloads: Counter[str] = Counter()
        self.config_is_current = True
        self.config_differs = False
        """Whether this sidecar's own pool file is another than the published one in force."""
        self.engine_is_up = False
        self.engine_page_is_usable = False
        self.levers: Callable[[], Iterator[Metric]] | None = None
        """The metrics of what the gate does for guarantees beyond admission."""
        self.books: Callable[[], Iterator[Metric]] | None = None
        """The metrics of a sidecar that shares limits with others."""
        self.bounds: Callable[[], Iterator[Metric]] | None = None
        """The metrics of what callers occupy of the sidecar itself."""
        self.tls: Callable[[], Iterator[Metric]] | None = None
        """The metrics of a proxied port that speaks TLS."""
        self._accounts: Mapping[str, Account] = {}
        self._tallies: dict[str, Tally] = {NOBODY: Tally(NOBODY)}
        self._overhead = Histogram(_OVERHEAD_BUCKETS)
        self._touched: set[str] = set()

    def follow(self, accounts: Mapping[str, Account]) -> None:
        """The accounts in force now. Counts of an entitlement that is gone stay until the restart."""
        self._accounts = accounts
        for name, account in accounts.items():
            tally = self._tallies.setdefault(name, Tally(account.entitlement.tier.value))
            tally.tier = account.entitlement.tier.value

    # --- called on the request path ---

    def ended(self, account: Account | None, ending: Ending) -> None:
        """A request that held nothing has ended."""
        self._tally(account).outcomes[ending] += 1

    def refused(self, account: Account | None, reason: Reason) -> None:
        """A request was refused."""
        self._tally(account).outcomes[reason] += 1

    def settled(self, ticket: Ticket, ending: Ending, usage: Usage, *, reported: bool) -> None:
        """An admitted request was settled."""
        name = ticket.account.entitlement.name
        self._touched.add(name)
        tally = self._tallies[name]
        tally.outcomes[ending] += 1
        input_tokens, output_tokens, cached_tokens = usage
        tally.input += input_tokens - cached_tokens
        tally.cached += cached_tokens
        tally.output += output_tokens
        cost = ticket.cost
        if output_tokens > cost.output_tokens:
            tally.outgrown += 1
        if reported and input_tokens:
            tally.input_ratio.observe(cost.input_tokens / input_tokens)
        if reported and output_tokens and ending is Ending.FINISHED:
            tally.output_ratio.observe(cost.output_tokens / output_tokens)

    def answered_without_usage(self, account: Account, no_usage: NoUsage) -> None:
        """A finished answer had no usage and is settled by estimate."""
        self._tallies[account.entitlement.name].without_usage[no_usage] += 1

    def first_token(self, account: Account | None, seconds: float) -> None:
        """The first output of an answer came so long after the request."""
        self._tally(account).first_token.observe(seconds)

    def overhead(self, seconds: float) -> None:
        """From the whole request read to its being sent on: pricing, admission and framing."""
        self._overhead.observe(seconds)

    def _tally(self, account: Account | None) -> Tally:
        name = account.entitlement.name if account is not None else NOBODY
        self._touched.add(name)
        return self._tallies[name]

    # --- for pages ---

    def touched(self) -> set[str]:
        """The names whose counts changed since this was asked last."""
        names, self._touched = self._touched, set()
        return names

    def first_tokens(self, name: str) -> tuple[float, tuple[int, ...]]:
        """Times to first token: their sum in seconds, and counts by ``FIRST_TOKEN_BOUNDS_S``."""
        first_token = self._tallies[name].first_token
        return first_token.total, tuple(first_token.counts)

    def outcomes(self, name: str) -> dict[str, int]:
        """How an entitlement's requests ended so far, by outcome."""
        return {str(outcome): n for outcome, n in self._tallies[name].outcomes.items()}

    # --- Prometheus ---

    def collect(self) -> Iterator[Metric]:
        """prometheus-client: every metric, as of now."""
        yield from self._counters()
        yield from self._gauges()
        yield from self._histograms()
        for more in (self.levers, self.bounds, self.books, self.tls):
            if more is not None:
                yield from more()

    def _counters(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "tokenpool_requests",
            "Requests by how they ended, or why they were refused.",
            labels=("entitlement", "tier", "outcome"),
        )
        tokens = CounterMetricFamily(
            "tokenpool_tokens",
            "Tokens settled: input computed, input from the prefix cache, output.",
            labels=("entitlement", "kind"),
        )
        outgrown = CounterMetricFamily(
            "tokenpool_outgrown_reservations",
            "Requests whose output was more than was reserved for it.",
            labels=("entitlement",),
        )
        unreported = CounterMetricFamily(
            "tokenpool_answers_without_usage",
            "Finished answers that were settled by estimate: compressed, usage missing or unreadable.",
            labels=("entitlement", "reason"),
        )
        for name, tally in self._tallies.items():
            for outcome, count in sorted(tally.outcomes.items()):
                requests.add_metric((name, tally.tier, outcome), count)
            for no_usage, count in sorted(tally.without_usage.items()):
                unreported.add_metric((name, no_usage), count)
            if name != NOBODY:
                tokens.add_metric((name, "input"), tally.input)
                tokens.add_metric((name, "cached"), tally.cached)
                tokens.add_metric((name, "output"), tally.output)
                outgrown.add_metric((name,), tally.outgrown)
        reloads = CounterMetricFamily(
            "tokenpool_config_reloads", "Pool files read, by result.", labels=("result",)
        )
        for result in ("ok", "invalid"):
            reloads.add_metric((result,), self.reloads[result])
        yield from (requests, tokens, outgrown, unreported, reloads)
        yield CounterMetricFamily(
            "tokenpool_plans", "How often limits were recomputed.", value=self.limits_computed
        )

    def _gauges(self) -> Iterator[Metric]:
        by_dimension = ("entitlement", "dimension")
        reserved = GaugeMetricFamily("tokenpool_reserved", "Held by requests under way.", labels=by_dimension)
        limit = GaugeMetricFamily("tokenpool_limit", "What the entitlement may use now.", labels=by_dimension)
        level = GaugeMetricFamily(
            "tokenpool_bucket_level_tokens", "Level of the token bucket.", labels=("entitlement",)
        )
        debt = GaugeMetricFamily("tokenpool_debt", "Service owed, in seconds.", labels=("entitlement",))
        for name, account in self._accounts.items():
            reserved.add_metric((name, Dimension.KV_TOKENS.value), account.kv_in_use)
            reserved.add_metric((name, Dimension.CONCURRENCY.value), account.concurrency_in_use)
            for dimension in Dimension:
                limit.add_metric((name, dimension.value), account.pool_limit.get(dimension))
            level.add_metric((name,), account.bucket.level)
            debt.add_metric((name,), account.debt)
        yield from (reserved, limit, level, debt)
        for name, text, value in (
            ("tokenpool_engine_up", "Whether the engine answers.", self.engine_is_up),
            (
                "tokenpool_engine_page_usable",
                "Whether the engine's metrics page is used; requests are served without it, too.",
                self.engine_page_is_usable,
            ),
            (
                "tokenpool_config_current",
                "Whether the pool file on disk is the one in force.",
                self.config_is_current,
            ),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))

    def _histograms(self) -> Iterator[Metric]:
        first_token = HistogramMetricFamily(
            "tokenpool_time_to_first_token_seconds",
            "From the whole request read to the first output in the engine's answer.",
            labels=("entitlement",),
        )
        ratio = HistogramMetricFamily(
            "tokenpool_estimate_ratio",
            "Estimated over reported tokens.",
            labels=("entitlement", "kind"),
        )
        for name, tally in self._tallies.items():
            if name != NOBODY:
                first_token.add_metric((name,), *_sampled(tally.first_token))
                ratio.add_metric((name, "input"), *_sampled(tally.input_ratio))
                ratio.add_metric((name, "output"), *_sampled(tally.output_ratio))
        overhead = HistogramMetricFamily(
            "tokenpool_overhead_seconds",
            "From the whole request read to its being sent to the engine.",
        )
        overhead.add_metric((), *_sampled(self._overhead))
        yield from (first_token, ratio, overhead)


def _sampled(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    return histogram.buckets(), histogram.total
