"""Leading one pool: win the election, read the lease store, plan, publish. ``tokenpool.leases.tick`` plans.

A coordinator that does not lead reads the lease store at a slower pace, for its pages. It can take over at
once: all that a leader knows is in the lease store, the scale hint and its history too. A leader ceases to
lead when its lease is over by its own clock, counted from before it asked for the lease, even if the store is
silent.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coordinator.hint import HintView
from coordinator.settings import Settings
from tokenpool.amounts import Amount, Dimension
from tokenpool.entitlements import Pool, PoolFile
from tokenpool.leases.messages import PoolSnapshot, StoredScaleHint
from tokenpool.leases.tick import NO_MEMORY, Tick, tick
from tokenpool.leases.wire import encode_file, encode_hint
from tokenpool.planning.planner import PlannerSettings
from tokenpool.planning.scaling import ScalingSettings, needed_replicas, promised
from tokenpool.planning.stabiliser import PublishedHint, Stabiliser
from tokenpool.store import Store, StoreDown

log = logging.getLogger(__name__)

LOOK_EVERY = 4
"""A coordinator that does not lead looks at the lease store every so many ticks."""
REPUBLISH_FILE_S = 30.0
"""How often the pool file is published again, lest it expire or be lost with the lease store."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool after one tick, as it is shown."""

    tick: Tick
    overpromised: Sequence[Dimension]
    """Where the guarantees are more than the most replicas could carry, as they are now."""
    at: float
    took_s: float


class PoolLeader:
    """One coordinator's part in one pool."""

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
        self._store = store
        self.candidate = candidate
        """Who this coordinator is to the others."""
        self.clock = clock
        self._before: PoolSnapshot | None = None
        """What the last tick saw."""
        self._memory = NO_MEMORY
        self._filed_at: float | None = None
        self._rounds = 0
        self._planner = PlannerSettings(debt_gain=settings.debt_gain)
        self._scaling = ScalingSettings(
            settings.scale_headroom,
            settings.scale_spot,
            settings.scale_up_window,
            settings.scale_down_window,
        )
        self._stabiliser = Stabiliser(self._scaling)
        self.hints = HintView(settings.tick, settings.leadership_timeout)
        self._epoch = 0
        self._leads_until = -math.inf
        self.state: PoolState | None = None
        self.error = ""
        self.file_differs = False
        """Whether another pool file than this coordinator's is in force."""
        self.rounds: Counter[str] = Counter()
        """Ticks by how they ended."""
        self.follow(file, pool, encoded)

    def follow(self, file: PoolFile, pool: Pool, encoded: tuple[str, bytes] | None = None) -> None:
        """Lead with this pool file from the next tick on. ``encoded`` is its version and how it travels."""
        self.pool = pool
        self._file = file
        self.entitlements = file.entitlements_of(pool.name)
        self._by_name = {each.name: each for each in self.entitlements}
        self._promised = promised(self.entitlements)
        self.file_version, self._content = encoded or encode_file(file)
        self._filed_at = None

    @property
    def epoch(self) -> int:
        """Of this coordinator's lead; 0 while it does not lead, and once its lease may be over."""
        return self._epoch if self.clock() < self._leads_until else 0

    def hint(self) -> PublishedHint | None:
        """The scale hint to serve now; ``None`` where there is none, or it is too old."""
        return self.hints.current(self.clock())

    async def turn(self) -> None:
        """One tick. A store that is down is said, and tried again at the next."""
        try:
            await self._turn()
        except StoreDown as error:
            self.rounds["store_down"] += 1
            if self._epoch and not self.epoch:
                self._lapsed()
            if not self.error:
                log.warning(
                    "the lease store does not answer", extra={"pool": self.pool.name, "error": str(error)}
                )
            self.error = str(error)
            return
        except Exception as error:
            # A defect: the last limits stand, other pools go on, and the next tick may be better.
            self.rounds["failed"] += 1
            log.critical("a tick failed", exc_info=True, extra={"pool": self.pool.name})
            self.error = f"a tick failed: {error!r}"
            return
        if self.error:
            log.info("the lease store answers again", extra={"pool": self.pool.name})
        self.error = ""

    async def _turn(self) -> None:
        started = self.clock()
        epoch = await self._store.lead(self.candidate, self._settings.leadership_timeout)
        await self._read_hint()
        self._know(epoch, started)
        self._rounds += 1
        if not epoch and self._rounds % LOOK_EVERY and self.state is not None:
            self.rounds["followed"] += 1
            return
        if self.epoch and (self._filed_at is None or started - self._filed_at > REPUBLISH_FILE_S):
            if not await self._store.publish_file(self.file_version, self._content, epoch):
                self._lost()
                return
            self._filed_at = started
        snapshot = await self._store.read()
        self._compare(snapshot.file_version)
        made = tick(snapshot, self._by_name, self._before, self._planner, self._memory)
        self._memory = made.memory
        self._before = snapshot
        if epoch and not self.epoch:
            self._lapsed()
            self.rounds["fenced"] += 1
            return
        # A closed lease store does not know all sidecars yet. Until it does, the last limits stay in force.
        if epoch and snapshot.is_open and not await self._store.publish(made.limits, made.plan.idle, epoch):
            self._lost()
            return
        if epoch and snapshot.is_open and not await self._publish_hint(made, started, epoch):
            self._lost()
            return
        self._show(made, started)
        self.rounds["led" if epoch else "followed"] += 1

    def _compare(self, published: str) -> None:
        """Who may lead next should have the file that is in force."""
        differs = bool(published) and published != self.file_version and not self.epoch
        if differs and not self.file_differs:
            log.warning(
                "this coordinator's pool file differs from the published one; should it lead, its own counts",
                extra={"pool": self.pool.name, "own": self.file_version, "published": published},
            )
        self.file_differs = differs

    def _know(self, epoch: int, asked_at: float) -> None:
        if epoch and not self._epoch:
            log.info("this coordinator leads", extra={"pool": self.pool.name, "epoch": epoch})
        elif self._epoch and not epoch:
            log.warning("another coordinator leads", extra={"pool": self.pool.name})
        if epoch != self._epoch:
            self._filed_at = None
            if epoch and self.hints.last is not None:
                # Whoever led before is fenced off now, so this is the last that it stored.
                self._stabiliser.restore(self.hints.last.state, asked_at - self.hints.age_s(asked_at))
        self._epoch, self._leads_until = epoch, asked_at + self._settings.leadership_timeout

    def _lapsed(self) -> None:
        """The lease may be over: another coordinator may lead without this one's knowledge."""
        log.warning("the lease is over", extra={"pool": self.pool.name, "epoch": self._epoch})
        self._epoch = 0

    def _lost(self) -> None:
        """What was to be published came too late: somebody leads with a later epoch."""
        log.warning("a later coordinator has written", extra={"pool": self.pool.name, "epoch": self._epoch})
        self._epoch = 0
        self.rounds["fenced"] += 1

    async def _read_hint(self) -> None:
        asked_at = self.clock()
        self.hints.follow(await self._store.scale_hint(), asked_at)

    async def _publish_hint(self, made: Tick, now: float, epoch: int) -> bool:
        """Compute the scale hint and store it, if a capacity is known; False where a later epoch stands."""
        fresh = {name: record.fresh for name, record in made.records.items()}
        need = needed_replicas(self.pool, self._by_name, self._promised, fresh, made.replica, self._scaling)
        if need is None or not self.epoch:
            return True
        running = min(len(made.sidecars), self.pool.max_replicas)
        hint = self._stabiliser.follow(need, now, running=running)
        state = self._stabiliser.state(now)
        content = encode_hint(PublishedHint(hint, self.pool.min_replicas, self.pool.max_replicas, state))
        asked_at = self.clock()
        at = await self._store.publish_scale_hint(content, epoch)
        if at is None:
            return False
        self.hints.follow(StoredScaleHint(content, at, 0.0), asked_at)
        return True

    def _show(self, made: Tick, started: float) -> None:
        over = self._overpromised(made.replica)
        self.state = PoolState(made, over, started, self.clock() - started)

    def _overpromised(self, replica: Amount) -> list[Dimension]:
        """What is promised, against what may be provisioned."""
        most = replica * self.pool.max_replicas
        return [d for d in Dimension if 0 < most.get(d) < self._promised.get(d)]

    async def resign(self) -> None:
        """Make room for the next leader at once."""
        if self._epoch:
            self._epoch = 0
            await self._store.resign(self.candidate)

    async def close(self) -> None:
        """Let go of the store."""
        await self._store.close()
