"""One pool of many replicas: how near handover comes to one queue for all slots, and its price in messages.

The same load reaches pools with handover, without it, with clients that try other replicas by themselves, and
one sidecar with all slots (the bound). Further worlds have unlike arrivals, lost messages and replicas that
give wrong information. ``python -m simulation one-pool`` prints the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from simulation.figures import Figures
from simulation.setup import KV_PER_SLOT, TOKENS_PER_SEQUENCE_S, Faults, Lie, Setup, Tenant
from tokenpool.amounts import Amount
from tokenpool.entitlements import Entitlement, Tier
from toolbox.percentiles import percentile

SLOTS = 8
"""Slots of a replica."""
TOKENS = 50
"""The mean size of a request; it then runs for a second."""
GUARANTEED = 0.25
"""The part of the pool that is guaranteed. Its owner offers a fifth of the load."""
TRIES = 4
"""Replicas that a client tries by itself: all of four."""


def one_pool(replicas: int, load: float, *, seed: int, seconds: float = 30.0) -> Setup:
    """Poisson arrivals at random replicas: a fifth guaranteed, three fifths elastic, a fifth spot.

    ``load`` is the ratio of offered sequence-seconds to those of all slots.
    """
    slots = replicas * SLOTS
    part = max(slots * GUARANTEED, 1.0)
    guarantee = Amount(part * TOKENS_PER_SEQUENCE_S * 1.5, part * KV_PER_SLOT, part)
    tenants = [
        Tenant(Entitlement("owner", "pool", Tier.GUARANTEED, guarantee=guarantee), 0, TOKENS, arrivals=2.0),
        Tenant(Entitlement("first", "pool", Tier.ELASTIC), 0, TOKENS, arrivals=3.0),
        Tenant(Entitlement("second", "pool", Tier.ELASTIC), 0, TOKENS, arrivals=3.0),
        Tenant(Entitlement("spot", "pool", Tier.SPOT), 0, TOKENS, arrivals=2.0),
    ]
    rate = load * slots * TOKENS_PER_SEQUENCE_S / TOKENS
    return Setup(tenants, replicas, SLOTS, seconds, seed=seed, open_loop=rate)


def without_handover(setup: Setup) -> Setup:
    """The same pool without handover."""
    return replace(setup, handover=False)


def clients_retry(setup: Setup) -> Setup:
    """The same pool without handover. Clients try other replicas at once when one refuses."""
    return replace(setup, handover=False, tries=TRIES)


def one_queue(setup: Setup) -> Setup:
    """One sidecar with all slots: the bound."""
    tenants = [replace(tenant, skew=0.0) for tenant in setup.tenants]
    slots = setup.sidecars * setup.slots
    return replace(setup, tenants=tenants, sidecars=1, slots=slots, handover=False, unaddressed=0, liars=())


def skewed(setup: Setup, share: float = 0.9) -> Setup:
    """The same load, with this share of it at the first replica."""
    return replace(setup, tenants=[replace(tenant, skew=share) for tenant in setup.tenants])


def herd(setup: Setup) -> Setup:
    """The same load, without arrivals at the last replica: the others all see its room."""
    return replace(setup, unaddressed=1)


def lossy(setup: Setup, lost: float = 0.01, late: float = 0.01) -> Setup:
    """The same pool, with lost and late messages between replicas."""
    return replace(setup, faults=Faults(peer_loss=lost, peer_late=late))


def lying(setup: Setup, lie: Lie) -> Setup:
    """The same pool, with one replica in ten (at least one) that gives wrong information."""
    return replace(setup, liars=[lie] * max(setup.sidecars // 10, 1))


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one world."""

    name: str
    replicas: int
    load: float
    requests: int
    refused: float
    """The refused share of requests."""
    refused_elastic: float
    room_refused: float
    """The share of requests that were refused while there was room: see ``TierFigures``."""
    preempted: float
    handovers: float
    """Handovers per request."""
    utilisation: float
    wait_ms: dict[str, tuple[float, float]]
    """By tier: median and P99 of the milliseconds until an engine begins."""
    peer_messages: float
    """Messages between sidecars per request."""
    store_messages: float
    """Messages to the lease store per request."""


def row(name: str, setup: Setup, load: float, figures: Figures) -> Row:
    """The figures of one world, per request."""
    tiers, requests = figures.tiers, max(figures.requests, 1)
    elastic = tiers[Tier.ELASTIC]
    return Row(
        name,
        setup.sidecars,
        load,
        figures.requests,
        sum(tier.refused for tier in tiers.values()) / requests,
        elastic.refused / max(elastic.requests, 1),
        sum(figures.room_refusals.values()) / requests,
        figures.preempted / requests,
        figures.handovers / requests,
        figures.utilisation,
        {
            tier.value: (1000 * percentile(part.waits, 0.5), 1000 * percentile(part.waits, 0.99))
            for tier, part in tiers.items()
            if part.waits
        },
        figures.peer_messages / requests,
        figures.measured_messages / requests,
    )


WAYS = (
    ("handover", lambda setup: setup),
    ("no handover", without_handover),
    ("clients retry", clients_retry),
    ("one queue", one_queue),
)


def ways(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """The same load in all ways."""
    for name, change in WAYS:
        yield name, change(setup)


def troubles(setup: Setup) -> Sequence[tuple[str, Setup]]:
    """The pool with handover: with unlike arrivals, faults of messages, and wrong information."""
    return [
        ("nine of ten at one", skewed(setup)),
        ("one without arrivals", herd(setup)),
        ("1 % lost, 1 % late", lossy(setup)),
        *((f"a tenth {lie.value}", lying(setup, lie)) for lie in Lie),
    ]
