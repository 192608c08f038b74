"""Outcomes: every way in which a request can end, as closed sets.

The only place that picks a status code. The sidecar turns these values into bytes, metrics and log
lines; the README explains each ``Reason`` to tenants.
"""

from __future__ import annotations

from enum import StrEnum


class Ending(StrEnum):
    """How an admitted request ended. A ticket takes exactly one of these, exactly once."""

    FINISHED = "finished"
    CLIENT_GONE = "client_gone"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    DRAINED = "drained"
    PREEMPTED = "preempted"


class Reason(StrEnum):
    """Why the sidecar itself answered: the value of ``x-tokenpool-reason``."""

    # Shed: capacity exists, but this request may not have it now.
    TOKENS_PER_SECOND = "tokens_per_second"
    KV_TOKENS = "kv_tokens"
    CONCURRENCY = "concurrency"
    ENGINE_FULL = "engine_full"
    PREEMPTED = "preempted"
    SIDECAR_FULL = "sidecar_full"
    # There is no capacity at all.
    ENGINE_DOWN = "engine_down"
    DRAINING = "draining"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    # The request can never be served as it is.
    NEVER_FITS = "never_fits"
    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown_key"
    UNKNOWN_ROUTE = "unknown_route"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_RESPONSE = "unknown_response"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TARGET_TOO_LONG = "target_too_long"
    HEAD_TOO_LARGE = "head_too_large"
    BODY_TOO_LARGE = "body_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    UNSUPPORTED_EXPECTATION = "unsupported_expectation"
    # The engine failed after the request was admitted.
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"

    @property
    def status(self) -> int:
        """The HTTP status code of an answer with this reason."""
        return _STATUS[self]

    @property
    def is_shed(self) -> bool:
        """Whether the request was refused for want of capacity, and may come back."""
        return self.status == 429


_STATUS = {
    Reason.TOKENS_PER_SECOND: 429,
    Reason.KV_TOKENS: 429,
    Reason.CONCURRENCY: 429,
    Reason.ENGINE_FULL: 429,
    Reason.PREEMPTED: 429,
    Reason.SIDECAR_FULL: 429,
    Reason.ENGINE_DOWN: 503,
    Reason.DRAINING: 503,
    Reason.TOO_MANY_CONNECTIONS: 503,
    Reason.NEVER_FITS: 400,
    Reason.MALFORMED: 400,
    Reason.UNKNOWN_KEY: 401,
    Reason.UNKNOWN_ROUTE: 404,
    Reason.UNKNOWN_MODEL: 404,
    Reason.UNKNOWN_RESPONSE: 404,
    Reason.METHOD_NOT_ALLOWED: 405,
    Reason.TARGET_TOO_LONG: 414,
    Reason.HEAD_TOO_LARGE: 431,
    Reason.BODY_TOO_LARGE: 413,
    Reason.REQUEST_TIMEOUT: 408,
    Reason.UNSUPPORTED_EXPECTATION: 417,
    Reason.UPSTREAM_ERROR: 502,
    Reason.UPSTREAM_TIMEOUT: 504,
}
