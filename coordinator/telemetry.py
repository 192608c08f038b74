"""Telemetry of a coordinator: its pools as Prometheus metrics, rendered on request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator import group_metrics
from coordinator.entitlement_view import view
from coordinator.leader import PoolLeader
from runtime.exposition import Family, number, rendered
from runtime.loopdelay import LoopDelay
from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.entitlements import Tier
from tokenpool.leases.tick import Tick

_BY_DIMENSION = ("pool", "entitlement", "dimension")
_LIMIT, _DEMAND, _SERVICE, _HELD = (
    Family(name, "gauge", text, _BY_DIMENSION)
    for name, text in (
        ("tokenpool_pool_limit", "Limit of the entitlement in the whole pool now."),
        ("tokenpool_pool_demand", "Demand of the last seconds, shed requests included."),
        ("tokenpool_pool_service", "Service of the last seconds."),
        ("tokenpool_pool_held", "Leases of all sidecars; for throughput the tokens leased."),
    )
)
_DEBT = Family("tokenpool_pool_debt", "gauge", "Service owed, in seconds.", _BY_DIMENSION[:2])
_OF_ENTITLEMENTS = (_LIMIT, _DEMAND, _SERVICE, _HELD, _DEBT)
FAMILIES = (*_OF_ENTITLEMENTS, *group_metrics.FAMILIES)
"""The metrics with a series for each entitlement or group."""
OTHER = "other"
"""The label of all entitlements without series of their own."""
PER_PIECE = 20
"""Entitlements in one piece of the page: about 0.2 ms."""


class Telemetry(Collector):
    """All metrics of one coordinator."""

    def __init__(self, leaders: Callable[[], Mapping[str, PoolLeader]], most_series: int = 2000) -> None:
        self.config_is_current = True
        self._most_series = most_series
        self._own: dict[tuple[str, str], None] = {}
        """Pool and name of the entitlements with series of their own, in the order of first use."""
        self.loop_delay = LoopDelay(time.monotonic)
        self.sources: list[Callable[[], Iterable[Metric]]] = []
        """Further metrics of this coordinator."""
        self._leaders = leaders

    def collect(self) -> Iterator[Metric]:
        """prometheus-client: every metric without series for each entitlement."""
        leaders = self._leaders()
        yield GaugeMetricFamily(
            "tokenpool_config_current",
            "Whether the pool file on disk is the one in force.",
            value=float(self.config_is_current),
        )
        yield from self.loop_delay.metrics()
        yield from self._of_leading(leaders)
        yield from self._of_pools(leaders)
        for source in self.sources:
            yield from source()

    @staticmethod
    def _of_leading(leaders: Mapping[str, PoolLeader]) -> Iterator[Metric]:
        leads = GaugeMetricFamily("tokenpool_leader", "Whether this coordinator leads.", labels=("pool",))
        up = GaugeMetricFamily("tokenpool_store_up", "Whether the lease store answers.", labels=("pool",))
        differs = GaugeMetricFamily(
            "tokenpool_config_differs",
            "Whether the pool file in force differs from this coordinator's.",
            labels=("pool",),
        )
        rounds = CounterMetricFamily("tokenpool_ticks", "Ticks by result.", labels=("pool", "result"))
        for name, leader in leaders.items():
            leads.add_metric((name,), bool(leader.epoch))
            up.add_metric((name,), not leader.error)
            differs.add_metric((name,), leader.file_differs)
            for result in ("led", "followed", "fenced", "store_down", "failed"):
                rounds.add_metric((name, result), leader.rounds[result])
        yield from (leads, up, differs, rounds)

    @staticmethod
    def _of_pools(leaders: Mapping[str, PoolLeader]) -> Iterator[Metric]:
        pool, by_dimension = ("pool",), ("pool", "dimension")
        desired = GaugeMetricFamily(
            "tokenpool_desired_replicas", "Replicas that the pool needs.", labels=pool
        )
        reason = GaugeMetricFamily(
            "tokenpool_desired_replicas_reason", "1 for the dimension that decides.", labels=by_dimension
        )
        age = GaugeMetricFamily(
            "tokenpool_scale_hint_age_seconds", "Time since the leader computed the scale hint.", labels=pool
        )
        sidecars = GaugeMetricFamily("tokenpool_sidecars", "Sidecars that report.", labels=pool)
        engines = GaugeMetricFamily("tokenpool_engines_up", "Engines that answer.", labels=pool)
        capacity = GaugeMetricFamily("tokenpool_pool_capacity", "Live capacity.", labels=by_dimension)
        over = GaugeMetricFamily(
            "tokenpool_overpromised",
            "1 if the guarantees exceed the capacity of the largest number of replicas.",
            labels=by_dimension,
        )
        seconds = GaugeMetricFamily("tokenpool_tick_seconds", "Duration of the last tick.", labels=pool)
        for name, leader in leaders.items():
            # The stored hint, as on the scale page: the same at every coordinator, absent if too old.
            published = leader.hint()
            if published is not None:
                hint = published.hint
                desired.add_metric((name,), hint.replicas)
                for dimension in Dimension:
                    reason.add_metric((name, dimension.value), float(dimension is hint.need.dimension))
                age.add_metric((name,), leader.hints.age_s(leader.clock()))
            state = leader.state
            if state is None:
                continue
            for dimension in Dimension:
                capacity.add_metric((name, dimension.value), state.tick.plan.capacity.get(dimension))
                over.add_metric((name, dimension.value), float(dimension in state.overpromised))
            sidecars.add_metric((name,), state.tick.engines)
            engines.add_metric((name,), state.tick.engines_up)
            seconds.add_metric((name,), state.took_s)
        yield from (desired, reason, age, sidecars, engines, capacity, over, seconds)

    def pieces(self) -> Iterator[str]:
        """The page, in pieces that each take well below a millisecond to make.

        Entitlements that were active since the start have series, at most ``most_series`` of them their own:
        the first ones, with room reserved for every guaranteed one. Demand, service and leases of all others
        are added up as ``other``. Each takes 1.3 kB of the page.
        """
        yield rendered(self.collect())
        parts: list[list[str]] = [[family.head()] for family in _OF_ENTITLEMENTS]
        for name, leader in self._leaders().items():
            if leader.state is not None:
                yield from self._of_pool(name, leader, leader.state.tick, parts)
        for part in parts:
            yield "".join(part)
        yield from group_metrics.pieces(self._leaders(), self._most_series)

    def _of_pool(self, pool: str, leader: PoolLeader, made: Tick, parts: list[list[str]]) -> Iterator[str]:
        by_name = {entitlement.name: entitlement for entitlement in leader.entitlements}
        for gone in [key for key in self._own if key[0] == pool and key[1] not in by_name]:
            del self._own[gone]
        names = {**made.plan.entitlements, **made.records}
        kept = sum(
            each.tier is Tier.GUARANTEED and (pool, each.name) not in self._own
            for each in leader.entitlements
        )
        others: list[Amount] = [NOTHING, NOTHING, NOTHING]
        has_others = False
        seen = iter(list(names))
        while some := list(islice(seen, PER_PIECE)):
            for name in some:
                entitlement = by_name.get(name)
                if entitlement is None:
                    continue
                shown = view(entitlement, made)
                is_active = shown.demand != NOTHING or shown.in_use != NOTHING
                is_guaranteed = entitlement.tier is Tier.GUARANTEED
                room = self._most_series - len(self._own) - (0 if is_guaranteed else kept)
                if (pool, name) in self._own:
                    continue
                if is_active and room > 0 and name != OTHER:
                    self._own[pool, name] = None
                    kept -= is_guaranteed
                elif is_active:
                    has_others = True
                    others = [
                        total + one
                        for total, one in zip(others, (shown.demand, shown.service, shown.held), strict=True)
                    ]
            yield ""
        own = iter([name for of, name in self._own if of == pool and name in by_name])
        while some := list(islice(own, PER_PIECE)):
            for name in some:
                shown = view(by_name[name], made)
                amounts = (shown.limit, shown.demand, shown.service, shown.held)
                for part, family, amount in zip(parts, _OF_ENTITLEMENTS, amounts, strict=False):
                    part.append(_lines(family, pool, name, amount))
                parts[-1].append(f'{_DEBT.name}{{entitlement="{name}",pool="{pool}"}} {number(shown.debt)}\n')
            yield ""
        if has_others:
            for part, family, amount in zip(parts[1:], _OF_ENTITLEMENTS[1:], others, strict=False):
                part.append(_lines(family, pool, OTHER, amount))


def _lines(family: Family, pool: str, name: str, amount: Amount) -> str:
    return "".join(
        [
            f'{family.name}{{dimension="{each.value}",entitlement="{name}",pool="{pool}"}}'
            f" {number(amount.get(each))}\n"
            for each in Dimension
        ]
    )
