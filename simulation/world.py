"""A simulated pool: sidecars, a lease store, a coordinator and clients in virtual time.

Every random number comes from one seed, so the same setup gives the same figures in every process.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from simulation.clients import Clients
from simulation.clock import VirtualClock
from simulation.coordinator import Coordinator
from simulation.engine import RoomWatch
from simulation.figures import Figures
from simulation.handover import Question, Visit
from simulation.judge import Judge
from simulation.network import Network
from simulation.setup import Setup
from simulation.sidecar import Request, Sidecar
from tokenpool.admission.placement import PeerAsk
from tokenpool.admission.rules import Shed
from tokenpool.leases.messages import Answer, Message


class World:
    """Builds the parts, connects them, and causes the faults. It is the sidecars' ``Environment``."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.chance = random.Random(setup.seed)
        self.clock = VirtualClock()
        self.watch = RoomWatch(self.clock)
        self._figures = Figures()
        self._sidecars: list[Sidecar] = []
        self._visits: dict[Visit, None] = {}
        """The asks of all sidecars to others, and their requests."""
        self._network = Network(setup, self.clock, self.chance, self._figures, self._sidecars)
        self._judge = Judge(setup, self.clock, self._figures, self._network, self._sidecars, self.watch)
        self._coordinator = Coordinator(setup, self.clock, self._network, self._judge, self._sidecars)
        self._clients = Clients(setup, self.clock, self.chance, self._judge, self._sidecars)
        self._sidecars += [Sidecar(self, number, 0) for number in range(setup.sidecars)]

    def run(self) -> Figures:
        """Run to the end."""
        setup, clock = self.setup, self.clock
        self._coordinator.tick()
        for sidecar in self._sidecars:
            self._begin(sidecar)
        self._clients.start()
        for start, end, is_empty in setup.faults.outages:
            clock.after(start, self._network.lose_store)
            clock.after(end, lambda is_empty=is_empty: self._restore_store(is_empty))  # type: ignore[misc]
        if setup.cut_at < math.inf:
            clock.after(setup.cut_at, self._cut)
        clock.run_until(setup.seconds)
        self._judge.finish()
        for sidecar in self._sidecars:
            self._figures.prompt_tokens += sidecar.engine.prompt_tokens
            self._figures.found_tokens += sidecar.engine.found_tokens
        return self._figures

    def _begin(self, sidecar: Sidecar) -> None:
        """Schedule the first interval of a sidecar, and its faults."""
        sidecar.later(self.chance.uniform(0, self.setup.settings.interval_s), sidecar.interval)
        faults = self.setup.faults
        for rate, happen in (
            (faults.crashes, self._crash),
            (faults.pauses, self._pause),
            (faults.partitions, self._partition),
        ):
            if rate:
                self._plan_fault(sidecar, rate, happen)

    # --- the sidecars' environment ---

    def carry(self, sidecar: Sidecar, message: Message, answered: Callable[[Answer], None]) -> None:
        """See ``Environment``."""
        self._network.carry(sidecar, message, answered)

    def request_admitted(self, sidecar: Sidecar, request: Request) -> None:
        """See ``Environment``."""
        self._judge.admitted(sidecar, request)

    def request_shed(self, sidecar: Sidecar, request: Request, shed: Shed) -> None:
        """See ``Environment``. The worker sends again when the answer says so, within a second."""
        if self._clients.try_elsewhere(sidecar, request):
            return
        self._judge.shed(sidecar, request, shed)
        self._clients.send_again(request.tenant, min(max(shed.retry_after_s, 0.05), 1.0))

    def request_began(self, request: Request) -> None:
        """See ``Environment``."""
        self._judge.began(request)

    def request_ended(self, request: Request) -> None:
        """See ``Environment``. The worker sends again after its think time."""
        self._judge.ended(request)
        self._clients.send_again(request.tenant, request.tenant.think_s)

    def request_preempted(self, request: Request) -> None:
        """See ``Environment``. The worker sends again after a second."""
        self._judge.preempted(request)
        self._clients.send_again(request.tenant, 1.0)

    def request_handed_over(self) -> None:
        """See ``Environment``."""
        self._figures.handovers += self.clock.now >= self.setup.warm_up_s

    def message_failed(self, sidecar: Sidecar) -> None:
        """See ``Environment``."""
        self._judge.message_failed(sidecar)

    def request_displaced(self, request: Request) -> None:
        """See ``Environment``."""
        self._figures.sends_refused += self.clock.now >= self.setup.warm_up_s
        self._judge.displaced(request)

    def visit(self, sidecar: Sidecar, question: Question, ask: PeerAsk | None) -> Visit | None:
        """See ``Environment``."""
        counts = self.clock.now >= self.setup.warm_up_s
        self._figures.asks += counts
        self._figures.sends += counts and ask is None
        number, _, _ = question.peer[1:].partition(".")
        host = self._sidecars[int(number)] if int(number) < len(self._sidecars) else None
        if host is None or host.name != question.peer:
            return None
        visit = Visit(self, sidecar, host, question, ask)
        self._visits[visit] = None
        return visit

    def between(self, call: Callable[[], None], *, may_be_lost: bool = False) -> None:
        """See ``Wire``."""
        self._network.between(call, may_be_lost=may_be_lost)

    def visit_ended(self, visit: Visit) -> None:
        """See ``Wire``."""
        self._visits.pop(visit, None)

    # --- faults ---

    def _plan_fault(self, sidecar: Sidecar, rate: float, happen: Callable[[Sidecar], None]) -> None:
        def strike() -> None:
            if self.clock.now <= self.setup.faults.quiet_after and not sidecar.is_gone:
                happen(sidecar)
                self._plan_fault(sidecar, rate, happen)

        self.clock.after(self.chance.expovariate(rate), strike)

    def _lose(self, sidecar: Sidecar) -> None:
        """Remove a sidecar with all its requests."""
        sidecar.is_gone = True
        sidecar.engine.lose()
        for visit in list(self._visits):
            if visit.host is sidecar:
                visit.host_lost()
            elif visit.home is sidecar:
                visit.cancel()
        self._judge.sidecar_lost(sidecar)
        self._clients.sidecar_lost(sidecar)

    def _crash(self, sidecar: Sidecar) -> None:
        """Replace a sidecar by a new one."""
        self._lose(sidecar)
        life = int(sidecar.name.rpartition(".")[2]) + 1
        successor = Sidecar(self, sidecar.number, life)
        store = self._network.lease_store
        if store is not None:
            successor.driver.learned(*store.limits())
        self._sidecars[sidecar.number] = successor
        self._judge.fault_ends_at(self.clock.now)
        self._begin(successor)

    def _cut(self) -> None:
        """Remove engines with their sidecars for good."""
        for sidecar in self._sidecars[self.setup.kept :]:
            self._lose(sidecar)
        del self._sidecars[self.setup.kept :]

    def _pause(self, sidecar: Sidecar) -> None:
        until = self.clock.now + self.chance.uniform(0.1, 4.0)
        sidecar.paused_until = max(sidecar.paused_until, until)
        self._judge.fault_ends_at(until)

    def _partition(self, sidecar: Sidecar) -> None:
        """Separate a sidecar from the lease store for some seconds."""
        seconds = self.chance.uniform(0.1, 5.0)
        sidecar.is_cut = True
        sidecar.cut_until = max(sidecar.cut_until, self.clock.now + seconds)
        self._judge.fault_ends_at(self.clock.now + seconds)

        def reconnect() -> None:
            sidecar.is_cut = False

        self.clock.after(seconds, reconnect)

    def _restore_store(self, is_empty: bool) -> None:
        self._network.restore_store(is_empty=is_empty)
        self._judge.fault_ends_at(self.clock.now)


def simulate(setup: Setup) -> Figures:
    """Run one simulation to its end."""
    return World(setup).run()
