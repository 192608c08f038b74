"""The access log: one line for each request, if the operator turns it on. Never prompts or keys."""

from __future__ import annotations

import logging

from sidecar.tracing.interface import Trace
from tokenpool.accounting.account import Account
from tokenpool.outcomes import Ending, Reason, Verdict
from tokenpool.pricing.cost import Usage

log = logging.getLogger("sidecar.access")


class AccessLog:
    """Writes a line for each request that ends, or nothing if it is off."""

    def __init__(self, *, is_on: bool) -> None:
        self.is_on = is_on

    def write(
        self,
        request_id: bytes,
        account: Account | None,
        outcome: Ending | Reason,
        seconds: float,
        usage: Usage | None = None,
        *,
        trace: Trace | None = None,
        credential_id: str = "",
        verdict: Verdict | None = None,
    ) -> None:
        """Log one request: its id, entitlement, credential, outcome, duration, usage, and trace.

        ``verdict`` is its decision if that is not enforced.
        """
        if not self.is_on:
            return
        entry: dict[str, object] = {
            "request_id": request_id.decode("ascii", "replace"),
            "entitlement": account.entitlement.name if account is not None else None,
            "credential": credential_id or None,
            "outcome": outcome.value,
            "seconds": round(seconds, 6),
        }
        if trace is not None:
            entry["trace_id"] = trace.id
        if verdict is not None:
            entry["shadow"] = verdict.decision.value
            entry["shadow_reason"] = verdict.reason.value if verdict.reason is not None else None
        if usage is not None:
            entry |= usage._asdict()
        log.info("request", extra=entry)
