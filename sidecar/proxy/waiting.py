"""Two states of a connection before an exchange: a request that waits for its admission, and a delayed
answer.

Nothing was sent to the engine in either state, so an early end needs no settlement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from sidecar.decisions import AdmittedRequest, Refusal, draining
from sidecar.proxy.heads import RequestHead
from sidecar.proxy.interface import RequestController
from sidecar.tracing.interface import Trace
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.rules import Shed
from tokenpool.outcomes import Reason


class Client(Protocol):
    """The connection of a request that waits."""

    def on_decided(self, head: RequestHead, decided: AdmittedRequest | Refusal) -> None:
        """The decision about the request."""


class Waiting:
    """One request between its pricing and its admission."""

    __slots__ = ("_client", "_controller", "_head", "_pending")

    def __init__(
        self, client: Client, controller: RequestController, pending: PendingRequest, head: RequestHead
    ) -> None:
        self._client = client
        self._controller = controller
        self._pending = pending
        self._head = head

    @property
    def last_progress(self) -> float:
        """The deadline: until then the admission control answers for the wait."""
        return self._pending.deadline

    def decided(self, outcome: Ticket | Shed) -> None:
        """The driver: the wait is over."""
        self._end_stage()
        self._client.on_decided(self._head, self._controller.decided(self._pending, outcome))

    def client_gone(self) -> None:
        """The client left before the decision."""
        self._end_stage()
        if self._head.trace is not None:
            self._head.trace.left()
        self._controller.give_up(self._pending)

    def drain(self) -> None:
        """The sidecar stops: refuse the request."""
        self._end_stage()
        self._controller.withdraw(self._pending)
        self._client.on_decided(self._head, draining(self._pending.account))

    def time_out(self) -> None:
        """The deadline passed long ago and nothing was decided: a defect lost the request. End it."""
        self._end_stage()
        self._controller.withdraw(self._pending)
        self._client.on_decided(
            self._head,
            Refusal(
                Reason.UPSTREAM_TIMEOUT,
                "the request was not decided in time; send it again",
                account=self._pending.account,
            ),
        )

    def _end_stage(self) -> None:
        """Record the wait, before anything drops the fields of the pending request."""
        if self._head.trace is not None:
            self._head.trace.waited(self._pending)

    def pause(self) -> None:
        """No effect: no bytes are relayed yet."""

    def resume(self) -> None:
        """No effect: no bytes are relayed yet."""


class DelayedAnswer:
    """The delay of an unmetered answer, or of a request for one.

    The answer is delayed, not the next request. So a gateway that shares connections among tenants sees that
    this connection is busy.
    """

    __slots__ = ("_go_on", "_timer", "_trace", "last_progress")

    def __init__(self, seconds: float, go_on: Callable[[], None], trace: Trace | None) -> None:
        """``trace`` is that of a request which is decided after the delay."""
        loop = asyncio.get_running_loop()
        self._trace = trace
        self._go_on = go_on
        self._timer: asyncio.TimerHandle | None = loop.call_later(seconds, self._end)
        self.last_progress = loop.time()

    def _end(self) -> None:
        self._timer = None  # breaks the reference cycle
        self._go_on()

    def client_gone(self) -> None:
        """The client disconnected during the delay."""
        self._stop()
        if self._trace is not None:
            self._trace.left()

    def drain(self) -> None:
        """The sidecar stops: end the delay now."""
        self._stop()
        self._go_on()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def time_out(self) -> None:
        """No effect: ``bounds.MAX_DELAY_S`` bounds the delay."""

    def pause(self) -> None:
        """No effect: no bytes are relayed yet."""

    def resume(self) -> None:
        """No effect: no bytes are relayed yet."""
