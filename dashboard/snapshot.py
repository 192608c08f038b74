"""Snapshots: the state of a process's pools at one moment. Records only; the process fills them.

Counts are totals since a start that may be unknown; ``recent`` computes their increase. The process takes a
snapshot every half second, or every two seconds without listeners. So a snapshot has only the entitlements
that matter now; ``Wanted.choose`` selects them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice

import msgspec

Vector = tuple[float | None, float | None, float | None]
"""An amount: tokens/s, KV tokens, sequences. ``None``: no bound, or unknown."""

ZERO: Vector = (0.0, 0.0, 0.0)
UNKNOWN_FROM = 1e9
"""Numbers from here on stand for an unknown amount, such as a throughput that is not learned yet."""
SERVED = "finished"
"""The outcome of a served request. All other outcomes in a ``Tally`` are reasons of sheds."""


def vector(tokens_per_second: float, kv_tokens: float, concurrency: float) -> Vector:
    """An amount as the page shows it: ``None`` for a dimension without a bound or of unknown size."""
    return (
        tokens_per_second if tokens_per_second < UNKNOWN_FROM else None,
        kv_tokens if kv_tokens < UNKNOWN_FROM else None,
        concurrency if concurrency < UNKNOWN_FROM else None,
    )


FirstTokens = tuple[float, Sequence[int]]
"""Times to first token as totals: their sum in seconds, and the count in each bucket."""


class Tally(msgspec.Struct, frozen=True):
    """The outcomes of one sidecar's requests, as totals since its start."""

    outcomes: Mapping[str, Mapping[str, int]]
    """Counts by entitlement and outcome. An entitlement that is left out has unchanged counts."""
    is_whole: bool = True
    """Whether an entitlement that was never named had no requests; otherwise it may have been left out."""
    first_tokens: Mapping[str, FirstTokens] = {}
    """By entitlement. An entitlement that is left out has unchanged times."""
    has_all_first_tokens: bool = True
    """The same as ``is_whole``, for times to first token."""
    bounds_s: Sequence[float] = ()
    """The upper bounds of the buckets, in seconds. One more bucket counts longer times."""


class ShownEntitlement(msgspec.Struct, frozen=True):
    """One entitlement."""

    name: str
    tier: str
    guarantee: Vector = ZERO
    ceiling: Vector = (None, None, None)
    limit: Vector = ZERO
    in_use: Vector = ZERO
    """KV tokens and sequences. Throughput follows from ``spent``."""
    demand: Vector = ZERO
    debt: float = 0.0
    """Service owed to the entitlement, in seconds; negative if it had more than its share."""
    spent: float = 0.0
    """Throughput tokens charged less refunds, as a total. It may fall."""
    is_enforced: bool = True
    """Whether decisions are enforced."""
    decisions: dict[str, int] = {}
    """The decisions that were not enforced, by decision, if the process knows them."""


class Replicas(msgspec.Struct, frozen=True):
    """The number of engines that a pool has, may have and needs."""

    sidecars: int = 0
    engines_up: int = 0
    least: int = 1
    """The smallest number that may be provisioned."""
    most: int = 1
    """The largest number that may be provisioned."""
    desired: int | None = None
    """The scale hint; ``None`` if there is none."""
    reason: str = ""
    """The reason of the hint, or the reason why there is none."""


class ShownHandover(msgspec.Struct, frozen=True):
    """The handover of one sidecar. Counts are totals since its start."""

    peers: int = 0
    """The number of other replicas that are known."""
    results: tuple[tuple[str, int], ...] = ()
    """The asks at other replicas, by result."""
    elsewhere: int = 0
    """Requests of this replica that run on others now."""
    guests: int = 0
    """Sequences of other replicas that run here now."""
    guests_waiting: int = 0
    """Requests of other replicas that wait here now."""


class ShownPool(msgspec.Struct, frozen=True):
    """One pool."""

    name: str
    leader: str = ""
    """The leader, in words."""
    capacity: Vector = ZERO
    in_use: Vector = ZERO
    """KV tokens and sequences. Throughput follows from the entitlements' ``spent``."""
    replicas: Replicas = Replicas()
    notices: tuple[str, ...] = ()
    """Problems of the pool, in words."""
    entitlements: tuple[ShownEntitlement, ...] = ()
    """The entitlements that ``Wanted`` selects."""
    tallies: Mapping[str, Tally] = {}
    """Tallies by sidecar. A restarted sidecar has another name."""
    total: int | None = None
    """The number of entitlements in the pool; ``None``: all of them are in ``entitlements``."""
    guarantees: Vector | None = None
    """The sum of all guarantees; ``None``: the sum over ``entitlements``."""
    spent_from_zero: bool = False
    """Whether ``spent`` began at 0 for an entitlement that the first snapshot did not have."""
    waiting: tuple[tuple[str, int], ...] = ()
    """The requests that wait now, by tier. Empty on a coordinator: reports do not contain them."""
    handover: ShownHandover | None = None
    """``None`` on a coordinator, and without handover."""


class Snapshot(msgspec.Struct, frozen=True):
    """One process."""

    process: str
    """``coordinator`` or ``sidecar``."""
    name: str
    pools: tuple[ShownPool, ...] = ()
    notices: tuple[str, ...] = ()
    about: str = ""
    """An explanation of the page, if it needs one."""


class Wanted(msgspec.Struct, frozen=True):
    """The entitlements that a snapshot must have."""

    names: Collection[str] = ()
    """The names that the page shows, of all pools together."""
    others: int = 0
    """The number of further entitlements of each pool, in the order of the pool file."""

    def choose(self, every: Collection[str], active: Iterable[str]) -> list[str]:
        """The names for one pool's snapshot: those wanted, and all that were active since the last snapshot.

        ``every`` holds all names of the pool and must be quick to search. The cost follows the answer's
        length.
        """
        if self.others >= len(every):
            return list(every)
        chosen = {name: None for name in active if name in every}
        chosen.update((name, None) for name in self.names if name in every)
        chosen.update((name, None) for name in islice(every, self.others))
        return list(chosen)


EVERYTHING = Wanted(others=1_000_000_000)
"""For tests and tools: all entitlements."""
TakeSnapshot = Callable[[Wanted], Snapshot]
"""Takes a snapshot of the process, with the entitlements that are wanted."""
