"""Handover in the simulation: one ask of a sidecar to another sidecar, and the request that follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from simulation.engine import AnyEngine, Prompt
from simulation.setup import Lie
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.affinity import Cached
from tokenpool.admission.pending import Standing
from tokenpool.admission.placement import PeerAsk
from tokenpool.control.driver import Driver
from tokenpool.control.peer_request import PeerRequest
from tokenpool.entitlements import Tier
from tokenpool.outcomes import Ending

HOLD_S = 1.0
"""Seconds for which offered room is kept until the request arrives: as in ``sidecar.handover.peer_port``."""


class Question(NamedTuple):
    """The contents of an ask."""

    number: int
    peer: str
    tier: Tier
    is_preemptible: bool
    sequences: int
    kv_tokens: int
    longest_wait_s: float
    standing: Standing
    prompt: tuple[Cached, ...]


def question_of(ask: PeerAsk) -> Question:
    """The contents of an ask that is sent alone."""
    return Question(
        ask.number,
        ask.peer,
        ask.tier,
        ask.pending.account.is_preemptible,
        ask.sequences,
        ask.kv_tokens,
        ask.longest_wait_s,
        ask.standing,
        ask.prompt,
    )


def question_with(ticket: Ticket) -> Question | None:
    """The contents of the ask that is sent together with the request of this ticket; ``None`` without one."""
    place, account, cost = ticket.place, ticket.account, ticket.cost
    if place is None or place.sent is None:
        return None
    return Question(
        place.number,
        place.peer,
        account.entitlement.tier,
        account.is_preemptible,
        cost.sequences,
        cost.kv_tokens,
        0.0,
        Standing(place.sent.standing),
        tuple(Cached(*each) for each in place.sent.prompt),
    )


class Host(Protocol):
    """The sidecar that is asked."""

    name: str
    driver: Driver
    engine: AnyEngine
    lie: Lie | None

    def now(self) -> float:
        """Seconds by its clock."""

    def when_awake(self, call: Callable[[], None]) -> None:
        """Make a call now, or at the end of a pause."""

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Make a call after some seconds."""


class Hosted(Protocol):
    """The request that is handed over."""

    @property
    def size(self) -> int:
        """Its tokens."""

    @property
    def prompt(self) -> Prompt | None:
        """Its prompt."""

    def found(self, cached_tokens: int) -> None:
        """The engine has this number of the prompt's tokens in its cache."""


class Home(Protocol):
    """The sidecar that asks."""

    name: str

    def when_awake(self, call: Callable[[], None]) -> None:
        """Make a call now, or at the end of a pause."""

    def offered(self, visit: Visit) -> None:
        """The other sidecar keeps room."""

    def refused(self, visit: Visit, *, has_failed: bool) -> None:
        """The other sidecar has no room, or is lost."""

    def taken_elsewhere(self, visit: Visit) -> None:
        """The other sidecar has sent the request to its engine, which has not begun with it yet."""

    def began_elsewhere(self, visit: Visit) -> None:
        """The other engine begins with the request."""

    def ended_elsewhere(self, visit: Visit, ending: Ending) -> None:
        """The request has ended on the other engine."""


class Wire(Protocol):
    """The network between sidecars."""

    def between(self, call: Callable[[], None], *, may_be_lost: bool = False) -> None:
        """Make a call after the delay of the network, or never."""

    def visit_ended(self, visit: Visit) -> None:
        """Forget a visit."""


class Visit:
    """One ask, until the end of its request. It is the asking peer, and the work of the engine.

    ``ask`` is ``None`` if the ask is sent together with its request.
    """

    def __init__(
        self, wire: Wire, home: Home, host: Host, question: Question, ask: PeerAsk | None = None
    ) -> None:
        self.home = home
        self.host = host
        self.question = question
        self.ask = ask
        self.request: Hosted | None = None
        self.is_answered = False
        """Whether the home sidecar knows that the host has begun, or has no room."""
        self._wire = wire
        self._peer_request = PeerRequest(host.driver, self)
        self._is_over = self._has_arrived = self._has_begun = False
        self._arrived_at = 0.0

    # --- from the home sidecar ---

    def send_ask(self) -> None:
        """Ask for room."""
        self._to_host(self._on_ask)

    def cancel(self) -> None:
        """The request needs no room any more, or its client left."""
        self._to_host(lambda: self.end(Ending.CLIENT_GONE))

    def send(self, request: Hosted) -> None:
        """Send the request."""
        self.request = request
        self._to_host(self._on_request)

    def send_with_ask(self, request: Hosted) -> None:
        """Send the ask and the request in one message."""
        self.request = request
        self._to_host(self._on_ask)

    # --- on the host ---

    def _on_ask(self) -> None:
        asked = self.question
        if self.host.lie is Lie.BOASTS:
            self.refuse()
        elif not self._is_over and self.host.lie is not Lie.SILENT:
            self._peer_request.ask(
                asked.tier,
                asked.sequences,
                asked.kv_tokens,
                asked.longest_wait_s,
                self.host.now(),
                is_preemptible=asked.is_preemptible,
                standing=asked.standing,
                prompt=asked.prompt,
            )

    def _on_request(self) -> None:
        if self._peer_request.has_room:
            self._has_arrived = True
            self._arrived_at = self.host.now()
            self.host.engine.add(self)
            if self.ask is None and not self._has_begun:
                self._to_home(lambda: self.home.taken_elsewhere(self))
        else:
            self._report_end(Ending.PREEMPTED)

    def end(self, ending: Ending) -> None:
        """Free the room on the host."""
        self._is_over = True
        self.host.engine.stop(self)
        self._peer_request.end(ending)
        self._wire.visit_ended(self)

    # --- the asking peer ---

    def offer(self) -> None:
        """See ``AskingPeer``."""
        if self.ask is None:
            self._on_request()
            return
        self._to_home(lambda: self.home.offered(self), may_be_lost=True)
        self.host.later(HOLD_S, self._end_hold)

    def _end_hold(self) -> None:
        """The request did not arrive in time: close the connection."""
        if not self._has_arrived and not self._is_over:
            self.end(Ending.CLIENT_GONE)
            self._tell_lost()

    def refuse(self) -> None:
        """See ``AskingPeer``."""
        self._is_over = True
        self._wire.visit_ended(self)
        self._to_home(lambda: self.home.refused(self, has_failed=False), may_be_lost=True)

    def preempt(self) -> None:
        """See ``AskingPeer``."""
        self.host.engine.stop(self)
        if self.request is not None:
            self._report_end(Ending.PREEMPTED)

    # --- the engine's work ---

    @property
    def size(self) -> int:
        """See ``Work``."""
        assert self.request is not None
        return self.request.size

    @property
    def prompt(self) -> Prompt | None:
        """See ``Work``."""
        return self.request.prompt if self.request is not None else None

    def found(self, cached_tokens: int) -> None:
        """See ``Work``."""
        if self.request is not None:
            self.request.found(cached_tokens)

    def began(self) -> None:
        """See ``Work``."""
        self._has_begun = True
        self._peer_request.begun(self.host.now() - self._arrived_at)
        self._to_home(lambda: self.home.began_elsewhere(self))

    def finished(self) -> None:
        """See ``Work``. The engine continues while its sidecar is paused."""
        self.host.when_awake(self._on_finished)

    def _on_finished(self) -> None:
        self._report_end(Ending.FINISHED)
        self.end(Ending.FINISHED)

    # --- faults ---

    def host_lost(self) -> None:
        """The host is gone."""
        self._is_over = True
        self._wire.visit_ended(self)
        self._tell_lost()

    def _tell_lost(self) -> None:
        """The home sidecar notices that its connection is closed."""
        if self.request is None:
            self._to_home(lambda: self.home.refused(self, has_failed=True))
        else:
            self._report_end(Ending.UPSTREAM_ERROR)

    def _report_end(self, ending: Ending) -> None:
        self._to_home(lambda: self.home.ended_elsewhere(self, ending))

    def _to_host(self, call: Callable[[], None]) -> None:
        self._wire.between(lambda: self.host.when_awake(call), may_be_lost=True)

    def _to_home(self, call: Callable[[], None], *, may_be_lost: bool = False) -> None:
        self._wire.between(lambda: self.home.when_awake(call), may_be_lost=may_be_lost)
