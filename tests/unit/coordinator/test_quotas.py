"""Quotas at a coordinator: windows that the lease store has lost are restored from the usage store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from coordinator.quotas import QuotaKeepers
from coordinator.usage.store import Scope, UsageStoreDown
from tests.unit.coordinator.pair import Coordinator, Pair
from tokenpool.entitlements import Quota, Window
from tokenpool.poolfile.reading import parse
from tokenpool.quotas.messages import QuotaMessage, QuotaRequest, budget_id
from tokenpool.quotas.messages import Scope as QuotaScope

DAY = Quota(1000.0, Window.DAY)
POOL = """
pools:
  - {name: chat, models: [tiny], pricing: {input_weight: 0.5, output_weight: 2}}
entitlements:
  - {name: e, pool: chat, tier: elastic, group: team, api_keys: [e-key], quotas: [{tokens: 1000, per: day}]}
groups:
  - {name: org, pool: chat, quotas: [{tokens: 1000, per: day}]}
  - {name: team, pool: chat, parent: org}
"""


class Usage:
    """A usage store with these sums."""

    def __init__(self, **spent: float) -> None:
        self.spent = spent
        self.is_down = False
        self.asked: list[tuple[Any, ...]] = []

    async def spent_by_name(
        self, scope: Scope, pool: str, since: float, until: float, **weights: float
    ) -> Mapping[str, float]:
        if self.is_down:
            raise UsageStoreDown("it is stopped")
        self.asked.append((scope, pool, since, until, weights))
        return self.spent


class World:
    """A leader, a sidecar that states its spending, and a usage store."""

    def __init__(self, usage: Usage | None) -> None:
        self.pair = Pair()
        self.leader: Coordinator = self.pair.all[0]
        file = parse(POOL).file
        self.leader.leader.follow(file, file.pools[0])
        self.keepers = QuotaKeepers(lambda _: usage)  # type: ignore[arg-type, return-value]
        self.number = 0

    async def state(
        self, settled: float, scope: QuotaScope = QuotaScope.ENTITLEMENT, name: str = "e"
    ) -> None:
        self.number += 1
        key = budget_id(scope, name, DAY).key
        request = QuotaRequest(key, 0.0, 86400.0, 1000.0, settled, 0.0, settled, settled, settled)
        await self.pair.shared.exchange_quotas(QuotaMessage("s1", self.number, (request,)))

    async def rounds(self, seconds: float, who: Coordinator | None = None) -> None:
        for _ in range(round(seconds / 0.25)):
            self.pair.clock.now += 0.25
            await (who or self.leader).leader.run_tick()
            await self.keepers.run_round({"chat": (who or self.leader).leader})

    def metrics(self, name: str) -> list[tuple[dict[str, str], float]]:
        families = {family.name: family for family in self.keepers.metrics()}
        return [(sample.labels, sample.value) for sample in families[name].samples]


async def test_a_lost_window_is_restored_once_all_sidecars_have_stated() -> None:
    usage = Usage(e=700.0)
    world = World(usage)
    await world.rounds(0.5)
    await world.state(200.0)
    await world.rounds(1.0)
    assert not usage.asked, "the sidecars have a lifetime to state their spending"
    await world.rounds(1.0)
    assert usage.asked == [
        (Scope.ENTITLEMENT, "chat", 0.0, 86400.0, {"input_weight": 0.5, "output_weight": 2.0})
    ]
    [state] = await world.pair.shared.quotas()
    assert (state.spent, state.is_restored) == (700, True)
    await world.rounds(1.0)
    assert len(usage.asked) == 1
    labels = {"pool": "chat", "scope": "entitlement", "name": "e", "per": "day", "timezone": "UTC"}
    assert world.metrics("tokenpool_quota_spent_tokens") == [(labels, 700)]
    assert world.metrics("tokenpool_quota_tokens") == [(labels, 1000)]
    assert world.metrics("tokenpool_quota_resets_timestamp_seconds") == [(labels, 86400)]
    assert ({"pool": "chat", "result": "restored"}, 1) in world.metrics("tokenpool_quota_restores")


async def test_the_spending_of_a_group_has_that_of_the_groups_below() -> None:
    world = World(Usage(team=300.0, org=50.0, other=9.0))
    await world.rounds(0.5)
    await world.state(10.0, QuotaScope.GROUP, "org")
    await world.rounds(2.0)
    [state] = await world.pair.shared.quotas()
    assert state.spent == 350


async def test_without_a_usage_store_the_sidecars_statements_count() -> None:
    world = World(None)
    await world.rounds(0.5)
    await world.state(200.0)
    await world.rounds(2.0)
    [state] = await world.pair.shared.quotas()
    assert (state.spent, state.is_restored) == (200, True)
    assert ({"pool": "chat", "result": "without_usage"}, 1) in world.metrics("tokenpool_quota_restores")


async def test_a_usage_store_that_is_down_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    usage = Usage(e=700.0)
    usage.is_down = True
    world = World(usage)
    await world.rounds(0.5)
    await world.state(200.0)
    await world.rounds(4.0)
    [state] = await world.pair.shared.quotas()
    assert (state.spent, state.is_restored) == (200, False)
    assert caplog.text.count("the usage store does not answer") == 1
    usage.is_down = False
    await world.rounds(1.0)
    [state] = await world.pair.shared.quotas()
    assert (state.spent, state.is_restored) == (700, True)


async def test_only_the_leader_restores() -> None:
    usage = Usage(e=700.0)
    world = World(usage)
    await world.leader.leader.run_tick()
    other = world.pair.all[1]
    file = parse(POOL).file
    other.leader.follow(file, file.pools[0])
    await world.state(200.0)
    for _ in range(12):
        world.pair.clock.now += 0.25
        await world.leader.leader.run_tick()
        await world.keepers.run_round({"chat": other.leader})
    assert not usage.asked
    assert [each.state.spent for each in world.keepers.of("chat")] == [200]


async def test_a_pool_without_quotas_reads_nothing() -> None:
    pair = Pair()
    keepers = QuotaKeepers(lambda _: None)
    await pair.all[0].leader.run_tick()
    await keepers.run_round({"chat": pair.all[0].leader})
    assert "quotas" not in pair.all[0].line.calls
    assert keepers.of("chat") == ()
    assert keepers.of("other") == ()
