"""Pools with handover on a virtual clock: refusals while there is room, and the alternatives to handover."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from simulation.figures import Figures
from simulation.one_pool import (
    HEAD,
    RULE,
    clients_retry,
    guarantee_beside_floods,
    herd,
    line,
    lossy,
    lying,
    one_pool,
    one_queue,
    row,
    skewed,
    without_handover,
)
from simulation.setup import Lie, Setup
from simulation.world import simulate
from tokenpool.entitlements import Tier
from tokenpool.leases.messages import MOST_PEERS

_drawn = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
SEEDS = [
    1,
    pytest.param(2, marks=pytest.mark.thorough),
    pytest.param(_drawn.randrange(10**6), marks=pytest.mark.thorough),
]
WORLDS: list[Callable[[Setup], Setup]] = [lambda setup: setup, skewed, herd]
WORLD_NAMES = ["random", "skewed", "herd"]


def refused(figures: Figures, *tiers: Tier) -> int:
    return sum(figures.tiers[tier].refused for tier in tiers or Tier)


def with_room(figures: Figures, *tiers: Tier) -> int:
    return sum(figures.tiers[tier].room_refusals for tier in tiers or Tier)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("world", WORLDS, ids=WORLD_NAMES)
@pytest.mark.parametrize("replicas", [4, 10])
def test_no_request_is_refused_while_a_replica_has_had_room_for_the_time_of_messages_in_flight(
    replicas: int, world: Callable[[Setup], Setup], seed: int
) -> None:
    figures = simulate(world(one_pool(replicas, 0.7, seed=seed, seconds=24.0)))
    assert figures.requests > 300
    assert with_room(figures, Tier.GUARANTEED, Tier.ELASTIC) == 0
    # Spot does not wait for the next answer, which names four other replicas and their room.
    assert with_room(figures) <= (0.01 if replicas <= MOST_PEERS + 1 else 0.02) * figures.requests


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("world", WORLDS, ids=WORLD_NAMES)
def test_near_saturation_hardly_any_request_is_refused_while_a_replica_has_room(
    world: Callable[[Setup], Setup], seed: int
) -> None:
    figures = simulate(world(one_pool(4, 0.95, seed=seed, seconds=24.0)))
    assert refused(figures, Tier.GUARANTEED) == 0
    assert with_room(figures, Tier.GUARANTEED) == 0
    # The remaining refusals are of spot, by a limit that has just fallen below the use.
    assert with_room(figures, Tier.ELASTIC) <= 0.005 * figures.requests
    assert with_room(figures) <= 0.03 * figures.requests


def test_the_judge_notices_refusals_while_there_is_room() -> None:
    figures = simulate(without_handover(one_pool(4, 0.8, seed=1, seconds=24.0)))
    assert with_room(figures) > 0.01 * figures.requests
    assert sum(figures.room_refusals.values()) == with_room(figures)


def test_handover_refuses_hardly_more_than_one_queue_for_all_slots() -> None:
    setup = one_pool(4, 0.8, seed=2, seconds=48.0)
    handover, queue, alone = (simulate(world) for world in (setup, one_queue(setup), without_handover(setup)))
    assert handover.requests == queue.requests == alone.requests
    assert refused(handover) <= refused(queue) + 0.015 * queue.requests
    assert refused(alone) > refused(handover)
    assert handover.handovers > 0
    assert alone.handovers == alone.peer_messages == 0


def test_a_client_that_tries_other_replicas_counts_as_one_request() -> None:
    setup = one_pool(4, 0.95, seed=3, seconds=24.0)
    alone, retried = simulate(without_handover(setup)), simulate(clients_retry(setup))
    assert retried.requests == alone.requests
    assert 0 < refused(retried) < refused(alone)


@pytest.mark.parametrize("lie", list(Lie))
def test_a_replica_that_gives_wrong_information_costs_no_more_than_its_own_room(lie: Lie) -> None:
    setup = one_pool(4, 0.6, seed=4, seconds=24.0)
    figures = simulate(lying(setup, lie))
    assert refused(figures, Tier.GUARANTEED, Tier.ELASTIC) == 0
    assert refused(figures) <= 0.03 * figures.requests
    assert figures.handovers > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_guarantee_finds_the_replica_that_has_spot_to_end(seed: int) -> None:
    """Before probes, 3 to 7 % of the requests waited for 10 to 105 ms for a slot of elastic requests."""
    figures = simulate(guarantee_beside_floods(seed=seed, seconds=40.0))
    waits = figures.tiers[Tier.GUARANTEED].waits
    assert refused(figures, Tier.GUARANTEED) == 0
    assert sum(wait > 0.01 for wait in waits) <= 0.05 * len(waits)
    assert figures.preempted > 0.5 * len(waits)


def test_a_request_that_is_sent_with_its_ask_saves_messages() -> None:
    figures = simulate(skewed(one_pool(4, 0.6, seed=7, seconds=24.0)))
    assert figures.sends > 0.8 * figures.handovers
    assert figures.sends_refused < 0.15 * figures.sends
    # With an ask, an offer and a cancel of the second ask, it were 4.9 per request.
    assert figures.peer_messages < 3 * figures.requests


def test_lost_and_late_messages_between_replicas_hold_no_room_for_long() -> None:
    setup = one_pool(4, 0.6, seed=5, seconds=24.0)
    figures, whole = simulate(lossy(setup, 0.05, 0.05)), simulate(setup)
    assert refused(figures, Tier.GUARANTEED, Tier.ELASTIC) == 0
    assert figures.utilisation >= 0.95 * whole.utilisation


def test_without_any_message_between_replicas_requests_are_served_where_they_arrive() -> None:
    figures = simulate(lossy(one_pool(4, 0.6, seed=6, seconds=24.0), 1.0, 0.0))
    assert figures.asks > 0
    assert figures.handovers == 0
    assert refused(figures, Tier.GUARANTEED) == 0


@pytest.mark.thorough
@pytest.mark.parametrize("world", WORLDS[::2], ids=WORLD_NAMES[::2])
def test_a_hundred_replicas_are_one_pool(world: Callable[[Setup], Setup]) -> None:
    figures = simulate(world(one_pool(100, 0.8, seed=7, seconds=14.0)))
    assert refused(figures) <= 0.002 * figures.requests
    assert figures.handovers <= 0.5 * figures.requests
    assert figures.peer_messages <= 5 * figures.requests


def test_each_column_of_the_table_has_a_figure() -> None:
    setup = one_pool(4, 0.5, seed=8, seconds=10.0)
    made = line(row("handover", setup, 0.5, simulate(setup)))
    assert len(made) == len(HEAD) == len(RULE)
    assert made.count("|") == HEAD.count("|")
