"""The content of the live page: snapshots in, views out. No clock, no HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from dashboard import words
from dashboard.recent import WINDOW_S
from dashboard.server import changes, event
from dashboard.snapshot import (
    SERVED,
    UNKNOWN_FROM,
    Replicas,
    ShownEntitlement,
    ShownHandover,
    ShownPool,
    Snapshot,
    Tally,
    vector,
)
from dashboard.view import LiveView, PoolView, Row, ViewMaker
from tests.support.snapshots import CAPACITY, counted, entitlement, pool, snapshot
from tokenpool.capacity.model import UNLEARNED_TOKENS_PER_SECOND
from tokenpool.leases.wire import REPORTED_OUTCOMES
from tokenpool.outcomes import Ending, Reason


def after(*pools: ShownPool, every_s: float = 0.5) -> LiveView:
    """The view after these snapshots at one pool, one after another."""
    watch, now = ViewMaker(), 100.0
    for each in pools:
        view = watch.follow(snapshot(each), now)
        now += every_s
    return view


def row(*pools: ShownPool, every_s: float = 0.5) -> Row:
    return after(*pools, every_s=every_s).rows[0]


def test_the_first_snapshot_has_no_rates() -> None:
    shown = row(pool(tallies=counted(a={SERVED: 1000, "concurrency": 7})))
    assert (shown.served_per_s, shown.shed_per_s, shown.sheds) == (None, None, ())
    assert shown.in_use[0] is None


def test_rates_are_differences_between_snapshots() -> None:
    before = pool(tallies=counted(a={SERVED: 1000}))
    now = pool(tallies=counted(a={SERVED: 1003, "concurrency": 1}))
    shown = row(before, now)
    assert (shown.served_per_s, shown.shed_per_s) == (6.0, 2.0)
    assert [(shed.reason, shed.per_s) for shed in shown.sheds] == [("concurrency", 2.0)]


def test_the_queue_and_handover_of_a_sidecar_are_shown_as_they_are() -> None:
    waiting, handover = (("elastic", 3), ("spot", 0)), ShownHandover(peers=2, elsewhere=1)
    shown = after(pool(waiting=waiting, handover=handover)).pools[0]
    assert (shown.waiting, shown.handover) == (waiting, handover)
    assert (after(pool()).pools[0].waiting, after(pool()).pools[0].handover) == ((), None)


def test_a_shed_is_shown_until_the_window_has_passed_it() -> None:
    quiet, shed = pool(tallies=counted(a={})), pool(tallies=counted(a={"kv_tokens": 5}))
    snapshots = round(WINDOW_S / 0.5)
    still = row(quiet, *[shed] * snapshots)
    gone = row(quiet, *[shed] * (snapshots + 1))
    assert still.sheds[0].per_s == 1.0
    assert (gone.sheds, gone.shed_per_s) == ((), 0.0)


def test_the_most_frequent_reason_comes_first() -> None:
    counts = {"concurrency": 1, "engine_full": 5, SERVED: 50}
    shown = row(pool(tallies=counted(a={})), pool(tallies=counted(a=counts)))
    assert [shed.reason for shed in shown.sheds] == ["engine_full", "concurrency"]


def test_sidecars_are_summed() -> None:
    def both(first: int, second: int) -> ShownPool:
        return pool(tallies={"s0": Tally({"a": {SERVED: first}}), "s1": Tally({"a": {SERVED: second}})})

    assert row(both(10, 100), both(11, 103)).served_per_s == 8.0


def test_a_sidecar_that_restarts_makes_no_negative_rate() -> None:
    before = pool(tallies={"old": Tally({"a": {SERVED: 5000}})})
    away = pool(tallies={})
    back = pool(tallies={"new": Tally({"a": {SERVED: 2}})})
    later = pool(tallies={"new": Tally({"a": {SERVED: 4}})})
    assert row(before, away).served_per_s == 0.0
    assert row(before, away, back).served_per_s == 0.0
    assert row(before, away, back, later).served_per_s == pytest.approx(2 / 1.5, rel=0.01)


def test_totals_that_fall_were_reset() -> None:
    shown = row(pool(tallies=counted(a={SERVED: 5000})), pool(tallies=counted(a={SERVED: 3})))
    assert shown.served_per_s == 6.0


def test_a_sidecar_that_comes_back_with_all_its_totals_makes_no_spike() -> None:
    here, away = pool(tallies=counted(a={SERVED: 5000})), pool(tallies={})
    assert row(away, here).served_per_s == 0.0
    assert row(here, away, here).served_per_s == 0.0


def test_an_entitlement_named_for_the_first_time_had_nothing_before() -> None:
    shown = row(pool(tallies=counted()), pool(tallies=counted(a={SERVED: 2})))
    assert shown.served_per_s == 4.0


def test_a_report_that_leaves_some_out_makes_no_spike_when_it_names_them() -> None:
    def partial(**outcomes: dict[str, int]) -> ShownPool:
        return pool(tallies={"s0": Tally(outcomes, is_whole=False)})

    assert row(partial(), partial(a={SERVED: 9000})).served_per_s == 0.0
    assert row(partial(a={SERVED: 9000}), partial(), partial(a={SERVED: 9001})).served_per_s == 1.0


def test_throughput_in_use_is_the_recent_increase() -> None:
    def spent(total: float) -> ShownPool:
        return pool(entitlement(spent=total), entitlement("b", spent=3 * total))

    view = after(spent(1000), spent(1100))
    assert view.rows[0].in_use[0] == 200
    assert view.pools[0].in_use[0] == 800


def test_refunds_and_a_reset_lease_store_make_no_negative_use() -> None:
    def spent(total: float) -> ShownPool:
        return pool(entitlement(spent=total))

    assert row(spent(1000), spent(900)).in_use[0] == 0
    assert row(spent(1000), spent(1200), spent(1100)).in_use[0] == 100
    assert row(spent(100_000), spent(100_500), spent(10)).in_use[0] == 500


def test_the_amount_in_use_is_a_mean_of_the_last_snapshots() -> None:
    def holding(kv_tokens: float, sequences: float) -> ShownPool:
        in_use = (None, kv_tokens, sequences)
        return pool(entitlement(in_use=in_use), in_use=in_use)

    busy, idle = holding(1000, 2), holding(0, 0)
    view = after(idle, busy, busy, idle, busy)
    assert view.rows[0].in_use[1:] == view.pools[0].in_use[1:] == (750, 1.5)
    assert row(busy).in_use[1:] == (1000, 2)
    assert row(busy, idle, idle, idle, idle).in_use[1:] == (0, 0)


def test_an_entitlement_is_shown_where_it_uses_most_of_the_pool() -> None:
    cache = pool(entitlement(in_use=(None, 5000.0, 1.0)))
    slots = pool(entitlement(in_use=(None, 100.0, 5.0)))
    idle = pool(entitlement(guarantee=(900.0, 100.0, 1.0)))
    assert [row(each).dimension for each in (cache, slots, idle)] == [1, 2, 0]


def test_it_is_shown_where_it_is_shed() -> None:
    def shed(n: int) -> ShownPool:
        return pool(entitlement(in_use=(None, 9000.0, 1.0)), tallies=counted(a={"tokens_per_second": n}))

    assert row(shed(0), shed(3)).dimension == words.TOKENS_PER_SECOND


def test_similar_dimensions_do_not_alternate() -> None:
    def using(kv_tokens: float, sequences: float) -> ShownPool:
        return pool(entitlement(in_use=(None, kv_tokens, sequences)))

    slots, a_little_more_cache, much_more_cache = using(4900, 4), using(5200, 4), using(8000, 4)
    assert row(slots, *[a_little_more_cache] * 4).dimension == words.CONCURRENCY
    assert row(slots, *[much_more_cache] * 4).dimension == words.KV_TOKENS


def test_an_idle_entitlement_stays_in_its_dimension() -> None:
    assert row(pool(entitlement(in_use=(None, 5000.0, 1.0))), *[pool()] * 4).dimension == words.KV_TOKENS


def test_a_full_bar_is_the_pool_or_a_larger_amount() -> None:
    big = entitlement(guarantee=(1500.0, 0.0, 0.0))
    assert after(pool(big)).pools[0].scale == (1500, 10_000, 8)
    unknown = after(pool(entitlement(demand=(700.0, 1.0, 1.0)), capacity=(None, 10_000.0, 8.0)))
    assert unknown.pools[0].scale[0] == 700


def test_where_capacity_is_not_known_only_a_ceiling_bounds() -> None:
    def learning(ceiling: float | None) -> ShownPool:
        one = entitlement(limit=(4e8, 1.0, 1.0), ceiling=(ceiling, None, None))
        return pool(one, capacity=(None, 10_000.0, 8.0))

    assert row(learning(None)).limit == (None, 1, 1)
    assert row(learning(300.0)).limit == (300, 1, 1)


def test_unknown_amounts_are_no_numbers() -> None:
    assert UNKNOWN_FROM == UNLEARNED_TOKENS_PER_SECOND
    assert vector(UNLEARNED_TOKENS_PER_SECOND * 2, float("inf"), 4) == (None, None, 4)


def test_a_pool_shows_its_capacity() -> None:
    one = entitlement(guarantee=(100.0, 1000.0, 1.0), demand=(600.0, 3000.0, 3.0))
    two = entitlement("b", demand=(600.0, 3000.0, 12.0))
    shown: PoolView = after(
        pool(one, two, in_use=(None, 4000.0, 6.0), leader="c0"),
        pool(one, two, in_use=(None, 4000.0, 6.0), leader="c0", tallies=counted(a={SERVED: 1})),
    ).pools[0]
    assert shown.capacity == CAPACITY
    assert shown.in_use == (0, 4000, 6)
    assert shown.guarantees == (100, 1000, 1)
    assert shown.demand == (1200, 6000, 15)
    assert (shown.leader, shown.served_per_s) == ("c0", 0)


def test_a_pool_without_entitlements_is_shown() -> None:
    bare = ShownPool("chat", "nobody", capacity=CAPACITY)
    view = after(bare, bare)
    assert (view.rows, view.pools[0].scale) == ((), CAPACITY)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, 0), (8, 8), (1234, 1234), (12_345, 12_300), (12.345, 12.3), (0.012345, 0.0123)]
)
def test_numbers_have_three_significant_digits(value: float, shown: float) -> None:
    assert row(pool(entitlement(demand=(value, 0.0, 0.0)))).demand[0] == shown


def test_debt_is_signed_and_never_minus_zero() -> None:
    assert row(pool(entitlement(debt=-1.239))).debt == -1.24
    assert str(row(pool(entitlement(debt=-0.001))).debt) == "0.0"


WHY = {"limit": (500.0, 5000.0, 4.0), "in_use": (500.0, 4096.0, 4.0), "demand": (1700.0, 9000.0, 9.5)}
POOL = (CAPACITY, (900.0, 5000.0, 8.0), Replicas(2, 1))


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("tokens_per_second", "tokens/s: limit 500, in use 500, demand 1,700"),
        ("kv_tokens", "KV tokens: limit 5,000, in use 4,096, demand 9,000"),
        ("concurrency", "sequences: limit 4, in use 4, demand 9.5"),
        (
            "engine_full",
            "engine full: 8 of 8 sequences in use; only the assured share may queue",
        ),
        ("engine_down", "engine down: 1 of 2 answer"),
        ("of_a_later_version", "of a later version"),
    ],
)
def test_a_shed_has_its_reason(reason: str, text: str) -> None:
    assert words.why(reason, **WHY, pool=POOL) == text


def test_a_full_cache_is_told_from_full_slots() -> None:
    assert words.engine_full(CAPACITY, (0.0, 9900.0, 3.0)).startswith(
        "engine full: 9,900 of 10,000 KV tokens"
    )


def test_a_limit_that_has_no_bound_is_said_in_words() -> None:
    said = words.over_limit(0, (None, 0.0, 0.0), (None, 0.0, 0.0), (5.0, 0.0, 0.0))
    assert said == "tokens/s: limit no bound, in use 0"


@pytest.mark.parametrize("reason", sorted(REPORTED_OUTCOMES - {Ending.FINISHED}))
def test_every_reason_of_a_shed_has_words_of_its_own(reason: str) -> None:
    assert words.why(reason, **WHY, pool=POOL) != reason.replace("_", " ")
    assert reason in set(Reason)


def test_only_what_changed_is_told() -> None:
    def seen(**uses: float) -> LiveView:
        return after(pool(*(entitlement(name, in_use=(None, 0.0, use)) for name, use in uses.items())))

    told = changes(seen(a=1, b=2, c=3), seen(a=1, b=4, d=5))
    assert [row.name for row in told.rows] == ["b", "d"]
    assert told.gone == (("chat", "c"),)
    assert len(told.pools) == 1


def test_the_description_of_a_process_is_passed_on() -> None:
    said = Snapshot("sidecar", "s0", (), ("draining",), "one of several")
    view = ViewMaker().follow(said, 0.0)
    told = changes(view, view)
    for shown in (view, told):
        assert (shown.process, shown.name, shown.notices, shown.about) == (
            "sidecar",
            "s0",
            ("draining",),
            "one of several",
        )


def test_pools_do_not_mix() -> None:
    watch = ViewMaker()

    def two(first: int, second: int) -> Any:
        return snapshot(
            pool(tallies=counted(a={SERVED: first})), pool(name="code", tallies=counted(a={SERVED: second}))
        )

    watch.follow(two(0, 0), 0.0)
    view = watch.follow(two(1, 5), 1.0)
    assert [(row.pool, row.served_per_s) for row in view.rows] == [("chat", 1), ("code", 5)]


def test_an_event_is_one_line_of_data_whatever_names_hold() -> None:
    hostile = "x\n\ndata: y\r</script><script>alert(1)</script>"
    text = event("view", after(pool(ShownEntitlement(hostile, "spot"))))
    assert text.count(b"\n") == 3
    assert text.startswith(b"event: view\ndata: {")
    assert text.endswith(b"}\n\n")
