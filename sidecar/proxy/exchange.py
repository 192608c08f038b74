"""One exchange: a request that passed the controller, its response on the way back, and its settlement.

It connects a client's connection with a connection to the engine; both know only the exchange. The first of
these events ends it: the response ends, the client disconnects, the engine fails, a timeout, the end of
draining. ``_end`` is the only exit, so the admitted request is settled exactly once. One
exception: a request that another replica cannot have begun goes back to the controller. It is one file,
because all of its methods share that ending.
"""

from __future__ import annotations

import errno
import logging
from typing import Final, Protocol

from sidecar.decisions import ENGINE_RETRY_S, AdmittedRequest, Refusal
from sidecar.dialects.model_list import ModelListReader
from sidecar.dialects.quota_headers import quota_lines
from sidecar.dialects.refusals import REFUSALS, concerns_priority
from sidecar.dialects.stream_reader import StreamReader
from sidecar.dialects.usage_readers import BodyReader, OpaqueReader, Reader
from sidecar.proxy.heads import RequestHead, ResponseHead, length_line, with_length
from sidecar.proxy.interface import RequestController
from sidecar.proxy.upstream import NO_ROOM, Connection, Connections, ResponseReceiver
from sidecar.telemetry import Telemetry
from tokenpool.outcomes import SHADOW_HEADER, Ending, Reason

log = logging.getLogger(__name__)

_CHUNKED: Final = b"transfer-encoding: chunked\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_SHADOW_LINE: Final = SHADOW_HEADER.encode() + b": %b\r\n"
_MOST_ATTEMPTS: Final = 2
_FINISHED: Final = Ending.FINISHED
OUR_OWN: Final = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)
"""Errors of a connection attempt that prove nothing about the engine's health."""
MOST_JUDGED: Final = 64 * 1024
"""The longest refusal, in bytes, that is searched for its cause. A longer one is relayed unchanged."""
PREEMPTED_RETRY_S: Final = 1.0
"""``Retry-After`` of a preempted request, in seconds."""


class Client(Protocol):
    """The part of the client's connection that an exchange needs."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        """Send bytes of the response."""

    def write_soon(self, data: bytes) -> None:
        """Send bytes of the response, together with those of other responses that were read just now."""

    def on_relayed(self, *, keeps_alive: bool, is_refusal: bool) -> None:
        """The response is complete."""

    def on_cut(self) -> None:
        """The response cannot be completed: close, so that the client sees that it is incomplete."""

    def refuse(self, refusal: Refusal, head: RequestHead) -> None:
        """No byte of a response was sent: answer with a refusal."""

    def place_again(self, admitted: AdmittedRequest, head: RequestHead, *, has_failed: bool) -> None:
        """No engine has begun with the request: find a place for it. ``has_failed``: its place failed."""


class Exchange(ResponseReceiver):
    """Relays one request and its response."""

    __slots__ = (
        "_admitted",
        "_attempts",
        "_checks_at",
        "_client",
        "_connection",
        "_controller",
        "_frames_chunks",
        "_has_ended",
        "_head",
        "_head_bytes",
        "_is_judging",
        "_is_plain",
        "_judged",
        "_keeps_alive",
        "_pool",
        "_reader",
        "_refused_priority",
        "_request",
        "_status",
        "_telemetry",
        "last_progress",
    )

    def __init__(
        self,
        client: Client,
        controller: RequestController,
        telemetry: Telemetry,
        pool: Connections,
        request: RequestHead,
        admitted: AdmittedRequest,
        head_bytes: bytes,
    ) -> None:
        self._client = client
        self._controller = controller
        self._telemetry = telemetry
        self._pool = pool
        self._request = request
        self._admitted = admitted
        self._head_bytes = head_bytes
        self._connection: Connection | None = None
        self._reader: Reader | None = None
        self._head: bytes | None = None
        self._status = 0
        self._attempts = 0
        self._keeps_alive = request.keeps_alive
        self._frames_chunks = False
        self._has_ended = False
        self._is_plain = False
        """Whether chunks are relayed as they come: the head is sent, and the first output has come."""
        self._is_judging = False
        """Whether the answer is delayed, because it may refuse the request for its priority."""
        self._judged = b""
        self._refused_priority: int | None = None
        """The priority of the first attempt, if the engine refused it."""
        self._checks_at = 1
        """The number of events at which the reservation is checked next."""
        self.last_progress = admitted.started_at
        """The time of the engine's last bytes, by the monotonic clock."""

    def start(self) -> None:
        """Send the request to the engine, on a pooled connection if there is one."""
        if self._has_ended:
            return  # preempted before it was sent
        self._attempts += 1
        connection = self._pool.take()
        if connection is None:
            self._pool.connect(self)
        else:
            self.on_connected(connection)

    # --- the engine's side ---

    def on_connected(self, connection: Connection) -> None:
        """A connection to the engine is open: send the request."""
        if self._has_ended:
            self._pool.release(connection)
            return
        self._connection = connection
        if not self._is_elsewhere:
            self._admitted.parsed = None  # from now on the engine here may begin with it
        connection.send(self, self._head_bytes, self._admitted.body)

    def on_refused(self, error: OSError) -> None:
        """No connection could be made."""
        if not self._has_ended:
            self._connection = None
            if not self._is_elsewhere:
                if self._controller.engine.is_up:
                    log.warning("no connection to the engine", extra={"error": str(error) or repr(error)})
                if error.errno not in OUR_OWN:
                    self._controller.connection_refused()
            if self._is_elsewhere or (
                self._admitted.parsed is not None and not self._controller.engine.is_up
            ):
                self._place_again(has_failed=error.errno != NO_ROOM)
                return
            self._end(Ending.UPSTREAM_ERROR, Reason.ENGINE_DOWN, spent=False)
            self._refuse(
                Reason.ENGINE_DOWN,
                "the engine behind this proxy does not accept connections",
                ENGINE_RETRY_S,
            )

    def on_head(self, head: ResponseHead) -> None:
        """The response's head is complete. It is sent with the first bytes of the body."""
        admitted = self._admitted
        self._status = head.status
        if admitted.ticket is not None and head.status == 200:
            self._reader = self._reader_of(head)
        elif admitted.models is not None and head.status == 200 and self._request.method != b"HEAD":
            self._reader = ModelListReader(admitted.models)
        dialect = self._request.dialect
        extra = dialect.id_lines(self._request.id)
        if admitted.ticket and admitted.account:
            extra += dialect.limit_headers(admitted.account)
            if admitted.ticket.hold is not None:
                extra += quota_lines(admitted.ticket.hold.budgets)
        if admitted.verdict is not None:
            extra += _SHADOW_LINE % str(admitted.verdict).encode()
        origin = self._request.origin
        if origin is not None:
            extra += self._controller.engine.cors.relayed(
                origin,
                head.status,
                head.find(b"access-control-allow-origin"),
                head.find(b"access-control-allow-credentials"),
            )
        framing = self._framing(head)
        self._head = head.frame(extra, framing, self._connection_header())
        self._judge_head(head)
        if self._request.method == b"HEAD":
            # The parser expects a body, and none follows. So this connection ends here.
            self._drop_connection()
            self.on_read(b"", True)
        elif head.is_event_stream and not self._is_judging:
            self._send_head()

    def _reader_of(self, head: ResponseHead) -> Reader:
        if head.is_compressed:
            return OpaqueReader()
        if head.is_event_stream:
            return StreamReader(
                self._controller.engine.fingerprint_field if self._admitted.hides_usage else None
            )
        route = self._request.route
        return route.reader() if route is not None else BodyReader()

    def _framing(self, head: ResponseHead) -> bytes:
        """The header lines that tell the client where the response ends."""
        is_changed = self._admitted.models is not None and head.status == 200
        if head.status in (204, 304) or self._request.method == b"HEAD":
            length = None if is_changed else head.content_length
            return b"" if length is None or head.status == 204 else length_line(length)
        # Hiding an event changes the length of a stream.
        if head.content_length is not None and not (head.is_event_stream or is_changed):
            return length_line(head.content_length)
        if self._request.is_http10:
            self._keeps_alive = False
            return b""
        self._frames_chunks = True
        return _CHUNKED

    def _connection_header(self) -> bytes:
        if not self._keeps_alive:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self._request.is_http10 else b""

    def _send_head(self) -> None:
        head, self._head = self._head, None
        if head is not None:
            self._client.write(head)

    def on_chunk(self, chunk: bytes, body: bytes) -> None:
        """One read was whole chunks: relayed as they came, if nothing else is to be done.

        In this state an event touches few objects, because each costs a cache miss.
        """
        if not self._is_plain:
            self.on_read(body, False, chunk)
            return
        reader = self._reader
        if reader is not None:
            seen = reader.feed(body)
            if reader.events >= self._checks_at:
                self._checks_at = self._controller.settlement.relayed(self._admitted, reader.events)
            if seen is not body:
                chunk = self._wire(seen, False)
        self.last_progress = self._telemetry.clock()
        self._client.write_soon(chunk)

    def on_read(self, body: bytes, is_complete: bool, chunk: bytes | None = None) -> None:
        """One read of the engine's bytes: relayed in one write."""
        if self._has_ended:
            return
        if is_complete:
            # The pool may have reused it. A client that reads the rest slowly must not pause it.
            self._connection = None
        if self._is_judging:
            judged = self._judge(body, is_complete)
            if judged is None:
                return
            body, chunk = judged, None
        admitted, reader = self._admitted, self._reader
        ticket = admitted.ticket
        now = self._telemetry.clock()
        if reader is not None:
            seen = reader.feed(body)
            if is_complete:
                seen += reader.end()
            elif reader.events >= self._checks_at:
                self._checks_at = self._controller.settlement.relayed(admitted, reader.events)
            if reader.has_begun and ticket is not None and not ticket.has_begun:
                self._controller.first_token(admitted, now - admitted.started_at)
            if seen is not body:
                body, chunk = seen, None
        self.last_progress = now
        passes = self._frames_chunks and self._head is None
        data = chunk if chunk is not None and passes else self._wire(body, is_complete)
        if not is_complete:
            self._send_part(data)
            return
        if data:
            self._client.write(data)
        self._end(_FINISHED if self._status < 500 else Ending.UPSTREAM_ERROR)
        self._client.on_relayed(keeps_alive=self._keeps_alive, is_refusal=400 <= self._status < 500)

    def _send_part(self, data: bytes) -> None:
        """Send a part of the response, and decide whether later chunks are relayed as they come."""
        if self._is_plain:
            self._client.write_soon(data)
            return
        if data:
            self._client.write(data)
        ticket = self._admitted.ticket
        has_begun = self._reader is None or ticket is None or ticket.has_begun
        self._is_plain = self._frames_chunks and self._head is None and has_begun and not self._has_ended

    def _wire(self, body: bytes, is_complete: bool) -> bytes:
        """The bytes of one write: head, chunk frame, body, end.

        One copy costs less than a vectored write: a read is at most 256 kB, and mostly one event.
        """
        if body and self._frames_chunks:
            body = b"%x\r\n%b\r\n" % (len(body), body)
        if is_complete and self._frames_chunks:
            body += _LAST_CHUNK
        head = self._head
        if head is None:
            return body
        self._head = None
        return head + body

    def on_lost(self, *, before_response: bool, was_reused: bool) -> None:
        """The engine closed the connection before the response was complete."""
        self._connection = None
        if self._has_ended:
            return
        if before_response and was_reused and self._attempts < _MOST_ATTEMPTS:
            self._attempts += 1
            self._pool.connect(self)
            return
        self._fail(
            Ending.UPSTREAM_ERROR,
            Reason.UPSTREAM_ERROR,
            "the engine closed the connection before its answer was complete",
        )

    # --- a refusal of the request's priority ---

    def _judge_head(self, head: ResponseHead) -> None:
        """Decide whether the answer is delayed, because it may refuse the request for its priority.

        Old releases of vLLM begin a stream with 200 and refuse a priority other than 0 in its first event. So
        the head of a stream waits for that event until the engine has accepted such a priority.
        """
        admitted, status, controller = self._admitted, head.status, self._controller
        priority = admitted.priority
        if priority is None:
            if self._refused_priority is not None and status < 400:
                controller.engine.priority_answered(self._refused_priority, is_accepted=False)
            return
        is_unknown = priority != 0 and not controller.engine.takes_priority
        self._is_judging = status in REFUSALS or (is_unknown and head.is_event_stream and status == 200)
        if status == 200 and not self._is_judging and not self._is_elsewhere:
            controller.engine.priority_answered(priority, is_accepted=True)

    def _judge(self, body: bytes, is_complete: bool) -> bytes | None:
        """Examine the next bytes of the answer. Returns all of it once it is not about the priority."""
        self._judged = answer = self._judged + body
        is_stream = self._status == 200
        has_event = is_stream and b"\n\n" in answer.replace(b"\r", b"")
        if not is_complete and not has_event and len(answer) <= MOST_JUDGED:
            return None
        self._is_judging, self._judged = False, b""
        priority = self._admitted.priority
        assert priority is not None
        if concerns_priority(answer, is_event=is_stream):
            self._send_again(priority)
            return None
        if is_stream and not self._is_elsewhere:
            self._controller.engine.priority_answered(priority, is_accepted=True)
        return answer

    def _send_again(self, priority: int) -> None:
        """The engine refused the priority: send the request without it. No byte of the answer was relayed."""
        admitted = self._admitted
        self._drop_connection()
        self._controller.priority_refused(admitted)
        if self._is_elsewhere:
            self._place_again(has_failed=False)
            return
        self._refused_priority = priority
        self._reader = self._head = None
        self._status = self._attempts = 0
        self._keeps_alive, self._frames_chunks = self._request.keeps_alive, False
        framed = self._request.framed
        assert framed is not None
        if admitted.trace is not None:
            framed += admitted.trace.headers()
        self._head_bytes = with_length(framed, self._request.id, len(admitted.body))
        self.start()

    # --- the client's side and time limits ---

    def client_gone(self) -> None:
        """The client disconnected: the engine must stop at once."""
        self._drop_connection()
        self._end(Ending.CLIENT_GONE)

    def time_out(self) -> None:
        """The engine was silent for too long."""
        self._drop_connection()
        self._fail(
            Ending.UPSTREAM_TIMEOUT,
            Reason.UPSTREAM_TIMEOUT,
            "the engine sent no byte within the time limit; the request was aborted",
        )

    def drain(self) -> None:
        """The sidecar must stop now."""
        self._drop_connection()
        self._fail(
            Ending.DRAINED,
            Reason.DRAINING,
            "this replica shut down before the answer was complete",
            retry_after_s=ENGINE_RETRY_S,
        )

    def preempt(self) -> None:
        """A guaranteed request needs the slot: end with an error event in the client's dialect."""
        if self._has_ended:
            return
        message = "this spot request was preempted to make room for a guaranteed request; send it again"
        reader, whole = (
            self._reader,
            isinstance(self._reader, StreamReader) and self._reader.is_between_events,
        )
        self._drop_connection()
        if not (self._has_sent() and reader is not None and whole):
            self._fail(Ending.PREEMPTED, Reason.PREEMPTED, message, retry_after_s=PREEMPTED_RETRY_S)
            return
        self._end(Ending.PREEMPTED)
        event = self._request.dialect.error_event(Reason.PREEMPTED, message, reader.events)
        if self._frames_chunks:
            event = b"%x\r\n%b\r\n" % (len(event), event) + _LAST_CHUNK
        self._client.write(event)
        self._client.on_relayed(keeps_alive=self._keeps_alive and self._frames_chunks, is_refusal=False)

    def pause(self) -> None:
        """The client reads too slowly: stop reading from the engine."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """The client has caught up: read on."""
        if self._connection is not None:
            self._connection.resume()

    # --- another replica ---

    @property
    def _is_elsewhere(self) -> bool:
        """Whether the request was handed over. Its answer shows nothing about the engine here."""
        ticket = self._admitted.ticket
        return ticket is not None and ticket.place is not None

    def _place_again(self, *, has_failed: bool) -> None:
        """Find another place for a request with which no engine has begun. Its ticket ends with that."""
        self._has_ended = True
        self._is_plain = False
        if self._admitted.trace is not None:
            self._admitted.trace.displaced()
        self._client.place_again(self._admitted, self._request, has_failed=has_failed)

    # --- endings ---

    def _fail(self, ending: Ending, reason: Reason, message: str, retry_after_s: float | None = None) -> None:
        if self._has_ended:
            return
        has_sent = self._has_sent()
        self._end(ending, None if has_sent else reason)
        if has_sent:
            self._client.on_cut()
        else:
            self._refuse(reason, message, retry_after_s)

    def _refuse(self, reason: Reason, message: str, retry_after_s: float | None) -> None:
        refusal = Refusal(reason, message, retry_after_s=retry_after_s, account=self._admitted.account)
        self._client.refuse(refusal, self._request)

    def _has_sent(self) -> bool:
        return self._status != 0 and self._head is None

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _end(self, ending: Ending, reason: Reason | None = None, *, spent: bool = True) -> None:
        """End the exchange and settle the admitted request. No other method does.

        ``reason``: a refusal is the answer, because no byte of the engine's was sent.
        """
        if self._has_ended:
            return
        self._has_ended = True
        self._is_plain = False
        admitted, reader, settlement = self._admitted, self._reader, self._controller.settlement
        computes = spent and self._status in (0, 200)
        if reader is None:
            usage = settlement.settle(admitted, ending, None, 0, spent=computes)
        else:
            if reader.has_failed:
                # The engine aborted the request before the connection ended.
                ending = Ending.UPSTREAM_ERROR
                computes = reader.has_begun
            reported = reader.usage
            usage = settlement.settle(
                admitted,
                ending,
                reported,
                reader.output_events,
                spent=computes,
                unreported=reader.unreported(ending is _FINISHED),
                no_usage=reader.no_usage if reported is None else None,
                stored=reader.response,
            )
        trace = admitted.trace
        if trace is not None:
            status = self._status if reason is None else self._request.dialect.status(reason)
            trace.ended(ending, self._status, status, reason, usage)
