"""Scale hints: how many replicas a pool needs, and the dimension that says so. Section 8 of the design.

Pure: what the pool promises and is asked for goes in, a hint comes out. Stabilisation keeps its own short
history, with time as an argument, and can hand it to another process. The coordinator publishes hints.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
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


def promised(entitlements: Iterable[Entitlement]) -> Amount:
    """What is guaranteed to all together."""
    total = NOTHING
    for entitlement in entitlements:
        if entitlement.tier is not Tier.SPOT:
            total = total + entitlement.guarantee
    return total


def needed_replicas(
    pool: Pool,
    entitlements: Mapping[str, Entitlement],
    guaranteed: Amount,
    demand: Mapping[str, Amount],
    measured: Amount,
    settings: ScalingSettings,
) -> Need | None:
    """``max over dimensions of ceil((guarantees + others' demand) * (1 + headroom) / replica)``.

    ``guaranteed`` is what is ``promised`` to all; the work follows those with demand.
    ``demand`` is what was offered, without the retries of what was shed; ``measured`` what one engine
    sustains, 0 where none has shown it (a dimension that the pool file does not name either says nothing;
    where none is known there is no answer, rather than one that shrinks a pool that is just loading). An
    entitlement counts with its guarantee or its demand up to the ceiling, whichever is larger; spot only
    where asked to.
    """
    replica = replica_capacity(pool, measured)
    if replica == NOTHING:
        return None
    wanted = guaranteed
    for name, amount in demand.items():
        entitlement = entitlements.get(name)
        if entitlement is None:
            continue
        asked = amount.at_most(entitlement.ceiling)
        if entitlement.tier is not Tier.SPOT:
            guarantee = entitlement.guarantee
            wanted = wanted + (asked.at_least(guarantee) - guarantee)
        elif settings.counts_spot:
            wanted = wanted + asked
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


@dataclass(frozen=True, slots=True)
class StabiliserState:
    """What a stabiliser remembers, for the next leader. Times are ages, so that no clocks are compared."""

    held: int
    lows: tuple[tuple[float, int], ...]
    """For the up window: how long ago a number ceased to be needed, and the number."""
    highs: tuple[tuple[float, int], ...]
    """The same for the down window."""


@dataclass(frozen=True, slots=True)
class PublishedHint:
    """The scale hint as the leader stores it. All coordinators serve it, the next leader goes on from it."""

    hint: ScaleHint
    min_replicas: int
    max_replicas: int
    """The bounds of the pool file that the leader had."""
    state: StabiliserState


class _Window:
    """The lowest (``sign`` -1) or the highest (1) number of a time; a number counts until the next look.

    Only numbers that can still become the answer are kept: each differs from the others, so there are at
    most as many as the pool may have replicas.
    """

    def __init__(self, seconds: float, sign: int) -> None:
        self._seconds = seconds
        self._sign = sign
        self._kept: deque[tuple[float, int]] = deque()
        """Until when a number counted, and the number. The last one counts still."""

    def follow(self, number: int, now: float) -> int:
        kept, sign = self._kept, self._sign
        if kept:
            kept[-1] = (now, kept[-1][1])
        while kept and kept[-1][1] * sign <= number * sign:
            kept.pop()
        kept.append((math.inf, number))
        while kept[0][0] <= now - self._seconds:
            kept.popleft()
        return kept[0][1]

    def ages(self, now: float) -> tuple[tuple[float, int], ...]:
        return tuple((max(now - until, 0.0), number) for until, number in self._kept)

    def restore(self, ages: Iterable[tuple[float, int]], at: float) -> None:
        self._kept = deque((at - age, number) for age, number in ages)
        if self._kept:
            self._kept[-1] = (math.inf, self._kept[-1][1])


class Stabiliser:
    """Follows needs without flapping: the lowest of the up window, the highest of the down window.

    The rule of Kubernetes' own autoscaler, so that a hint behaves the same whoever smooths it.
    """

    def __init__(self, settings: ScalingSettings) -> None:
        self._settings = settings
        self._lows = _Window(settings.up_window_s, -1)
        self._highs = _Window(settings.down_window_s, 1)
        self._held: int | None = None

    def follow(self, need: Need, now: float, *, running: int = 0) -> ScaleHint:
        """The hint after one more look at what is needed. ``now`` is seconds on any monotonic clock.

        ``running`` replicas are kept at the first look: a coordinator that has just begun has not seen the
        window after which some may go.
        """
        settings, held = self._settings, self._held
        if held is None and running > need.replicas:
            self._highs.follow(running, now)
        up, down = self._lows.follow(need.replicas, now), self._highs.follow(need.replicas, now)
        if held is None:
            if running > need.replicas:
                return self._hold(running, need, f"{need.replicas} would do; {running} run")
            return self._hold(need.replicas, need, _reason(need))
        if up > held:
            return self._hold(up, need, _reason(need))
        if down < held:
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

    def state(self, now: float) -> StabiliserState:
        """What it remembers, for ``restore`` in another process."""
        return StabiliserState(self._held or 0, self._lows.ages(now), self._highs.ages(now))

    def restore(self, state: StabiliserState, at: float) -> None:
        """Go on from another stabiliser's state, which was taken ``at`` a time of this one's clock."""
        self._held = state.held or None
        self._lows.restore(state.lows, at)
        self._highs.restore(state.highs, at)

    def _hold(self, replicas: int, need: Need, reason: str) -> ScaleHint:
        self._held = max(replicas, need.floor)
        return ScaleHint(self._held, need, reason)


def _reason(need: Need) -> str:
    if need.unbounded > need.replicas:
        return f"{need.dimension} needs {need.unbounded}, the pool may have {need.replicas}"
    if need.dimension is None:
        return f"the minimum of {need.replicas} is enough"
    return f"{need.dimension} needs {need.replicas}"
