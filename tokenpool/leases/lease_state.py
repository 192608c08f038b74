"""The state of one active entitlement in a sidecar's exchange with the lease store."""

from __future__ import annotations

import math
from collections import deque

from tokenpool.accounting.account import Account
from tokenpool.accounting.report import Report
from tokenpool.amounts import NOTHING
from tokenpool.leases.messages import LeaseRequest

PEAKS = 4
"""Intervals over which the most in use is remembered."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.25
"""How long the sidecar does not ask for an entitlement without free capacity; it doubles each time."""


class Line:
    """One active entitlement. ``Leases`` and ``LeaseSync`` change it."""

    __slots__ = (
        "ahead",
        "answered_at",
        "ask_again_at",
        "contended_until",
        "fresh",
        "is_idle",
        "number",
        "pause_s",
        "peaks",
        "report",
        "said",
        "share_tokens",
        "short_until",
        "tokens_elsewhere",
        "under_way",
    )

    def __init__(self) -> None:
        self.peaks: deque[tuple[int, int]] = deque(maxlen=PEAKS)
        self.report = Report()
        self.fresh = NOTHING
        self.is_idle = False
        self.contended_until = -math.inf
        self.ask_again_at = math.inf
        self.short_until = -math.inf
        """The lease store had nothing left: until then the sidecar does not ask for each new request."""
        self.pause_s = FIRST_PAUSE_S
        self.said: LeaseRequest | None = None
        """The last holding that was sent; ``None`` if it must be sent again."""
        self.number = -1
        """The number of the message with that holding."""
        self.under_way = False
        """Whether that message is still unanswered."""
        self.answered_at = -math.inf
        """The time of the last answer for this entitlement."""
        self.tokens_elsewhere = 0.0
        """The part of the bucket that other sidecars hold."""
        self.share_tokens: float | None = None
        """Tokens left of this sidecar's share while the lease store fails; ``None`` otherwise."""
        self.ahead = (0.0, 0.0, 0.0)
        """Tokens, KV tokens and sequences that the sidecar may still take before a report."""

    def resume_asking(self) -> None:
        """Capacity may be free: ask for the next request."""
        self.short_until, self.pause_s = -math.inf, FIRST_PAUSE_S

    def pause_asking(self, account: Account, now: float) -> None:
        """The lease store had nothing left. For a while the sidecar does not ask for each new request.

        An empty bucket refills by itself. A push reports other free capacity, so a pause may be long.
        """
        rate = account.pool_limit.tokens_per_second
        if account.level < 0 and rate > 0:
            self.short_until = now + min(-account.level / rate, LONGEST_PAUSE_S)
        else:
            self.short_until = now + self.pause_s
            self.pause_s = min(self.pause_s * 2, LONGEST_PAUSE_S)
