"""Setups of the simulation: mixes of tenants as in real pools. Most tenants are smaller than one engine."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from simulation.setup import KV_PER_SLOT, TOKENS_PER_SEQUENCE_S, Faults, Setup, Tenant
from tokenpool.amounts import NOTHING, UNBOUNDED, Amount
from tokenpool.entitlements import Entitlement, Group, Slo, Tier
from tokenpool.planning.planner import PlannerSettings
from toolbox.contended import classes

SLOTS = 8
NO_TROUBLE = Faults()
TROUBLE = Faults(
    loss=0.002,
    duplicates=0.01,
    late=0.002,
    crashes=0.002,
    pauses=0.005,
    partitions=0.005,
    drift=0.01,
)
"""All faults of single sidecars and messages, during the whole run."""


def mixed(
    sidecars: int,
    entitlements: int,
    *,
    seed: int,
    seconds: float = 20.0,
    load: float = 1.5,
    faults: Faults = NO_TROUBLE,
) -> Setup:
    """A pool with one guaranteed tenant in ten, one spot tenant in ten with double load, and elastic others.

    Four in five are small. ``load`` is the ratio of wanted sequences to slots. Guarantees add up to half the
    pool.
    """
    chance = random.Random(f"mix {seed}")
    slots = sidecars * SLOTS
    guarantee = max(slots // 2 // max(entitlements // 10, 1), 1)
    tenants = []
    weights = [chance.choice([1, 1, 1, 1, 6]) for _ in range(entitlements)]
    per_weight = load * slots / sum(weights)
    for number, weight in enumerate(weights):
        workers = max(round(weight * per_weight), 1)
        kind = number % 10
        small = weight == 1
        ceiling = Amount(math.inf, math.inf, max(workers, 2)) if small else UNBOUNDED
        if kind == 0:
            entitlement = Entitlement(
                f"t{number:04}",
                "pool",
                Tier.GUARANTEED,
                guarantee=_sequences(guarantee),
                slo=Slo(ttft_ms=300),
            )
            workers = guarantee
        elif kind == 1:
            entitlement, workers = (
                Entitlement(f"t{number:04}", "pool", Tier.SPOT, preemptible=False),
                workers * 2,
            )
        else:
            entitlement = Entitlement(
                f"t{number:04}", "pool", Tier.ELASTIC, weight=chance.choice([1.0, 2.0]), ceiling=ceiling
            )
        tenants.append(Tenant(entitlement, workers, tokens=chance.choice([25, 50, 100, 200])))
    return Setup(tenants, sidecars, SLOTS, seconds, faults, seed)


def _sequences(count: float) -> Amount:
    return Amount(count * TOKENS_PER_SEQUENCE_S * 1.5, count * KV_PER_SLOT, count)


def small_tenants(*, seed: int, workers: int = 2, seconds: float = 20.0) -> Setup:
    """Forty tenants with a ceiling of two sequences each on eight sidecars with room for all."""
    ceiling = Amount(math.inf, math.inf, 2)
    tenants = [
        Tenant(Entitlement(f"t{number:02}", "pool", Tier.ELASTIC, ceiling=ceiling), workers)
        for number in range(40)
    ]
    return Setup(tenants, 8, slots=40, seconds=seconds, seed=seed)


GROUP_CEILING = 6
"""Sequences of the group with a ceiling in ``grouped``."""


def grouped(*, seed: int, sidecars: int = 6, seconds: float = 60.0, ceiling: float = GROUP_CEILING) -> Setup:
    """Three groups that want the pool each, with 8, 2 and 4 tenants, and ten tenants below a ceiling.

    The third group has twice the weight. The share of each tenant is at least one sequence with six sidecars:
    a limit is at least one request, so a group with more tenants than sequences gets more than its share.
    """
    capped = Group("capped", "pool", ceiling=Amount(math.inf, math.inf, ceiling))
    groups = [Group("many", "pool"), Group("few", "pool"), Group("heavy", "pool", weight=2.0), capped]
    wanted = sidecars * SLOTS
    tenants = [
        Tenant(
            Entitlement(f"{group}{number:02}", "pool", Tier.ELASTIC, group=group),
            wanted // members,
            think_s=0.05,
        )
        for group, members in (("many", 8), ("few", 2), ("heavy", 4), ("capped", 10))
        for number in range(members)
    ]
    return Setup(tenants, sidecars, SLOTS, seconds, seed=seed, groups=groups)


def distant(
    tenants: int,
    sidecars: int,
    distance_ms: float,
    *,
    seed: int,
    rate: float = 200.0,
    seconds: float = 12.0,
) -> Setup:
    """Elastic tenants without ceilings, and one in ten with a small guarantee, on a pool that is 8 % busy.

    ``distance_ms`` is the round trip to the lease store.
    """
    slots = math.ceil(rate * 8 / TOKENS_PER_SEQUENCE_S / 0.08 / sidecars)
    guaranteed = max(tenants // 10, 1)
    guarantee = _sequences(slots * sidecars / guaranteed / 4)
    made = [
        Tenant(Entitlement(f"t{n:04}", "pool", Tier.GUARANTEED, guarantee=guarantee), 0)
        if n % 10 == 0
        else Tenant(Entitlement(f"t{n:04}", "pool", Tier.ELASTIC), 0)
        for n in range(tenants)
    ]
    made = [replace(tenant, tokens=4) for tenant in made]
    return Setup(
        made, sidecars, slots, seconds, seed=seed, open_loop=rate, distance_s=max(distance_ms, 0.1) / 2000
    )


def contended(
    tenants: int,
    sidecars: int,
    distance_ms: float,
    *,
    seed: int,
    rate: float = 200.0,
    slots: int = 48,
    seconds: float = 24.0,
) -> Setup:
    """Twice as many requests as the pool can serve; the guaranteed tenants request a tenth of it.

    ``slots`` are those of the pool, divided among the sidecars. ``distance_ms`` is the round trip to the
    lease store. The names begin with the class: ``guaranteed``, ``greedy`` or ``light``.
    """
    made = []
    for kind, count, sequences, arrivals in classes(tenants):
        tier, guarantee = (Tier.GUARANTEED, _sequences(sequences)) if sequences else (Tier.ELASTIC, NOTHING)
        made += [
            Tenant(Entitlement(f"{kind}{n}", "pool", tier, guarantee=guarantee), 0, arrivals=arrivals)
            for n in range(count)
        ]
    made = [replace(tenant, tokens=25) for tenant in made]
    distance_s = max(distance_ms, 0.1) / 2000
    per_sidecar = math.ceil(slots / sidecars)
    return Setup(made, sidecars, per_sidecar, seconds, seed=seed, open_loop=rate, distance_s=distance_s)


BURSTY = 40
"""Sequences that a bursty tenant may have at once."""


def ample(*, seed: int, seconds: float = 15.0) -> Setup:
    """Bursts up to each tenant's ceiling, on a pool with room for all; the lease store is 20 ms away."""
    ceiling = Amount(math.inf, math.inf, BURSTY)
    tenants = [
        Tenant(
            Entitlement(f"t{number}", "pool", Tier.ELASTIC, ceiling=ceiling),
            workers=3 * BURSTY,
            tokens=20,
            think_s=1.0,
        )
        for number in range(3)
    ]
    return Setup(tenants, 4, slots=100, seconds=seconds, seed=seed, distance_s=0.01)


def lone_tenant(*, seed: int, seconds: float = 20.0) -> Setup:
    """One tenant that wants far more than the whole pool of four."""
    return Setup(
        [Tenant(Entitlement("lone", "pool", Tier.ELASTIC), 128, think_s=0.0)],
        4,
        SLOTS,
        seconds,
        seed=seed,
    )


def skewed(sidecars: int, *, seed: int, seconds: float = 20.0) -> Setup:
    """A tenant with a ceiling of eight sends nine of ten requests to the first of the sidecars."""
    ceiling = Amount(math.inf, math.inf, 8)
    tenant = Entitlement("skewed", "pool", Tier.ELASTIC, ceiling=ceiling)
    slots = SLOTS * 4 // sidecars
    return Setup([Tenant(tenant, 12, think_s=0.0, skew=0.9)], sidecars, slots, seconds, seed=seed)


def idle_guarantee(*, seed: int, seconds: float = 20.0, is_preemptible: bool = False) -> Setup:
    """A guarantee of half the pool is idle for half the time, while spot uses the whole pool.

    With ``is_preemptible``, the owner's requests end spot requests instead of waiting for their end.
    """
    owner = Entitlement("owner", "pool", Tier.GUARANTEED, guarantee=_sequences(16))
    return Setup(
        [
            Tenant(owner, 16, think_s=0.0, starts_at=seconds / 2),
            Tenant(Entitlement("spot", "pool", Tier.SPOT, preemptible=is_preemptible), 64, think_s=0.0),
        ],
        4,
        SLOTS,
        seconds,
        seed=seed,
    )


def scarcity(*, seed: int, debt_gain: float = PlannerSettings().debt_gain, seconds: float = 110.0) -> Setup:
    """A random mix of four to six elastic tenants; 4 of 10 engines are left after 20 s.

    Request sizes differ by a factor of ten, weights by two, SLO factors by four. The load of each tenant
    exceeds the pool.
    """
    chance = random.Random(f"scarcity {seed}")
    others = chance.randint(2, 4)
    sizes = [40, 400, *chance.choices([40, 80, 120, 200, 400], k=others)]
    weights = [1.0, 2.0, *chance.choices([1.0, 2.0], k=others)]
    slos = [250.0, None, *chance.choices([250.0, 330.0, 500.0, None], k=others)]
    for column in (sizes, weights, slos):
        chance.shuffle(column)
    tenants = [
        Tenant(
            Entitlement(f"t{n}", "pool", Tier.ELASTIC, weight=weight, slo=Slo(ttft_ms=slo)),
            workers=15 * SLOTS,
            tokens=size,
            think_s=0.0,
        )
        for n, (size, weight, slo) in enumerate(zip(sizes, weights, slos, strict=True))
    ]
    planner = PlannerSettings(debt_gain=debt_gain)
    return Setup(tenants, 10, SLOTS, seconds, seed=seed, planner=planner, cut_at=20.0, kept=4)


def outage(setup: Setup, start: float, end: float, *, is_empty: bool) -> Setup:
    """The same pool with an outage of the lease store."""
    faults = Faults(outages=[(start, end, is_empty)])
    return Setup(
        setup.tenants, setup.sidecars, setup.slots, setup.seconds, faults, setup.seed, setup.settings
    )


def all_of(
    sidecars: int, entitlements: int, *, seed: int, seconds: float, load: float = 1.5
) -> Sequence[tuple[str, Setup]]:
    """The mixed pool: without faults, with all faults, and with an outage that keeps or loses the data."""
    quiet = mixed(sidecars, entitlements, seed=seed, seconds=seconds, load=load)
    return [
        ("quiet", quiet),
        ("trouble", mixed(sidecars, entitlements, seed=seed, seconds=seconds, load=load, faults=TROUBLE)),
        ("store lost", outage(quiet, seconds * 0.4, seconds * 0.7, is_empty=False)),
        ("store empty", outage(quiet, seconds * 0.4, seconds * 0.7, is_empty=True)),
    ]
