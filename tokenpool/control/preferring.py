"""Preferring: admitted requests that ask the replica with their prompt in its cache, or run there. Pure.

A request that has room here keeps it while it asks. It moves when that replica offers room, and starts here
otherwise. So the ask cannot lead to a refusal.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.affinity import Preference, PrefixCaches, beginnings
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.placement import PeerAsk
from tokenpool.pricing.cost import Usage

PREFER_S = 0.03
"""The longest time in seconds that an admitted request waits for the answer of the replica with its prompt in
the cache. An ask takes about 0.5 ms, so this bounds the effect of a lost answer."""


class Preferred(NamedTuple):
    """A request that has room here, and asks the replica with its prompt in the cache."""

    ticket: Ticket
    ask: PeerAsk
    until: float
    """The time at which it starts here if there is no answer."""


class Preferring:
    """The requests of one sidecar that ask such a replica, or run there."""

    __slots__ = ("_asking", "_running")

    def __init__(self) -> None:
        self._asking: dict[PendingRequest, Preferred] = {}
        """In the order of their deadlines."""
        self._running: dict[Ticket, Preference] = {}

    def __len__(self) -> int:
        """The number of requests that ask, or run at a preferred replica."""
        return len(self._asking) + len(self._running)

    @property
    def is_any_asking(self) -> bool:
        """Whether a request asks."""
        return bool(self._asking)

    def begin(self, pending: PendingRequest, ticket: Ticket, ask: PeerAsk, now: float) -> None:
        """An admitted request asks."""
        self._asking[pending] = Preferred(ticket, ask, now + PREFER_S)

    def of(self, pending: PendingRequest) -> Preferred | None:
        """The ask of a request; ``None`` if it does not ask."""
        return self._asking.get(pending)

    def end(self, pending: PendingRequest) -> Preferred | None:
        """A request does not ask any more. Returns its ask, if it has asked."""
        return self._asking.pop(pending, None)

    def overdue(self, now: float) -> list[tuple[PendingRequest, Preferred]]:
        """The requests without an answer in time. They do not ask any more."""
        found: list[tuple[PendingRequest, Preferred]] = []
        for pending, preferred in self._asking.items():
            if preferred.until > now:
                break
            found.append((pending, preferred))
        for pending, _ in found:
            del self._asking[pending]
        return found

    def wakes_at(self) -> float:
        """The time of the next ``overdue`` request; infinite while none asks."""
        for preferred in self._asking.values():
            return preferred.until
        return math.inf

    def runs(self, ticket: Ticket, preference: Preference | None) -> None:
        """A request runs at another replica; ``preference`` if that replica has its prompt in the cache."""
        if preference is not None:
            self._running[ticket] = preference

    def forget(self, ticket: Ticket) -> None:
        """A request has ended without an answer that shows something about a cache."""
        self._running.pop(ticket, None)

    def finished(
        self, ticket: Ticket, spent: Usage, caches: PrefixCaches | None, now: float, *, reported: bool
    ) -> None:
        """A request has finished: its engine has the beginnings of its prompt in its cache."""
        preference = self._running.pop(ticket, None) if self._running else None
        if caches is None:
            return
        if ticket.place is None:
            prompt = beginnings(ticket.ask, spent.input_tokens, spent.output_tokens)
            if reported:
                caches.reported(prompt, spent.cached_tokens)
            tokens = spent.input_tokens - spent.cached_tokens + spent.output_tokens
            caches.computed(prompt, max(tokens, 0), now)
        elif preference is not None and reported:
            caches.gained(preference, spent.cached_tokens)
