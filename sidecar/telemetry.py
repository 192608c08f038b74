"""Telemetry: the counters of the sidecar, and its Prometheus page.

The request path adds to plain numbers. They become text only for the page, so that no request needs a lock or
a label look-up. Labels are bounded: entitlements, tiers and closed enums. Every series has the label
``pool``, because one Prometheus reads the sidecars of many pools.

Only entitlements that were used since the start have series. At most ``most_series`` have series of their
own: the first ones, with places reserved for every guaranteed one. All others are added up as ``other``. An
entitlement never moves between the two, so that no counter goes backwards.

The page is an iterator of pieces that each cover a few entitlements. Made in one piece, a page of 2,000
entitlements stopped requests for 1.8 s. Counters and page are one file, because the page reads exactly the
fields that the request path writes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, Protocol

from runtime.exposition import Family, number
from sidecar.dialects.reported_usage import NoUsage
from sidecar.histogram import Buckets, Histogram
from tokenpool.accounting.account import Account
from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.shadow import Shadow
from tokenpool.accounting.ticket import Ticket
from tokenpool.amounts import Dimension
from tokenpool.entitlements import Entitlement, Tier
from tokenpool.leases.wire import FIRST_TOKEN_BOUNDS_S
from tokenpool.outcomes import Ending, Reason, Verdict
from tokenpool.planning.active_accounts import ActiveAccounts
from tokenpool.pricing.cost import Usage

UNIDENTIFIED = "none"
"""The label of requests without an entitlement: no key, an unknown key, probes."""
OTHER = "other"
"""The label of all entitlements without series of their own."""
PER_PIECE = 8
"""Entitlements in one piece of the page: 0.2 ms with all of their histograms."""

_FINISHED: Final = Ending.FINISHED
TTFT, TPOT = "ttft", "tpot"
"""The values of the label ``slo``: the fields of ``slo`` in the pool file without their unit."""

_OVERHEAD_BUCKETS = Buckets((1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 0.1))
_RATIO_BUCKETS = Buckets((0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0))
_FIRST_TOKEN_BUCKETS = Buckets(FIRST_TOKEN_BOUNDS_S)
_PER_TOKEN_BUCKETS = Buckets(
    (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
)
"""The bounds that OpenTelemetry recommends for ``gen_ai.server.time_per_output_token``, and two smaller ones:
a small model on a CPU needs 2 to 3 ms per token."""


_REQUESTS = Family(
    "tokenpool_requests",
    "counter",
    "Requests by outcome: the ending, or the reason of the refusal.",
    ("entitlement", "tier", "outcome"),
)
_TOKENS = Family(
    "tokenpool_tokens",
    "counter",
    "Tokens settled, by kind: computed input, input from the prefix cache, output.",
    ("entitlement", "kind"),
)
_OUTGROWN = Family(
    "tokenpool_outgrown_reservations",
    "counter",
    "Requests whose output exceeded its reservation.",
    ("entitlement",),
)
_WITHOUT_USAGE = Family(
    "tokenpool_answers_without_usage",
    "counter",
    "Finished answers that were settled by estimate, because usage was compressed, missing or unreadable.",
    ("entitlement", "reason"),
)
_SHADOW = Family(
    "tokenpool_shadow_decisions",
    "counter",
    "Requests whose decision was not enforced (enforce: false), by the decision and its reason.",
    ("entitlement", "decision", "reason"),
)
_SURPLUS = Family(
    "tokenpool_shadow_surplus",
    "gauge",
    "In use by running requests that enforcement would have refused.",
    ("entitlement", "dimension"),
)
_RELOADS = Family("tokenpool_config_reloads", "counter", "Pool files read, by result.", ("result",))
_PLANS = Family("tokenpool_plans", "counter", "Computations of the limits.")
_RESERVED = Family(
    "tokenpool_reserved", "gauge", "Reserved by running requests.", ("entitlement", "dimension")
)
_LIMIT = Family(
    "tokenpool_limit", "gauge", "The most that the entitlement may use now.", ("entitlement", "dimension")
)
_LEVEL = Family("tokenpool_bucket_level_tokens", "gauge", "Level of the token bucket.", ("entitlement",))
_DEBT = Family("tokenpool_debt", "gauge", "Service owed to the entitlement, in seconds.", ("entitlement",))
_LEASE = Family(
    "tokenpool_lease", "gauge", "The part of the limit that this sidecar holds.", ("entitlement", "dimension")
)
_COVERAGE = Family(
    "tokenpool_price_coverage",
    "gauge",
    "Share of the last 128 finished requests that did not outgrow their reservation.",
    ("entitlement",),
)
_EXPERTS = Family(
    "tokenpool_price_experts",
    "gauge",
    "Prompt prefixes with a price of their own. Certified: their observed coverage keeps the promise.",
    ("entitlement", "state"),
)
_RESERVED_RATIO = Family(
    "tokenpool_reserved_output_ratio",
    "gauge",
    "Reserved divided by produced output tokens of about the last 100 requests; 0 before the first.",
    ("entitlement",),
)
_CONFIG_CURRENT = Family(
    "tokenpool_config_current", "gauge", "Whether the pool file on disk is the one in force."
)
_FIRST_TOKEN = Family(
    "tokenpool_time_to_first_token_seconds",
    "histogram",
    "Time from the end of reading the request to the first output, including waits.",
    ("entitlement",),
)
_PER_TOKEN = Family(
    "tokenpool_time_per_output_token_seconds",
    "histogram",
    "Time per further output token of a stream: from the first output to the end, divided by the tokens"
    " after the first one of each sequence.",
    ("entitlement",),
)
_SLO_REQUESTS = Family(
    "tokenpool_slo_requests",
    "counter",
    "Streams with a promised latency (slo in the pool file), by the promise. Of a guaranteed entitlement only"
    " those inside its guarantee.",
    ("entitlement", "tier", "slo"),
)
_SLO_MET = Family(
    "tokenpool_slo_met",
    "counter",
    "Those of tokenpool_slo_requests_total that kept the promise.",
    ("entitlement", "tier", "slo"),
)
_RATIO = Family(
    "tokenpool_estimate_ratio",
    "histogram",
    "Estimated tokens divided by reported tokens.",
    ("entitlement", "kind"),
)
_OVERHEAD = Family(
    "tokenpool_overhead_seconds",
    "histogram",
    "Time from the end of reading the request until it is sent to the engine.",
)
FAMILIES = (
    _REQUESTS,
    _TOKENS,
    _OUTGROWN,
    _WITHOUT_USAGE,
    _SLO_REQUESTS,
    _SLO_MET,
    _SHADOW,
    _RELOADS,
    _PLANS,
    _RESERVED,
    _LIMIT,
    _LEVEL,
    _DEBT,
    _COVERAGE,
    _EXPERTS,
    _RESERVED_RATIO,
    _SURPLUS,
    _LEASE,
    _CONFIG_CURRENT,
    _FIRST_TOKEN,
    _PER_TOKEN,
    _RATIO,
    _OVERHEAD,
)
"""The metrics that this module writes."""


_GAUGES = (_RESERVED, _LIMIT, _LEVEL, _DEBT, _COVERAGE, _EXPERTS, _RESERVED_RATIO, _SURPLUS)


_NO_COUNTS = (0,) * (len(FIRST_TOKEN_BOUNDS_S) + 1)


class Promises:
    """Streams with a promised latency, and those that kept it, of one tier."""

    __slots__ = ("tpot", "tpot_met", "ttft", "ttft_met")

    def __init__(self) -> None:
        self.ttft = self.ttft_met = self.tpot = self.tpot_met = 0

    def counts(self) -> tuple[tuple[str, int, int], ...]:
        """Each promise with its streams, and with those that kept it."""
        return (TTFT, self.ttft, self.ttft_met), (TPOT, self.tpot, self.tpot_met)


class Series:
    """The numbers behind one value of the label ``entitlement``."""

    __slots__ = (
        "cached",
        "first_token",
        "input",
        "input_ratio",
        "outcomes",
        "outgrown",
        "output",
        "output_ratio",
        "per_token",
        "promises",
        "shadow",
        "without_usage",
    )

    def __init__(self, tier: str) -> None:
        self.outcomes: dict[str, Counter[str]] = {tier: Counter()}
        """Counts by tier. An entitlement has one tier; ``other`` has several."""
        self.input = self.output = self.cached = 0
        self.without_usage: Counter[str] = Counter()
        """Finished answers without usage, by reason."""
        self.shadow: Counter[Verdict] = Counter()
        """Decisions that were not enforced."""
        self.outgrown = 0
        """Requests whose output exceeded its reservation."""
        self.promises: dict[str, Promises] = {tier: Promises()}
        """Kept and broken promises by tier."""
        self.first_token = Histogram(_FIRST_TOKEN_BUCKETS)
        self.per_token = Histogram(_PER_TOKEN_BUCKETS)
        self.input_ratio = Histogram(_RATIO_BUCKETS)
        self.output_ratio = Histogram(_RATIO_BUCKETS)


class Tally:
    """The counts of one used entitlement."""

    __slots__ = ("_finished", "first_token", "outcomes", "promises", "series", "shared", "tier")

    def __init__(self, tier: str, series: Series, *, is_own: bool) -> None:
        self.tier = tier
        self.series = series
        self.first_token = series.first_token if is_own else Histogram(_FIRST_TOKEN_BUCKETS)
        self.promises = series.promises.setdefault(tier, Promises())
        shared = series.outcomes.setdefault(tier, Counter())
        self.shared: Counter[str] | None = None if is_own else shared
        """The outcomes of all entitlements in the series ``other``; ``None`` with a series of its own."""
        self.outcomes: Counter[str] = shared if is_own else Counter()
        self._finished = 0
        """Finished requests that ``outcomes`` does not have yet: most requests need no look-up by outcome."""

    def change_tier(self, tier: str) -> None:
        """The entitlement moves to another tier."""
        if tier == self.tier:
            return
        self.add_up()
        outcomes, promises = self.series.outcomes, self.series.promises
        if self.shared is None:
            outcomes[tier] = outcomes.pop(self.tier)
            promises[tier] = promises.pop(self.tier)
        else:
            self.shared = outcomes.setdefault(tier, Counter())
            self.promises = promises.setdefault(tier, Promises())
        self.tier = tier

    def count(self, outcome: str) -> None:
        """Count the outcome of a request. ``add_up`` follows, before the counts are read."""
        if outcome is _FINISHED:
            self._finished += 1
        else:
            self._add(outcome, 1)

    def add_up(self) -> None:
        """Add the finished requests to the outcomes."""
        if self._finished:
            self._add(_FINISHED, self._finished)
            self._finished = 0

    def _add(self, outcome: str, number: int) -> None:
        self.outcomes[outcome] += number
        if self.shared is not None:
            self.shared[outcome] += number


class Changes:
    """The names of entitlements whose counts have changed since the last ``take``."""

    __slots__ = ("_last", "_names")

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        self._last: str | None = None
        """The last name, if it was added since the last ``take``."""

    def add(self, name: str) -> None:
        """An entitlement has changed. Its name moves to the end."""
        if name is self._last:
            return
        self._last = name
        self._names.pop(name, None)
        self._names[name] = None

    def take(self) -> dict[str, None]:
        """Return the names in the order of their last change, and forget them. The values mean nothing."""
        names, self._names, self._last = self._names, {}, None
        return names


class AccountRefresher(Protocol):
    """The part that computes the limits of idle accounts."""

    def refresh(self, account: Account, now: float) -> None:
        """Bring the limits of an idle account up to date, before they are shown."""


class Telemetry:
    """All counts of one sidecar."""

    def __init__(self, most_series: int) -> None:
        self.clock: Callable[[], float] = time.monotonic
        self.limits_computed = 0
        self.reloads: Counter[str] = Counter()
        self.config_is_current = True
        self.config_differs = False
        """Whether this sidecar's own pool file differs from the published one in force."""
        self._most_series = most_series
        self._accounts: Mapping[str, Account] = {}
        self._ledger = Ledger()
        self._active = ActiveAccounts()
        self._unidentified = Series(UNIDENTIFIED)
        self._other: Series | None = None
        self._own: dict[str, Series] = {}
        self._tallies: dict[str, Tally] = {UNIDENTIFIED: Tally(UNIDENTIFIED, self._unidentified, is_own=True)}
        """The counts of used entitlements, in the order of first use."""
        self._unused_guaranteed: set[str] = set()
        """Unused guaranteed entitlements. Each has a reserved place for a series of its own."""
        self._overhead = Histogram(_OVERHEAD_BUCKETS)
        self._first_token_buckets, self._per_token_buckets = _FIRST_TOKEN_BUCKETS, _PER_TOKEN_BUCKETS
        """With the promises of the pool file. A histogram takes them over with its next value or page."""
        self._scope = 'pool=""'
        self._changes: list[Changes] = []

    def follow(
        self,
        accounts: Mapping[str, Account],
        ledger: Ledger,
        active: ActiveAccounts,
        pool: str,
        changed: Sequence[Account] | None = None,
        removed: Iterable[Account] = (),
    ) -> None:
        """Use the accounts of a pool file. Counts of a removed entitlement stay until the restart.

        ``changed`` are the new and changed accounts (``None``: all), and ``removed`` those that are gone.
        """
        self._scope = f'pool="{pool}"'
        self._accounts = accounts
        self._ledger = ledger
        self._active = active
        if changed is None:
            changed = list(accounts.values())
            self._unused_guaranteed.clear()
        for account in removed:
            self._unused_guaranteed.discard(account.entitlement.name)
        for account in changed:
            self._note_tier(account.entitlement)
        firsts, others = _promised_s(changed)
        self._first_token_buckets = self._first_token_buckets.with_promises(firsts, _FIRST_TOKEN_BUCKETS)
        self._per_token_buckets = self._per_token_buckets.with_promises(others, _PER_TOKEN_BUCKETS)

    def _note_tier(self, entitlement: Entitlement) -> None:
        """Note the tier of a new or changed entitlement."""
        name, tier = entitlement.name, entitlement.tier
        tally = self._tallies.get(name)
        if tally is not None and name != UNIDENTIFIED:
            tally.change_tier(tier.value)
        elif tally is None and tier is Tier.GUARANTEED:
            self._unused_guaranteed.add(name)
        else:
            self._unused_guaranteed.discard(name)

    # --- called on the request path ---

    def ended(self, account: Account | None, ending: Ending) -> None:
        """A request without a reservation has ended."""
        self._tally(account).count(ending)

    def refused(self, account: Account | None, reason: Reason) -> None:
        """A request was refused."""
        self._tally(account).count(reason)

    def shadowed(self, account: Account, verdict: Verdict) -> None:
        """A decision was made, and not enforced."""
        self._tally(account).series.shadow[verdict] += 1

    def settled(self, ticket: Ticket, ending: Ending, usage: Usage, *, reported: bool) -> None:
        """An admitted request was settled."""
        tally = self._tally(ticket.account)
        tally.count(ending)
        series = tally.series
        input_tokens, output_tokens, cached_tokens = usage
        series.input += input_tokens - cached_tokens
        series.cached += cached_tokens
        series.output += output_tokens
        cost = ticket.cost
        if output_tokens > cost.output_tokens:
            series.outgrown += 1
        if reported and input_tokens:
            series.input_ratio.observe(cost.input_tokens / input_tokens)
        if reported and output_tokens and ending is _FINISHED:
            series.output_ratio.observe(cost.output_tokens / output_tokens)

    def answered_without_usage(self, account: Account, no_usage: NoUsage) -> None:
        """A finished answer had no usage and is settled by estimate."""
        self._tally(account).series.without_usage[no_usage] += 1

    def first_token(self, account: Account | None, seconds: float, ticket: Ticket | None = None) -> None:
        """The first output of an answer came ``seconds`` after the request."""
        tally, buckets = self._tally(account), self._first_token_buckets
        _observe(tally.first_token, seconds, buckets)
        if tally.shared is not None:
            _observe(tally.series.first_token, seconds, buckets)
        if ticket is not None and _is_promised(ticket):
            promised_ms = ticket.account.entitlement.slo.ttft_ms
            if promised_ms is not None:
                promises = tally.promises
                promises.ttft += 1
                promises.ttft_met += seconds * 1000 <= promised_ms

    def stream_ended(self, ticket: Ticket, output_tokens: int, first_token_s: float, whole_s: float) -> None:
        """A stream has ended ``whole_s`` seconds after its request, however it ended.

        ``first_token_s`` is the time to its first output; below 0 without one. A client that leaves before
        the first output, and later than promised, has a broken promise.
        """
        tally, slo = self._tally(ticket.account), ticket.account.entitlement.slo
        promises, is_promised = tally.promises, _is_promised(ticket)
        if first_token_s < 0:
            if is_promised and slo.ttft_ms is not None and whole_s * 1000 > slo.ttft_ms:
                promises.ttft += 1
            return
        further = output_tokens - ticket.cost.sequences
        if further <= 0:
            return
        seconds = (whole_s - first_token_s) * ticket.cost.sequences / further
        _observe(tally.series.per_token, seconds, self._per_token_buckets)
        if is_promised and slo.tpot_ms is not None:
            promises.tpot += 1
            promises.tpot_met += seconds * 1000 <= slo.tpot_ms

    def overhead(self, seconds: float) -> None:
        """The time between reading a request and sending it: pricing, admission and framing."""
        self._overhead.observe(seconds)

    def _tally(self, account: Account | None) -> Tally:
        if account is None:
            return self._tallies[UNIDENTIFIED]
        name = account.name
        for changes in self._changes:
            changes.add(name)
        tally = self._tallies.get(name)
        return tally if tally is not None else self._start_tally(name, account)

    def _start_tally(self, name: str, account: Account | None) -> Tally:
        """Start to count an entitlement."""
        tier = account.entitlement.tier.value if account is not None else ""
        room = self._most_series - len(self._own)
        if account is not None and account.entitlement.tier is Tier.GUARANTEED:
            self._unused_guaranteed.discard(name)
        else:
            room -= len(self._unused_guaranteed)
        is_own = room > 0 and name != OTHER and account is not None
        if is_own:
            series = self._own[name] = Series(tier)
        else:
            if self._other is None:
                self._other = Series(tier)
            series = self._other
        tally = self._tallies[name] = Tally(tier, series, is_own=is_own)
        return tally

    # --- for pages ---

    def outcomes(self, name: str) -> dict[str, int]:
        """The counts of an entitlement's requests by outcome."""
        tally = self._tallies.get(name)
        if tally is None:
            return {}
        tally.add_up()
        return {str(outcome): n for outcome, n in tally.outcomes.items()}

    def first_tokens(self, name: str) -> tuple[float, tuple[int, ...]]:
        """The times to first token: their sum in seconds, and counts by ``FIRST_TOKEN_BOUNDS_S``."""
        tally = self._tallies.get(name)
        if tally is None:
            return 0.0, _NO_COUNTS
        return tally.first_token.total, tally.first_token.by(FIRST_TOKEN_BOUNDS_S)

    def changes(self) -> Changes:
        """A new record of changed names for one reader. It begins with all used entitlements."""
        made = Changes(self.used())
        self._changes.append(made)
        return made

    def used(self) -> list[str]:
        """The entitlements that were used since the start, in the order of first use."""
        return [name for name in self._tallies if name != UNIDENTIFIED]

    def label(self, name: str) -> str:
        """The label of an entitlement in the metrics of other parts."""
        if name == UNIDENTIFIED or name in self._own:
            return name
        if name not in self._tallies:
            self._start_tally(name, self._accounts.get(name))
        return name if name in self._own else OTHER

    # --- Prometheus ---

    def pieces(self, limits: AccountRefresher, *, shows_leases: bool | None = None) -> Iterator[str]:
        """The page, in pieces that each take well below a millisecond to make."""
        # An entitlement with running requests has series before its first request ends.
        active = iter(list(self._active))
        while some := list(islice(active, 64)):
            for account in some:
                self._tally(account)
            yield ""
        for tally in self._tallies.values():
            tally.add_up()
        names = list(self._own)
        every = [(self._labels(name), series) for name, series in self._own.items()]
        if self._other is not None:
            every.append((self._labels(OTHER), self._other))
        yield from self._counters(every)
        yield from self._gauges(names, limits, shows_leases)
        yield from self._histograms(every)

    def _labels(self, name: str) -> str:
        """The labels of each series of an entitlement, formatted."""
        return f'entitlement="{name}",{self._scope}'

    def _counters(self, every: list[tuple[str, Series]]) -> Iterator[str]:
        def requests(who: str, series: Series) -> str:
            return "".join(
                f'tokenpool_requests_total{{{who},outcome="{outcome}",tier="{tier}"}} {n}.0\n'
                for tier, outcomes in series.outcomes.items()
                for outcome, n in sorted(outcomes.items())
            )

        def tokens(who: str, series: Series) -> str:
            before = f"tokenpool_tokens_total{{{who},kind="
            return (
                f'{before}"input"}} {series.input}.0\n{before}"cached"}} {series.cached}.0\n'
                f'{before}"output"}} {series.output}.0\n'
            )

        def outgrown(who: str, series: Series) -> str:
            return f"tokenpool_outgrown_reservations_total{{{who}}} {series.outgrown}.0\n"

        def without_usage(who: str, series: Series) -> str:
            return "".join(
                f'{_WITHOUT_USAGE.series}{{{who},reason="{reason}"}} {n}.0\n'
                for reason, n in sorted(series.without_usage.items())
            )

        def shadow(who: str, series: Series) -> str:
            return "".join(
                f'{_SHADOW.series}{{{who},decision="{decision}",reason="{reason or ""}"}} {n}.0\n'
                for (decision, reason), n in sorted(series.shadow.items(), key=lambda each: str(each[0]))
            )

        def promises(family: Family, place: int) -> Callable[[str, Series], str]:
            return lambda who, series: "".join(
                [
                    f'{family.series}{{{who},slo="{counts[0]}",tier="{tier}"}} {counts[place]}.0\n'
                    for tier, kept in series.promises.items()
                    for counts in kept.counts()
                    if counts[1]
                ]
            )

        yield from _of_each(_REQUESTS, [*every, (self._labels(UNIDENTIFIED), self._unidentified)], requests)
        yield from _of_each(_TOKENS, every, tokens)
        yield from _of_each(_OUTGROWN, every, outgrown)
        yield from _of_each(_WITHOUT_USAGE, every, without_usage)
        yield from _of_each(_SLO_REQUESTS, every, promises(_SLO_REQUESTS, 1))
        yield from _of_each(_SLO_MET, every, promises(_SLO_MET, 2))
        yield from _of_each(_SHADOW, every, shadow)
        scope = self._scope
        results = "".join(
            f'{_RELOADS.series}{{{scope},result="{result}"}} {self.reloads[result]}.0\n'
            for result in ("ok", "invalid")
        )
        plans = f"{_PLANS.series}{{{scope}}} {self.limits_computed}.0\n"
        yield f"{_RELOADS.head()}{results}{_PLANS.head()}{plans}"

    def _gauges(self, names: list[str], limits: AccountRefresher, shows_leases: bool | None) -> Iterator[str]:
        accounts = self._accounts
        # One pass, so that the amounts in use add up. The limit of an idle account is computed first.
        families = [*_GAUGES, *([_LEASE] if shows_leases is not None else ())]
        parts: list[list[str]] = [[family.head()] for family in families]
        kv_tokens = concurrency = 0
        for first in range(0, len(names), PER_PIECE):
            now = self.clock()
            for name in names[first : first + PER_PIECE]:
                account = accounts.get(name)
                if account is None:
                    continue
                limits.refresh(account, now)
                kv_tokens += account.kv_in_use
                concurrency += account.concurrency_in_use
                lines = _gauges_of(self._labels(name), account, shows_leases is True)
                for part, text in zip(parts, lines, strict=False):
                    part.append(text)
            yield ""
        if self._other is not None:
            held = (self._ledger.kv_in_use - kv_tokens, self._ledger.concurrency_in_use - concurrency)
            parts[0].append(_reserved(self._labels(OTHER), max(held[0], 0), max(held[1], 0)))
        for part in parts:
            yield "".join(part)
        is_current = number(self.config_is_current)
        yield f"{_CONFIG_CURRENT.head()}{_CONFIG_CURRENT.series}{{{self._scope}}} {is_current}\n"

    def _histograms(self, every: list[tuple[str, Series]]) -> Iterator[str]:
        def first_token(who: str, series: Series) -> str:
            series.first_token.refine(self._first_token_buckets)
            return series.first_token.lines(_FIRST_TOKEN.name, who)

        def per_token(who: str, series: Series) -> str:
            if not series.per_token.total:
                return ""  # most entitlements of 10,000 never stream
            series.per_token.refine(self._per_token_buckets)
            return series.per_token.lines(_PER_TOKEN.name, who)

        def ratio(who: str, series: Series) -> str:
            return series.input_ratio.lines(_RATIO.name, f'{who},kind="input"') + series.output_ratio.lines(
                _RATIO.name, f'{who},kind="output"'
            )

        yield from _of_each(_FIRST_TOKEN, every, first_token)
        yield from _of_each(_PER_TOKEN, every, per_token)
        yield from _of_each(_RATIO, every, ratio)
        yield _OVERHEAD.head() + self._overhead.lines(_OVERHEAD.name, self._scope)


def _of_each(
    family: Family, every: Sequence[tuple[str, Series]], write: Callable[[str, Series], str]
) -> Iterator[str]:
    """One family with the series of all entitlements, a few at a time. Each series has its labels."""
    yield family.head()
    for first in range(0, len(every), PER_PIECE):
        yield "".join([write(who, series) for who, series in every[first : first + PER_PIECE]])


def _observe(histogram: Histogram, seconds: float, buckets: Buckets) -> None:
    """Count a value by buckets that may have become finer."""
    if histogram.buckets is not buckets:
        histogram.refine(buckets)
    histogram.observe(seconds)


def _is_promised(ticket: Ticket) -> bool:
    """Whether the latencies of the entitlement are promised to this request.

    Only a stream shows them. Beyond its guarantee a guaranteed entitlement has no claim on time, and the SLO
    controller does not defend it.
    """
    return ticket.streams and (ticket.is_guaranteed or ticket.account.entitlement.tier is not Tier.GUARANTEED)


def _promised_s(accounts: Iterable[Account]) -> tuple[list[float], list[float]]:
    """The promised times to first token and per further token, in seconds; those of guarantees first.

    One pass with few operations: it takes 3 ms for 10,000 accounts, and nothing else runs meanwhile.
    """
    guaranteed: tuple[set[float], set[float]] = set(), set()
    others: tuple[set[float], set[float]] = set(), set()
    for account in accounts:
        entitlement = account.entitlement
        slo = entitlement.slo
        if slo.ttft_ms is None and slo.tpot_ms is None:
            continue
        firsts, furthers = guaranteed if entitlement.tier is Tier.GUARANTEED else others
        if slo.ttft_ms is not None:
            firsts.add(slo.ttft_ms)
        if slo.tpot_ms is not None:
            furthers.add(slo.tpot_ms)
    return _in_order(guaranteed[0], others[0]), _in_order(guaranteed[1], others[1])


def _in_order(first_ms: set[float], then_ms: set[float]) -> list[float]:
    return [ms / 1000 for ms in (*sorted(first_ms), *sorted(then_ms))]


def _gauges_of(who: str, account: Account, shows_leases: bool) -> list[str]:
    """An account's lines in each family of gauges."""
    limit, held, pricer = account.pool_limit, account.limit, account.pricer
    certified = pricer.experts.certified
    before = f'tokenpool_limit{{dimension="%s",{who}}} %s\n'
    lines = [
        _reserved(who, account.kv_in_use, account.concurrency_in_use),
        "".join([before % (each.value, number(limit.get(each))) for each in Dimension]),
        f"tokenpool_bucket_level_tokens{{{who}}} {number(account.bucket.level)}\n",
        f"tokenpool_debt{{{who}}} {number(account.debt)}\n",
        f"{_COVERAGE.name}{{{who}}} {number(pricer.coverage.share)}\n",
        f'{_EXPERTS.name}{{{who},state="certified"}} {certified}.0\n'
        f'{_EXPERTS.name}{{{who},state="learning"}} {len(pricer.experts) - certified}.0\n',
        f"{_RESERVED_RATIO.name}{{{who}}} {number(pricer.reserved_ratio)}\n",
        _surplus(who, account.shadow),
    ]
    if shows_leases:
        lines.append(
            f'tokenpool_lease{{dimension="kv_tokens",{who}}} {number(held.kv_tokens)}\n'
            f'tokenpool_lease{{dimension="concurrency",{who}}} {number(held.concurrency)}\n'
        )
    return lines


def _surplus(who: str, shadow: Shadow | None) -> str:
    if shadow is None:
        return ""
    return (
        f'{_SURPLUS.name}{{dimension="kv_tokens",{who}}} {shadow.kv_in_use}.0\n'
        f'{_SURPLUS.name}{{dimension="concurrency",{who}}} {shadow.concurrency_in_use}.0\n'
    )


def _reserved(who: str, kv_tokens: int, concurrency: int) -> str:
    return (
        f'tokenpool_reserved{{dimension="kv_tokens",{who}}} {kv_tokens}.0\n'
        f'tokenpool_reserved{{dimension="concurrency",{who}}} {concurrency}.0\n'
    )
