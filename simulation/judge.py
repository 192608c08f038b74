"""The judge: counts the events of a simulation, and checks each admission and each shed.

It sees the whole pool at once, which no sidecar does. It draws no random number and changes no other part.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence

from simulation.clock import VirtualClock
from simulation.engine import RoomWatch
from simulation.figures import Figures
from simulation.network import Network
from simulation.setup import Setup
from simulation.sidecar import Request, Sidecar
from tokenpool.accounting.account import Account
from tokenpool.admission.rules import Shed
from tokenpool.leases.messages import Limit
from tokenpool.leases.settings import Mode
from tokenpool.outcomes import Reason

_BY_LIMIT = (Reason.CONCURRENCY, Reason.KV_TOKENS, Reason.TOKENS_PER_SECOND)


class Judge:
    """Fills the figures of one simulation."""

    def __init__(
        self,
        setup: Setup,
        clock: VirtualClock,
        figures: Figures,
        network: Network,
        sidecars: Sequence[Sidecar],
        watch: RoomWatch,
    ) -> None:
        self._setup, self._clock, self._figures = setup, clock, figures
        self._network, self._sidecars, self._watch = network, sidecars, watch
        self._running: Counter[str] = Counter()
        """Admitted sequences by entitlement."""
        self._on_free_capacity: Counter[str] = Counter()
        """Admitted sequences beyond a limit, on free capacity of the pool."""
        self._limits: dict[str, deque[tuple[float, float]]] = {}
        """For each entitlement, the publication times of its limits of the last lifetime, with the limits."""
        self._busy = 0
        self._busy_since = 0.0
        self._fault_until = 0.0
        self._all_joined = True
        self._disturbed_at = 0.0
        self._on_fallback: dict[str, tuple[float, Sidecar]] = {}
        """The sidecars that used fallback shares within the last lifetime, each with the last such time."""

    @property
    def _counts(self) -> bool:
        return self._clock.now >= self._setup.warm_up_s

    # --- requests ---

    def offered(self, request: Request) -> None:
        """A client sends a request."""
        if self._counts:
            self._figures.requests += 1
            self._figures.offered[request.entitlement] += 1
            self._figures.tiers[request.tenant.entitlement.tier].requests += 1

    def admitted(self, sidecar: Sidecar, request: Request) -> None:
        """A sidecar admits a request. Compare the use with all limits of the last lifetime."""
        now, name, figures = self._clock.now, request.entitlement, self._figures
        if self._counts:
            figures.waits.append(now - request.arrived_at)
            figures.admitted += 1
        self._on_free_capacity[name] += request.uses_free_capacity
        for each in (request.account, *request.account.groups):
            limited = each.entitlement.name
            self._running[limited] += 1
            if each.is_group and self._on_fallback:
                continue  # with shares of its ceiling, a group may exceed it by one sequence per sidecar
            figures.most_running[limited] = max(figures.most_running[limited], self._running[limited])
        if sidecar.uses_fallback:
            self._on_fallback[sidecar.name] = (now, sidecar)
        limits = self._limits.get(name)
        if limits:
            while len(limits) > 1 and limits[1][0] < now - self._setup.settings.lifetime_s:
                limits.popleft()
            excess = self._running[name] - self._on_free_capacity[name] - max(limit for _, limit in limits)
            if excess > 0 and not request.uses_free_capacity:
                self._count_excess(sidecar, request.account, excess)

    def _count_excess(self, sidecar: Sidecar, account: Account, excess: float) -> None:
        """Attribute sequences beyond a limit to joined sidecars or to those with fallback shares."""
        figures, name = self._figures, account.entitlement.name
        if not account.is_spot:
            figures.over_fallback = max(figures.over_fallback, excess)
        if sidecar.name not in self._on_fallback:
            accounts = (s.accounts[name] for _, s in self._on_fallback.values() if not s.is_gone)
            excess -= sum(account.concurrency_in_use for account in accounts)
            figures.over_admitted = max(figures.over_admitted, excess)

    def shed(self, sidecar: Sidecar, request: Request, shed: Shed) -> None:
        """A sidecar sheds a request. Check whether its limit or its guarantee had room."""
        if not self._counts:
            return
        figures, cost, account = self._figures, request.cost, request.account
        name, store = request.entitlement, self._network.lease_store
        figures.sheds[shed.reason.value] += 1
        figures.shed[name] += 1
        figures.refusals.append((self._clock.now, name, shed.reason.value))
        record = store.record(name, self._clock.now) if store is not None else None
        in_use = self._running[name]
        if record is not None and shed.reason in _BY_LIMIT and not sidecar.uses_fallback:
            kv = sum(s.accounts[name].kv_in_use for s in self._sidecars)
            figures.idle_refusals += (
                in_use + cost.sequences <= record.limit.concurrency
                and kv + cost.kv_tokens <= record.limit.kv_tokens
                and record.level - record.held.tokens_per_second >= cost.throughput
            )
        if in_use + cost.sequences <= account.entitlement.guarantee.concurrency:
            figures.guaranteed_sheds += 1
        figures.tiers[account.entitlement.tier].refused += 1
        if not sidecar.uses_fallback and in_use + cost.sequences <= account.entitlement.ceiling.concurrency:
            self._compare_with_room(request, shed)

    def _compare_with_room(self, request: Request, shed: Shed) -> None:
        """Check whether a live replica had a free slot for so long that every sidecar should know it.

        Only slots are compared. In the setups with these figures, each request fits into the KV cache of its
        slot, and no tenant has a ceiling in another dimension.
        """
        now, figures = self._clock.now, self._figures
        for engine, since in self._watch.free_since.items():
            host = self._sidecars[engine.number]
            if now < host.paused_until or host.is_cut or host.uses_fallback or host.lie is not None:
                continue
            age = now - max(since, host.paused_until, host.cut_until)
            figures.room_ages.append(age)
            if age > self._setup.notice_s:
                figures.room_refusals[shed.reason.value] += 1
                figures.tiers[request.tenant.entitlement.tier].room_refusals += 1
            return

    def began(self, request: Request) -> None:
        """An engine begins a request."""
        self._count_busy()
        self._busy += 1
        if self._counts:
            wait = self._clock.now - request.arrived_at
            self._figures.tiers[request.tenant.entitlement.tier].waits.append(wait)
            self._figures.first_tokens.setdefault(request.entitlement, []).append(wait)

    def ended(self, request: Request) -> None:
        """A request is served and settled."""
        name, figures = request.entitlement, self._figures
        self._leave(request)
        self._count_busy()
        self._busy -= 1
        figures.service[name] += request.size
        figures.served.append((request.began_at, self._clock.now, name, request.size))

    def displaced(self, request: Request) -> None:
        """No replica has begun with an admitted request: it is decided again."""
        self._running[request.entitlement] -= 1
        self._on_free_capacity[request.entitlement] -= request.uses_free_capacity
        if self._counts:
            self._figures.admitted -= 1

    def preempted(self, request: Request) -> None:
        """A spot request is ended for a guarantee."""
        self._leave(request)
        if request.is_running:
            self._count_busy()
            self._busy -= 1
        if self._counts:
            self._figures.preempted += 1
            self._figures.preemptions[request.entitlement] += 1

    def _leave(self, request: Request) -> None:
        self._on_free_capacity[request.entitlement] -= request.uses_free_capacity
        for each in (request.account, *request.account.groups):
            self._running[each.entitlement.name] -= 1

    def _count_busy(self) -> None:
        start = max(self._busy_since, self._setup.warm_up_s)
        if self._clock.now > start:
            self._figures.busy += (self._clock.now - start) * self._busy
        self._busy_since = self._clock.now

    # --- sidecars and limits ---

    @property
    def knows_limits(self) -> bool:
        """Whether limits were published."""
        return bool(self._limits)

    def published(self, limits: Mapping[str, Limit]) -> None:
        """The coordinator publishes limits."""
        for name, limit in limits.items():
            self._limits.setdefault(name, deque()).append((self._clock.now, limit.concurrency))

    def fault_ends_at(self, at: float) -> None:
        """A fault lasts until then."""
        self._fault_until = max(self._fault_until, at)

    def message_failed(self, sidecar: Sidecar) -> None:
        """A request that waits there may run within a fallback share, also after the next answer."""
        self._on_fallback[sidecar.name] = (self._clock.now, sidecar)

    def sidecar_lost(self, sidecar: Sidecar) -> None:
        """A sidecar is gone with all its requests."""
        self._count_queue(sidecar)
        self._count_busy()
        self._busy -= sidecar.engine.running
        for account in sidecar.accounts.values():
            for each in (account, *account.groups):
                self._running[each.entitlement.name] -= account.concurrency_in_use
        for request in sidecar.admitted:
            self._on_free_capacity[request.entitlement] -= request.uses_free_capacity

    def observe(self) -> None:
        """Once a tick: note the sidecars that are not joined, and measure how long joining takes."""
        now, figures = self._clock.now, self._figures
        joined = all(s.leases.mode is Mode.JOINED for s in self._sidecars)
        if joined and not self._all_joined and now >= self._fault_until:
            took = now - max(self._fault_until, self._disturbed_at)
            figures.reconverged_s = max(figures.reconverged_s, took)
        if not joined and self._all_joined:
            self._disturbed_at = now
        self._all_joined = joined
        for sidecar in self._sidecars:
            if now < sidecar.paused_until or sidecar.is_cut or sidecar.uses_fallback:
                self._on_fallback[sidecar.name] = (now, sidecar)
        since = now - self._setup.settings.lifetime_s
        self._on_fallback = {key: row for key, row in self._on_fallback.items() if row[0] >= since}

    def finish(self) -> None:
        """Complete the figures at the end of the simulation."""
        setup = self._setup
        self._count_busy()
        self._figures.possible = setup.sidecars * setup.slots * (setup.seconds - setup.warm_up_s)
        for sidecar in self._sidecars:
            self._count_queue(sidecar)

    def _count_queue(self, sidecar: Sidecar) -> None:
        for waits in sidecar.control.queue.lease_waits.values():
            self._figures.lease_waits += waits.count
            self._figures.lease_waited_s += waits.seconds
        self._figures.taken_ahead += sidecar.leases.taken_ahead
