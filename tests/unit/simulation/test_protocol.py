"""The protocol on a virtual clock: invariants under faults, for fixed and random seeds."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest

from simulation.fairness import fairness_of
from simulation.mixes import (
    BURSTY,
    TROUBLE,
    ample,
    contended,
    distant,
    idle_guarantee,
    lone_tenant,
    mixed,
    outage,
    scarcity,
    skewed,
    small_tenants,
)
from simulation.setup import Setup
from simulation.world import simulate

# All processes of one parallel run of pytest-xdist must collect the same tests, so they draw the same seeds.
_drawn = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
FRESH = _drawn.randrange(10**6)
"""A random seed of this run; pytest prints the seed of a failed test as its parameter."""
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in (2, FRESH))]
LIFETIME_S = 1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_without_faults_limits_are_exact_and_few_requests_with_room_are_refused(seed: int) -> None:
    figures = simulate(mixed(10, 20, seed=seed, seconds=12))
    assert figures.over_admitted < 1
    assert figures.guaranteed_sheds == 0
    # A request that waits for an engine keeps its lease. Another sidecar's request of that entitlement may be
    # refused, while no engine has room for either.
    assert figures.idle_refusals <= 0.03 * figures.requests


@pytest.mark.parametrize("seed", SEEDS)
def test_with_all_faults_limits_hold_at_joined_sidecars(seed: int) -> None:
    figures = simulate(mixed(10, 20, seed=seed, seconds=15, faults=TROUBLE))
    assert figures.over_admitted < 1
    assert figures.admitted > 100


@pytest.mark.parametrize("is_empty", [False, True])
@pytest.mark.parametrize("seed", SEEDS[1:])
def test_after_an_outage_of_the_lease_store_all_sidecars_join_within_two_lifetimes(
    seed: int, is_empty: bool
) -> None:
    quiet = mixed(10, 20, seed=seed, seconds=15)
    figures, whole = simulate(outage(quiet, 5, 10, is_empty=is_empty)), simulate(quiet)
    assert figures.over_admitted < 1
    assert figures.reconverged_s <= 2 * LIFETIME_S
    assert figures.guaranteed_sheds <= 0.01 * figures.requests
    assert figures.utilisation >= 0.9 * whole.utilisation


@pytest.mark.parametrize("seed", SEEDS)
def test_no_small_tenant_is_shed_while_it_has_fewer_than_two_running(seed: int) -> None:
    figures = simulate(small_tenants(seed=seed))
    assert figures.requests > 900
    assert sum(figures.sheds.values()) == 0
    assert max(figures.most_running.values()) == 2
    assert figures.lease_waited_s / figures.lease_waits < 0.005


@pytest.mark.parametrize("seed", SEEDS)
def test_small_tenants_that_want_three_get_two(seed: int) -> None:
    figures = simulate(small_tenants(seed=seed, workers=3))
    assert figures.over_admitted == 0
    assert figures.idle_refusals <= 0.005 * figures.requests


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lone_tenant_uses_the_whole_pool(seed: int) -> None:
    assert simulate(lone_tenant(seed=seed)).utilisation >= 0.985


@pytest.mark.parametrize("seed", SEEDS)
def test_four_sidecars_serve_a_skewed_load_like_one_large_sidecar(seed: int) -> None:
    four, one = simulate(skewed(4, seed=seed)), simulate(skewed(1, seed=seed))
    assert four.utilisation >= 0.98 * one.utilisation
    assert four.over_admitted == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_owner_of_an_idle_guarantee_is_not_shed(seed: int) -> None:
    figures = simulate(idle_guarantee(seed=seed))
    assert figures.guaranteed_sheds == 0
    assert figures.utilisation >= 0.9
    assert figures.service["owner"] > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_owner_of_an_idle_guarantee_preempts_spot_and_leaves_few_slots_idle(seed: int) -> None:
    figures = simulate(idle_guarantee(seed=seed, is_preemptible=True))
    assert figures.preempted > 0
    assert figures.guaranteed_sheds == 0
    assert figures.over_admitted < 1
    assert figures.utilisation >= 0.95


def test_the_same_seed_gives_the_same_figures() -> None:
    one, other = (simulate(mixed(5, 10, seed=9, seconds=6, faults=TROUBLE)) for _ in range(2))
    assert one == other


def earlier(setup: Setup) -> Setup:
    """Scarcity that begins earlier and ends after one window of 60 s: 93 s are simulated instead of 110 s."""
    return replace(setup, cut_at=8.0, seconds=93.0)


@pytest.mark.thorough
def test_in_scarcity_service_converges_to_the_fair_share_across_sidecars() -> None:
    # `make sim` checks the medians over 20 mixes. A single random mix may miss them, so this one is fixed.
    setup = earlier(scarcity(seed=2))
    with_debt = fairness_of(setup, simulate(setup))
    assert with_debt.first >= 0.95
    assert with_debt.later >= 0.98
    assert with_debt.deviation <= 0.15


@pytest.mark.parametrize("distance_ms", [0.0, 6.0, 12.0, 40.0])
@pytest.mark.parametrize(
    ("tenants", "sidecars"),
    [
        (50, 1),
        (50, 8),
        pytest.param(200, 2, marks=pytest.mark.thorough),
        pytest.param(500, 1, marks=pytest.mark.thorough),
        pytest.param(1500, 8, marks=pytest.mark.thorough),
    ],
)
def test_on_an_idle_pool_no_request_is_refused_and_waits_last_two_round_trips_at_most(
    tenants: int, sidecars: int, distance_ms: float
) -> None:
    figures = simulate(distant(tenants, sidecars, distance_ms, seed=FRESH, seconds=7.0))
    assert figures.requests > 500
    assert sum(figures.sheds.values()) == 0
    # The lease store processes one message at a time, which adds up to 5 ms to two round trips.
    assert sorted(figures.waits)[int(len(figures.waits) * 0.99)] <= 2 * distance_ms / 1000 + 0.005


@pytest.mark.parametrize("seed", SEEDS[2:])
def test_a_distant_lease_store_keeps_limits_guarantees_and_utilisation_under_contention(seed: int) -> None:
    setup = mixed(8, 100, seed=seed, seconds=12)
    near, far = simulate(setup), simulate(replace(setup, distance_s=0.02))
    assert far.over_admitted < 1
    assert far.guaranteed_sheds == 0
    assert far.utilisation >= 0.9 * near.utilisation


@pytest.mark.thorough
@pytest.mark.parametrize("tenants", [50, 1500])
@pytest.mark.parametrize("sidecars", [1, 8])
def test_a_distant_lease_store_shares_a_contended_pool_like_a_near_one(tenants: int, sidecars: int) -> None:
    near, far = (
        simulate(contended(tenants, sidecars, distance_ms, seed=FRESH, seconds=14.0))
        for distance_ms in (0.0, 40.0)
    )
    assert far.over_admitted < 1
    assert far.guaranteed_sheds == 0
    assert far.served_part("light") == pytest.approx(near.served_part("light"), abs=0.1)
    # A message takes 20 ms and a request 480 ms. The greedy tenants get what remains.
    assert far.utilisation >= near.utilisation - 0.1


@pytest.mark.parametrize("seed", SEEDS[1:])
def test_admissions_before_their_report_stay_within_their_bound(seed: int) -> None:
    """Bursts that reach their ceilings, ample room in the pool, and a distant lease store."""
    figures = simulate(ample(seed=seed))
    assert figures.taken_ahead >= 5
    assert figures.over_admitted <= BURSTY / 2
