"""Quotas at a coordinator: restores what the lease store has lost, and keeps the spending for the pages.

A lease store that lost its content does not know what was spent in the windows that had begun before. The
sidecars state their own spending. The rest is in the usage store: of sidecars that have ended, and of other
replicas of this pool. The leader reads it, and the lease store then grants portions again. Without a usage
store, only the spending of running sidecars is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from coordinator.leader import PoolLeader
from coordinator.usage.store import Scope as UsageScope
from coordinator.usage.store import UsageStore, UsageStoreDown
from tokenpool.entitlements import chain
from tokenpool.quotas.messages import BudgetId, QuotaState, Scope, parsed_key
from tokenpool.store import StoreDown

log = logging.getLogger(__name__)

ROUND_S = 0.5
"""The time between two rounds. A store that lost its content grants portions at most this much later."""
IDLE_ROUNDS = 10
"""Without quotas in the pool file, every so many rounds ask for those of issued credentials."""
MOST_SERIES = 2000
"""The most budgets with series of their own: those with the largest spent share."""

_SCOPES = {
    Scope.ENTITLEMENT: UsageScope.ENTITLEMENT,
    Scope.GROUP: UsageScope.GROUP,
    Scope.CREDENTIAL: UsageScope.CREDENTIAL,
}
_RESULTS = ("restored", "without_usage", "usage_store_down", "failed")


UsageOf = Callable[[str], UsageStore | None]
"""The usage store of a pool, by its name; ``None`` if the pool has no usage records."""


@dataclass(frozen=True, slots=True)
class ShownQuota:
    """One window of a budget, for metrics and pages."""

    budget: BudgetId
    state: QuotaState

    @property
    def share(self) -> float:
        """The spent share of the quota."""
        return self.state.spent / self.state.tokens if self.state.tokens else 1.0


class QuotaKeeper:
    """One coordinator's work for the quotas of one pool. ``usage`` returns the usage store of a pool."""

    def __init__(self, leader: PoolLeader, usage: UsageOf) -> None:
        self.leader = leader
        self._usage = usage
        self.shown: Sequence[ShownQuota] = ()
        """The windows of all budgets, as of the last round."""
        self.results: Counter[str] = Counter()
        """Restored windows by result."""
        self._is_usage_down = False
        self._rounds = 0

    def _is_active(self) -> bool:
        """Whether there are quotas: in the pool file, or of issued credentials that were used."""
        leader = self.leader
        return (
            bool(self.shown)
            or any(e.quotas or any(key.quotas for key in e.api_keys) for e in leader.entitlements)
            or any(group.quotas for group in leader.groups)
        )

    async def run_round(self) -> None:
        """Read all windows, and restore those that need it if this coordinator leads. Logs failures."""
        self._rounds += 1
        if not self._is_active() and self._rounds % IDLE_ROUNDS:
            return
        try:
            states = await self.leader.store.quotas()
            known = [(budget, state) for state in states if (budget := parsed_key(state.key)) is not None]
            self.shown = [ShownQuota(budget, state) for budget, state in known]
            if self.leader.epoch:
                await self._restore([each for each in known if not each[1].is_restored])
        except StoreDown:
            pass  # reported by the ticks
        except Exception:
            self.results["failed"] += 1
            log.critical("the quotas could not be read", exc_info=True)

    async def _restore(self, lost: Iterable[tuple[BudgetId, QuotaState]]) -> None:
        usage = self._usage(self.leader.pool.name)
        spent: dict[tuple[Scope, float, float], Mapping[str, float]] = {}
        for budget, state in lost:
            if not state.may_restore:
                continue
            window = budget.scope, state.start, state.end
            if window not in spent:
                try:
                    spent[window] = await self._spent(usage, *window)
                except UsageStoreDown as error:
                    self._usage_failed(error)
                    return
            tokens = spent[window].get(budget.name, 0.0)
            if await self.leader.store.restore_quota(state.key, state.start, tokens):
                self.results["restored" if usage is not None else "without_usage"] += 1
                log.info(
                    "the spending of a quota is restored",
                    extra={"quota": state.key, "pool": self.leader.pool.name, "spent": round(tokens)},
                )
        self._is_usage_down = False

    def _usage_failed(self, error: UsageStoreDown) -> None:
        self.results["usage_store_down"] += 1
        if not self._is_usage_down:
            log.error(
                "the usage store does not answer: quotas grant nothing until it does, or for half a minute",
                extra={"error": str(error), "pool": self.leader.pool.name},
            )
        self._is_usage_down = True

    async def _spent(
        self, usage: UsageStore | None, scope: Scope, start: float, end: float
    ) -> Mapping[str, float]:
        """The weighted tokens in the usage store, by owner."""
        if usage is None:
            return {}
        pricing = self.leader.pool.pricing
        found = await usage.spent_by_name(
            _SCOPES[scope],
            self.leader.pool.name,
            start,
            end,
            input_weight=pricing.input_weight,
            output_weight=pricing.output_weight,
        )
        return found if scope is not Scope.GROUP else self._with_members(found)

    def _with_members(self, spent: Mapping[str, float]) -> Mapping[str, float]:
        """The spending of groups with the groups below them. A record names the group next to its owner."""
        by_name = {group.name: group for group in self.leader.groups}
        total: dict[str, float] = {}
        for name, tokens in spent.items():
            for group in chain(name, by_name):
                total[group.name] = total.get(group.name, 0.0) + tokens
        return total


class QuotaKeepers:
    """The quotas of all pools of one coordinator."""

    def __init__(self, usage: UsageOf) -> None:
        self._usage = usage
        self._keepers: dict[str, QuotaKeeper] = {}

    async def run(self, leaders: Mapping[str, PoolLeader]) -> None:
        """Run a round of each pool at intervals, until cancelled. ``leaders`` may change meanwhile."""
        while True:
            await self.run_round(leaders)
            await asyncio.sleep(ROUND_S)

    async def run_round(self, leaders: Mapping[str, PoolLeader]) -> None:
        """Run one round of each pool."""
        kept = {}
        for name, leader in list(leaders.items()):
            keeper = self._keepers.get(name)
            if keeper is None or keeper.leader is not leader:
                keeper = QuotaKeeper(leader, self._usage)
            kept[name] = keeper
        self._keepers = kept
        for keeper in kept.values():
            await keeper.run_round()

    def of(self, pool: str) -> Sequence[ShownQuota]:
        """The windows of all budgets of a pool, as of the last round."""
        keeper = self._keepers.get(pool)
        return keeper.shown if keeper is not None else ()

    def metrics(self) -> Iterator[Metric]:
        """The spending of budgets, for Prometheus. ``MOST_SERIES`` of a pool have series."""
        labels = ("pool", "scope", "name", "per", "timezone")
        tokens = GaugeMetricFamily(
            "tokenpool_quota_tokens", "Weighted tokens of the quota per window.", labels=labels
        )
        spent = GaugeMetricFamily(
            "tokenpool_quota_spent_tokens",
            "Weighted tokens of requests that ended in the current window of the quota.",
            labels=labels,
        )
        ends = GaugeMetricFamily(
            "tokenpool_quota_resets_timestamp_seconds",
            "The end of the current window of the quota, in seconds since 1970.",
            labels=labels,
        )
        restored = CounterMetricFamily(
            "tokenpool_quota_restores",
            "Windows whose spending the lease store had lost, by result.",
            labels=("pool", "result"),
        )
        for pool, keeper in self._keepers.items():
            for result in _RESULTS:
                restored.add_metric((pool, result), keeper.results[result])
            shown = sorted(keeper.shown, key=lambda each: each.share, reverse=True)[:MOST_SERIES]
            for each in shown:
                values = (pool, each.budget.scope.value, each.budget.name, each.budget.per)
                series = (*values, each.budget.timezone)
                tokens.add_metric(series, each.state.tokens)
                spent.add_metric(series, each.state.spent)
                ends.add_metric(series, each.state.end)
        yield from (tokens, spent, ends, restored)
