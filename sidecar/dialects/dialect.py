"""The functions of every dialect: errors, the end of a stream, and headers about the limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tokenpool.accounting.account import Account
from tokenpool.outcomes import Reason

LONGEST_S: Final = 1e9
"""The longest time in a header, in seconds. A limit may be as small as rounding leaves it. Its time to fill
may have more digits than a structured field (15), or end after the last year of a date."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The form of answers to clients of one API."""

    error_body: Callable[[Reason, str, str | None], bytes]
    """Makes an error body from a reason, a message and the name of the faulty field."""
    error_event: Callable[[Reason, str, int], bytes]
    """Makes the last event of a stream that ends early: from reason, message and number of earlier events."""
    limit_headers: Callable[[Account], bytes]
    """Makes header lines about the limits of an account."""
    own_statuses: Mapping[Reason, int] = field(default_factory=dict)
    """Status codes that differ from the default ones."""

    names_request_id: bool = False
    """Whether clients read the id of a request from ``request-id``, too."""

    def id_lines(self, request_id: bytes) -> bytes:
        """Header lines with the id of a request."""
        lines = b"x-request-id: %b\r\n" % request_id
        return b"%brequest-id: %b\r\n" % (lines, request_id) if self.names_request_id else lines

    def status(self, reason: Reason) -> int:
        """The status code of an answer."""
        return self.own_statuses.get(reason, reason.status)


Limits = tuple[float, float, float, float, float, float, float]
"""The limits of an entitlement at this moment, for headers.

The limit of sequences, the free ones, and the seconds until one is free. The depth of the token bucket, its
level, the seconds until it is full, and the seconds in which an empty one fills (0 if it does not).
"""


def limits(account: Account) -> Limits:
    """An account's limits as of its last refill."""
    limit, rate = account.pool_sequences, account.pool_rate
    running = account.concurrency_in_use + account.concurrency_elsewhere
    free = limit - running if limit > running else 0.0
    depth, level = account.depth, account.bucket.level + account.level_elsewhere
    full_s, window_s = 0.0, 0.0
    if rate > 0:
        full_s, window_s = (depth - level) / rate, depth / rate
        if full_s > LONGEST_S:
            full_s = LONGEST_S
        if window_s > LONGEST_S:
            window_s = LONGEST_S
    one_ends_s = 0.0 if free >= 1 else account.meter.residence.value
    return limit, free, one_ends_s, depth, level if level > 0 else 0.0, full_s, window_s


def rate_limit_fields(found: Limits) -> str:
    """``RateLimit-Policy`` and ``RateLimit`` lines, for all dialects (draft-ietf-httpapi-ratelimit-headers).

    ``tokens`` is the token bucket: its depth, and the seconds in which it fills. ``requests`` is the number
    of concurrent sequences, which has no time window.
    """
    sequences, left, free_in_s, tokens, tokens_left, full_in_s, window_s = found
    return (
        f'ratelimit-policy: "tokens";q={int(tokens)};w={math.ceil(window_s)};qu="tokens",'
        f' "requests";q={int(sequences)};qu="concurrent-requests"\r\n'
        f'ratelimit: "tokens";r={int(tokens_left)};t={math.ceil(full_in_s)},'
        f' "requests";r={int(left)};t={math.ceil(free_in_s)}\r\n'
    )
