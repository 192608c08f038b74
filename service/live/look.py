"""Looks: what a process says of its pools at one moment. Records only; whoever knows the domain fills them.

Counts are totals since some beginning: what was added between two looks is ``view``'s business.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

Vector = tuple[float | None, float | None, float | None]
"""An amount: tokens/s, KV tokens, sequences. ``None`` where there is no bound, or where nobody knows."""

ZERO: Vector = (0.0, 0.0, 0.0)
UNKNOWN_FROM = 1e9
"""From here on a number only stands for what is not known yet, such as a throughput still to be learned."""
SERVED = "finished"
"""The outcome of a request that was served; the others in a ``Tally`` are reasons of sheds."""


def vector(tokens_per_second: float, kv_tokens: float, concurrency: float) -> Vector:
    """An amount as it is shown: no number where it has no bound or is not known."""
    return _known(tokens_per_second), _known(kv_tokens), _known(concurrency)


def _known(value: float) -> float | None:
    return value if value < UNKNOWN_FROM else None


class Tally(msgspec.Struct, frozen=True):
    """How one sidecar's requests ended, as totals since it began."""

    outcomes: Mapping[str, Mapping[str, int]]
    """By entitlement and outcome."""
    is_whole: bool = True
    """Whether an entitlement that is not named had none; otherwise it may only have been left out."""


class EntitlementLook(msgspec.Struct, frozen=True):
    """One entitlement."""

    name: str
    tier: str
    guarantee: Vector = ZERO
    ceiling: Vector = (None, None, None)
    limit: Vector = ZERO
    in_use: Vector = ZERO
    """KV tokens and sequences; of throughput ``spent`` tells."""
    demand: Vector = ZERO
    debt: float = 0.0
    """Service owed, in seconds; negative where it had more than its share."""
    spent: float = 0.0
    """Throughput tokens charged less those refunded, since some beginning. It may fall."""


class Replicas(msgspec.Struct, frozen=True):
    """How many engines a pool has, and how many it needs."""

    sidecars: int = 0
    engines_up: int = 0
    least: int = 1
    most: int = 1
    """What may be provisioned."""
    desired: int | None = None
    """The scale hint; ``None`` where there is none."""
    reason: str = ""
    """Of the hint, or why there is none."""


class PoolLook(msgspec.Struct, frozen=True):
    """One pool."""

    name: str
    leader: str = ""
    """Who leads, in words."""
    capacity: Vector = ZERO
    in_use: Vector = ZERO
    """KV tokens and sequences; of throughput the entitlements' ``spent`` tells."""
    replicas: Replicas = Replicas()
    notices: tuple[str, ...] = ()
    """What is not as it should be, in words."""
    entitlements: tuple[EntitlementLook, ...] = ()
    tallies: Mapping[str, Tally] = {}
    """By sidecar. One that starts again is another one."""
    unlisted: int = 0
    """Entitlements that are idle and not among ``entitlements``."""
    unlisted_guarantees: Vector = ZERO
    """What is guaranteed to those together."""


class Look(msgspec.Struct, frozen=True):
    """One process."""

    process: str
    """``coordinator`` or ``sidecar``."""
    name: str
    pools: tuple[PoolLook, ...] = ()
    notices: tuple[str, ...] = ()
    about: str = ""
    """What the page shows, where that is not plain."""
