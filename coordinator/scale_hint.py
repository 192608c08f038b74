"""The scale hint: its computation by the leader, and the stored hint that every coordinator serves. Pure.

The leader computes and stores the hint at each tick. Every coordinator, the leader too, serves the stored one
on ``/scale/POOL`` and as a metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenpool.entitlements import Entitlement, Group, Pool, Promises
from tokenpool.leases.messages import StoredScaleHint
from tokenpool.leases.tick import Tick
from tokenpool.leases.wire import WireError, decode_hint
from tokenpool.planning.scaling import ScalingSettings, needed_replicas
from tokenpool.planning.stabiliser import PublishedHint, Stabiliser, StabiliserState

STALE_TICKS = 4
"""A hint is served for the leadership timeout and so many ticks after its computation, 3 s by default. A lost
leader is replaced within the timeout and a tick, so a failover does not show. After that no leader computes.
No answer is better than an old one: an autoscaler without a metric leaves the replicas as they are."""
UNSEEN_TICKS = 3
LEAST_UNSEEN_S = 0.75
"""A hint is served for so long after it was read. So two coordinators differ for less than a second, even if
one of them does not reach the store."""


class HintMaker:
    """Computes the hints of one pool."""

    def __init__(self, settings: ScalingSettings) -> None:
        self._settings = settings
        self._stabiliser = Stabiliser(settings)

    def restore(self, state: StabiliserState, at: float) -> None:
        """Continue from the history that the last leader stored, as of ``at``."""
        self._stabiliser.restore(state, at)

    def make(
        self,
        pool: Pool,
        entitlements: Mapping[str, Entitlement],
        promised: Promises,
        groups: Sequence[Group],
        made: Tick,
        now: float,
    ) -> PublishedHint | None:
        """The hint after a tick; ``None`` while no replica's capacity is known."""
        fresh = {name: page.fresh for name, page in made.records.items()}
        need = needed_replicas(pool, entitlements, promised, fresh, made.replica, self._settings, groups)
        if need is None:
            return None
        running = min(made.engines, pool.max_replicas)
        hint = self._stabiliser.follow(need, now, running=running)
        state = self._stabiliser.state(now)
        return PublishedHint(hint, pool.min_replicas, pool.max_replicas, state)


class HintView:
    """The stored hint and its age."""

    def __init__(self, tick_s: float, leadership_s: float) -> None:
        self._stale_s = leadership_s + STALE_TICKS * tick_s
        self._unseen_s = max(UNSEEN_TICKS * tick_s, LEAST_UNSEEN_S)
        self._stored: StoredScaleHint | None = None
        self._asked_at: float | None = None
        self._changed_at = 0.0
        self.last: PublishedHint | None = None
        """The last hint that was read, of any age."""
        self._error = ""

    @property
    def computed_at(self) -> float:
        """The time at which the last hint was stored, by the store's clock."""
        return self._stored.at if self._stored is not None else 0.0

    def follow(self, stored: StoredScaleHint | None, asked_at: float) -> None:
        """Use the store's answer to a request that was sent at ``asked_at``.

        If the store lost its hint, the last one stays, and its age grows.
        """
        self._asked_at = asked_at
        if stored is None:
            return
        if self._stored is None or stored.content != self._stored.content:
            try:
                self.last, self._error = decode_hint(stored.content), ""
            except WireError as error:
                self.last, self._error = None, str(error)
        if self._stored is None or stored.at != self._stored.at:
            self._changed_at = asked_at - stored.age_s
        self._stored = stored

    def age_s(self, now: float) -> float:
        """The least age of the last hint. The store's clock may step back; this process' clock does not."""
        return now - self._changed_at

    def current(self, now: float) -> PublishedHint | None:
        """The hint, or ``None`` if there is a problem with it."""
        return None if self.problem(now) else self.last

    def problem(self, now: float) -> str:
        """The reason why there is no hint to serve; empty if there is one."""
        if self._asked_at is None:
            return "the lease store has not been read yet"
        if now - self._asked_at > self._unseen_s:
            return f"the lease store has not answered this coordinator for {now - self._asked_at:.1f} s"
        if self._error:
            return f"{self._error}; the coordinators may be of different versions"
        if self.last is None:
            return "the capacity of no engine is known yet"
        if self.age_s(now) > self._stale_s:
            return (
                f"the last hint is {self.age_s(now):.1f} s old, and one older than {self._stale_s:g} s is not"
                " served: no coordinator leads, or the capacity of no engine is known"
            )
        return ""
