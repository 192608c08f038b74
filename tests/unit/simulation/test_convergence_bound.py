"""The bound of ``docs/convergence.md`` holds for the shipped planner within its assumptions, not beyond."""

from __future__ import annotations

import itertools
import math

import pytest

from simulation.convergence import (
    NEAR,
    TICK_S,
    Loop,
    bound_s,
    contraction,
    near_after_s,
    random_mix,
    rows,
)
from tokenpool.planning.planner import PlannerSettings

SETTINGS = PlannerSettings()
ROUNDING = 1e-4
"""Whole sequences of a large pool."""


@pytest.mark.parametrize("seed", range(15))
def test_the_spread_shrinks_by_the_factor_in_every_tick(seed: int) -> None:
    ratios = Loop(random_mix(seed), SETTINGS).ratios(15.0)
    for before, after in itertools.pairwise(ratios):
        assert after - 1 <= (before - 1) * contraction(SETTINGS) + ROUNDING


@pytest.mark.parametrize("seed", range(15))
def test_every_tenant_is_near_its_share_within_the_bound(seed: int) -> None:
    mix = random_mix(seed)
    ratio = Loop(mix, SETTINGS).ratios(TICK_S)[0]
    assert ratio == pytest.approx(mix.ratio, rel=ROUNDING)
    assert near_after_s(mix) <= bound_s(ratio, SETTINGS)


@pytest.mark.parametrize("seed", range(8))
def test_the_bound_holds_from_any_debts_within_its_ratio(seed: int) -> None:
    mix = random_mix(seed)
    spread = math.log(6.0 / mix.ratio) / SETTINGS.debt_gain
    debts = {each.name: spread * (number % 3 - 1) / 2 for number, each in enumerate(mix.entitlements)}
    loop = Loop(mix, SETTINGS, debts=debts)
    ratios = loop.ratios(20.0)
    near = bound_s(ratios[0], SETTINGS)
    assert max(ratios[round(near / TICK_S) :]) <= 1 + NEAR + ROUNDING


@pytest.mark.parametrize("seed", range(8))
def test_debts_stay_within_the_range_that_the_factors_need(seed: int) -> None:
    mix = random_mix(seed)
    loop = Loop(mix, SETTINGS)
    for _ in range(80):
        loop.tick()
        most = max(abs(debt) for debt in loop.debts.values())
        assert most <= math.log(mix.ratio) / SETTINGS.debt_gain + ROUNDING
        assert most < SETTINGS.debt_cap_s


@pytest.mark.parametrize("residence_s", [0.0, 4.0])
def test_mean_service_over_a_window_follows_from_the_debts_at_its_ends(residence_s: float) -> None:
    loop = Loop(random_mix(3), SETTINGS, residence_s=residence_s)
    loop.ratios(5.0)
    loop.tick()
    before, sums, ticks = dict(loop.debts), dict.fromkeys(loop.debts, 0.0), 80
    relative = {}
    for number in range(ticks + 1):
        if number:
            for name, value in relative.items():
                sums[name] += value / ticks
        relative = loop.tick()
        if not number:
            before = dict(loop.debts)
    moved = {name: loop.debts[name] - before[name] for name in before}
    one, *others = sums
    for other in others:
        expected = -(moved[one] - moved[other]) / (ticks * TICK_S)
        assert sums[one] - sums[other] == pytest.approx(expected, abs=1e-3)


def test_long_requests_are_beyond_the_bound() -> None:
    """Service follows the limits only as requests end, so it swings around the fair share."""
    mix = random_mix(0)
    assert near_after_s(mix, residence_s=4.0) > bound_s(mix.ratio, SETTINGS)


@pytest.mark.parametrize("ratio", [0.5, 6.7, math.inf])
def test_a_ratio_outside_the_assumptions_is_an_error(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"the bound holds for a ratio from 1 to 6\.67, not for"):
        bound_s(ratio, SETTINGS)


def test_equal_tenants_are_at_their_share_at_once() -> None:
    assert bound_s(1.0, SETTINGS) == 0
    assert bound_s(1.04, SETTINGS) == 0
    assert bound_s(4.0, SETTINGS) == 7.0


def test_a_search_for_nearness_may_end_without_it() -> None:
    assert near_after_s(random_mix(0), residence_s=8.0, seconds=5.0) == math.inf


@pytest.mark.thorough
def test_no_random_mix_takes_longer_than_its_bound() -> None:
    assert all(row.measured_s[0] <= row.bound_s for row in rows(10))
