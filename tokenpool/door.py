"""The door: requests that would fit in a moment wait for it, a little, instead of being shed. Pure.

In order of tier, then of deadline; bounded in time and in number. Spot never waits. Whether a request fits is
``admission``'s decision; here is only who is asked next, and until when.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tokenpool.entitlements import Tier
from tokenpool.ledger import Account

MOST_WAITING = 64
"""Requests of one entitlement that wait at once; more are shed at once, as without a door."""

_RANKS = {Tier.GUARANTEED: 0, Tier.ELASTIC: 1}


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """The longest waits. Seconds; 0 = shed at once."""

    guaranteed_s: float = 0.0
    elastic_s: float = 0.0

    def patience(self, tier: Tier) -> float:
        """How long a request of a tier may wait."""
        if tier is Tier.GUARANTEED:
            return self.guaranteed_s
        return self.elastic_s if tier is Tier.ELASTIC else 0.0


class Place:
    """One request's place at the door."""

    __slots__ = ("account", "deadline", "rank", "since", "try_now")

    def __init__(
        self, account: Account, since: float, deadline: float, try_now: Callable[[bool], bool]
    ) -> None:
        self.account = account
        self.since = since
        self.deadline = deadline
        self.rank = _RANKS[account.entitlement.tier]
        self.try_now = try_now
        """Decide now; whether that was the end of the wait. Asked with ``True`` it is the last time."""


class Door:
    """All requests that wait at one sidecar's door."""

    __slots__ = ("_is_serving", "_places", "_waiting", "settings", "waited", "waited_s")

    def __init__(self, settings: DoorSettings) -> None:
        self.settings = settings
        self._places: list[Place] = []
        self._waiting: Counter[str] = Counter()
        self._is_serving = False
        self.waited = 0
        """Requests that waited so far, and for how long all together."""
        self.waited_s = 0.0

    def __len__(self) -> int:
        return len(self._places)

    def has_waiting(self, account: Account) -> bool:
        """Whether requests of this entitlement wait: a newcomer goes behind them."""
        return self._waiting[account.entitlement.name] > 0

    def waits(self, account: Account, retry_after_s: float) -> bool:
        """Whether a request that would be shed now, and told to come back so soon, may wait instead."""
        patience = self.settings.patience(account.entitlement.tier)
        return (
            patience > 0
            and retry_after_s <= patience
            and self._waiting[account.entitlement.name] < MOST_WAITING
        )

    def enter(self, account: Account, now: float, try_now: Callable[[bool], bool]) -> Place:
        """Wait."""
        patience = self.settings.patience(account.entitlement.tier)
        place = Place(account, now, now + patience, try_now)
        self._line_up(place)
        self.waited += 1
        return place

    def _line_up(self, place: Place) -> None:
        self._places.append(place)
        self._places.sort(key=lambda each: (each.rank, each.deadline))
        self._waiting[place.account.entitlement.name] += 1

    def leave(self, place: Place, now: float) -> None:
        """Wait no longer."""
        if place in self._places:
            self._places.remove(place)
            self._waiting[place.account.entitlement.name] -= 1
            self.waited_s += now - place.since

    def serve(self, now: float) -> None:
        """Something may have become free, or somebody's time be up: ask in order.

        Of an entitlement whose first request does not fit, no other is asked: nobody is overtaken by his own.
        """
        if self._is_serving or not self._places:
            return
        self._is_serving = True
        held_up: set[str] = set()
        try:
            for place in list(self._places):
                name, is_over = place.account.entitlement.name, now >= place.deadline
                if name in held_up and not is_over:
                    continue
                self.leave(place, now)
                if not place.try_now(is_over):
                    held_up.add(name)
                    self._line_up(place)
                    self.waited_s -= now - place.since
        finally:
            self._is_serving = False

    def looks_at(self) -> float:
        """When to serve at the latest; infinite while nobody waits."""
        return min((place.deadline for place in self._places), default=math.inf)
