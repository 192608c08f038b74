"""A collector of traces: an OTLP/HTTP server that keeps the received spans, for tests and pictures."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
STATUSES = ("unset", "ok", "error")


@dataclass(frozen=True)
class Span:
    """One received span."""

    name: str
    trace_id: str
    id: str
    parent: str
    """The id of its parent; empty without one."""
    kind: str
    start_ns: int
    """Nanoseconds since 1970."""
    end_ns: int
    status: str
    attributes: dict[str, Any]
    resource: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Its duration."""
        return (self.end_ns - self.start_ns) / 1e9


@dataclass
class Collector:
    """The received spans, and how the collector answers."""

    url: str = ""
    """The base URL, for ``--otlp-endpoint``."""
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    """The received bodies, without compression."""
    headers: list[dict[str, str]] = field(default_factory=list)
    status: int = 200
    hangs: bool = False
    """Whether it accepts requests and never answers them."""

    def of(self, trace_id: str) -> list[Span]:
        """The spans of one trace, in the order of their starts. Parents come before their children."""
        found = [span for span in self.spans if span.trace_id == trace_id]
        return sorted(found, key=lambda span: (span.start_ns, span.kind != "server", -span.end_ns))

    async def receive(self, request: web.Request) -> web.Response:
        """Keep the spans of one export."""
        body = await request.read()
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.hangs:
            await asyncio.Event().wait()
        if self.status == 200:
            self.bodies.append(body)
            self.spans += decode(body)
        return web.Response(status=self.status, content_type="application/x-protobuf")


def decode(body: bytes) -> list[Span]:
    """The spans of an ``ExportTraceServiceRequest``."""
    message = ExportTraceServiceRequest()
    message.ParseFromString(body)
    return [
        Span(
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            KINDS[span.kind],
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            STATUSES[span.status.code],
            {each.key: _value(each.value) for each in span.attributes},
            {each.key: _value(each.value) for each in group.resource.attributes},
        )
        for group in message.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind is not None else None


@contextlib.asynccontextmanager
async def collecting(port: int = 0) -> AsyncIterator[Collector]:
    """A running collector, on a free port by default."""
    collector = Collector()
    application = web.Application(client_max_size=1 << 26)
    application.router.add_post("/v1/traces", collector.receive)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    host, bound = runner.addresses[0][:2]
    collector.url = f"http://{host}:{bound}"
    try:
        yield collector
    finally:
        await runner.cleanup()
