"""Answers of the sidecar's own: a refusal as bytes, with the headers that clients act on.

The limit headers tell of the entitlement: ``-tokens`` of its token bucket (limit = depth, reset = when it
is full again), ``-requests`` of its concurrency (limit and what is free, in sequences).
"""

from __future__ import annotations

import math

from sidecar.dialects import openai
from sidecar.gate import LONGEST_SDK_WAIT_S, Refusal
from sidecar.http.heads import frame_answer
from tokenpool.ledger import Account

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def limit_headers(account: Account) -> bytes:
    """``x-ratelimit-*`` lines as of the account's last refill."""
    limit, rate = account.pool_limit.concurrency, account.pool_limit.tokens_per_second
    running = account.concurrency_in_use + account.concurrency_elsewhere
    free = limit - running if limit > running else 0.0
    depth, level = account.depth, account.bucket.level + account.level_elsewhere
    full_s = (depth - level) / rate if rate > 0 else 0.0
    one_ends_s = 0.0 if free >= 1 else account.meter.residence.value
    return _LIMITS % (
        limit,
        free,
        duration(one_ends_s),
        depth,
        level if level > 0 else 0,
        duration(full_s),
    )


_LIMITS = (
    b"x-ratelimit-limit-requests: %d\r\n"
    b"x-ratelimit-remaining-requests: %d\r\n"
    b"x-ratelimit-reset-requests: %b\r\n"
    b"x-ratelimit-limit-tokens: %d\r\n"
    b"x-ratelimit-remaining-tokens: %d\r\n"
    b"x-ratelimit-reset-tokens: %b\r\n"
)


def duration(seconds: float) -> bytes:
    """A duration as OpenAI's headers write it: ``120ms``, ``1s``, ``6m0s``."""
    if seconds <= 0:
        return b"0ms"
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    whole = math.ceil(seconds)
    return b"%ds" % whole if whole < 60 else b"%dm%ds" % divmod(whole, 60)


def refusal_bytes(refusal: Refusal, *, closes: bool, head_only: bool = False) -> bytes:
    """The whole answer to a refused request."""
    reason = refusal.reason
    lines = [b"x-tokenpool-reason: " + reason.value.encode() + b"\r\n"]
    if refusal.account is not None:
        lines.append(limit_headers(refusal.account))
    wait = refusal.retry_after_s
    if wait is not None:
        lines.append(
            b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (max(math.ceil(wait), 1), math.ceil(wait * 1000))
        )
    if not (reason.is_shed or reason.status >= 500) or (wait or 0.0) > LONGEST_SDK_WAIT_S:
        lines.append(b"x-should-retry: false\r\n")
    if reason.status == 401:
        lines.append(b'www-authenticate: Bearer realm="tokenpool"\r\n')
    body = openai.error_body(reason, refusal.message, refusal.param)
    answer = frame_answer(reason.status, b"".join(lines), body, closes=closes)
    return answer[: -len(body)] if head_only else answer
