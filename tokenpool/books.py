"""The books: the exact account of one pool's limits, and of what every sidecar holds of them.

Pure, with ``now`` from the clock of whoever keeps the books. A store keeps them (in memory as they are; in
Redis the same rules as a script), and one contract suite holds both to what is written here:

- What is held never adds up to more than the limit by a decision of the books. Only what runs already is
  booked beyond it: after a limit shrank, or when books start anew.
- A message states totals (what runs, what is wanted, what was spent since the holder began), never changes,
  and carries a number. So one that is lost, doubled or late does no harm.
- Every grant expires. A holder that says nothing for a lifetime holds nothing.
- Limits carry the epoch of the coordinator that wrote them; an older one is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tokenpool.amounts import NOTHING, Amount


@dataclass(frozen=True, slots=True)
class Limit:
    """What one entitlement may use pool-wide."""

    amount: Amount
    depth: float
    """Tokens that its bucket holds."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one sidecar says of one entitlement."""

    kv_in_use: float = 0.0
    concurrency_in_use: float = 0.0
    kv_wanted: float = 0.0
    """To hold in all, what runs included."""
    concurrency_wanted: float = 0.0
    tokens_spent: float = 0.0
    """Throughput tokens charged less refunds, since this holder began. It may fall."""
    tokens_wanted: float = 0.0
    """To be able to spend before the next message."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one sidecar holds of one entitlement's limit until it expires."""

    kv_tokens: float = 0.0
    concurrency: float = 0.0
    tokens: float = 0.0


NO_GRANT = Grant()
REMEMBER_S = 60.0
"""How long the books know what a silent sidecar had spent."""


class _Held:
    """One sidecar's part of an entitlement."""

    __slots__ = ("expires_at", "grant", "spent")

    def __init__(self, spent: float) -> None:
        self.grant = NO_GRANT
        self.spent = spent
        self.expires_at = -math.inf


class _Page:
    """One entitlement's page: its limit, its bucket, its holders."""

    __slots__ = ("depth", "filled_at", "holders", "level", "limit")

    def __init__(self, now: float) -> None:
        self.limit = NOTHING
        self.depth = 0.0
        self.level = 0.0
        self.filled_at = now
        self.holders: dict[str, _Held] = {}

    def refill(self, now: float) -> None:
        """Bring the bucket up to date; a clock that stands still adds nothing."""
        if now > self.filled_at:
            rate = self.limit.tokens_per_second
            self.level = min(self.level + rate * (now - self.filled_at), self.depth)
            self.filled_at = now

    def expire(self, now: float) -> None:
        """Take back the grants of holders that have said nothing for a lifetime.

        What they had spent is remembered for a while: one that was cut off and comes back is charged for
        what it spent unheard.
        """
        for name, held in list(self.holders.items()):
            if held.expires_at <= now:
                held.grant = NO_GRANT
                if held.expires_at + REMEMBER_S <= now:
                    del self.holders[name]

    def others(self, holder: str) -> Grant:
        """What everyone but ``holder`` holds."""
        grants = [held.grant for name, held in self.holders.items() if name != holder]
        return Grant(
            math.fsum(g.kv_tokens for g in grants),
            math.fsum(g.concurrency for g in grants),
            math.fsum(g.tokens for g in grants),
        )


class Books:
    """The books of one pool."""

    def __init__(self, now: float, lifetime_s: float) -> None:
        self._lifetime_s = lifetime_s
        self._opens_at = now + lifetime_s
        self._pages: dict[str, _Page] = {}
        self._numbers: dict[str, tuple[int, float]] = {}
        self.epoch = 0
        """Of the coordinator whose limits stand; 0 before the first."""

    def publish(self, limits: Mapping[str, Limit], epoch: int, now: float) -> bool:
        """Replace all limits, unless a later coordinator has written already; whether they stand now.

        A bucket that is new starts full. An entitlement that is gone loses its limit at once, and its page
        when nobody holds anything of it.
        """
        if epoch < self.epoch:
            return False
        self.epoch = epoch
        for name, limit in limits.items():
            page = self._pages.get(name)
            if page is None:
                page = self._pages[name] = _Page(now)
            page.refill(now)
            is_new = page.depth == 0.0
            page.limit, page.depth = limit.amount, limit.depth
            page.level = limit.depth if is_new else min(page.level, limit.depth)
        for name in [name for name in self._pages if name not in limits]:
            page = self._pages[name]
            page.expire(now)
            page.limit, page.depth, page.level = NOTHING, 0.0, min(page.level, 0.0)
            if all(held.grant == NO_GRANT for held in page.holders.values()):
                del self._pages[name]
        return True

    def exchange(
        self, holder: str, number: int, holdings: Mapping[str, Holding], now: float
    ) -> dict[str, Grant]:
        """Book what a sidecar says, and answer with what it holds from now for one lifetime.

        An entitlement that it does not name it returns (having named it once more with all that it spent).
        A message that is not later than the last one
        books nothing and is answered with what stands; its grants are not renewed.
        """
        last, heard_at = self._numbers.get(holder, (-1, now))
        if number <= last and now - heard_at < REMEMBER_S:
            return {name: self._standing(holder, name, now) for name in holdings}
        self._numbers[holder] = (number, now)
        for name, page in self._pages.items():
            if name not in holdings:
                held = page.holders.get(holder)
                if held is not None:
                    held.grant = NO_GRANT
        return {name: self._book(holder, name, said, now) for name, said in holdings.items()}

    def _standing(self, holder: str, name: str, now: float) -> Grant:
        page = self._pages.get(name)
        if page is None:
            return NO_GRANT
        page.expire(now)
        held = page.holders.get(holder)
        return held.grant if held is not None else NO_GRANT

    def _book(self, holder: str, name: str, said: Holding, now: float) -> Grant:
        page = self._pages.get(name)
        if page is None:
            page = self._pages[name] = _Page(now)
        page.expire(now)
        page.refill(now)
        held = page.holders.get(holder)
        if held is None:
            held = page.holders[holder] = _Held(said.tokens_spent)
        page.level = min(page.level - (said.tokens_spent - held.spent), page.depth)
        held.spent = said.tokens_spent
        others, limit = page.others(holder), page.limit
        is_open = now >= self._opens_at
        held.grant = Grant(
            _gauge(said.kv_in_use, said.kv_wanted, limit.kv_tokens - others.kv_tokens, is_open),
            _gauge(
                said.concurrency_in_use,
                said.concurrency_wanted,
                limit.concurrency - others.concurrency,
                is_open,
            ),
            max(min(said.tokens_wanted, page.level - others.tokens), 0.0) if is_open else 0.0,
        )
        held.expires_at = now + self._lifetime_s
        return held.grant

    def held(self, now: float) -> dict[str, Grant]:
        """What is held of each entitlement by all together."""
        total = {}
        for name, page in self._pages.items():
            page.expire(now)
            total[name] = page.others("")
        return total

    def close_idle(self, now: float) -> None:
        """Forget sidecars that are gone; memory is bounded by active entitlements times sidecars."""
        for holder in [h for h, (_, at) in self._numbers.items() if now - at >= REMEMBER_S]:
            del self._numbers[holder]
        for page in self._pages.values():
            page.expire(now)


def _gauge(in_use: float, wanted: float, free: float, is_open: bool) -> float:
    """What may be held of a gauge: what runs in any case, more only where it is free.

    New books are closed for a lifetime: first everyone has booked what runs, then more is given out.
    """
    return max(in_use, min(wanted, free)) if is_open else in_use
