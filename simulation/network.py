"""The network between the sidecars and the lease store, and the lease store itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from simulation.clock import VirtualClock
from simulation.figures import Figures
from simulation.setup import Setup
from simulation.sidecar import Sidecar
from tokenpool.leases.messages import Answer, Message, Push
from tokenpool.leases.reference_store import ReferenceLeaseStore


class Network:
    """Delays, loses and duplicates messages. The lease store processes one message at a time."""

    def __init__(
        self,
        setup: Setup,
        clock: VirtualClock,
        chance: random.Random,
        figures: Figures,
        sidecars: Sequence[Sidecar],
    ) -> None:
        self.lease_store: ReferenceLeaseStore | None = ReferenceLeaseStore(0.0, setup.settings.lifetime_s)
        """``None`` during an outage."""
        self._setup, self._clock, self._chance = setup, clock, chance
        self._figures, self._sidecars = figures, sidecars
        self._store_before_outage: ReferenceLeaseStore | None = None
        self._store_free_at = 0.0

    def lose_store(self) -> None:
        """Begin an outage of the lease store."""
        self._store_before_outage, self.lease_store = self.lease_store, None

    def restore_store(self, *, is_empty: bool) -> None:
        """End an outage. An empty lease store has lost its data."""
        self.lease_store = (
            ReferenceLeaseStore(self._clock.now, self._setup.settings.lifetime_s)
            if is_empty
            else self._store_before_outage
        )

    def carry(self, sidecar: Sidecar, message: Message, answered: Callable[[Answer], None]) -> None:
        """Deliver a message, possibly twice or never, and call ``answered`` with each answer that arrives."""
        self._figures.messages += 1
        self._figures.measured_messages += self._clock.now >= self._setup.warm_up_s
        self._figures.rows += len(message.lease_requests)
        copies = 1 + (self._may_fail and self._chance.random() < self._setup.faults.duplicates)
        for _ in range(copies):
            if not self._is_lost(sidecar):
                self._clock.after(self._delay(), lambda: self._deliver(sidecar, message, answered))

    def _deliver(self, sidecar: Sidecar, message: Message, answered: Callable[[Answer], None]) -> None:
        setup, now = self._setup, self._clock.now
        took = setup.message_s + setup.row_s * (len(message.lease_requests) + 0.04 * len(message.kept))
        self._store_free_at = max(self._store_free_at, now) + took
        self._clock.after(self._store_free_at - now, lambda: self._exchange(sidecar, message, answered))

    def _exchange(self, sidecar: Sidecar, message: Message, answered: Callable[[Answer], None]) -> None:
        if self.lease_store is None:
            return
        answer, pushes = self.lease_store.exchange(message, self._clock.now)
        for push in pushes:
            self._push(push)
        if not self._is_lost(sidecar):
            self._clock.after(self._delay(), lambda: answered(answer))

    def between(self, call: Callable[[], None], *, may_be_lost: bool) -> None:
        """Make a call after the delay between two sidecars, or never."""
        self._figures.peer_messages += self._clock.now >= self._setup.warm_up_s
        faults, chance = self._setup.faults, self._chance
        if self._may_fail:
            if may_be_lost and faults.peer_loss and chance.random() < faults.peer_loss:
                return
            if faults.peer_late and chance.random() < faults.peer_late:
                self._clock.after(chance.uniform(0.0, 1.0), call)
                return
        self._clock.after(self._delay(), call)

    def _push(self, push: Push) -> None:
        number, _, _ = push.holder[1:].partition(".")
        holder = self._sidecars[int(number)] if int(number) < len(self._sidecars) else None
        if holder is not None and holder.name == push.holder and not self._is_lost(holder):
            self._clock.after(self._delay(), lambda: holder.when_awake(lambda: holder.pushed(push)))

    def _delay(self) -> float:
        late = self._setup.faults.late
        if late and self._chance.random() < late and self._may_fail:
            return self._chance.uniform(0.0, 1.0)
        distance = self._setup.distance_s
        return self._chance.uniform(distance * 0.3, distance * 1.7) if distance < 0.001 else distance

    def _is_lost(self, sidecar: Sidecar) -> bool:
        if sidecar.is_cut:
            return True
        return self._may_fail and self._chance.random() < self._setup.faults.loss

    @property
    def _may_fail(self) -> bool:
        return self._clock.now <= self._setup.faults.quiet_after
