"""One connection of a client. Its requests are served one at a time, and answered in their order.

``ReceivingConnection`` reads the requests. A cached head skips the parser (``head_cache``). This file decides
the time of each request and answer, and the end of the connection. ``connection_state`` has the states and
their transitions. It is one file, because every method here changes the same two fields: the served exchange
and its state.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from time import thread_time
from typing import Final, cast

from sidecar.decisions import AdmittedRequest, Refusal, draining
from sidecar.dialects.routes import Route
from sidecar.proxy.answers import refusal_bytes
from sidecar.proxy.bounds import LARGE_BODY, REQUEST_BYTES
from sidecar.proxy.connection_manager import ConnectionManager
from sidecar.proxy.connection_state import IllegalTransition, Life, Phase, Serving
from sidecar.proxy.exchange import Client, Exchange
from sidecar.proxy.head_cache import CachedHead
from sidecar.proxy.head_policy import CachedRequest, Request
from sidecar.proxy.heads import RequestHead
from sidecar.proxy.receiving import LINGER_S, ReceivingConnection, has_left
from sidecar.proxy.request_parser import NEVER
from sidecar.proxy.waiting import DelayedAnswer, Waiting
from sidecar.tracing.interface import Trace
from tokenpool.accounting.account import Account
from tokenpool.admission.pending import PendingRequest
from tokenpool.outcomes import Reason

MEASURED_BYTES: Final = 4096
"""The CPU time of parsing is measured for bodies from this size on."""
_READING: Final = (Phase.HEAD, Phase.BODY)
_IDLE: Final = Phase.IDLE
_NOTHING: Final = Serving.NOTHING
_EXCHANGING: Final = Serving.EXCHANGING
_NEVER_ENDS: Final = math.inf


class ClientConnection(ReceivingConnection, Client):
    """One client connection."""

    __slots__ = (
        "_cached_request",
        "_exchange",
        "_idle_since",
        "_request_bytes",
        "_spent_s",
        "_unread",
        "_write_deadline",
    )

    def __init__(self, manager: ConnectionManager) -> None:
        super().__init__(manager)
        self._exchange: Exchange | Waiting | DelayedAnswer | None = None
        """The exchange, the wait or the delay that is served; ``_serving`` is its state."""
        self._cached_request: CachedRequest | None = None
        self._spent_s = 0.0
        """CPU seconds of parsing the body of the served request, if measured."""
        self._write_deadline = NEVER
        self._request_bytes = 0
        """The part of ``buffered`` for the served request."""
        self._unread = 0
        """The part of ``buffered`` for answers that the client has not read."""

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client connected."""
        self._transport = transport = cast(asyncio.Transport, transport)
        manager = self._manager
        self._idle_since = now = manager.telemetry.clock()
        self._closes_at = now + manager.settings.head_timeout
        if manager.add(self):
            return
        if manager.is_flooded:
            self.abort()
        else:
            self._answer_and_linger(
                Refusal(
                    Reason.TOO_MANY_CONNECTIONS,
                    "this proxy has reached its limit of connections; close idle ones, or retry in 1 s",
                    retry_after_s=1.0,
                )
            )

    def data_received(self, data: bytes) -> None:
        """asyncio: the client sent bytes."""
        batch, parser = self._manager.batch, self._parser
        if not batch.is_empty:
            batch.write()
        if parser.has_ended:
            self._drop(len(data))
        elif parser.phase is _IDLE and not self._unparsed and self._exchange is None and not self._pending:
            known = self._cached_request
            if known is None or not self._serve_cached(known, data):
                self._passed = None
                self._receive(data)
                self._learn(data)
        else:
            self._receive(data)

    def _learn(self, data: bytes) -> None:
        """Cache the head of ``data``, if it was exactly one request, and its head was accepted."""
        passed = self._passed
        if passed is None or passed.route is None or not passed.head.keeps_alive:
            return
        if passed.head is not self._parser.head:
            return  # another request has begun
        if passed.route.names_stored:
            return  # the path names a stored response, whose owner may change
        # While answers are unread, requests must wait. The cached path would not wait.
        wire = CachedHead.of(data) if self._write_deadline == NEVER else None
        if wire is not None:
            epoch = self._manager.controller.epoch
            self._cached_request = CachedRequest(
                wire, passed.head, passed.route, passed.account, self.caller, epoch
            )

    def _serve_cached(self, known: CachedRequest, data: bytes) -> bool:
        """Serve ``data`` by the cached head, if it has that head. Returns whether it does."""
        manager = self._manager
        wire, head, route, account, caller, epoch = known
        if epoch != manager.controller.epoch or manager.controller.is_draining or caller is not self.caller:
            return False
        credential = head.credential
        if (
            credential is not None
            and credential.ends_at != _NEVER_ENDS
            and manager.controller.has_ended(credential)
        ):
            return False
        body = wire.body_of(data)
        if body is None or len(body) > LARGE_BODY or len(body) > manager.settings.max_body_bytes:
            return False
        size = len(body) + REQUEST_BYTES
        if not caller.reserve_bytes(size):
            return False  # the path with the parser refuses it
        self.buffered += size
        self._request_bytes = size
        head.identify(manager.request_ids)
        if manager.tracer is not None:
            head.trace = manager.tracer.begin(head)
        refusal = self._admit(head, route, account, body)
        if refusal is not None:
            self._release()
            self._answer(refusal, Request(head))
        return True

    def eof_received(self) -> bool:
        """asyncio: the client sends no more. The connection closes, as at the engine's own server."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed."""
        self._transport = None
        self._become(Life.CLOSED)
        self._forget()
        self._parser.close()
        self._manager.remove(self)
        self._request_bytes = self._unread = 0
        self._end()

    def _end(self) -> None:
        """End the served exchange, and drop waiting requests."""
        self._drop_requests()
        exchange = self._exchange
        if exchange is not None:
            self._serve_nothing()
            exchange.client_gone()

    def pause_writing(self) -> None:
        """asyncio: the client reads too slowly. Its unread bytes count against the caller's bound."""
        self._write_deadline = self._manager.telemetry.clock() + self._manager.settings.write_timeout
        self._cached_request = None
        if self._exchange is not None:
            self._exchange.pause()
        transport = self._transport
        if transport is None:
            return
        unread = transport.get_write_buffer_size()
        if self.reserve_bytes(unread):
            self._unread = unread
        else:
            self.caller.cut += 1
            transport.abort()

    def resume_writing(self) -> None:
        """asyncio: the client has read its answers."""
        self._write_deadline = NEVER
        unread, self._unread = self._unread, 0
        self.release_bytes(unread)
        if self._exchange is not None:
            self._exchange.resume()
        elif self._pending:
            self._next()

    def _release(self) -> None:
        """Release the memory of the served request."""
        size, self._request_bytes = self._request_bytes, 0
        self.release_bytes(size)

    # --- serving, in order ---

    def on_request(self, request: Request) -> None:
        """A request is complete, or refused: answer it after the requests before it."""
        self._closes_at = self._parser.deadline
        self._pending.append(request)
        if self._exchange is None:
            self._next()

    def _serve_by(self, serving: Serving, exchange: Exchange | Waiting | DelayedAnswer | None) -> None:
        """Change what is served. Only this method changes ``_serving`` and ``_exchange``."""
        if (serving is _NOTHING) is (self._serving is _NOTHING):  # the table ``SERVING`` as one comparison
            raise IllegalTransition(f"the connection: {self._serving} to {serving}")
        self._serving = serving
        self._exchange = exchange

    def _serve_nothing(self) -> None:
        self._serve_by(_NOTHING, None)

    def _next(self) -> None:
        """Answer requests until one waits for the engine, or for the client to read its answers."""
        while (
            self._pending
            and self._exchange is None
            and self._write_deadline == NEVER
            and self._transport is not None
        ):
            self._serve(self._pending.popleft())
        if not self.has_enough:
            self._resume()
        if self._owes_continue:
            self._continue()

    def _serve(self, request: Request) -> None:
        manager, head = self._manager, request.head
        head.identify(manager.request_ids)
        if manager.tracer is not None and head.trace is None:
            head.trace = manager.tracer.begin(head)  # its head was never complete
        if request.refusal is not None:
            self._answer(request.refusal, request)
            return
        assert request.route is not None
        # The cache may keep the request for its head, so the body is released.
        body, request.body = request.body, b""
        refusal = self._admit(head, request.route, request.account, body)
        if refusal is not None:
            self._answer(refusal, request)
        else:
            self._request_bytes = request.reserved_bytes

    def _admit(
        self,
        head: RequestHead,
        route: Route,
        account: Account | None,
        body: bytes,
        *,
        was_delayed: bool = False,
    ) -> Refusal | None:
        """Admit a request and send it to the engine, or return its refusal."""
        manager = self._manager
        is_expensive = len(body) >= MEASURED_BYTES
        if (is_expensive or route.parse is None) and not was_delayed:
            now = manager.telemetry.clock()
            seconds = self.caller.unmetered_s(0.0, now) if route.parse is None else self.caller.debt_s(now)
            if seconds:
                self._delay_answer(
                    seconds, partial(self._admit_delayed, head, route, account, body), head.trace
                )
                return None
        if not is_expensive:
            admitted = manager.controller.admit(
                route, account, body, head.trace, head.credential, head.identity
            )
        else:
            began_at = thread_time()
            admitted = manager.controller.admit(
                route, account, body, head.trace, head.credential, head.identity
            )
            self._spent_s = spent_s = thread_time() - began_at
            if len(body) > LARGE_BODY:
                self.caller.read_expensive(body, spent_s)
        controller = manager.controller
        if isinstance(admitted, Refusal):
            controller.act()
            return admitted
        if isinstance(admitted, PendingRequest):
            waiting = Waiting(self, controller, admitted, head)
            self._serve_by(Serving.WAITING, waiting)
            controller.wait(admitted, waiting)
            controller.act()
            return None
        self._send(head, admitted)
        return None

    def _admit_delayed(self, head: RequestHead, route: Route, account: Account | None, body: bytes) -> None:
        """The delay of a request without a price is over."""
        self._serve_nothing()
        if head.trace is not None:
            head.trace.delayed()
        refusal = draining(account) if self._manager.controller.is_draining else None
        if refusal is None:
            refusal = self._admit(head, route, account, body, was_delayed=True)
        if refusal is not None:
            self._release()
            self._answer(refusal, Request(head))
        self._next()

    def on_decided(self, head: RequestHead, decided: AdmittedRequest | Refusal) -> None:
        """The decision about a request that waited."""
        self._serve_nothing()
        if isinstance(decided, AdmittedRequest):
            self._send(head, decided)
            return
        self._release()
        self._answer(decided, Request(head))
        self._next()

    def _send(self, head: RequestHead, admitted: AdmittedRequest) -> None:
        manager = self._manager
        admitted.request_id = head.id
        admitted.credential_id = head.credential_id
        ticket = admitted.ticket
        trace = admitted.trace = head.trace
        if trace is not None:
            trace.sent(admitted.account, ticket.place if ticket is not None else None, head.id)
        head_bytes = manager.framer.frame(head, len(admitted.body), admitted.account)
        connections = manager.connections_for(ticket)
        exchange = Exchange(
            self, manager.controller, manager.telemetry, connections, head, admitted, head_bytes
        )
        self._serve_by(_EXCHANGING, exchange)
        manager.controller.begin(admitted, exchange)
        if ticket is not None:
            now = manager.telemetry.clock()
            exchange.last_progress = now  # a wait before is no silence of the engine
            manager.telemetry.overhead(now - admitted.started_at)

    def _answer(self, refusal: Refusal, request: Request) -> None:
        head, controller = request.head, self._manager.controller
        controller.refused(refusal, head.id, head.trace, head.credential_id)
        self.release_bytes(request.reserved_bytes)
        closes = request.closes or not head.keeps_alive or controller.is_draining
        answer = refusal_bytes(refusal, head, controller.engine.cors, closes=closes)
        spent_s, self._spent_s = self._spent_s, 0.0
        seconds = self.caller.unmetered_s(spent_s, self._manager.telemetry.clock())
        if head.trace is not None:
            status, delay_s = head.dialect.status(refusal.reason), 0.0 if closes else seconds
            head.trace.refused(refusal.account, refusal.reason, status, head.id, delay_s)
        if closes:
            self.write(answer)
            self._linger()
        elif seconds:
            self._delay_answer(seconds, partial(self._answer_delayed, answer), None)
        else:
            self.write(answer)
            self._wait_for_request()

    def _delay_answer(self, seconds: float, go_on: Callable[[], None], trace: Trace | None) -> None:
        self.caller.delayed += 1
        self._serve_by(Serving.DELAYED, DelayedAnswer(seconds, go_on, trace))

    def _answer_delayed(self, answer: bytes) -> None:
        """The delay of an answer is over."""
        self._serve_nothing()
        self.write(answer)
        if self._manager.controller.is_draining:
            self._close()
            return
        self._wait_for_request()
        self._next()

    def _wait_for_request(self) -> None:
        if self._parser.phase is _IDLE:
            self._idle_since = now = self._manager.telemetry.clock()
            self._closes_at = now + self._manager.settings.idle_timeout

    def _answer_and_linger(self, refusal: Refusal) -> None:
        manager, head = self._manager, RequestHead()
        head.identify(manager.request_ids)
        manager.controller.refused(refusal, head.id, None)
        self.write(refusal_bytes(refusal, head, manager.controller.engine.cors, closes=True))
        self._linger()

    # --- calls of the exchange ---

    def on_relayed(self, *, keeps_alive: bool, is_refusal: bool) -> None:
        """The response is complete: serve the next request, or close."""
        self._serve_nothing()
        self._release()
        spent_s, self._spent_s = self._spent_s, 0.0
        if is_refusal:
            self.caller.unmetered_s(spent_s, self._manager.telemetry.clock())
        if keeps_alive and not self._manager.controller.is_draining:
            self._wait_for_request()
            if self._pending or self._owes_continue:
                self._next()
        else:
            self._close()

    def on_cut(self) -> None:
        """The response cannot be completed: close the connection."""
        self._serve_nothing()
        self.write_unsent()
        if self._transport is not None:
            self._transport.abort()

    def refuse(self, refusal: Refusal, head: RequestHead) -> None:
        """No byte of a response was sent: answer with a refusal, and close."""
        self._serve_nothing()
        self.write(refusal_bytes(refusal, head, self._manager.controller.engine.cors, closes=True))
        self._close()

    def place_again(self, admitted: AdmittedRequest, head: RequestHead, *, has_failed: bool) -> None:
        """No engine has begun with the request: decide it again. ``has_failed``: its place failed."""
        self._serve_nothing()
        controller = self._manager.controller
        decided = controller.admit_again(admitted, has_failed=has_failed)
        if isinstance(decided, PendingRequest):
            waiting = Waiting(self, controller, decided, head)
            self._serve_by(Serving.WAITING, waiting)
            controller.wait(decided, waiting)
        elif isinstance(decided, AdmittedRequest):
            self._send(head, decided)
        else:
            self._release()
            self._answer(decided, Request(head))
            self._next()
        controller.act()

    # --- closing ---

    @property
    def idle_since(self) -> float | None:
        """The start of its idle time; ``None`` if it must not be closed for another connection.

        A connection without any accepted request may be closed while it receives a request.
        """
        exchange = self._exchange
        if self.caller is self._manager.bounds.unidentified:
            is_idle = exchange is None or isinstance(exchange, DelayedAnswer)
        else:
            is_idle = (
                exchange is None
                and not self._pending
                and self._parser.phase is Phase.IDLE
                and not self._unparsed
            )
        return self._idle_since if is_idle else None

    @property
    def is_busy(self) -> bool:
        """Whether an exchange is under way."""
        return self._exchange is not None

    def close_if_idle(self) -> None:
        """Close unless a request is being read or served."""
        if self._exchange is None and self._parser.phase is Phase.IDLE and not self._pending:
            self._close(within=LINGER_S)

    def end_wait(self) -> None:
        """Refuse a request that waits for a decision, because the sidecar stops."""
        if isinstance(self._exchange, Waiting):
            self._exchange.drain()

    def abort(self) -> None:
        """Close without waiting for anything."""
        if self._transport is not None:
            self._forget()
            self._end()
            self._transport.abort()

    def drain(self) -> None:
        """End the exchange now, and refuse a request that is not complete yet."""
        if self._exchange is not None:
            self._exchange.drain()
        elif self._parser.phase in _READING:
            self._refuse(draining(self._request.account if self._request is not None else None))
        else:
            self._close()

    def sweep(self, now: float) -> None:
        """Apply the time limits of the connection."""
        transport, exchange = self._transport, self._exchange
        if transport is None:
            return
        if now > self._write_deadline:
            transport.abort()
        elif exchange is not None:
            if now - exchange.last_progress > self._manager.settings.upstream_timeout:
                exchange.time_out()
            elif self._is_paused and has_left(transport):
                transport.abort()
        elif self._parser.phase in _READING:
            if now > self._parser.deadline:
                self._on_bad_request(self._parser.time_out())
        elif now > self._closes_at:
            if self._life is Life.OPEN:
                self._close(within=LINGER_S)
            else:
                transport.abort()
