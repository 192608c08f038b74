"""Outcomes: all ways in which a request can end, as closed sets.

This is the only module that chooses a status code and explains a reason. The sidecar turns these values into
responses, metrics and log lines. ``docs/reference/errors.md`` is generated from them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Ending(StrEnum):
    """The ending of an admitted request. Each ticket gets exactly one ending, exactly once."""

    FINISHED = "finished"
    CLIENT_GONE = "client_gone"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    DRAINED = "drained"
    PREEMPTED = "preempted"

    @property
    def meaning(self) -> str:
        """One sentence for operators."""
        return _ENDING_MEANING[self]


class Reason(StrEnum):
    """The reason why the sidecar itself answered: the value of ``x-tokenpool-reason``."""

    # Shed: the pool has capacity, but this request may not use it now.
    TOKENS_PER_SECOND = "tokens_per_second"
    KV_TOKENS = "kv_tokens"
    CONCURRENCY = "concurrency"
    ENGINE_FULL = "engine_full"
    PREEMPTED = "preempted"
    SIDECAR_FULL = "sidecar_full"
    INSUFFICIENT_QUOTA = "insufficient_quota"
    QUOTA_IN_USE = "quota_in_use"
    # The sidecar has no capacity for any request.
    ENGINE_DOWN = "engine_down"
    DRAINING = "draining"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    JWT_UNVERIFIED = "jwt_unverified"
    # The request can never be served as it is.
    NEVER_FITS = "never_fits"
    MALFORMED = "malformed"
    UNKNOWN_KEY = "unknown_key"
    INVALID_JWT = "invalid_jwt"
    EXPIRED_KEY = "expired_key"
    UNKNOWN_ROUTE = "unknown_route"
    UNKNOWN_MODEL = "unknown_model"
    MODEL_NOT_PERMITTED = "model_not_permitted"
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
        """Whether the request was refused for lack of capacity; the client may send it again later."""
        return self.status == 429

    @property
    def states_a_wait(self) -> bool:
        """Whether answers with this reason carry ``Retry-After`` and ``retry-after-ms``."""
        return self.status in (429, 503)

    @property
    def dropped_reason(self) -> str | None:
        """The reason in the terms of llm-d's router; ``None`` if the request was not dropped for capacity.

        A spent quota is no lack of capacity.
        """
        return _DROPPED.get(self)

    @property
    def meaning(self) -> str:
        """One or two sentences for tenants and operators."""
        return _MEANING[self]


class Decision(StrEnum):
    """The decision about a request of an entitlement that is not enforced: what enforcement would do."""

    ADMIT = "admit"
    QUEUE = "queue"
    SHED = "shed"
    REFUSE = "refuse"

    @property
    def is_surplus(self) -> bool:
        """Whether enforcement would not run the request."""
        return self in (Decision.SHED, Decision.REFUSE)

    @property
    def meaning(self) -> str:
        """One sentence for operators."""
        return _DECISION_MEANING[self]


class Verdict(NamedTuple):
    """A decision that is not enforced, and its reason; ``None`` for a request that would be admitted."""

    decision: Decision
    reason: Reason | None = None

    def __str__(self) -> str:
        """The value of the header ``x-tokenpool-shadow``."""
        return self.decision if self.reason is None else f"{self.decision}; reason={self.reason}"


SHADOW_HEADER = "x-tokenpool-shadow"
"""The response header that states a decision which is not enforced."""

_STATUS = {
    Reason.TOKENS_PER_SECOND: 429,
    Reason.KV_TOKENS: 429,
    Reason.CONCURRENCY: 429,
    Reason.ENGINE_FULL: 429,
    Reason.PREEMPTED: 429,
    Reason.SIDECAR_FULL: 429,
    Reason.INSUFFICIENT_QUOTA: 429,
    Reason.QUOTA_IN_USE: 429,
    Reason.ENGINE_DOWN: 503,
    Reason.DRAINING: 503,
    Reason.TOO_MANY_CONNECTIONS: 503,
    Reason.JWT_UNVERIFIED: 503,
    Reason.NEVER_FITS: 400,
    Reason.MALFORMED: 400,
    Reason.UNKNOWN_KEY: 401,
    Reason.INVALID_JWT: 401,
    Reason.EXPIRED_KEY: 401,
    Reason.UNKNOWN_ROUTE: 404,
    Reason.UNKNOWN_MODEL: 404,
    Reason.MODEL_NOT_PERMITTED: 404,
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

DROPPED_REASON_HEADER = "x-llm-d-request-dropped-reason"
"""The response header of llm-d's router (pkg/common/error) that says why it dropped a request."""
DROPPED_AT_DEADLINE = "rejected-ttl-expired"
"""The value for a request that was in a queue until its deadline."""
_DROPPED = {
    Reason.TOKENS_PER_SECOND: "rejected-saturated",
    Reason.KV_TOKENS: "rejected-saturated",
    Reason.CONCURRENCY: "rejected-saturated",
    Reason.ENGINE_FULL: "rejected-saturated",
    Reason.SIDECAR_FULL: "rejected-saturated",
    Reason.TOO_MANY_CONNECTIONS: "rejected-saturated",
    Reason.PREEMPTED: "evicted-priority",
    Reason.ENGINE_DOWN: "rejected-no-endpoints",
    Reason.DRAINING: "rejected-shutting-down",
}

_MEANING = {
    Reason.TOKENS_PER_SECOND: "The entitlement's token bucket is empty. Wait for the refill.",
    Reason.KV_TOKENS: "The entitlement's limit of KV-cache tokens is in use.",
    Reason.CONCURRENCY: "The entitlement's limit of concurrent sequences is in use.",
    Reason.ENGINE_FULL: "The request is beyond the assured share, and the engine has no room.",
    Reason.PREEMPTED: "A spot request was ended to make room for a guarantee. Send it again.",
    Reason.SIDECAR_FULL: (
        "The entitlement's requests and unread answers fill its part of the sidecar's memory, or its large"
        " bodies come too fast."
    ),
    Reason.INSUFFICIENT_QUOTA: (
        "A quota of the caller is spent until its window ends. Clients are told not to retry; `Retry-After`"
        " has the time until then."
    ),
    Reason.QUOTA_IN_USE: (
        "Running requests hold the rest of a quota of the caller, or the spending is not known yet. Send it"
        " again."
    ),
    Reason.ENGINE_DOWN: "The engine does not answer.",
    Reason.DRAINING: "This replica is shutting down.",
    Reason.TOO_MANY_CONNECTIONS: "The sidecar, or this caller's part of it, has no room for a connection.",
    Reason.JWT_UNVERIFIED: (
        "The JWT cannot be verified now: the keys of its issuer are not known yet, or too many invalid JWTs"
        " arrive."
    ),
    Reason.NEVER_FITS: (
        "The request is larger than the entitlement's ceiling or the engine. Waiting does not help."
    ),
    Reason.MALFORMED: (
        "The request is not valid HTTP or JSON, or a field has a wrong type. The message names the field by"
        " its full path, such as `messages[0].content[1]`."
    ),
    Reason.UNKNOWN_KEY: "The request has no key, or a key of no entitlement, or keys of two entitlements.",
    Reason.INVALID_JWT: (
        "The JWT is not valid here, or leads to no entitlement of this pool. The message names the cause."
    ),
    Reason.EXPIRED_KEY: "The key or token has expired. Use a new one.",
    Reason.UNKNOWN_ROUTE: (
        "The sidecar does not serve this path. Of vLLM's control routes it only serves those for LoRA"
        " adapters."
    ),
    Reason.UNKNOWN_MODEL: "The pool does not serve this model.",
    Reason.MODEL_NOT_PERMITTED: (
        "The entitlement may not use this model, or the request names none. The message lists its models."
    ),
    Reason.UNKNOWN_RESPONSE: (
        "There is no stored response with this id, or it belongs to another entitlement."
    ),
    Reason.METHOD_NOT_ALLOWED: "The path does not take this method. `Allow` lists the methods.",
    Reason.TARGET_TOO_LONG: "The request target is too long.",
    Reason.HEAD_TOO_LARGE: "The request head exceeds `--max-head-bytes` or 128 headers.",
    Reason.BODY_TOO_LARGE: "The request body exceeds the largest size for this path.",
    Reason.REQUEST_TIMEOUT: "The request head or body took too long to arrive.",
    Reason.UNSUPPORTED_EXPECTATION: "The sidecar knows no expectation but `100-continue`.",
    Reason.UPSTREAM_ERROR: "The engine failed during the request.",
    Reason.UPSTREAM_TIMEOUT: "The engine was silent for longer than `--upstream-timeout`.",
}
_DECISION_MEANING = {
    Decision.ADMIT: "The request would be sent to an engine at once.",
    Decision.QUEUE: "The request would wait, and is expected to get room before its queue timeout.",
    Decision.SHED: "The request would be refused for lack of capacity, or because it can never fit.",
    Decision.REFUSE: "The request would be refused for another reason: its key, its model or its body.",
}
_ENDING_MEANING = {
    Ending.FINISHED: "The engine's answer was complete.",
    Ending.CLIENT_GONE: "The client closed its connection before the answer was complete.",
    Ending.UPSTREAM_ERROR: "The engine failed, also by an error event inside a stream with status 200.",
    Ending.UPSTREAM_TIMEOUT: "The engine was silent for longer than `--upstream-timeout`.",
    Ending.DRAINED: "The sidecar shut down before the answer was complete.",
    Ending.PREEMPTED: "A spot request was ended to make room for a guarantee.",
}
