"""Tracing as the request path sees it: a tracer begins a trace for each request; the trace gets the stages.

Without tracing there is no tracer and no trace: each stage then costs one comparison with ``None``. This file
imports nothing of OpenTelemetry. A trace reads the clock itself, so that its callers need not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import Metric

from sidecar.dialects.bodies import Parsed
from sidecar.dialects.routes import Route
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Place
from tokenpool.admission.pending import PendingRequest
from tokenpool.outcomes import Ending, Reason
from tokenpool.pricing.cost import Cost, Usage

TRACE_HEADERS = frozenset({b"traceparent", b"tracestate"})
"""The headers of W3C Trace Context. A tracing sidecar states its own span in them."""


class TracedHead(Protocol):
    """The part of a request head that a tracer reads."""

    method: bytes
    path: bytes
    route: Route | None
    is_http10: bool

    def all(self, name: bytes) -> list[bytes]:
        """Every value of a header."""


class Trace(Protocol):
    """The trace of one request. It ends once, with ``ended``, ``refused`` or ``left``."""

    @property
    def id(self) -> str:
        """The trace id: 32 hexadecimal digits. The access log has it."""

    def authenticated(self, route: Route | None) -> None:
        """The caller was identified or refused. ``None``: there is no such route."""

    def delayed(self) -> None:
        """A delay before the pricing is over, because the caller sent too many unmetered requests."""

    def priced(self, since: float, account: Account, parsed: Parsed, cost: Cost) -> None:
        """The request was priced, and decided unless it waits. ``since``: its start, by the same clock."""

    def waited(self, pending: PendingRequest) -> None:
        """A wait in the admission queue has ended, with any result."""

    def sent(self, account: Account | None, place: Place | None, request_id: bytes) -> None:
        """The request goes to the engine, or to another replica if there is a place."""

    def headers(self) -> bytes:
        """The header lines of the relayed request: ``traceparent``, and ``tracestate`` if there is one."""

    def first_token(self) -> None:
        """The first output of the answer has arrived."""

    def displaced(self) -> None:
        """No engine has begun with the request: it is decided again."""

    def ended(
        self, ending: Ending, engine_status: int, status: int, reason: Reason | None, usage: Usage | None
    ) -> None:
        """The request was settled. The statuses are 0 if the engine sent none, and if the client got none.

        ``reason`` is set if the sidecar answered instead of the engine.
        """

    def refused(
        self, account: Account | None, reason: Reason, status: int, request_id: bytes, delay_s: float
    ) -> None:
        """The sidecar answers without the engine, in ``delay_s`` seconds."""

    def left(self) -> None:
        """The client disconnected before the request was decided."""


class Tracer(Protocol):
    """Begins traces, and exports them."""

    def start(self) -> None:
        """Begin to export."""

    def begin(self, head: TracedHead) -> Trace:
        """The trace of a request whose head was just received."""

    async def stop(self) -> None:
        """Export the last spans, in bounded time."""

    def metrics(self) -> Iterator[Metric]:
        """The exported spans, for Prometheus."""
