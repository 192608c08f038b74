"""What stands in the place of an exchange while nothing is exchanged: a request that waits to be decided, and
an answer that is delayed.

Nothing was sent for either yet, so whatever ends it early costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from sidecar.decisions import AdmittedRequest, Refusal, draining
from sidecar.proxy.heads import RequestHead
from sidecar.proxy.interface import RequestController
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.rules import Shed
from tokenpool.outcomes import Reason


class Client(Protocol):
    """The connection of a request that waits."""

    def on_decided(self, head: RequestHead, decided: AdmittedRequest | Refusal) -> None:
        """The wait is over."""


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
        self._client.on_decided(self._head, self._controller.decided(self._pending, outcome))

    def client_gone(self) -> None:
        """The client left before the decision."""
        self._controller.give_up(self._pending)

    def drain(self) -> None:
        """The sidecar stops: the request does not begin."""
        self._controller.withdraw(self._pending)
        self._client.on_decided(self._head, draining(self._pending.account))

    def time_out(self) -> None:
        """The deadline passed long ago and nothing was decided: a defect lost the request. End it."""
        self._controller.withdraw(self._pending)
        self._client.on_decided(
            self._head,
            Refusal(
                Reason.UPSTREAM_TIMEOUT,
                "the request was not decided in time; send it again",
                account=self._pending.account,
            ),
        )

    def pause(self) -> None:
        """Nothing flows yet."""

    def resume(self) -> None:
        """Nothing flows yet."""


class DelayedAnswer:
    """An answer that nobody pays for, or a request for one, that is not hurried.

    The answer waits, and not the request that comes after it: whoever shares a connection among tenants sees
    that this one is busy.
    """

    __slots__ = ("_go_on", "_timer", "last_progress")

    def __init__(self, seconds: float, go_on: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._go_on = go_on
        self._timer: asyncio.TimerHandle | None = loop.call_later(seconds, self._end)
        self.last_progress = loop.time()

    def _end(self) -> None:
        self._timer = None  # a circle
        self._go_on()

    def client_gone(self) -> None:
        """The client went away meanwhile."""
        self._stop()

    def drain(self) -> None:
        """The sidecar stops: it is answered now."""
        self._stop()
        self._go_on()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def time_out(self) -> None:
        """It takes a second at most."""

    def pause(self) -> None:
        """Nothing flows yet."""

    def resume(self) -> None:
        """Nothing flows yet."""
