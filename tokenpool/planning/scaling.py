"""Scaling: the number of replicas that a pool needs now, and the dimension that decides.

The inputs are the pool's guarantees, its demand and the capacity of one replica. ``stabiliser`` makes a scale
hint from successive needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.entitlements import Entitlement, Group, Pool, Promises, Tier, from_the_bottom

_EPSILON = 1e-9
"""Relative tolerance: a sum of floats slightly above a whole number of replicas needs no further replica."""


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """The constants of scale hints."""

    headroom: float = 0.1
    """Capacity to provision beyond the need, as a share of the need."""
    counts_spot: bool = False
    """Whether spot demand raises the hint. By default it does not: spot uses the free capacity of others."""
    up_window_s: float = 0.0
    """The seconds for which a higher need must last before the hint rises."""
    down_window_s: float = 300.0
    """The seconds for which a lower need must last before the hint falls. A replica takes minutes to load its
    model, so a short pause in demand must not remove it."""


@dataclass(frozen=True, slots=True)
class Need:
    """The number of replicas that are needed now."""

    replicas: int
    """Within the pool's min and max."""
    dimension: Dimension | None
    """The dimension that needs the most replicas; ``None`` if the minimum is enough."""
    unbounded: int
    """The need without the pool's maximum."""
    floor: int
    """The need of the guarantees alone. A scale-in stops here."""


def replica_capacity(pool: Pool, measured: Amount) -> Amount:
    """The capacity of one replica: measured, else from the pool file; 0 in a dimension with neither."""
    spec = pool.replica
    stated = (spec.tokens_per_second, spec.kv_tokens, spec.concurrency)
    return Amount(*(measured.get(d) or number or 0.0 for d, number in zip(Dimension, stated, strict=True)))


def needed_replicas(
    pool: Pool,
    entitlements: Mapping[str, Entitlement],
    guaranteed: Promises,
    demand: Mapping[str, Amount],
    measured: Amount,
    settings: ScalingSettings,
    groups: Sequence[Group] = (),
) -> Need | None:
    """``max over dimensions of ceil((guarantees + others' demand) * (1 + headroom) / replica)``.

    ``guaranteed`` is the result of ``promises``, so the work depends on groups and on entitlements with
    demand. The demand of a group's members counts against the group's guarantee first, and up to its ceiling.
    ``demand`` is the offered load by name, without the retries of shed requests. ``measured`` is the capacity
    of one engine, 0 in a dimension without a measurement.

    A dimension without a measurement or a number in the pool file does not count. If no dimension counts, the
    result is ``None``: a pool that just loads its models must not shrink. An entitlement counts with the
    larger of its guarantee and its demand up to the ceiling. Spot counts only with ``settings.counts_spot``.
    """
    replica = replica_capacity(pool, measured)
    if replica == NOTHING:
        return None
    more: dict[str | None, Amount] = {None: NOTHING} | {group.name: NOTHING for group in groups}
    for name, amount in demand.items():
        entitlement = entitlements.get(name)
        if entitlement is None:
            continue
        asked = amount.at_most(entitlement.ceiling)
        if entitlement.tier is not Tier.SPOT:
            guarantee = entitlement.guarantee
            asked = asked.at_least(guarantee) - guarantee
        elif not settings.counts_spot:
            continue
        group_name = entitlement.group if entitlement.group in more else None
        more[group_name] = more[group_name] + asked
    for group in from_the_bottom(groups):
        own = guaranteed.of(group)
        asked = (guaranteed.members[group.name] + more[group.name]).at_most(group.ceiling)
        parent = group.parent if group.parent in more else None
        more[parent] = more[parent] + (asked.at_least(own) - own)
    wanted = guaranteed.total + more[None]
    floor = max((_replicas(guaranteed.total.get(d), replica.get(d)) for d in Dimension), default=0)
    most, dimension = 0, None
    for candidate in Dimension:
        count = _replicas(wanted.get(candidate) * (1 + settings.headroom), replica.get(candidate))
        if count > most:
            most, dimension = count, candidate
    bounded = min(max(most, floor, pool.min_replicas), pool.max_replicas)
    return Need(bounded, dimension if most > pool.min_replicas else None, most, min(floor, pool.max_replicas))


def _replicas(amount: float, replica: float) -> int:
    return math.ceil(amount / replica * (1 - _EPSILON)) if replica > 0 else 0
