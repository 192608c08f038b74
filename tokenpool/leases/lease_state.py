"""The state of one active entitlement in a sidecar's exchange with the lease store. Times are in seconds."""

from __future__ import annotations

import math
from collections import deque

from tokenpool.accounting.account import Account
from tokenpool.accounting.report import Report
from tokenpool.amounts import NOTHING
from tokenpool.leases.messages import LeaseRequest

PEAKS = 4
"""The number of intervals for which the highest use is remembered."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.25
"""The pause before the sidecar asks again for an entitlement without free capacity. It doubles each time."""


class LeaseState:
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
        "sent",
        "share_tokens",
        "short_until",
        "tokens_elsewhere",
        "under_way",
    )

    def __init__(self) -> None:
        self.peaks: deque[tuple[int, int]] = deque(maxlen=PEAKS)
        """KV tokens and sequences: the highest use in each of the last intervals."""
        self.report = Report()
        """The report of the last interval."""
        self.fresh = NOTHING
        """The recent demand without retries."""
        self.is_idle = False
        """Whether the entitlement had no demand and no running or waiting request at the last interval."""
        self.contended_until = -math.inf
        """The time until which unused leases are returned, because another sidecar lacks capacity."""
        self.ask_again_at = math.inf
        """The time at which the waiting requests ask again."""
        self.short_until = -math.inf
        """The lease store had no free capacity. Until this time the sidecar does not ask for each new
        request."""
        self.pause_s = FIRST_PAUSE_S
        self.sent: LeaseRequest | None = None
        """The last lease request that was sent; ``None`` if it must be sent again."""
        self.number = -1
        """The number of the message with that lease request."""
        self.under_way = False
        """Whether that message is still unanswered."""
        self.answered_at = -math.inf
        """The time of the last answer for this entitlement."""
        self.tokens_elsewhere = 0.0
        """The part of the bucket that other sidecars hold."""
        self.share_tokens: float | None = None
        """The rest of this sidecar's share in tokens, while the lease store fails; ``None`` otherwise."""
        self.ahead = (0.0, 0.0, 0.0)
        """Tokens, KV tokens and sequences that the sidecar may still take before a report."""

    def resume_asking(self) -> None:
        """Capacity may be free: ask for the next request again."""
        self.short_until, self.pause_s = -math.inf, FIRST_PAUSE_S

    def pause_asking(self, account: Account, now: float) -> None:
        """The lease store had no free capacity: pause before asking for new requests.

        The pause for an empty bucket is its refill time. A notification reports other free capacity, so the
        pause may be long.
        """
        rate = account.pool_limit.tokens_per_second
        if account.level < 0 and rate > 0:
            self.short_until = now + min(-account.level / rate, LONGEST_PAUSE_S)
        else:
            self.short_until = now + self.pause_s
            self.pause_s = min(self.pause_s * 2, LONGEST_PAUSE_S)
