"""Groups on many sidecars: ceilings hold, and groups get service by weight, whatever their members want."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from simulation.figures import Figures
from simulation.mixes import GROUP_CEILING, grouped
from simulation.setup import Setup
from simulation.world import simulate
from toolbox.fairness import jain_by_weight

pytestmark = pytest.mark.thorough


def by_group(setup: Setup, figures: Figures) -> dict[str, float]:
    """Tokens served to each group."""
    groups = {tenant.entitlement.name: tenant.entitlement.group for tenant in setup.tenants}
    served: Counter[str] = Counter()
    for name, tokens in figures.service.items():
        served[str(groups[name])] += tokens
    return dict(served)


@pytest.mark.parametrize("seed", [1])
def test_groups_share_a_contended_pool_by_weight_and_below_their_ceilings(seed: int) -> None:
    setup = grouped(seed=seed, seconds=20)
    figures = simulate(setup)

    served = by_group(setup, figures)
    capped = served["capped"] / sum(served.values())
    del served["capped"]
    weights = {group.name: group.weight for group in setup.groups if group.name in served}
    assert jain_by_weight(served, weights) >= 0.99
    assert figures.most_running["group:capped"] == GROUP_CEILING
    assert capped >= 0.6 * GROUP_CEILING / (setup.sidecars * setup.slots)
    assert figures.busy / figures.possible >= 0.95


def test_a_ceiling_holds_with_a_distant_lease_store_and_a_pool_with_room() -> None:
    setup = grouped(seed=3, sidecars=4, seconds=15)
    capped = [tenant for tenant in setup.tenants if tenant.entitlement.group == "capped"]
    figures = simulate(replace(setup, tenants=capped, distance_s=0.02))

    assert figures.most_running["group:capped"] == GROUP_CEILING
    assert figures.over_admitted == 0
    least = min(figures.service[tenant.entitlement.name] for tenant in capped)
    assert least >= 0.4 * sum(figures.service.values()) / len(capped)
