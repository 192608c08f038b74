"""The controller as the proxy sees it, and the clients of the proxy as the controller sees them."""

from __future__ import annotations

from typing import Protocol

from sidecar.decisions import AdmittedRequest, Identity, Refusal
from sidecar.dialects.reported_usage import NoUsage
from sidecar.dialects.routes import Route
from sidecar.engine.state import EngineState
from sidecar.identity import Credential
from sidecar.proxy.heads import RequestHead
from sidecar.tracing.interface import Trace
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Ticket
from tokenpool.admission.pending import PendingRequest
from tokenpool.admission.rules import Shed
from tokenpool.outcomes import Ending
from tokenpool.pricing.cost import Usage


class WaitingRequest(Protocol):
    """The owner of a pending request."""

    def decided(self, outcome: Ticket | Shed) -> None:
        """The wait is over."""


class RunningRequest(Protocol):
    """The owner of a running request."""

    def start(self) -> None:
        """Send the request to the engine, unless it was ended before."""

    def preempt(self) -> None:
        """End the request now, and settle it."""


class RequestSettlement(Protocol):
    """The settlement of admitted requests."""

    def relayed(self, admitted: AdmittedRequest, events: int) -> int:
        """A stream has relayed ``events`` events. Returns the number of events at which to call again."""

    def settle(
        self,
        admitted: AdmittedRequest,
        ending: Ending,
        usage: Usage | None,
        events: int | None,
        *,
        spent: bool,
        unreported: int = 0,
        no_usage: NoUsage | None = None,
        stored: str | None = None,
    ) -> Usage | None:
        """Settle an admitted request, exactly once. Returns its usage; ``None`` without a price."""


class RequestController(Protocol):
    """Decides the requests that the proxy reads."""

    @property
    def engine(self) -> EngineState:
        """The state of the engine."""

    @property
    def settlement(self) -> RequestSettlement:
        """The settlement of admitted requests."""

    @property
    def is_draining(self) -> bool:
        """Whether the sidecar stops: no new request begins."""

    @property
    def epoch(self) -> int:
        """The number of the pool file in force. A cached head is valid within one epoch."""

    def has_ended(self, credential: Credential) -> bool:
        """Whether a credential is refused now."""

    def authorize(self, head: RequestHead) -> Refusal | tuple[Route, Account | None]:
        """The route and the account of a request, or its refusal."""

    def admit(
        self,
        route: Route,
        account: Account | None,
        body: bytes,
        trace: Trace | None,
        credential: Credential | None,
        identity: Identity | None = None,
    ) -> AdmittedRequest | PendingRequest | Refusal:
        """Price a request and decide, or make it wait. ``act`` follows."""

    def admit_again(
        self, admitted: AdmittedRequest, *, has_failed: bool
    ) -> AdmittedRequest | PendingRequest | Refusal:
        """Settle a request without usage and decide it again, because no engine has begun with it.

        ``has_failed``: the replica to which it was handed over is not asked for a while.
        """

    def wait(self, pending: PendingRequest, waiting: WaitingRequest) -> None:
        """Tell this owner the decision about its pending request."""

    def decided(self, pending: PendingRequest, outcome: Ticket | Shed) -> AdmittedRequest | Refusal:
        """The decision about a request that waited, as the proxy needs it."""

    def begin(self, admitted: AdmittedRequest, runner: RunningRequest) -> None:
        """Start an admitted request, after the requests that make room for it have ended."""

    def withdraw(self, pending: PendingRequest) -> None:
        """The sidecar stops: a pending request is not decided."""

    def give_up(self, pending: PendingRequest) -> None:
        """The client of a pending request left."""

    def act(self) -> None:
        """Perform the effects of the last calls."""

    def priority_refused(self, admitted: AdmittedRequest) -> None:
        """The engine refused the request for its priority. The request is sent again without it."""

    def connection_refused(self) -> None:
        """The engine refused a connection: it gets no request before its next successful health check."""

    def first_token(self, admitted: AdmittedRequest, seconds: float) -> None:
        """The first output of an answer came ``seconds`` after the request."""

    def refused(
        self, refusal: Refusal, request_id: bytes, trace: Trace | None, credential_id: str = ""
    ) -> None:
        """Count and log an answer of the sidecar itself."""
