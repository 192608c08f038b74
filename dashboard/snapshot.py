"""Looks: what a process says of its pools at one moment. Records only; the process fills them.

Counts are totals since some beginning; ``recent`` computes what was added between two looks. A look is taken
every half second or two for as long as the process lives, so it names the entitlements that matter now and
not all of them: ``Wanted.choose`` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice

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
    return (
        tokens_per_second if tokens_per_second < UNKNOWN_FROM else None,
        kv_tokens if kv_tokens < UNKNOWN_FROM else None,
        concurrency if concurrency < UNKNOWN_FROM else None,
    )


FirstTokens = tuple[float, Sequence[int]]
"""Times to first token since some beginning: their sum in seconds, and how many fell below each bound."""


class Tally(msgspec.Struct, frozen=True):
    """How one sidecar's requests ended, as totals since it began."""

    outcomes: Mapping[str, Mapping[str, int]]
    """By entitlement and outcome. The counts of an entitlement that is left out are as they were."""
    is_whole: bool = True
    """Whether an entitlement that was never named had no requests; else it may have been left out."""
    first_tokens: Mapping[str, FirstTokens] = {}
    """By entitlement; of one that is left out they are as they were."""
    has_all_first_tokens: bool = True
    """Whether one whose first tokens were never named had none; else it may have been left out."""
    bounds_s: Sequence[float] = ()
    """Of the counts of first tokens; one more count is for longer times."""


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
    """Those that matter now; see ``Wanted``."""
    tallies: Mapping[str, Tally] = {}
    """By sidecar. One that starts again is another one."""
    total: int | None = None
    """How many entitlements the pool has; ``None``: those named."""
    guarantees: Vector | None = None
    """Of all entitlements together; ``None``: of those named."""
    spent_from_zero: bool = False
    """Whether ``spent`` of an entitlement that is first named after the first look began at 0."""


class Snapshot(msgspec.Struct, frozen=True):
    """One process."""

    process: str
    """``coordinator`` or ``sidecar``."""
    name: str
    pools: tuple[PoolLook, ...] = ()
    notices: tuple[str, ...] = ()
    about: str = ""
    """What the page shows, where that is not plain."""


class Wanted(msgspec.Struct, frozen=True):
    """Which entitlements a look has to name."""

    names: Collection[str] = ()
    """Those that are shown. Names of other pools may be among them."""
    others: int = 0
    """So many more of each pool, in the file's order, if there are as many."""

    def choose(self, every: Collection[str], active: Iterable[str]) -> list[str]:
        """The names of one pool's look: those wanted, and all that were active since the last look.

        ``every`` holds all names of the pool and is quick to look into. The cost follows the answer's length.
        """
        if self.others >= len(every):
            return list(every)
        chosen = {name: None for name in active if name in every}
        chosen.update((name, None) for name in self.names if name in every)
        chosen.update((name, None) for name in islice(every, self.others))
        return list(chosen)


EVERYTHING = Wanted(others=1_000_000_000)
"""For tests and tools: all entitlements."""
Looks = Callable[[Wanted], Snapshot]
"""How a process describes itself."""
