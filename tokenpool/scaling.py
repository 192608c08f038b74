"""Scale hints: how many replicas a pool needs, and the dimension that says so. Section 8 of the design.

Pure: what the pool promises and is asked for goes in, a hint comes out. Stabilisation keeps its own short
history, with time as an argument. Publishing a hint is the coordinator's business.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.entitlements import Entitlement, Pool, Tier

_EPSILON = 1e-9
"""Relative slack, so that a sum of floats a hair above a whole replica does not ask for another."""


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """How a hint is made and how fast it may follow."""

    headroom: float = 0.1
    """Capacity wanted beyond what is needed, as a share of it."""
    counts_spot: bool = False
    """Whether spot demand raises the hint. Off: spot is what fills the room that others leave."""
    up_window_s: float = 0.0
    """A higher hint must have lasted so long."""
    down_window_s: float = 300.0
    """A lower one so long: replicas that load a model for minutes are not given back for a lull."""


@dataclass(frozen=True, slots=True)
class Need:
    """How many replicas are needed now."""

    replicas: int
    """Within the pool's min and max."""
    dimension: Dimension | None
    """The one that needs the most; ``None`` where the minimum is enough."""
    unbounded: int
    """What would be needed if there were no maximum."""
    floor: int
    """What the guarantees alone need: scale-in stops here."""


@dataclass(frozen=True, slots=True)
class ScaleHint:
    """What the autoscaler is told."""

    replicas: int
    need: Need
    reason: str
    """In words: the dimension and the numbers, or what holds the hint."""


def replica_capacity(pool: Pool, measured: Amount) -> Amount:
    """What one replica sustains: as measured, else as the pool file says; 0 where neither is known yet."""
    spec = pool.replica
    told = (spec.tokens_per_second, spec.kv_tokens, spec.concurrency)
    return Amount(*(measured.get(d) or number or 0.0 for d, number in zip(Dimension, told, strict=True)))


def needed_replicas(
    pool: Pool,
    entitlements: Iterable[Entitlement],
    demand: dict[str, Amount],
    measured: Amount,
    settings: ScalingSettings,
) -> Need | None:
    """``max over dimensions of ceil((guarantees + others' demand) * (1 + headroom) / replica)``.

    ``demand`` is what was offered, without the retries of what was shed; ``measured`` what one engine
    sustains, 0 where none has shown it (a dimension that the pool file does not name either says nothing;
    where none is known there is no answer, rather than one that shrinks a pool that is just loading). An
    entitlement counts with its guarantee or its demand up to the ceiling, whichever is larger; spot only
    where asked to.
    """
    replica = replica_capacity(pool, measured)
    if replica == NOTHING:
        return None
    guaranteed, wanted = NOTHING, NOTHING
    for entitlement in entitlements:
        asked = demand.get(entitlement.name, NOTHING).at_most(entitlement.ceiling)
        if entitlement.tier is Tier.SPOT:
            wanted = wanted + asked if settings.counts_spot else wanted
            continue
        guaranteed = guaranteed + entitlement.guarantee
        wanted = wanted + asked.at_least(entitlement.guarantee)
    floor = max((_replicas(guaranteed.get(d), replica.get(d)) for d in Dimension), default=0)
    most, dimension = 0, None
    for candidate in Dimension:
        count = _replicas(wanted.get(candidate) * (1 + settings.headroom), replica.get(candidate))
        if count > most:
            most, dimension = count, candidate
    bounded = min(max(most, floor, pool.min_replicas), pool.max_replicas)
    return Need(bounded, dimension if most > pool.min_replicas else None, most, min(floor, pool.max_replicas))


def _replicas(amount: float, replica: float) -> int:
    return math.ceil(amount / replica * (1 - _EPSILON)) if replica > 0 else 0


class Stabiliser:
    """Follows needs without flapping: the lowest of the up window, the highest of the down window.

    The rule of Kubernetes' own autoscaler, so that a hint behaves the same whoever smooths it.
    """

    def __init__(self, settings: ScalingSettings) -> None:
        self._settings = settings
        self._seen: deque[tuple[float, int]] = deque()
        self._started_at: float | None = None
        self._held: int | None = None

    def follow(self, need: Need, now: float, *, running: int = 0) -> ScaleHint:
        """The hint after one more look at what is needed. ``now`` is seconds on any monotonic clock.

        ``running`` replicas are kept at the first look: a coordinator that has just begun has not seen the
        window after which some may go.
        """
        settings, held = self._settings, self._held
        self._started_at = now if self._started_at is None else self._started_at
        self._seen.append((now, need.replicas))
        longest = max(settings.up_window_s, settings.down_window_s)
        while self._seen[0][0] < now - longest:
            self._seen.popleft()
        if held is None:
            if running > need.replicas:
                self._seen.appendleft((now, running))
                return self._hold(running, need, f"{need.replicas} would do; {running} run")
            return self._hold(need.replicas, need, _reason(need))
        up = min(n for at, n in self._seen if at >= now - settings.up_window_s)
        down = max(n for at, n in self._seen if at >= now - settings.down_window_s)
        if up > held:
            return self._hold(up, need, _reason(need))
        if down < held and now - self._started_at >= settings.down_window_s:
            return self._hold(down, need, _reason(need))
        if need.replicas < held:
            return self._hold(
                held, need, f"{need.replicas} would do; held for {settings.down_window_s:g} s of less need"
            )
        if need.replicas > held:
            return self._hold(
                held, need, f"{need.replicas} are needed; held until that lasted {settings.up_window_s:g} s"
            )
        return self._hold(held, need, _reason(need))

    def _hold(self, replicas: int, need: Need, reason: str) -> ScaleHint:
        self._held = max(replicas, need.floor)
        return ScaleHint(self._held, need, reason)


def _reason(need: Need) -> str:
    if need.unbounded > need.replicas:
        return f"{need.dimension} needs {need.unbounded}, the pool may have {need.replicas}"
    if need.dimension is None:
        return f"the minimum of {need.replicas} is enough"
    return f"{need.dimension} needs {need.replicas}"
