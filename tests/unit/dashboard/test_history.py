"""The last five minutes: buckets in, series out; bounded memory. And the time to first token. No clock."""

from __future__ import annotations

import pytest

from dashboard.history import BUCKET_S, BUCKETS, History
from dashboard.recent import WINDOW_S, quantile
from dashboard.server import changes
from dashboard.snapshot import SERVED, FirstTokens, ShownPool, Snapshot, Tally, Wanted
from dashboard.view import LiveView, ViewMaker
from tests.support.snapshots import entitlement, pool, snapshot

BOUNDS = (0.01, 0.1, 1.0)


def test_a_line_begins_when_a_name_is_first_active() -> None:
    history = History(1)
    history.add(1, {"a": (5.0,)})
    history.add(2, {"a": (7.4,), "b": (1.0,)})
    history.add(3, {})
    assert history.of("a") == [[5, 7, 0]]
    assert history.of("b") == [[1, 0]]
    assert history.of("never") == []


def test_a_line_goes_back_five_minutes_and_no_further() -> None:
    history = History(1)
    for bucket in range(1, BUCKETS + 11):
        history.add(bucket, {"a": (float(bucket),)})
    (series,) = history.of("a")
    assert BUCKETS * BUCKET_S == 300
    assert series == list(range(11, BUCKETS + 11))


def test_buckets_that_were_left_out_get_the_mean_of_the_time_that_passed() -> None:
    history = History(1)
    history.add(1, {"a": (4.0,), "b": (4.0,)})
    history.add(4, {"a": (6.0,)})
    assert history.of("a") == [[4, 6, 6, 6]]
    assert history.of("b") == [[4, 0, 0, 0]]


def test_a_pause_longer_than_the_history_fills_it_once() -> None:
    history = History(1)
    history.add(1, {"a": (4.0,)})
    history.add(1_000_000, {"a": (6.0,)})
    assert history.of("a") == [[6]]


def test_an_idle_line_is_dropped_and_so_memory_follows_activity() -> None:
    history = History(1)
    history.add(1, {f"e{n}": (1.0,) for n in range(100)})
    assert len(history) == 100
    history.add(BUCKETS, {})
    assert len(history) == 100
    history.add(BUCKETS + 1, {})
    assert len(history) == 0


def test_a_new_line_replaces_the_longest_idle_one() -> None:
    history = History(1, most=2)
    history.add(1, {"a": (1.0,)})
    history.add(2, {"b": (1.0,)})
    history.add(5, {"c": (1.0,)})
    assert (history.of("a"), len(history)) == ([], 2)
    history.add(6, {"b": (1.0,), "c": (1.0,), "d": (1.0,)})
    assert (history.has("d"), len(history)) == (False, 2)


def test_a_number_too_large_for_a_bucket_is_the_largest() -> None:
    history = History(1)
    history.add(1, {"a": (1e12,)})
    assert history.of("a") == [[2**31 - 1]]


# --- the time to first token ---


def firsts(**of: FirstTokens) -> dict[str, Tally]:
    return {"s0": Tally({}, first_tokens=of, bounds_s=BOUNDS)}


def rows_after(*tallies: dict[str, Tally]) -> LiveView:
    watch, now = ViewMaker(), 100.0
    for each in tallies:
        view = watch.follow(snapshot(pool(tallies=each)), now)
        now += 0.5
    return view


def test_mean_and_p95_are_of_the_last_seconds() -> None:
    before = firsts(a=(500.0, (0, 0, 1000, 0)))
    now = firsts(a=(500.0 + 0.5 + 0.5, (0, 10, 1001, 0)))
    mean, high = rows_after(before, now).rows[0].first_token_ms or (0, 0)
    assert mean == pytest.approx(1000 / 11, rel=0.01)
    assert 100 < high < 1000


def test_without_a_first_token_there_is_no_number_rather_than_zero() -> None:
    assert rows_after(firsts(), firsts()).rows[0].first_token_ms is None
    still = firsts(a=(1.0, (0, 1, 0, 0)))
    assert rows_after(firsts(), still).rows[0].first_token_ms == (1000, 1000)
    snapshots = round(WINDOW_S / 0.5) + 1
    assert rows_after(firsts(), *[still] * snapshots).rows[0].first_token_ms is None


def test_a_restarted_sidecar_adds_no_false_first_tokens() -> None:
    before, again = firsts(a=(500.0, (0, 1000, 0, 0))), firsts(a=(0.2, (0, 2, 0, 0)))
    mean, _ = rows_after(before, again).rows[0].first_token_ms or (0, 0)
    assert mean == 100


def test_sidecars_first_tokens_are_summed() -> None:
    def both(first: FirstTokens, second: FirstTokens) -> dict[str, Tally]:
        return {
            name: Tally({}, first_tokens={"a": each}, bounds_s=BOUNDS)
            for name, each in (("s0", first), ("s1", second))
        }

    view = rows_after(
        both((0.0, (0,) * 4), (5.0, (0, 5, 0, 0))), both((0.1, (0, 1, 0, 0)), (5.3, (0, 6, 0, 0)))
    )
    assert (view.rows[0].first_token_ms or (0, 0))[0] == 200


@pytest.mark.parametrize(
    ("counts", "mean", "right"),
    [
        ((20.0, 0.0, 0.0, 0.0), 0.004, 0.004),  # one bucket: its mean
        ((90.0, 10.0, 0.0, 0.0), 0.02, 0.055),  # half way through the second
        ((0.0, 0.0, 0.0, 5.0), 7.0, 7.0),  # beyond all bounds
        ((0.0, 0.0, 50.0, 50.0), 0.9, 1.0),  # beyond all bounds, of which the last is all that is known
    ],
)
def test_a_quantile_is_a_straight_line_within_its_bucket(
    counts: tuple[float, ...], mean: float, right: float
) -> None:
    assert quantile(counts, BOUNDS, mean) == pytest.approx(right)


# --- updates of the page ---


def spending(total: float, *more: str) -> ShownPool:
    others = [entitlement(name) for name in more]
    return pool(entitlement(spent=total), *others, spent_from_zero=True)


def told(*snapshots: tuple[float, Snapshot]) -> tuple[ViewMaker, LiveView]:
    watch = ViewMaker()
    for now, each in snapshots:
        view = watch.follow(each, now)
    return watch, view


def test_a_bucket_is_told_every_two_seconds_and_once() -> None:
    watch, said = ViewMaker(), []
    for half in range(13):
        view = watch.follow(snapshot(spending(100.0 * half)), half / 2)
        said.append((view.bucket, view.points is not None))
    assert [bucket for bucket, is_new in said if is_new] == [1, 2, 3, 4]
    assert [place for place, (_, is_new) in enumerate(said) if is_new] == [0, 4, 8, 12]


def test_slightly_late_snapshots_skip_no_bucket() -> None:
    watch, buckets = ViewMaker(), []
    for number in range(2000):
        buckets.append(watch.follow(snapshot(spending(0.0)), number * 2.004).bucket)
    assert buckets == list(range(1, 2001))


def test_a_bucket_names_what_was_active_and_the_pool() -> None:
    _, view = told((0.0, snapshot(spending(0, "idle"))), (2.0, snapshot(spending(400, "idle"))))
    assert [(point.name, point.values) for point in view.points or ()] == [
        ("", [0, 0]),
        ("a", [200, 0, 0, 0]),
    ]


def test_a_whole_view_comes_with_the_history_and_a_new_row_with_its_own() -> None:
    watch, view = told(
        (0.0, snapshot(spending(0))), (2.0, snapshot(spending(400))), (4.0, snapshot(spending(800)))
    )
    pasts = watch.past([("chat", ""), ("chat", "a"), ("chat", "idle"), ("gone", "a")])
    assert [(past.name, past.series[0]) for past in pasts] == [("", [0, 0, 0]), ("a", [200, 200])]
    seen = changes(LiveView("coordinator", "c0"), view, watch.past)
    assert [past.name for past in seen.past] == ["a"]
    assert changes(view, view, watch.past).past == ()


def test_an_entitlement_that_begins_is_counted_from_zero_only_where_that_is_known() -> None:
    first, then = snapshot(pool(entitlement("b"))), [entitlement("b"), entitlement("a", spent=1000.0)]
    for from_zero, rate in ((True, 500.0), (False, 0.0)):
        _, view = told((0.0, first), (2.0, snapshot(pool(*then, spent_from_zero=from_zero))))
        assert view.rows[1].in_use[0] == rate


# --- the entitlements with a row ---


def test_the_page_shows_active_ones_first_and_says_how_many_it_leaves_out() -> None:
    def busy(name: str) -> float:
        return 1.0 if name in ("e7", "e9") else 0.0

    names = [f"e{n}" for n in range(10)]
    watch = ViewMaker(most_rows=3)
    each = pool(*(entitlement(n, in_use=(None, 0.0, busy(n))) for n in names), total=1000)
    view = watch.follow(snapshot(each), 0.0)
    assert len(view.rows) == 3
    assert {"e7", "e9"} < {row.name for row in view.rows}
    assert (view.pools[0].hidden, view.pools[0].hidden_active) == (997, 0)


def test_a_shed_entitlement_is_shown_before_the_busiest() -> None:
    def each(shed: int) -> Snapshot:
        rows = [entitlement(f"e{n}", in_use=(None, 0.0, float(n < 9))) for n in range(10)]
        return snapshot(pool(*rows, tallies={"s0": Tally({"e9": {"concurrency": shed}})}))

    watch = ViewMaker(most_rows=3)
    watch.follow(each(0), 0.0)
    view = watch.follow(each(4), 0.5)
    assert "e9" in {row.name for row in view.rows}
    assert view.pools[0].hidden_active == 7


def test_equal_entitlements_do_not_alternate() -> None:
    rows = [entitlement(f"e{n}", in_use=(None, 0.0, 1.0)) for n in range(10)]
    watch = ViewMaker(most_rows=3)
    first = watch.follow(snapshot(pool(*rows)), 0.0)
    second = watch.follow(snapshot(pool(*reversed(rows))), 0.5)
    assert {row.name for row in first.rows} == {row.name for row in second.rows}


def test_a_snapshot_has_wanted_and_active_entitlements_and_fills_up() -> None:
    every = {f"e{n}": None for n in range(10_000)}
    assert Wanted(("e5", "other pool's"), 2).choose(every, ["e9000", "none"]) == ["e9000", "e5", "e0", "e1"]
    assert Wanted().choose(every, []) == []
    assert Wanted(others=10_000).choose(every, ["e5"]) == list(every)


def test_an_active_entitlement_is_wanted_until_its_rates_are_zero() -> None:
    tallies = {"s0": Tally({"a": {SERVED: 1}})}
    before = pool(entitlement("b"), tallies={"s0": Tally({})})
    watch, _ = told((0.0, snapshot(before)), (2.0, snapshot(pool(entitlement("b"), tallies=tallies))))
    assert watch.shown() == {"a", "b"}
    watch.follow(snapshot(pool(entitlement("b"))), 2.0 + WINDOW_S + 1)
    assert watch.shown() == {"b"}
