"""Preemption: the running spot requests, and the choice of those to end for a guarantee. Pure.

Two events end spot requests: a request inside its guarantee was admitted to a full engine, or guaranteed
requests may wait in an engine with fewer slots than assumed. The methods return the requests to end. The
owner of each request ends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from tokenpool.accounting.ledger import Ledger
from tokenpool.accounting.ticket import Ticket
from tokenpool.capacity.room import PREEMPTIBLE_QUEUE, EngineRoom

GUARANTEED_START_S = 0.25
"""For this time in seconds after a guaranteed admission, no spot request is sent to wait in the engine. The
time ends earlier at the first token. Each request has its own connection. A spot request that was sent 1 ms
later was read first and took the freed slot. Guaranteed P99 was 3.6 times the P99 alone (2 of 3 seeds); with
this rule 1.3."""


class Running(NamedTuple):
    """A running spot request."""

    admitted_at: float
    """Seconds on the sidecar's monotonic clock."""
    sequences: int
    kv_tokens: int
    has_begun: bool = True
    """Whether the engine may have started it. A request in the engine's queue has used no compute."""


_Key = TypeVar("_Key")


def victims(
    running: Iterable[tuple[_Key, Running]], sequences: float, kv_tokens: float
) -> list[tuple[_Key, Running]]:
    """The requests to end so that ``sequences`` and ``kv_tokens`` become free; none if all are not enough.

    Requests that have not started are first: they lose no work, and would otherwise take the freed slots. The
    youngest are next, because they lose the least work. No request is ended without need.
    """
    if sequences <= 0 and kv_tokens <= 0:
        return []
    chosen: list[tuple[_Key, Running]] = []
    freed_sequences = freed_kv = 0
    for key, request in sorted(running, key=lambda row: (row[1].has_begun, -row[1].admitted_at)):
        if freed_sequences >= sequences and freed_kv >= kv_tokens:
            break
        chosen.append((key, request))
        freed_sequences += request.sequences
        freed_kv += request.kv_tokens
    if freed_sequences < sequences or freed_kv < kv_tokens:
        return []
    for row in list(chosen):
        left_sequences, left_kv = freed_sequences - row[1].sequences, freed_kv - row[1].kv_tokens
        if left_sequences >= sequences and left_kv >= kv_tokens:
            chosen.remove(row)
            freed_sequences, freed_kv = left_sequences, left_kv
    return chosen


class Preemption:
    """The running requests of one engine that preemption concerns."""

    __slots__ = ("ending", "last_guaranteed", "not_begun", "spot")

    def __init__(self) -> None:
        self.spot: dict[Ticket, None] = {}
        """Running spot requests."""
        self.ending: dict[Ticket, None] = {}
        """Spot requests that the driver is about to end. They still count in the ledger."""
        self.not_begun: dict[Ticket, None] = {}
        """Guaranteed requests without a first token. The engine may still queue them."""
        self.last_guaranteed: Ticket | None = None
        """The last guaranteed request, until the engine has started it."""

    def admitted(self, ticket: Ticket, ledger: Ledger, room: EngineRoom) -> list[Ticket]:
        """A request was admitted to the engine here. Returns the spot requests to end for it."""
        if ticket.account.is_spot:
            self.spot[ticket] = None
        elif ticket.is_guaranteed:
            self.last_guaranteed = ticket
            self.not_begun[ticket] = None
            if self.spot:
                return self._make_room(ledger, room)
        return []

    def began(self, ticket: Ticket) -> None:
        """The engine has started a request."""
        if self.not_begun:
            self.not_begun.pop(ticket, None)

    def left(self, ticket: Ticket) -> None:
        """A request has ended, or moves to another engine."""
        if self.ending:
            self.ending.pop(ticket, None)
        if self.spot:
            self.spot.pop(ticket, None)
        if self.not_begun:
            self.not_begun.pop(ticket, None)
        if ticket is self.last_guaranteed:
            self.last_guaranteed = None

    def is_guarantee_starting(self, now: float) -> bool:
        """Whether the engine may not have started the last guaranteed request yet."""
        ticket = self.last_guaranteed
        if ticket is not None:
            if not ticket.has_begun and now - ticket.admitted_at < GUARANTEED_START_S:
                return True
            self.last_guaranteed = None
        return False

    def _make_room(self, ledger: Ledger, room: EngineRoom) -> list[Ticket]:
        """The spot requests whose room the guaranteed request that was just admitted needs."""
        sequences = ledger.concurrency_in_use + room.foreign_sequences - room.proven_slots
        kv_tokens = ledger.kv_in_use + room.foreign_kv_tokens - room.kv_tokens
        for ticket in self.ending:
            sequences -= ticket.cost.sequences
            kv_tokens -= ticket.kv_held
        if sequences > 0 or kv_tokens > 0:
            return self._end(self._preemptible(), sequences, kv_tokens)
        return []

    def surplus(self, ledger: Ledger, room: EngineRoom, others: float = 0.0) -> list[Ticket]:
        """The spot requests to end if the engine has fewer slots than assumed.

        Guaranteed requests may then wait in it. Only this sidecar's requests count, because the engine's page
        shows ended requests for a while. ``others`` are the sequences of its other
        workers. No more are ended than may wait before a guaranteed request, and only once per guaranteed
        request.
        """
        if not self.spot or not self.not_begun:
            return []
        surplus = ledger.concurrency_in_use + others - room.slots
        surplus -= sum(ticket.cost.sequences for ticket in self.ending)
        if surplus <= PREEMPTIBLE_QUEUE:
            return []
        running = self._preemptible()
        waiting = sum(request.sequences for _, request in running if not request.has_begun)
        at_most = sum(request.sequences for _, request in running)
        sequences = min(surplus, waiting + len(self.not_begun), at_most)
        self.not_begun.clear()
        return self._end(running, sequences, 0)

    def _preemptible(self) -> list[tuple[Ticket, Running]]:
        """The running requests that may be ended, without those that are being ended."""
        return [
            # An answer that is not streamed shows no first token, so it may have a slot.
            (
                ticket,
                Running(
                    ticket.admitted_at,
                    ticket.cost.sequences,
                    ticket.kv_held,
                    ticket.has_begun or not ticket.streams,
                ),
            )
            for ticket in self.spot
            if ticket.account.is_preemptible
        ]

    def _end(
        self, running: Sequence[tuple[Ticket, Running]], sequences: float, kv_tokens: float
    ) -> list[Ticket]:
        chosen = [ticket for ticket, _ in victims(running, sequences, kv_tokens)]
        for ticket in chosen:
            del self.spot[ticket]
            self.ending[ticket] = None
        return chosen
