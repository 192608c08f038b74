"""One pool of many replicas: handover is compared with one queue for all slots, and its messages are counted.

The same load reaches pools with handover, without it, with clients that try other replicas by themselves, and
one sidecar with all slots (the bound). Other worlds have uneven arrivals, lost messages, and replicas that
give wrong information. ``python -m simulation one-pool`` prints the tables.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from simulation.figures import Figures
from simulation.setup import KV_PER_SLOT, TOKENS_PER_SEQUENCE_S, Faults, Lie, Setup, Tenant
from simulation.world import simulate
from tokenpool.amounts import Amount
from tokenpool.entitlements import Entitlement, Tier
from toolbox.percentiles import percentile

SLOTS = 8
"""Slots of a replica."""
TOKENS = 50
"""The mean size of a request in tokens. A request of this size runs for a second."""
GUARANTEED = 0.25
"""The part of the pool that is guaranteed. Its owner offers a fifth of the load."""
WARM_UP_S = 8.0
"""Arrivals begin after half of this time. Figures are counted from its end on."""
TRIES = 4
"""The number of replicas that a client tries by itself. With four replicas these are all."""


def one_pool(replicas: int, load: float, *, seed: int, seconds: float = 30.0) -> Setup:
    """Poisson arrivals at random replicas: a fifth guaranteed, three fifths elastic, a fifth spot.

    ``load`` is the ratio of offered sequence-seconds to the sequence-seconds of all slots.
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
    return Setup(tenants, replicas, SLOTS, seconds, seed=seed, open_loop=rate, warm_up_s=WARM_UP_S)


def guarantee_beside_floods(*, seed: int, seconds: float = 60.0) -> Setup:
    """The floods of ``experiments.pool_guarantee``: four replicas, nine of ten requests at the first one.

    A guaranteed tenant with four sequences sends 3 requests/s of 0.24 s. Elastic requests ask for 60 % of the
    pool, and spot for 150 %. The simulated engines have no steps, and the sidecars take no CPU time.
    """
    slots = 4 * SLOTS
    guarantee = Amount(200, 1024, 4)
    owner = Entitlement("owner", "pool", Tier.GUARANTEED, guarantee=guarantee)
    rates = {Tier.ELASTIC: 0.6 * slots, Tier.SPOT: 1.5 * slots}
    tenants = [
        Tenant(owner, 0, 12, arrivals=3.0),
        *(Tenant(Entitlement(t.value, "pool", t), 0, TOKENS, arrivals=rate) for t, rate in rates.items()),
    ]
    rate = sum(tenant.arrivals for tenant in tenants)
    return skewed(Setup(tenants, 4, SLOTS, seconds, seed=seed, open_loop=rate, warm_up_s=WARM_UP_S))


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
    """The same load, without arrivals at the last replica. All other replicas see its room."""
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
    """The share of requests that were refused while there was room (``TierFigures.room_refusals``)."""
    preempted: float
    handovers: float
    """Handovers per request."""
    utilisation: float
    wait_ms: dict[str, tuple[float, float]]
    """The median and the P99 of the milliseconds until an engine begins, by tier."""
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


WAYS: Sequence[tuple[str, Callable[[Setup], Setup]]] = (
    ("handover", lambda setup: setup),
    ("no handover", without_handover),
    ("clients retry", clients_retry),
    ("one queue", one_queue),
)


def ways(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """The same load for all alternatives."""
    for name, change in WAYS:
        yield name, change(setup)


def troubles(setup: Setup) -> Sequence[tuple[str, Setup]]:
    """The pool with handover: with uneven arrivals, lost and late messages, and wrong information."""
    return [
        ("nine of ten at one", skewed(setup)),
        ("one without arrivals", herd(setup)),
        ("1 % lost, 1 % late", lossy(setup)),
        *((f"a tenth {lie.value}", lying(setup, lie)) for lie in Lie),
    ]


OUT = Path(__file__).parent.parent / "out" / "sim"
POINTS: Sequence[tuple[int, float, float]] = (
    (4, 0.6, 300.0),
    (4, 0.8, 300.0),
    (4, 0.95, 300.0),
    (10, 0.8, 120.0),
    (10, 0.95, 120.0),
    (100, 0.8, 24.0),
    (100, 0.95, 24.0),
    (1000, 0.8, 11.0),
)
"""Replicas, load and seconds of the comparison."""
TROUBLED: Sequence[tuple[int, float, float]] = ((4, 0.8, 300.0), (10, 0.8, 120.0), (100, 0.8, 24.0))
"""The same for uneven arrivals, lost and late messages, and wrong information."""
_COLUMNS: Sequence[tuple[str, int, Callable[[Row], str]]] = (
    ("replicas", 8, lambda row: str(row.replicas)),
    ("load", 5, lambda row: f"{row.load:.0%}"),
    ("", 21, lambda row: row.name),
    ("refused", 8, lambda row: f"{row.refused:.2%}"),
    ("elastic", 8, lambda row: f"{row.refused_elastic:.2%}"),
    ("with room", 9, lambda row: f"{row.room_refused:.2%}"),
    ("preempted", 9, lambda row: f"{row.preempted:.1%}"),
    ("handovers", 9, lambda row: f"{row.handovers:.2f}"),
    ("utilised", 8, lambda row: f"{row.utilisation:.1%}"),
    ("guaranteed ms", 13, lambda row: _wait(row, Tier.GUARANTEED)),
    ("elastic ms", 10, lambda row: _wait(row, Tier.ELASTIC)),
    ("spot ms", 9, lambda row: _wait(row, Tier.SPOT)),
    ("peer msgs", 9, lambda row: f"{row.peer_messages:.1f}"),
    ("store msgs", 10, lambda row: f"{row.store_messages:.1f}"),
)
"""Title, width and content. Waits are ``P50, P99``; handovers and messages are per request."""
HEAD = "| " + " | ".join(title.rjust(width) for title, width, _ in _COLUMNS) + " |"
RULE = "| " + " | ".join("-" * (width - 1) + ":" for _, width, _ in _COLUMNS) + " |"


def line(row: Row) -> str:
    """One line of a table in Markdown."""
    return "| " + " | ".join(content(row).rjust(width) for _, width, content in _COLUMNS) + " |"


def _wait(row: Row, tier: Tier) -> str:
    if tier.value not in row.wait_ms:
        return "-"
    middle, late = row.wait_ms[tier.value]
    return f"{middle:.0f}, {late:.0f}"


def tables(seed: int, *, longest: float = float("inf"), largest: int = 1000) -> list[Row]:
    """Simulate and print all tables. ``longest`` and ``largest`` bound the seconds and the replicas."""
    rows = []
    for points, worlds in ((POINTS, ways), (TROUBLED, troubles)):
        print(f"{HEAD}\n{RULE}")
        for replicas, load, seconds in points:
            if replicas > largest:
                continue
            for name, setup in worlds(one_pool(replicas, load, seed=seed, seconds=min(seconds, longest))):
                rows.append(replace(row(name, setup, load, simulate(setup)), replicas=replicas))
                print(line(rows[-1]), flush=True)
        print()
    return rows


def main(seed: int) -> int:
    """Print the tables, and write the figures to ``out/sim/one_pool.json``."""
    started = time.monotonic()
    rows = tables(seed)
    OUT.mkdir(parents=True, exist_ok=True)
    content = {"seed": seed, "rows": [asdict(row) for row in rows]}
    (OUT / "one_pool.json").write_text(json.dumps(content, indent=1))
    print(f"{time.monotonic() - started:.0f} s")
    return 0
