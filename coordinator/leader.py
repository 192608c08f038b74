"""One coordinator's work for one pool: take part in the election, read the lease store, plan, publish.

``tokenpool.leases.tick`` plans, ``leadership`` has the state of the election, ``scale_hint`` computes
the number of replicas. A coordinator that does not lead reads the lease store less often, for its pages. It
can take over at once: the lease store has all data of a leader, with the scale hint and its history.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coordinator.leadership import Leadership
from coordinator.scale_hint import HintMaker, HintView
from coordinator.settings import Settings
from tokenpool.amounts import Amount, Dimension
from tokenpool.entitlements import Pool, PoolFile, promises
from tokenpool.leases.messages import PoolSnapshot, StoredScaleHint
from tokenpool.leases.tick import NO_MEMORY, Tick, tick
from tokenpool.leases.wire import encode_file, encode_hint
from tokenpool.planning.planner import PlannerSettings
from tokenpool.planning.scaling import ScalingSettings
from tokenpool.planning.stabiliser import PublishedHint
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

READ_EVERY = 4
"""Ticks between two reads of the lease store by a coordinator that does not lead."""
READ_WHOLE_EVERY = 8
"""Reads of a leader of which one reads all records. So a record that nobody wrote, or that a sidecar of an
older version wrote, is at most 2 s old."""
PUBLISH_WHOLE_EVERY = 40
"""Publications of a leader of which one replaces all limits, which removes records without use."""
REPUBLISH_FILE_S = 30.0
"""Seconds between two publications of the pool file: it expires, and the lease store may lose it."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool after one tick, for the pages."""

    tick: Tick
    overpromised: Sequence[Dimension]
    """The dimensions in which the guarantees exceed the capacity of the largest number of replicas."""
    at: float
    took_s: float


class PoolLeader:
    """One coordinator's work for one pool."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        file: PoolFile,
        pool: Pool,
        candidate: str,
        clock: Callable[[], float],
        encoded: tuple[str, bytes] | None = None,
    ) -> None:
        self._settings = settings
        self.store = store
        """The lease store of the pool."""
        self.candidate = candidate
        """The name of this coordinator in elections."""
        self.clock = clock
        self._before: PoolSnapshot | None = None
        """The content of the lease store at the last tick."""
        self._memory = NO_MEMORY
        self._filed_at: float | None = None
        self._rounds = 0
        self._planner = PlannerSettings(debt_gain=settings.debt_gain)
        self._hint_maker = HintMaker(
            ScalingSettings(
                settings.scale_headroom,
                settings.scale_spot,
                settings.scale_up_window,
                settings.scale_down_window,
            )
        )
        self.hints = HintView(settings.tick, settings.leadership_timeout)
        self._leadership = Leadership(pool.name, settings.leadership_timeout)
        self.state: PoolState | None = None
        self.error = ""
        self.file_differs = False
        """Whether the pool file in force differs from this coordinator's."""
        self.rounds: Counter[str] = Counter()
        """Ticks by their result."""
        self.follow(file, pool, encoded)

    def follow(self, file: PoolFile, pool: Pool, encoded: tuple[str, bytes] | None = None) -> None:
        """Use this pool file from the next tick on. ``encoded`` is its version and its published form."""
        self.pool = pool
        self._file = file
        self.entitlements = file.entitlements_of(pool.name)
        self._by_name = {each.name: each for each in self.entitlements}
        self.groups = file.groups_of(pool.name)
        self.promises = promises(self.entitlements, self.groups)
        self.file_version, self._content = encoded or encode_file(file)
        self._filed_at = None

    def has(self, entitlement: str) -> bool:
        """Whether the pool has this entitlement."""
        return entitlement in self._by_name

    @property
    def epoch(self) -> int:
        """The epoch of this coordinator's leadership; 0 while it does not lead."""
        return self._leadership.epoch(self.clock())

    def hint(self) -> PublishedHint | None:
        """The scale hint to serve now; ``None`` if there is none, or it is too old."""
        return self.hints.current(self.clock())

    async def run_tick(self) -> None:
        """Run one tick. A store that does not answer is reported, and the next tick tries again."""
        try:
            await self._run_tick()
        except StoreDown as error:
            self.rounds["store_down"] += 1
            if self._leadership.is_held and not self.epoch:
                self._leadership.expire()
            if not self.error:
                log.warning(
                    "the lease store does not answer", extra={"pool": self.pool.name, "error": str(error)}
                )
            self.error = str(error)
            return
        except Exception as error:
            # A defect: the last limits stay in force, other pools go on, and the next tick tries again.
            self.rounds["failed"] += 1
            log.critical("a tick failed", exc_info=True, extra={"pool": self.pool.name})
            self.error = f"a tick failed: {error!r}"
            return
        if self.error:
            log.info("the lease store answers again", extra={"pool": self.pool.name})
        self.error = ""

    async def _run_tick(self) -> None:
        started = self.clock()
        epoch = await self.store.lead(self.candidate, self._settings.leadership_timeout)
        await self._read_hint()
        self._take_over(epoch, started)
        self._rounds += 1
        if not epoch and self._rounds % READ_EVERY and self.state is not None:
            self.rounds["followed"] += 1
            return
        if self.epoch and (self._filed_at is None or started - self._filed_at > REPUBLISH_FILE_S):
            if not await self.store.publish_file(self.file_version, self._content, epoch):
                self._fence()
                return
            self._filed_at = started
        is_whole = not epoch or self._rounds % READ_WHOLE_EVERY == 0
        snapshot = await self.store.read(whole=is_whole)
        self._compare(snapshot.file_version)
        made = tick(snapshot, self._by_name, self._before, self._planner, self._memory, self.groups)
        self._memory = made.memory
        self._before = snapshot
        if epoch and not self.epoch:
            self._leadership.expire()
            self.rounds["fenced"] += 1
            return
        # A closed store does not have all sidecars yet. Until it has, the last limits stay in force.
        if epoch and snapshot.is_open:
            is_whole = self._rounds % PUBLISH_WHOLE_EVERY == 0
            if not await self.store.publish(made.limits, made.plan.idle, epoch, whole=is_whole):
                self._fence()
                return
        if epoch and snapshot.is_open and not await self._publish_hint(made, started, epoch):
            self._fence()
            return
        self._show(made, started)
        self.rounds["led" if epoch else "followed"] += 1

    def _compare(self, published: str) -> None:
        """Warn if this coordinator's pool file differs from the one in force."""
        differs = bool(published) and published != self.file_version and not self.epoch
        if differs and not self.file_differs:
            log.warning(
                "this coordinator's pool file differs from the published one; as leader it publishes its own",
                extra={"pool": self.pool.name, "own": self.file_version, "published": published},
            )
        self.file_differs = differs

    def _take_over(self, epoch: int, asked_at: float) -> None:
        if not self._leadership.elected(epoch, asked_at):
            return
        self._filed_at = None
        if epoch and self.hints.last is not None:
            # The store now refuses messages of the former leader, so this is the last hint of that leader.
            self._hint_maker.restore(self.hints.last.state, asked_at - self.hints.age_s(asked_at))

    def _fence(self) -> None:
        self._leadership.fence()
        self.rounds["fenced"] += 1

    async def _read_hint(self) -> None:
        asked_at = self.clock()
        self.hints.follow(await self.store.scale_hint(), asked_at)

    async def _publish_hint(self, made: Tick, now: float, epoch: int) -> bool:
        """Compute the scale hint and store it, if a capacity is known. False: a later epoch exists."""
        if not self.epoch:
            return True
        hint = self._hint_maker.make(self.pool, self._by_name, self.promises, self.groups, made, now)
        if hint is None:
            return True
        content = encode_hint(hint)
        asked_at = self.clock()
        at = await self.store.publish_scale_hint(content, epoch)
        if at is None:
            return False
        self.hints.follow(StoredScaleHint(content, at, 0.0), asked_at)
        return True

    def _show(self, made: Tick, started: float) -> None:
        over = self._overpromised(made.replica)
        self.state = PoolState(made, over, started, self.clock() - started)

    def _overpromised(self, replica: Amount) -> list[Dimension]:
        """The dimensions in which the largest number of replicas cannot serve the guarantees."""
        most = replica * self.pool.max_replicas
        return [d for d in Dimension if 0 < most.get(d) < self.promises.total.get(d)]

    async def resign(self) -> None:
        """Let another coordinator lead at once. Raises ``StoreDown``."""
        if self._leadership.is_held:
            self._leadership.resign()
            await self.store.resign(self.candidate)

    async def close(self) -> None:
        """Close the connection to the store."""
        await self.store.close()
