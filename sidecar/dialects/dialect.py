"""What every dialect can say: errors, the end of a stream, and how much is left of the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenpool.accounting.account import Account
from tokenpool.outcomes import Reason


@dataclass(frozen=True, slots=True)
class Dialect:
    """How clients of one API are answered."""

    error_body: Callable[[Reason, str, str | None], bytes]
    """From a reason, a message and the field that is at fault."""
    error_event: Callable[[Reason, str, int], bytes]
    """The last words of a stream that is ended early; the number is that of the events before it."""
    limit_headers: Callable[[Account], bytes]
    """Header lines."""
    own_statuses: Mapping[Reason, int] = field(default_factory=dict)
    """Where it has another status code than others."""

    def status(self, reason: Reason) -> int:
        """The status code of an answer."""
        return self.own_statuses.get(reason, reason.status)


class Limits(NamedTuple):
    """What an entitlement may do at this moment, as headers tell it."""

    sequences: float
    sequences_left: float
    sequence_free_in_s: float
    tokens: float
    """The depth of its token bucket."""
    tokens_left: float
    tokens_full_in_s: float


def limits(account: Account) -> Limits:
    """An account's limits as of its last refill."""
    limit, rate = account.pool_limit.concurrency, account.pool_limit.tokens_per_second
    running = account.concurrency_in_use + account.concurrency_elsewhere
    free = limit - running if limit > running else 0.0
    depth, level = account.depth, account.bucket.level + account.level_elsewhere
    full_s = (depth - level) / rate if rate > 0 else 0.0
    one_ends_s = 0.0 if free >= 1 else account.meter.residence.value
    return Limits(limit, free, one_ends_s, depth, level if level > 0 else 0.0, full_s)
