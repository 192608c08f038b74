"""Telemetry of a coordinator: its pools as Prometheus metrics, rendered when they are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.leader import PoolLeader
from service.loopdelay import LoopDelay
from tokenpool.amounts import Amount, Dimension

_ENTITLEMENT_GAUGES = (
    ("tokenpool_pool_limit", "What the entitlement may use pool-wide now."),
    ("tokenpool_pool_demand", "What it asked for of late, shed requests included."),
    ("tokenpool_pool_service", "What it got of late."),
    ("tokenpool_pool_held", "What sidecars hold of its limit; for throughput the tokens granted."),
)


class Telemetry(Collector):
    """All numbers of one coordinator."""

    def __init__(self, leaders: Callable[[], Mapping[str, PoolLeader]]) -> None:
        self.config_is_current = True
        self.loop_delay = LoopDelay(time.monotonic)
        self._leaders = leaders

    def collect(self) -> Iterator[Metric]:
        """prometheus-client: every metric, as of now."""
        leaders = self._leaders()
        yield GaugeMetricFamily(
            "tokenpool_config_current",
            "Whether the pool file on disk is the one in force.",
            value=float(self.config_is_current),
        )
        yield from self.loop_delay.metrics()
        yield from self._of_leading(leaders)
        yield from self._of_pools(leaders)
        yield from self._of_entitlements(leaders)

    @staticmethod
    def _of_leading(leaders: Mapping[str, PoolLeader]) -> Iterator[Metric]:
        leads = GaugeMetricFamily("tokenpool_leader", "Whether this coordinator leads.", labels=("pool",))
        up = GaugeMetricFamily("tokenpool_books_up", "Whether the books answer.", labels=("pool",))
        differs = GaugeMetricFamily(
            "tokenpool_config_differs",
            "Whether another pool file than this coordinator's is in force.",
            labels=("pool",),
        )
        rounds = CounterMetricFamily("tokenpool_ticks", "Ticks by how they ended.", labels=("pool", "result"))
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
            "tokenpool_desired_replicas_reason", "1 for the dimension that says so.", labels=by_dimension
        )
        sidecars = GaugeMetricFamily("tokenpool_sidecars", "Sidecars that report.", labels=pool)
        engines = GaugeMetricFamily("tokenpool_engines_up", "Engines that answer.", labels=pool)
        capacity = GaugeMetricFamily("tokenpool_pool_capacity", "Live capacity.", labels=by_dimension)
        over = GaugeMetricFamily(
            "tokenpool_overpromised",
            "1 where guarantees are more than the most replicas could carry.",
            labels=by_dimension,
        )
        seconds = GaugeMetricFamily("tokenpool_tick_seconds", "How long the last tick took.", labels=pool)
        for name, leader in leaders.items():
            state = leader.state
            if state is None:
                continue
            if state.hint is not None:
                desired.add_metric((name,), state.hint.replicas)
                for dimension in Dimension:
                    reason.add_metric((name, dimension.value), float(dimension is state.hint.need.dimension))
            for dimension in Dimension:
                capacity.add_metric((name, dimension.value), state.tick.plan.capacity.get(dimension))
                over.add_metric((name, dimension.value), float(dimension in state.overpromised))
            sidecars.add_metric((name,), len(state.tick.sidecars))
            engines.add_metric((name,), sum(s.engine_up for s in state.tick.sidecars.values()))
            seconds.add_metric((name,), state.took_s)
        yield from (desired, reason, sidecars, engines, capacity, over, seconds)

    @staticmethod
    def _of_entitlements(leaders: Mapping[str, PoolLeader]) -> Iterator[Metric]:
        labels = ("pool", "entitlement", "dimension")
        families = [GaugeMetricFamily(name, text, labels=labels) for name, text in _ENTITLEMENT_GAUGES]
        debt = GaugeMetricFamily("tokenpool_pool_debt", "Service owed, in seconds.", labels=labels[:2])
        for name, leader in leaders.items():
            if leader.state is None:
                continue
            made = leader.state.tick
            for entitlement, plan in made.plan.entitlements.items():
                debt.add_metric((name, entitlement), plan.debt)
                page = made.pages.get(entitlement)
                nothing = Amount()
                amounts = (
                    plan.limit,
                    plan.demand,
                    made.service.get(entitlement, nothing),
                    page.held if page is not None else nothing,
                )
                for family, amount in zip(families, amounts, strict=True):
                    for dimension in Dimension:
                        family.add_metric((name, entitlement, dimension.value), amount.get(dimension))
        yield from (*families, debt)
