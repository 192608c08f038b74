"""Leading one pool: take the lease, read the books, plan, publish. What is planned is ``tokenpool.tick``'s.

A coordinator that does not lead looks on at a slower pace, so that its pages and scale hints are true, and it
can take over at once: all that a leader knows is in the books.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coordinator.settings import Settings
from tokenpool.amounts import NOTHING, Amount, Dimension
from tokenpool.books import Census
from tokenpool.entitlements import Pool, PoolFile, Tier
from tokenpool.planner import PlannerSettings, Profile
from tokenpool.scaling import ScaleHint, ScalingSettings, Stabiliser, needed_replicas
from tokenpool.store import Store, StoreDown
from tokenpool.tick import Tick, tick
from tokenpool.wire import encode_file

log = logging.getLogger(__name__)

LOOK_EVERY = 4
"""A coordinator that does not lead looks at the books every so many ticks."""
REPUBLISH_FILE_S = 30.0
"""How often the pool file is published again, lest it expire or be lost with the books."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """One pool after one tick, as it is shown."""

    tick: Tick
    hint: ScaleHint | None
    """The last one; ``None`` before the first."""
    hinted_at: float
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
    ) -> None:
        self._settings = settings
        self._store = store
        self.candidate = candidate
        """Who this coordinator is to the others."""
        self._clock = clock
        self._before: Census | None = None
        """What the last tick saw."""
        self._profiles: Mapping[str, Profile] = {}
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
        self.epoch = 0
        """Of this coordinator's lead; 0 while it does not lead."""
        self.state: PoolState | None = None
        self.error = ""
        self.file_differs = False
        """Whether another pool file than this coordinator's is in force."""
        self.rounds: Counter[str] = Counter()
        """Ticks by how they ended."""
        self.follow(file, pool)

    def follow(self, file: PoolFile, pool: Pool) -> None:
        """Lead with this pool file from the next tick on."""
        self.pool = pool
        self._file = file
        self.entitlements = file.entitlements_of(pool.name)
        self.file_version, self._content = encode_file(file)
        self._filed_at = None

    async def turn(self) -> None:
        """One tick. A store that is down is said, and tried again at the next."""
        try:
            await self._turn()
        except StoreDown as error:
            self.rounds["store_down"] += 1
            if not self.error:
                log.warning("the books do not answer", extra={"pool": self.pool.name, "error": str(error)})
            self.error = str(error)
            return
        except Exception as error:
            # A defect: the last limits stand, other pools go on, and the next tick may be better.
            self.rounds["failed"] += 1
            log.critical("a tick failed", exc_info=True, extra={"pool": self.pool.name})
            self.error = f"a tick failed: {error!r}"
            return
        if self.error:
            log.info("the books answer again", extra={"pool": self.pool.name})
        self.error = ""

    async def _turn(self) -> None:
        started = self._clock()
        epoch = await self._store.lead(self.candidate, self._settings.lease)
        self._know(epoch)
        self._rounds += 1
        if not epoch and self._rounds % LOOK_EVERY and self.state is not None:
            self.rounds["followed"] += 1
            return
        if epoch and (self._filed_at is None or started - self._filed_at > REPUBLISH_FILE_S):
            if not await self._store.publish_file(self.file_version, self._content, epoch):
                self._lost()
                return
            self._filed_at = started
        census = await self._store.read()
        self._compare(census.file_version)
        made = tick(census, self.entitlements, self._before, self._planner, self._profiles)
        self._profiles = made.plan.profiles
        self._before = census
        # Closed books do not know yet who is there: until they do, the last limits stand.
        if epoch and census.is_open and not await self._store.publish(made.limits, epoch):
            self._lost()
            return
        self._show(made, started, is_open=census.is_open)
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

    def _know(self, epoch: int) -> None:
        if epoch and not self.epoch:
            log.info("this coordinator leads", extra={"pool": self.pool.name, "epoch": epoch})
        elif self.epoch and not epoch:
            log.warning("another coordinator leads", extra={"pool": self.pool.name})
        if epoch != self.epoch:
            self._filed_at = None
        self.epoch = epoch

    def _lost(self) -> None:
        """What was to be published came too late: somebody leads with a later epoch."""
        log.warning("a later coordinator has written", extra={"pool": self.pool.name, "epoch": self.epoch})
        self.epoch = 0
        self.rounds["fenced"] += 1

    def _show(self, made: Tick, started: float, *, is_open: bool) -> None:
        hint = self.state.hint if self.state is not None else None
        hinted_at = self.state.hinted_at if self.state is not None else started
        fresh = {name: page.fresh for name, page in made.pages.items()}
        need = needed_replicas(self.pool, self.entitlements, fresh, made.replica, self._scaling)
        # Closed books have not heard everyone, and engines that load have shown nothing: the last hint
        # stands.
        if is_open and need is not None:
            running = min(len(made.sidecars), self.pool.max_replicas)
            hint, hinted_at = self._stabiliser.follow(need, started, running=running), started
        over = self._overpromised(made.replica)
        self.state = PoolState(made, hint, hinted_at, over, started, self._clock() - started)

    def _overpromised(self, replica: Amount) -> list[Dimension]:
        """What is promised, against what may be provisioned."""
        promised = NOTHING
        for entitlement in self.entitlements:
            if entitlement.tier is not Tier.SPOT:
                promised = promised + entitlement.guarantee
        most = replica * self.pool.max_replicas
        return [d for d in Dimension if 0 < most.get(d) < promised.get(d)]

    async def resign(self) -> None:
        """Make room for the next leader at once."""
        if self.epoch:
            self.epoch = 0
            await self._store.resign(self.candidate)

    async def close(self) -> None:
        """Let go of the store."""
        await self._store.close()
