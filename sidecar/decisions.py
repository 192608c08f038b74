"""The decisions about a request, as values: admitted or refused. The proxy acts on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sidecar.tracing.interface import Trace
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.entitlements import Entitlement
from tokenpool.outcomes import Reason, Verdict
from tokenpool.usage.packing import PackedTexts

ENGINE_RETRY_S = 1.0
"""The time after which a client retries an engine that is down: about the interval of health checks."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the sidecar itself."""

    reason: Reason
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    account: Account | None = None
    has_waited: bool = False
    """Whether the request was in the admission queue until its deadline."""


class Identity(NamedTuple):
    """What the head of a request says about its caller, beyond one account."""

    others: tuple[Account, ...] = ()
    """The other accounts of its credential. The model of the request chooses among all of them."""
    refusal: Refusal | None = None
    """The refusal of its credential, in a pool that is not enforced. The request is served nevertheless."""


class AdmittedRequest:
    """A request that may go to the engine. It is settled exactly once."""

    __slots__ = (
        "account",
        "body",
        "credential_id",
        "first_token_s",
        "hides_usage",
        "limited_by",
        "models",
        "parsed",
        "priority",
        "request_id",
        "started_at",
        "ticket",
        "trace",
        "usage_id",
        "usage_slot",
        "usage_texts",
        "verdict",
    )

    def __init__(
        self,
        body: bytes,
        started_at: float,
        account: Account | None = None,
        ticket: Ticket | None = None,
        *,
        hides_usage: bool = False,
    ) -> None:
        self.body = body
        """The body for the engine."""
        self.started_at = started_at
        """The time of its pricing, in seconds by the monotonic clock."""
        self.account = account
        self.credential_id = ""
        """The id of the caller's credential; empty without one, and until the request is sent."""
        self.limited_by = ""
        """The id of that credential, if it has a limit of its own, which counts this request."""
        self.ticket = ticket
        """The reservation; ``None`` for a request without a price."""
        self.hides_usage = hides_usage
        """Whether the stream has usage that the client did not request."""
        self.first_token_s = -1.0
        """The seconds from ``started_at`` to the first output; below 0 before it."""
        self.parsed: object = None
        """The parsed request, until an engine may have begun with it. Until then it can be decided again.
        ``None`` without other replicas."""
        self.request_id = b""
        """The id of the request, for the access log."""
        self.trace: Trace | None = None
        """The trace of the request; ``None`` without tracing."""
        self.usage_id = b""
        """The beginning of its record, with the id; empty without usage records."""
        self.usage_slot = -1
        """The place of its record among those of running requests; -1 without usage records."""
        self.usage_texts: tuple[Entitlement, PackedTexts] | None = None
        """The texts of its record, and the entitlement that they name."""
        self.priority: int | None = None
        """The priority that the body carries, if the engine may refuse it."""
        self.verdict: Verdict | None = None
        """The decision that is not enforced; ``None`` for an enforced request."""
        self.models: frozenset[str] | None = None
        """The models that a list of models may show; ``None`` for all."""


def draining(account: Account | None) -> Refusal:
    """The refusal of a request while the sidecar drains."""
    return Refusal(
        Reason.DRAINING,
        "this replica is shutting down; retry, and another replica answers",
        retry_after_s=ENGINE_RETRY_S,
        account=account,
    )
