"""A peer request: a request of a peer, from its ask to its end on the engine here. Pure.

The peer port of a sidecar has one ``PeerRequest`` for each ask. So has the simulation. ``AskingPeer`` passes
the answers on to the peer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.affinity import Cached
from tokenpool.admission.pending import PendingRequest, Standing
from tokenpool.admission.rules import Shed
from tokenpool.control.driver import NOTHING_SPENT, Driver
from tokenpool.control.peer_accounts import peer_cost
from tokenpool.entitlements import Tier
from tokenpool.outcomes import Ending


class AskingPeer(Protocol):
    """The way back to the sidecar that asks."""

    def offer(self) -> None:
        """Room is kept for the request: it may be sent now."""

    def refuse(self) -> None:
        """There is no room."""

    def preempt(self) -> None:
        """End the running request, because a guarantee needs its room."""


class PeerRequest:
    """One ask, and the request that follows it. It implements ``Waiter`` and ``Runner`` of the driver."""

    __slots__ = ("_driver", "_kv_tokens", "_pending", "_port", "_prompt", "_ticket")

    def __init__(self, driver: Driver, port: AskingPeer) -> None:
        self._driver = driver
        self._port = port
        self._pending: PendingRequest | None = None
        self._ticket: Ticket | None = None
        self._prompt: Sequence[Cached] = ()
        self._kv_tokens = 0

    @property
    def has_room(self) -> bool:
        """Whether it holds room on the engine."""
        return self._ticket is not None

    def ask(
        self,
        tier: Tier,
        sequences: int,
        kv_tokens: int,
        longest_wait_s: float,
        now: float,
        *,
        is_preemptible: bool,
        standing: Standing = Standing.WITHIN,
        prompt: Sequence[Cached] = (),
    ) -> None:
        """Ask for room. The port gets the answer at once, or within ``longest_wait_s`` seconds.

        ``standing`` states the capacity that the request may use here. ``prompt`` has the beginnings of its
        prompt.
        """
        self._prompt, self._kv_tokens = prompt, kv_tokens
        cost = peer_cost(sequences, kv_tokens)
        control = self._driver.control
        if not control.is_serving:
            self._port.refuse()
            return
        outcome = control.offer_peer_request(
            tier, cost, longest_wait_s, now, is_preemptible=is_preemptible, standing=standing
        )
        if isinstance(outcome, PendingRequest):
            self._pending = outcome
            self._driver.wait(outcome, self)
            self._driver.act()
        else:
            self.decided(outcome)

    def decided(self, outcome: Ticket | Shed) -> None:
        """See ``Waiter``."""
        self._pending = None
        if isinstance(outcome, Shed):
            self._port.refuse()
            return
        self._ticket = outcome
        self._driver.begin(outcome, self)

    def start(self) -> None:
        """See ``Runner``."""
        if self._ticket is not None:
            self._port.offer()

    def preempt(self) -> None:
        """See ``Runner``."""
        if self._ticket is not None:
            self._port.preempt()
            self.end(Ending.PREEMPTED)

    def begun(self, seconds: float) -> None:
        """The first byte of the answer came, ``seconds`` after the request."""
        if self._ticket is not None:
            self._driver.control.first_token(self._ticket, seconds)

    def end(self, ending: Ending) -> None:
        """The request has ended, or needs no room any more. Does nothing the second time."""
        pending, self._pending = self._pending, None
        ticket, self._ticket = self._ticket, None
        if pending is not None:
            self._driver.withdraw(pending)
        if ticket is not None:
            if ending is Ending.FINISHED:
                self._driver.peer_request_computed(self._prompt, self._kv_tokens)
            # Its own sidecar settles the usage.
            self._driver.settle(ticket, NOTHING_SPENT, ending, reported=False)
