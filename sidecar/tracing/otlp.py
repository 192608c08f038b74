"""Traces by OpenTelemetry, exported over OTLP/HTTP. Imported only if the sidecar has ``--otlp-endpoint``.

A request is one server span. Below it are spans for its stages: authenticate, delay, price, queue, handover,
and one for the engine, which is the parent of the engine's own spans. Names and attributes follow
OpenTelemetry's conventions for HTTP and for generative AI. The sidecar's own attributes begin with
``tokenpool.``. No span has a prompt, an answer or a key.

Spans are made on the event loop, with times of the sidecar's clock. OpenTelemetry's thread sends them in
batches from a bounded queue. So a collector that is down or slow costs spans, and never a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from prometheus_client.core import CounterMetricFamily, Metric

from runtime.options import Address, Origin
from sidecar.dialects.bodies import Parsed
from sidecar.dialects.routes import ROUTES, Route
from sidecar.tracing.interface import TracedHead
from tokenpool.accounting.account import Account
from tokenpool.accounting.ticket import Place
from tokenpool.admission.pending import PendingRequest
from tokenpool.outcomes import Ending, Reason
from tokenpool.pricing.cost import Cost, Usage

Attributes = dict[str, AttributeValue]

SERVICE = "tokenpool-sidecar"
"""The default of ``service.name``."""
FLUSH_S = 2.0
"""The most seconds for which a stopping sidecar waits for the export of its last spans."""
SWITCH_S = 0.0005
"""The most seconds for which the exporting thread keeps the interpreter while the event loop wants it.
Encoding 512 spans takes 18 to 31 ms of CPU. With Python's default of 5 ms, one in ten turns of the event loop
began 5 ms late meanwhile; with this, 1 ms late."""
LONGEST_PATH = 256
"""Bytes of ``url.path``. A client chooses it."""
STORED_PATH = "/v1/responses/{response_id}"
OPERATIONS = {
    b"/v1/chat/completions": "chat",
    b"/v1/chat/completions/batch": "chat",
    b"/v1/responses": "chat",
    b"/v1/messages": "chat",
    b"/v1/completions": "text_completion",
    b"/v1/embeddings": "embeddings",
    b"/v2/embed": "embeddings",
}
"""``gen_ai.operation.name`` by path. Other priced paths have their last part as name, such as ``rerank``."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"})
"""Any other method is ``_OTHER``, and ``HTTP`` in names: clients cannot make names of spans."""

_propagator = TraceContextTextMapPropagator()
# Both log a warning with the header of each malformed request, so a client could fill the log.
for _name in ("opentelemetry.trace.propagation.tracecontext", "opentelemetry.trace.span"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class Exporter(SpanExporter):
    """Counts the spans that another exporter has sent. Runs in the thread of the batches."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.results: Counter[SpanExportResult] = Counter()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See ``SpanExporter``."""
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.results[result] += len(spans)
        return result

    def shutdown(self) -> None:
        """See ``SpanExporter``."""
        self._exporter.shutdown()


class OtlpTracer:
    """Begins a trace for each request, and exports the sampled ones."""

    def __init__(
        self,
        endpoint: str,
        clock: Callable[[], float],
        *,
        pool: str,
        name: str | None,
        upstream: Origin,
        is_tls: bool,
    ) -> None:
        """``endpoint`` is the URL for spans. The standard variables ``OTEL_*`` set everything else."""
        self.clock = clock
        self.upstream = Address(upstream.host, upstream.port)
        self.scheme = "https" if is_tls else "http"
        self._switch_s = sys.getswitchinterval()
        self.recorded = 0
        """Spans that were handed to the exporting thread."""
        ours: Attributes = {
            "service.name": SERVICE,
            "service.instance.id": name or socket.gethostname(),
            "tokenpool.pool": pool,
        }
        resource = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
        # Without a hook at exit: a sidecar that has stopped waits for no collector.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = Exporter(OTLPSpanExporter(endpoint=endpoint))
        self.spans = self._provider.get_tracer("tokenpool.sidecar")

    def start(self) -> None:
        """Start the thread that exports. Spans before that are dropped."""
        sys.setswitchinterval(min(self._switch_s, SWITCH_S))
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))

    def begin(self, head: TracedHead) -> OtlpTrace | Unsampled:
        """The trace of a request whose head was just received.

        It continues the caller's trace and its decision about sampling, if there is one valid
        ``traceparent``.
        """
        now = self.clock()
        parents, context = head.all(b"traceparent"), None
        if len(parents) == 1:
            states = [each.decode("latin-1") for each in head.all(b"tracestate")]
            carrier: dict[str, list[str]] = {"traceparent": [parents[0].decode("latin-1")]}
            if states:
                carrier["tracestate"] = states
            context = _propagator.extract(carrier, Context())
        method = head.method.decode("latin-1")
        name = method if method in METHODS else "HTTP"
        offset_ns = time.time_ns() - round(now * 1e9)
        span = self.spans.start_span(
            name,
            context or Context(),
            SpanKind.SERVER,
            {
                "http.request.method": method if method in METHODS else "_OTHER",
                "url.path": head.path[:LONGEST_PATH].decode("latin-1"),
                "url.scheme": self.scheme,
                "network.protocol.version": "1.0" if head.is_http10 else "1.1",
            },
            start_time=offset_ns + round(now * 1e9),
        )
        if span.is_recording():
            return OtlpTrace(self, span, head, name, now, offset_ns)
        return Unsampled(span.get_span_context())

    async def stop(self) -> None:
        """Export the last spans, for at most ``FLUSH_S`` seconds."""
        sys.setswitchinterval(self._switch_s)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # after FLUSH_S the loop may be closed
                loop.call_soon_threadsafe(_finish, done)

        # A daemon, so that the process can end before a collector that does not answer.
        threading.Thread(target=shut_down, name="last spans", daemon=True).start()
        await asyncio.wait([done], timeout=FLUSH_S)
        done.cancel()

    def metrics(self) -> Iterator[Metric]:
        """The spans by result, for Prometheus."""
        results = self._exporter.results
        spans = CounterMetricFamily(
            "tokenpool_spans",
            "Spans of traces, by result. Those that are recorded, and neither exported nor failed, wait, or"
            " were dropped because the queue was full.",
            labels=("result",),
        )
        for result, count in (
            ("recorded", self.recorded),
            ("exported", results[SpanExportResult.SUCCESS]),
            ("failed", results[SpanExportResult.FAILURE]),
        ):
            spans.add_metric((result,), count)
        yield spans


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def header_lines(context: SpanContext) -> bytes:
    """The lines of W3C Trace Context for a span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(trace.NonRecordingSpan(context), Context()))
    return "".join(f"{name}: {value}\r\n" for name, value in carrier.items()).encode("latin-1")


class Unsampled:
    """The trace of a request that is not sampled. Only its headers go on."""

    __slots__ = ("_context", "id")

    def __init__(self, context: SpanContext) -> None:
        self._context = context
        self.id = trace.format_trace_id(context.trace_id)

    def headers(self) -> bytes:
        """See ``Trace``."""
        return header_lines(self._context)

    def authenticated(self, route: Route | None) -> None:
        """Nothing is recorded."""

    def delayed(self) -> None:
        """Nothing is recorded."""

    def priced(self, since: float, account: Account, parsed: Parsed, cost: Cost) -> None:
        """Nothing is recorded."""

    def waited(self, pending: PendingRequest) -> None:
        """Nothing is recorded."""

    def sent(self, account: Account | None, place: Place | None, request_id: bytes) -> None:
        """Nothing is recorded."""

    def first_token(self) -> None:
        """Nothing is recorded."""

    def displaced(self) -> None:
        """Nothing is recorded."""

    def ended(
        self, ending: Ending, engine_status: int, status: int, reason: Reason | None, usage: Usage | None
    ) -> None:
        """Nothing is recorded."""

    def refused(
        self, account: Account | None, reason: Reason, status: int, request_id: bytes, delay_s: float
    ) -> None:
        """Nothing is recorded."""

    def left(self) -> None:
        """Nothing is recorded."""


class OtlpTrace:
    """The trace of one request: its server span, and the spans below it. See ``Trace``."""

    __slots__ = (
        "_attributes",
        "_began_at",
        "_context",
        "_decided_at",
        "_engine",
        "_engine_since",
        "_model",
        "_name",
        "_offset_ns",
        "_operation",
        "_path",
        "_server",
        "_since",
        "_tracer",
        "id",
    )

    def __init__(
        self, tracer: OtlpTracer, server: trace.Span, head: TracedHead, name: str, now: float, offset_ns: int
    ) -> None:
        self._tracer = tracer
        self._server: trace.Span | None = server
        self._context = trace.set_span_in_context(server, Context())
        self._engine: trace.Span | None = None
        self._engine_since = 0.0
        self._offset_ns = offset_ns
        self._began_at = self._since = self._decided_at = now
        """The start of the request, the start of the stage that runs, and the end of the first decision."""
        self._name = name
        self._path = head.path
        self._model: str | None = None
        self._operation: str | None = None
        self._attributes: Attributes = {}
        """Attributes of the server span that are known by now."""
        self.id = trace.format_trace_id(server.get_span_context().trace_id)
        self._routed(head.route)

    def _routed(self, route: Route | None) -> None:
        if route is None or self._server is None:
            return
        path = self._path.decode("latin-1")
        if self._path not in ROUTES:
            path = STORED_PATH + ("/cancel" if path.endswith("/cancel") else "")
        self._attributes["http.route"] = path
        self._name = f"{self._name.partition(' ')[0]} {path}"
        self._server.update_name(self._name)
        if route.parse is not None:
            operation = OPERATIONS.get(self._path) or path.rpartition("/")[2]
            self._operation = self._attributes["gen_ai.operation.name"] = operation

    # --- times and spans ---

    def _ns(self, at: float) -> int:
        """A time of the sidecar's clock, in nanoseconds since 1970."""
        return self._offset_ns + round(at * 1e9)

    def _stage(self, name: str, since: float, until: float, attributes: Attributes) -> None:
        self._tracer.recorded += 1
        span = self._tracer.spans.start_span(
            name, self._context, SpanKind.INTERNAL, attributes, start_time=self._ns(since)
        )
        span.end(self._ns(until))

    # --- the stages ---

    def authenticated(self, route: Route | None) -> None:
        """See ``Trace``."""
        now = self._tracer.clock()
        self._routed(route)
        self._stage("authenticate", self._began_at, now, {})
        self._since = now

    def delayed(self) -> None:
        """See ``Trace``."""
        now = self._tracer.clock()
        self._stage("delay", self._since, now, {})
        self._since = now

    def priced(self, since: float, account: Account, parsed: Parsed, cost: Cost) -> None:
        """See ``Trace``."""
        now = self._tracer.clock()
        self._of(account)
        if parsed.model is not None:
            self._model = self._attributes["gen_ai.request.model"] = parsed.model
        if parsed.streams:
            self._attributes["gen_ai.request.stream"] = True
        if parsed.ask.output_bound is not None:
            self._attributes["gen_ai.request.max_tokens"] = parsed.ask.output_bound
        self._stage(
            "price",
            since,
            now,
            {
                "tokenpool.cost.input_tokens": cost.input_tokens,
                "tokenpool.cost.output_tokens": cost.output_tokens,
                "tokenpool.cost.kv_tokens": cost.kv_tokens,
                "tokenpool.cost.sequences": cost.sequences,
            },
        )
        self._since = self._decided_at = now

    def _of(self, account: Account | None) -> None:
        if account is not None:
            self._attributes["tokenpool.entitlement"] = account.entitlement.name
            self._attributes["tokenpool.tier"] = account.entitlement.tier.value

    def waited(self, pending: PendingRequest) -> None:
        """See ``Trace``."""
        now = self._tracer.clock()
        self._stage(
            "queue",
            self._since,
            now,
            {
                "tokenpool.queue.reason": pending.waits_for.value,
                "tokenpool.queue.lacks": pending.lacks.value,
            },
        )
        self._since = now

    def sent(self, account: Account | None, place: Place | None, request_id: bytes) -> None:
        """See ``Trace``."""
        now = self._engine_since = self._tracer.clock()
        self._of(account)
        self._attributes["tokenpool.request_id"] = request_id.decode("ascii", "replace")
        attributes: Attributes = {}
        server = self._tracer.upstream
        if place is not None:
            host, _, port = place.address.rpartition(":")
            server = Address(host.strip("[]"), int(port))
            peer: Attributes = {
                "tokenpool.peer": place.peer,
                "server.address": server.host,
                "server.port": server.port,
            }
            # An ask of the first decision has the time at which the pricing began.
            self._stage("handover", max(place.asked_at, self._decided_at), now, peer)
            self._attributes["tokenpool.peer"] = attributes["tokenpool.peer"] = place.peer
        attributes |= {
            "server.address": server.host,
            "server.port": server.port,
        }
        name = self._name
        if self._operation is not None:
            name = self._operation if self._model is None else f"{self._operation} {self._model}"
            attributes["gen_ai.provider.name"] = "vllm"
            for each in ("gen_ai.operation.name", "gen_ai.request.model", "gen_ai.request.stream"):
                if each in self._attributes:
                    attributes[each] = self._attributes[each]
        self._engine = self._tracer.spans.start_span(
            name, self._context, SpanKind.CLIENT, attributes, start_time=self._ns(now)
        )

    def headers(self) -> bytes:
        """See ``Trace``."""
        assert self._engine is not None
        return header_lines(self._engine.get_span_context())

    def first_token(self) -> None:
        """See ``Trace``."""
        if self._engine is not None and "gen_ai.request.stream" in self._attributes:
            seconds = self._tracer.clock() - self._engine_since
            self._engine.set_attribute("gen_ai.response.time_to_first_chunk", seconds)

    def displaced(self) -> None:
        """See ``Trace``."""
        now = self._tracer.clock()
        self._end_engine(now, "displaced", {})
        self._since = now

    # --- the end ---

    def ended(
        self, ending: Ending, engine_status: int, status: int, reason: Reason | None, usage: Usage | None
    ) -> None:
        """See ``Trace``."""
        now, used = self._tracer.clock(), _of_usage(usage)
        error = None if ending is Ending.FINISHED else ending.value
        if error is None and engine_status >= 400:
            error = str(engine_status)
        if self._engine is not None:
            given: Attributes = {"http.response.status_code": engine_status} if engine_status else {}
            self._end_engine(now, error, given | used, is_failed=ending is not Ending.CLIENT_GONE)
        self._attributes |= used
        self._attributes["tokenpool.ending"] = ending.value
        cut = reason is None and ending not in (Ending.FINISHED, Ending.CLIENT_GONE)
        self._end(now, status, error, reason, is_failed=cut or status >= 500)

    def _end_engine(
        self, now: float, error: str | None, attributes: Attributes, *, is_failed: bool = True
    ) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        if error is not None:
            attributes["error.type"] = error
            if is_failed:
                engine.set_status(StatusCode.ERROR)
        engine.set_attributes(attributes)
        self._tracer.recorded += 1
        engine.end(self._ns(now))

    def refused(
        self, account: Account | None, reason: Reason, status: int, request_id: bytes, delay_s: float
    ) -> None:
        """See ``Trace``."""
        self._of(account)
        self._attributes["tokenpool.request_id"] = request_id.decode("ascii", "replace")
        until = self._tracer.clock() + delay_s
        self._end(until, status, reason.value, reason, is_failed=status >= 500)

    def left(self) -> None:
        """See ``Trace``."""
        ending = Ending.CLIENT_GONE
        self._attributes["tokenpool.ending"] = ending.value
        self._end(self._tracer.clock(), 0, ending.value, None, is_failed=False)

    def _end(
        self, now: float, status: int, error: str | None, reason: Reason | None, *, is_failed: bool
    ) -> None:
        """End the server span, exactly once. A connection that stays open keeps no span."""
        server, self._server, self._context = self._server, None, Context()
        if server is None:
            return
        attributes, self._attributes = self._attributes, {}
        if status:
            attributes["http.response.status_code"] = status
        if error is not None:
            attributes["error.type"] = error
        if reason is not None:
            attributes["tokenpool.reason"] = reason.value
        server.set_attributes(attributes)
        if is_failed:
            server.set_status(StatusCode.ERROR)
        self._tracer.recorded += 1
        server.end(self._ns(now))


def _of_usage(usage: Usage | None) -> Attributes:
    if usage is None:
        return {}
    used: Attributes = {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }
    if usage.cached_tokens:
        used["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    return used
