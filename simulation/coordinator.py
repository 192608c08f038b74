"""The simulated coordinator: the shipped tick once per interval, without leader election."""

from __future__ import annotations

from collections.abc import Sequence

from simulation.clock import VirtualClock
from simulation.judge import Judge
from simulation.network import Network
from simulation.setup import Setup
from simulation.sidecar import Sidecar
from tokenpool.leases.messages import PoolSnapshot
from tokenpool.leases.tick import NO_MEMORY, tick

TICK_S = 0.25
_EPOCH = 1


class Coordinator:
    """Publishes the limits, and lets the sidecars read them."""

    def __init__(
        self,
        setup: Setup,
        clock: VirtualClock,
        network: Network,
        judge: Judge,
        sidecars: Sequence[Sidecar],
    ) -> None:
        self._setup, self._clock, self._network = setup, clock, network
        self._judge, self._sidecars = judge, sidecars
        self._entitlements = {t.entitlement.name: t.entitlement for t in setup.tenants}
        self._before: PoolSnapshot | None = None
        self._memory = NO_MEMORY

    def tick(self) -> None:
        """Compute and publish the limits once, and schedule the next tick."""
        now, store = self._clock.now, self._network.lease_store
        if store is not None:
            snapshot = store.read(now)
            setup = self._setup
            made = tick(snapshot, self._entitlements, self._before, setup.planner, self._memory, setup.groups)
            self._memory = made.memory
            self._before = snapshot
            if snapshot.is_open or not self._judge.knows_limits:
                store.publish(made.limits, made.plan.idle, _EPOCH, now)
                self._judge.published(made.limits)
        if self._clock.scheduled % 7 == 0 or now < 2:
            self._teach()
        self._judge.observe()
        self._clock.after(TICK_S, self.tick)

    def _teach(self) -> None:
        """Let the reachable sidecars read all limits. In production they do so from time to time."""
        if self._network.lease_store is not None:
            limits, terms = self._network.lease_store.limits()
            for sidecar in self._sidecars:
                if not sidecar.is_cut and self._clock.now >= sidecar.paused_until:
                    sidecar.driver.learned(limits, terms)
