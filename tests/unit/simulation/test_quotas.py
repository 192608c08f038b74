"""Simulated tenants that spend their quotas: in short, with every fault."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulation.quotas import QuotaSetup, setups, simulate
from tokenpool.entitlements import Quota, Window
from tokenpool.outcomes import Reason

SHORT = QuotaSetup(sidecars=3, tenants=2, quota=Quota(60_000.0, Window.DAY), seconds=75.0, usage_lag_s=0.5)
IN_FLIGHT = SHORT.sidecars * SHORT.workers
MOST_OUTGROWN = 0.08
"""Six requests of these tenants may outgrow their reservations by this part of the small quota."""
ONE_COST = 0.03
"""The largest expected cost of one request, as a part of the small quota."""
LOST = 0.03
"""What one of three sidecars spends in 15 s is a larger part of the small quota than this."""


@pytest.mark.parametrize(
    "setup",
    [
        SHORT,
        replace(SHORT, empties_at=0.5),
        replace(SHORT, empties_at=0.5, kills=(10.0, 20.0)),
        replace(SHORT, down=(20.0, 30.0)),
        replace(SHORT, distance_s=0.02),
    ],
    ids=["no fault", "emptied", "killed and emptied", "away", "distant"],
)
def test_every_tenant_stops_at_its_quota(setup: QuotaSetup) -> None:
    figures = simulate(setup)
    for deviation in figures.deviations(setup.quota.tokens):
        # What the requests of a killed sidecar had reserved counts as spent.
        assert -ONE_COST - 0.02 * len(setup.kills) < deviation < MOST_OUTGROWN
    assert figures.refused[Reason.INSUFFICIENT_QUOTA] > 0
    if not setup.kills:
        assert figures.refused_early == 0


def test_without_a_usage_store_only_the_spending_of_ended_sidecars_is_lost() -> None:
    setup = replace(SHORT, empties_at=0.5, usage_lag_s=None)
    kept = list(simulate(setup).deviations(setup.quota.tokens))
    assert all(-ONE_COST < deviation < MOST_OUTGROWN for deviation in kept)
    killed = replace(setup, kills=(15.0,))
    assert min(simulate(killed).deviations(setup.quota.tokens)) > max(kept) + LOST


def test_the_same_seed_gives_the_same_figures() -> None:
    setup = replace(SHORT, tenants=1, seconds=20.0)
    assert simulate(setup) == simulate(setup)
    assert simulate(replace(setup, seed=2)) != simulate(setup)


def test_all_faults_are_simulated() -> None:
    assert len(setups(1)) == 5
