"""The sidecar's own answers: refusals as bytes, with the headers that clients use."""

from __future__ import annotations

import math
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Final

from sidecar.decisions import Refusal
from sidecar.dialects.quota_headers import quota_lines
from sidecar.engine.cors import METHODS, Cors
from sidecar.proxy.heads import RequestHead, frame_answer
from tokenpool.outcomes import DROPPED_AT_DEADLINE, DROPPED_REASON_HEADER, Reason

LONGEST_SDK_WAIT_S: Final = 60.0
"""Official clients ignore a longer wait and retry early. For such a wait they are told not to retry."""
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_DROPPED_LINE: Final = DROPPED_REASON_HEADER.encode() + b": %b\r\n"
_NO_CONTENT: Final = b"HTTP/1.1 204 No Content\r\n"


def refusal_bytes(refusal: Refusal, head: RequestHead, cors: Cors, *, closes: bool) -> bytes:
    """The whole answer to a refused request, in its dialect. The answer to a HEAD has no body.

    The sidecar answers a browser's preflight itself, so that the page can read the refusal that follows.
    """
    reason, dialect = refusal.reason, head.dialect
    if head.origin is not None and reason is not Reason.MALFORMED:
        preflight = _preflight(head, head.origin, cors)
        if preflight:
            connection = b"connection: close\r\n" if closes else b""
            return _NO_CONTENT + _date(int(time.time())) + preflight + connection + b"\r\n"
    lines = [
        _date(int(time.time())),
        dialect.id_lines(head.id),
        b"x-tokenpool-reason: " + reason.value.encode() + b"\r\n",
    ]
    dropped = DROPPED_AT_DEADLINE if refusal.has_waited else reason.dropped_reason
    if dropped is not None:
        lines.append(_DROPPED_LINE % dropped.encode())
    if head.origin is not None:
        lines.append(cors.lines(head.origin))
    if refusal.account is not None:
        lines.append(dialect.limit_headers(refusal.account))
        if refusal.account.budgets:
            lines.append(quota_lines(refusal.account.budgets))
    wait = refusal.retry_after_s
    if wait is not None:
        lines.append(
            b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (max(math.ceil(wait), 1), math.ceil(wait * 1000))
        )
    may_retry = reason.is_shed or reason.status >= 500
    if not may_retry or reason is Reason.INSUFFICIENT_QUOTA or (wait or 0.0) > LONGEST_SDK_WAIT_S:
        lines.append(b"x-should-retry: false\r\n")
    if reason.status == 401:
        lines.append(b'www-authenticate: Bearer realm="tokenpool"\r\n')
    if reason is Reason.METHOD_NOT_ALLOWED and head.route is not None:
        lines.append(b"allow: " + b", ".join(head.route.methods) + b"\r\n")
    body = dialect.error_body(reason, refusal.message, refusal.param)
    answer = frame_answer(dialect.status(reason), b"".join(lines), body, closes=closes)
    return answer[: -len(body)] if head.method == b"HEAD" else answer


def _preflight(head: RequestHead, origin: bytes, cors: Cors) -> bytes:
    """Header lines that answer a preflight; none for another request, or an origin that is not allowed."""
    if head.method != b"OPTIONS" or not head.all(b"access-control-request-method"):
        return b""
    methods = head.route.methods if head.route is not None else METHODS
    return cors.preflight(origin, methods, head.all(b"access-control-request-headers"))


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return f"date: {formatdate(second, usegmt=True)}\r\n".encode()
