"""The driver: performs what the pure admission control decides, and moves its messages and timers.

All decisions of a sidecar pass here. Each caller changes the control (offers, settles, ticks, observes) and
then calls ``act``. ``act`` ends the requests to end, delivers the decisions to the requests that waited,
sends the messages to the lease store that are due, and sets one timer for the next deadline. Deliveries may
cause further effects; the outermost ``act`` performs those too, so no decision runs within another.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Protocol

from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.rules import Shed
from tokenpool.control.admission_control import AdmissionControl
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Usage

log = logging.getLogger(__name__)

NOTHING_SPENT = Usage(0, 0)


class Waiter(Protocol):
    """The owner of a request that waits."""

    def decided(self, outcome: Ticket | Shed) -> None:
        """The wait is over."""


class Runner(Protocol):
    """The owner of a running request."""

    def preempt(self) -> None:
        """End the request now, and settle its ticket."""


class Messenger(Protocol):
    """The line to the lease store."""

    def send_due(self, now: float) -> None:
        """Send the messages that are due, without waiting for their answers."""


class Driver:
    """Performs the effects of one ``AdmissionControl``."""

    def __init__(
        self,
        control: AdmissionControl,
        clock: Callable[[], float],
        messenger: Messenger | None = None,
    ) -> None:
        self.control = control
        self.clock = clock
        self._messenger = messenger
        self._waiters: dict[PendingRequest, Waiter] = {}
        self._runners: dict[Ticket, Runner] = {}
        """The owners of running spot requests."""
        self._ended_early: set[Ticket] = set()
        """Requests to end that have no owner yet: their admission is still being delivered."""
        self._is_acting = False
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf

    # --- owners ---

    def wait(self, pending: PendingRequest, waiter: Waiter) -> None:
        """Deliver the decision about a pending request to its owner."""
        self._waiters[pending] = waiter

    def withdraw(self, pending: PendingRequest) -> None:
        """A pending request waits no longer; no decision is delivered."""
        self._waiters.pop(pending, None)
        self.control.withdraw(pending, self.clock())

    def run(self, ticket: Ticket, runner: Runner) -> None:
        """A spot request runs: its owner is asked to end it where a guarantee needs its capacity."""
        if ticket in self._ended_early:
            self._ended_early.discard(ticket)
            runner.preempt()
        else:
            self._runners[ticket] = runner

    def settle(self, ticket: Ticket, spent: Usage, ending: Ending, *, reported: bool = True) -> None:
        """Settle a ticket, and act on the room that this frees."""
        if ticket.account.is_spot:
            self._runners.pop(ticket, None)
            self._ended_early.discard(ticket)
        self.control.settle(ticket, spent, ending, self.clock(), reported=reported)
        self.act()

    # --- effects ---

    def act(self) -> None:
        """Perform all effects of the calls before."""
        if self._is_acting:
            return
        control = self.control
        if control.has_effects:
            self._perform()
        if self._messenger is not None:
            self._messenger.send_due(self.clock())
        if self._timer is not None or len(control.queue):
            self._set_timer()

    def _perform(self) -> None:
        control = self.control
        self._is_acting = True
        try:
            while control.has_effects:
                effects = control.take_effects()
                for ticket in effects.to_end:
                    self._end(ticket)
                for pending, outcome in effects.decided:
                    self._deliver(pending, outcome)
        finally:
            self._is_acting = False

    def _end(self, ticket: Ticket) -> None:
        runner = self._runners.pop(ticket, None)
        if runner is None:
            self._ended_early.add(ticket)
            return
        try:
            runner.preempt()
        except Exception:
            log.critical("a request could not be ended for a guarantee", exc_info=True)

    def _deliver(self, pending: PendingRequest, outcome: Ticket | Shed) -> None:
        waiter = self._waiters.pop(pending, None)
        try:
            if waiter is not None:
                waiter.decided(outcome)
            elif isinstance(outcome, Ticket):
                # Its client left while it was being decided.
                self.settle(outcome, NOTHING_SPENT, Ending.CLIENT_GONE)
        except Exception:
            # A defect in one delivery must not lose the others.
            log.critical("a decision could not be delivered", exc_info=True)

    # --- time ---

    def _set_timer(self) -> None:
        """Set the one timer to the next deadline of a waiting request."""
        at = self.control.wakes_at()
        if at == self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wakes_at = at
        if at < math.inf:
            delay = max(at - self.clock(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer, self._wakes_at = None, math.inf
        self.control.wake(self.clock())
        self.act()
        self._set_timer()

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
