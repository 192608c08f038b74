"""Scale hints: the need of a pool, its dimension, and the hint that follows it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.support.domain_builders import entitlement
from tokenpool.amounts import Amount, Dimension
from tokenpool.entitlements import Group, Pool, ReplicaCapacity, Tier, promises
from tokenpool.planning.scaling import Need, ScalingSettings, needed_replicas, replica_capacity
from tokenpool.planning.stabiliser import Stabiliser

POOL = Pool("pool", min_replicas=1, max_replicas=10)
REPLICA = Amount(1000, 10_000, 8)
EXACT = ScalingSettings(headroom=0.0)
GOLD = entitlement("gold", Tier.GUARANTEED, guarantee=Amount(500, 5000, 4))
REST = entitlement("rest", ceiling=Amount(3000, 1e9, 1e9))
SPOT = entitlement("spot", Tier.SPOT)


ALL = {each.name: each for each in (GOLD, REST, SPOT)}


def need(demand: dict[str, Amount], settings: ScalingSettings = EXACT, pool: Pool = POOL) -> Need:
    made = needed_replicas(pool, ALL, promises(ALL.values()), demand, REPLICA, settings)
    assert made is not None
    return made


def test_guarantees_need_their_replicas_even_without_demand() -> None:
    made = need({})
    assert (made.replicas, made.dimension, made.floor) == (1, None, 1)


def test_the_dimension_that_needs_the_most_replicas_decides() -> None:
    made = need({"rest": Amount(500, 10_000, 20)})
    assert (made.replicas, made.dimension) == (3, Dimension.CONCURRENCY)  # 4 guaranteed and 20


def test_demand_counts_up_to_the_ceiling() -> None:
    made = need({"rest": Amount(50_000, 0, 0)})
    assert (made.replicas, made.dimension) == (4, Dimension.TOKENS_PER_SECOND)  # 500 and 3,000


def test_a_burst_above_a_guarantee_counts_once() -> None:
    assert need({"gold": Amount(1900, 0, 0)}).replicas == 2


def test_demand_counts_against_the_guarantee_of_the_group_first() -> None:
    groups = (
        Group("org", "pool", guarantee=Amount(2000, 0, 10), ceiling=Amount(6000, 1e9, 16)),
        Group("team", "pool", parent="org"),
    )
    gold = entitlement("gold", Tier.GUARANTEED, guarantee=Amount(500, 0, 4), group="team")
    rest = entitlement("rest", group="team")
    members = {each.name: each for each in (gold, rest)}

    def replicas(sequences: float) -> int:
        demand = {"rest": Amount(0, 0, sequences)}
        sums = promises(members.values(), groups)
        made = needed_replicas(POOL, members, sums, demand, REPLICA, EXACT, groups)
        assert made is not None
        return made.unbounded

    assert [replicas(n) for n in (0, 6, 7, 12, 13, 500)] == [2, 2, 2, 2, 2, 2]  # 2,000 tokens, 10 to 16 slots
    groups = (Group("org", "pool", guarantee=Amount(0, 0, 10)), groups[1])
    gold = entitlement("gold", Tier.GUARANTEED, guarantee=Amount(0, 0, 4), group="team")
    members = {each.name: each for each in (gold, rest)}
    assert [replicas(n) for n in (0, 6, 12, 13, 20)] == [2, 2, 2, 3, 3]


def test_spot_counts_only_with_its_setting() -> None:
    flood = {"spot": Amount(9000, 0, 0)}
    assert need(flood).replicas == 1
    assert need(flood, ScalingSettings(headroom=0.0, counts_spot=True)).replicas == 10


def test_headroom_is_added() -> None:
    assert need({"rest": Amount(1500, 0, 0)}).replicas == 2
    assert need({"rest": Amount(1500, 0, 0)}, ScalingSettings(headroom=0.1)).replicas == 3


def test_a_need_stays_within_the_pools_bounds_and_states_the_unbounded_need() -> None:
    pool = Pool("pool", min_replicas=2, max_replicas=3)
    made = need({"rest": Amount(0, 0, 100)}, pool=pool)
    assert (made.replicas, made.unbounded) == (3, 13)
    assert "needs 13, the pool may have 3" in Stabiliser(EXACT).follow(made, 0.0).reason
    assert need({}, pool=pool).replicas == 2


def test_without_a_known_capacity_there_is_no_need() -> None:
    assert needed_replicas(POOL, {GOLD.name: GOLD}, promises([GOLD]), {}, Amount(), EXACT) is None


def test_a_capacity_without_a_measurement_comes_from_the_pool_file() -> None:
    pool = Pool("pool", replica=ReplicaCapacity(concurrency=2), max_replicas=10)
    assert replica_capacity(pool, Amount(100, 0, 0)) == Amount(100, 0, 2)
    assert replica_capacity(pool, Amount(100, 0, 3)) == Amount(100, 0, 3)
    made = needed_replicas(pool, {GOLD.name: GOLD}, promises([GOLD]), {}, Amount(), EXACT)
    assert made is not None
    assert (made.replicas, made.dimension, made.floor) == (2, Dimension.CONCURRENCY, 2)


def test_a_new_coordinator_keeps_the_running_replicas() -> None:
    stabiliser = Stabiliser(ScalingSettings(down_window_s=60))
    first = stabiliser.follow(of(2), 0, running=5)
    assert (first.replicas, first.reason) == (5, "2 would be enough; 5 run")
    assert stabiliser.follow(of(2), 59, running=5).replicas == 5
    assert stabiliser.follow(of(2), 61, running=5).replicas == 2


def of(replicas: int, floor: int = 1) -> Need:
    return Need(replicas, Dimension.KV_TOKENS, replicas, floor)


def test_a_hint_rises_at_once_and_falls_after_its_window() -> None:
    stabiliser = Stabiliser(ScalingSettings(down_window_s=60))
    assert stabiliser.follow(of(2), 0).replicas == 2
    assert stabiliser.follow(of(5), 1).replicas == 5
    stabiliser.follow(of(2), 2)
    held = stabiliser.follow(of(2), 30)
    assert (held.replicas, held.reason) == (5, "2 would be enough; held for 60 s of less need")
    assert stabiliser.follow(of(2), 62).replicas == 2


def test_a_rise_may_have_to_last() -> None:
    stabiliser = Stabiliser(ScalingSettings(up_window_s=10))
    stabiliser.follow(of(2), 0)
    held = stabiliser.follow(of(5), 5)
    assert (held.replicas, held.reason) == (2, "5 are needed; held until that lasted 10 s")
    assert stabiliser.follow(of(4), 12).replicas == 2  # more is needed since 5, for 7 s
    assert stabiliser.follow(of(4), 15).replicas == 4


def test_a_need_counts_until_the_next_one() -> None:
    """Without a call, as during a failover, the last need still counts."""
    stabiliser = Stabiliser(ScalingSettings(up_window_s=1, down_window_s=10))
    stabiliser.follow(of(3), 0)
    assert stabiliser.follow(of(5), 100).replicas == 3  # the higher need has not lasted a second
    assert stabiliser.follow(of(5), 101).replicas == 5
    assert stabiliser.follow(of(1), 200).replicas == 5
    assert stabiliser.follow(of(1), 209).replicas == 5
    assert stabiliser.follow(of(1), 210).replicas == 1


needs = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 20), st.integers(1, 4)), min_size=1, max_size=40)


@given(needs, st.floats(0, 20), st.floats(0, 60))
def test_a_hint_stays_within_the_needs_of_its_windows_and_above_the_guarantees(
    steps: list[tuple[float, int, int]], up: float, down: float
) -> None:
    stabiliser, now, seen = Stabiliser(ScalingSettings(up_window_s=up, down_window_s=down)), 0.0, [0]
    for wait, replicas, floor in steps:
        now += wait
        made = of(max(replicas, floor), floor)
        seen.append(made.replicas)
        hint = stabiliser.follow(made, now)
        assert floor <= hint.replicas <= max(seen)


class Literal:
    """The same rule, computed from all needs so far."""

    def __init__(self, settings: ScalingSettings) -> None:
        self.settings = settings
        self.seen: list[tuple[float, int]] = []
        self.held: int | None = None

    def follow(self, made: Need, now: float) -> int:
        self.seen.append((now, made.replicas))
        ends = [at for at, _ in self.seen[1:]] + [math.inf]
        spans = [(end, n) for end, (_, n) in zip(ends, self.seen, strict=True)]
        up = min(n for end, n in spans if end > now - self.settings.up_window_s)
        down = max(n for end, n in spans if end > now - self.settings.down_window_s)
        if self.held is None or up > self.held:
            self.held = made.replicas if self.held is None else up
        elif down < self.held:
            self.held = down
        self.held = max(self.held, made.floor)
        return self.held


quarters = st.integers(0, 80).map(lambda n: n / 4)
looks = st.lists(st.tuples(quarters, st.integers(1, 6), st.integers(1, 3)), min_size=1, max_size=40)


@given(looks, quarters, quarters, st.lists(st.booleans(), min_size=40, max_size=40), quarters)
def test_a_new_leader_continues_like_the_leader_before(
    steps: list[tuple[float, int, int]], up: float, down: float, changes: list[bool], skew: float
) -> None:
    """Leaders may change between any two calls, and their clocks differ. The state stays small."""
    settings = ScalingSettings(up_window_s=up, down_window_s=down)
    one, literal, offset = Stabiliser(settings), Literal(settings), 0.0
    now = 0.0
    for (wait, replicas, floor), is_replaced in zip(steps, changes, strict=False):
        if is_replaced:
            state, taken_at = one.state(now + offset), now
            offset += skew
            one = Stabiliser(settings)
            one.restore(state, taken_at + offset)
            assert len(state.lows) <= 6 >= len(state.highs)
        now += wait
        made = of(max(replicas, floor), floor)
        assert one.follow(made, now + offset).replicas == literal.follow(made, now)


@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_more_demand_never_needs_fewer_replicas(one: float, other: float) -> None:
    low, high = sorted((one, other))
    pool = Pool("pool", max_replicas=10**6)
    made = [need({"rest": Amount(d, d, d)}, pool=pool).replicas for d in (low, high)]
    assert made[0] <= made[1]
    assert made[1] == max(math.ceil((4 + high) / 8), 1)
