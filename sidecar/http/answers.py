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
    bucket, limit = account.bucket, account.limit.concurrency
    free = max(limit - account.concurrency_in_use, 0.0)
    missing = bucket.depth - bucket.level
    full_s = missing / bucket.rate if bucket.rate > 0 else 0.0
    one_ends_s = 0.0 if free >= 1 else account.meter.residence.value
    return (
        f"x-ratelimit-limit-requests: {limit:.0f}\r\n"
        f"x-ratelimit-remaining-requests: {free:.0f}\r\n"
        f"x-ratelimit-reset-requests: {duration(one_ends_s)}\r\n"
        f"x-ratelimit-limit-tokens: {bucket.depth:.0f}\r\n"
        f"x-ratelimit-remaining-tokens: {max(bucket.level, 0.0):.0f}\r\n"
        f"x-ratelimit-reset-tokens: {duration(full_s)}\r\n"
    ).encode()


def duration(seconds: float) -> str:
    """A duration as OpenAI's headers write it: ``120ms``, ``1s``, ``6m0s``."""
    if seconds < 1:
        return f"{max(math.ceil(seconds * 1000), 0)}ms"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"


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
