"""The client's side: one connection of a tenant, whose requests are answered in order.

What comes on it is read by a ``RequestReader`` (``reading``), but for a head that is known (``known``).
What is served when, what has to wait, and how the connection ends is decided here.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable
from functools import partial
from time import thread_time
from typing import NamedTuple, cast

from sidecar.decisions import AdmittedRequest, Refusal, draining
from sidecar.dialects.routes import Route
from sidecar.proxy.answers import CONTINUE, refusal_bytes
from sidecar.proxy.bounds import LARGE_BODY, REQUEST_BYTES, Holder
from sidecar.proxy.connection_manager import ConnectionManager
from sidecar.proxy.exchange import Exchange
from sidecar.proxy.head_cache import CachedHead
from sidecar.proxy.heads import RequestHead
from sidecar.proxy.request_parser import Phase, Request, RequestReader
from sidecar.proxy.waiting import DelayedAnswer, Waiting
from tokenpool.accounting.account import Account
from tokenpool.admission.pending import PendingRequest
from tokenpool.outcomes import Reason

MOST_PIPELINED = 8
"""Requests parsed ahead on one connection; reading pauses beyond."""
MEASURED_BYTES = 4096
"""From here on it is measured what reading a body takes."""
NEVER = float("inf")
LINGER_S = 2.0
"""How long a refused client's remaining bytes are read and dropped, so that it gets to see the answer."""
LINGER_BYTES = 4 << 20
_LEAVES = getattr(select, "POLLRDHUP", 0)
"""That the other side has closed; errors are told in any case."""


class _CachedRequest(NamedTuple):
    """What was found out about a request head, in one epoch of the controller."""

    wire: CachedHead
    head: RequestHead
    route: Route
    account: Account | None
    holder: Holder
    epoch: int


class ClientConnection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_exchange",
        "_idle_since",
        "_known",
        "_lingered",
        "_manager",
        "_pending",
        "_reader",
        "_serving",
        "_spent_s",
        "_transport",
        "_unread",
        "_write_deadline",
        "buffered",
        "holder",
    )

    def __init__(self, manager: ConnectionManager) -> None:
        self._manager = manager
        self._transport: asyncio.Transport | None = None
        self._pending: deque[Request] = deque()
        self._exchange: Exchange | Waiting | DelayedAnswer | None = None
        self._known: _CachedRequest | None = None
        self._spent_s = 0.0
        """On reading the body of the request that is being served, where that was measured."""
        self._lingered = 0
        self._write_deadline = NEVER
        self.holder = manager.bounds.nobody
        self.buffered = 0
        self._serving = 0
        """Of ``buffered``: the request that is being served."""
        self._unread = 0
        """Of ``buffered``: answers that the client leaves unread."""

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client connected."""
        self._transport = transport = cast(asyncio.Transport, transport)
        manager = self._manager
        self._idle_since = manager.telemetry.clock()
        self._reader = RequestReader(self, manager, transport)
        if manager.enter(self):
            return
        if manager.is_flooded:
            self.abort()
        else:
            self._answer_and_linger(
                Refusal(
                    Reason.TOO_MANY_CONNECTIONS,
                    "this proxy holds as many connections as it may; close idle ones",
                    retry_after_s=1.0,
                )
            )

    def data_received(self, data: bytes) -> None:
        """asyncio: the client sent something."""
        reader = self._reader
        if not reader.reads:
            self._drop(len(data))
        elif reader.phase is Phase.IDLE and not reader.kept and self._exchange is None and not self._pending:
            known = self._known
            if known is None or not self._serve_cached(known, data):
                reader.read(data)
                self._learn(data)
        else:
            reader.read(data)

    def _learn(self, data: bytes) -> None:
        """Remember the head of the request that ``data`` is, if it is exactly one that passed."""
        passed = self._reader.passed
        if passed is None or passed.route is None or not passed.head.keeps_alive:
            return
        if passed.route.names_stored:
            return  # whose the response is that the path names may change
        # While answers are unread, requests wait, which the short way does not know.
        wire = CachedHead.of(data) if self._write_deadline == NEVER else None
        if wire is not None:
            epoch = self._manager.controller.epoch
            self._known = _CachedRequest(wire, passed.head, passed.route, passed.account, self.holder, epoch)

    def _serve_cached(self, known: _CachedRequest, data: bytes) -> bool:
        """Serve ``data`` without parsing its head, if it is one that is known; whether it was."""
        manager = self._manager
        wire, head, route, account, holder, epoch = known
        if epoch != manager.controller.epoch or manager.controller.is_draining or holder is not self.holder:
            return False
        body = wire.body_of(data)
        if body is None or len(body) > LARGE_BODY or len(body) > manager.settings.max_body_bytes:
            return False
        size = len(body) + REQUEST_BYTES
        if not holder.take(size):
            return False  # to be refused in the long way
        self.buffered += size
        self._serving = size
        refusal = self._pass(head, route, account, body)
        if refusal is not None:
            self._release()
            self._answer(refusal, Request(head))
        return True

    def eof_received(self) -> bool:
        """asyncio: the client will send no more. As with the engine's own server, that means it is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        self._transport = None
        self._reader.close()
        self._manager.leave(self)
        self._serving = self._unread = 0
        self._end()

    def _end(self) -> None:
        """Nothing is served any more."""
        self._pending.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        """asyncio: the client does not keep up. What it leaves unread counts, and may be too much."""
        self._write_deadline = self._manager.telemetry.clock() + self._manager.settings.write_timeout
        self._known = None
        if self._exchange is not None:
            self._exchange.pause()
        transport = self._transport
        if transport is None:
            return
        unread = transport.get_write_buffer_size()
        if self.take(unread):
            self._unread = unread
        else:
            self.holder.cut += 1
            transport.abort()

    def resume_writing(self) -> None:
        """asyncio: the client keeps up again."""
        self._write_deadline = NEVER
        unread, self._unread = self._unread, 0
        self.give(unread)
        if self._exchange is not None:
            self._exchange.resume()
        elif self._pending:
            self._next()

    # --- what reading asks for ---

    @property
    def has_enough(self) -> bool:
        """Whether no further request is to be read for now."""
        return len(self._pending) >= MOST_PIPELINED

    def on_request(self, request: Request) -> None:
        """A request is complete, or refused: answer it in its turn."""
        self._pending.append(request)
        if self._exchange is None:
            self._next()

    def on_expectation(self) -> None:
        """The client sends a body once it is told to go on: now, or after the answers that come first."""
        if self._exchange is None and not self._pending:
            reader, manager = self._reader, self._manager
            reader.expects = False
            reader.deadline = manager.telemetry.clock() + manager.settings.body_timeout
            self.write(CONTINUE)

    def take(self, size: int) -> bool:
        """Count for so many bytes more, if that is within the bound; whether it was."""
        if not self.holder.take(size):
            return False
        self.buffered += size
        return True

    def give(self, size: int) -> None:
        """Count for so many bytes less."""
        self.buffered -= size
        self.holder.give(size)

    def _release(self) -> None:
        """The request that was served counts no longer."""
        size, self._serving = self._serving, 0
        self.give(size)

    # --- answering, in order ---

    def _next(self) -> None:
        """Answer requests until one has to wait for the engine, or for the client to read its answers."""
        while (
            self._pending
            and self._exchange is None
            and self._write_deadline == NEVER
            and self._transport is not None
        ):
            self._serve(self._pending.popleft())
        if not self.has_enough:
            self._reader.resume()
        if self._reader.expects:
            self.on_expectation()

    def _serve(self, request: Request) -> None:
        if request.refusal is not None:
            self._answer(request.refusal, request)
            return
        assert request.route is not None
        refusal = self._pass(request.head, request.route, request.account, request.body)
        if refusal is not None:
            self._answer(refusal, request)
        else:
            self._serving = request.held

    def _pass(
        self,
        head: RequestHead,
        route: Route,
        account: Account | None,
        body: bytes,
        *,
        was_held: bool = False,
    ) -> Refusal | None:
        """Bring a request through the controller and on its way to the engine, or say why not."""
        manager = self._manager
        is_expensive = len(body) >= MEASURED_BYTES
        if (is_expensive or route.parse is None) and not was_held:
            now = manager.telemetry.clock()
            seconds = self.holder.unmetered_s(0.0, now) if route.parse is None else self.holder.debt_s(now)
            if seconds:
                self._delay_answer(seconds, partial(self._pass_held, head, route, account, body))
                return None
        if not is_expensive:
            admitted = manager.controller.admit(route, account, body)
        else:
            began_at = thread_time()
            admitted = manager.controller.admit(route, account, body)
            self._spent_s = spent_s = thread_time() - began_at
            if len(body) > LARGE_BODY:
                self.holder.read_expensive(body, spent_s)
        controller = manager.controller
        if isinstance(admitted, Refusal):
            controller.act()
            return admitted
        if isinstance(admitted, PendingRequest):
            self._exchange = waiting = Waiting(self, controller, admitted, head)
            controller.wait(admitted, waiting)
            controller.act()
            return None
        self._send(head, admitted)
        return None

    def _pass_held(self, head: RequestHead, route: Route, account: Account | None, body: bytes) -> None:
        """A request without a price was delayed long enough."""
        self._exchange = None
        refusal = draining(account) if self._manager.controller.is_draining else None
        if refusal is None:
            refusal = self._pass(head, route, account, body, was_held=True)
        if refusal is not None:
            self._release()
            self._answer(refusal, Request(head))
        self._next()

    def on_decided(self, head: RequestHead, decided: AdmittedRequest | Refusal) -> None:
        """A request that waited is decided."""
        self._exchange = None
        if isinstance(decided, AdmittedRequest):
            self._send(head, decided)
            return
        self._release()
        self._answer(decided, Request(head))
        self._next()

    def _send(self, head: RequestHead, admitted: AdmittedRequest) -> None:
        manager = self._manager
        head_bytes = manager.framer.frame(head, len(admitted.body))
        exchange = Exchange(
            self, manager.controller, manager.telemetry, manager.pool, head, admitted, head_bytes
        )
        self._exchange = exchange
        is_paid = admitted.ticket is not None
        controller, ticket = manager.controller, admitted.ticket
        if ticket is not None and ticket.account.is_spot:
            controller.driver.run(ticket, exchange)
        controller.act()  # a spot request that makes room ends before this one is sent
        exchange.start()
        if is_paid:
            manager.telemetry.overhead(manager.telemetry.clock() - admitted.started_at)

    def _answer(self, refusal: Refusal, request: Request) -> None:
        self._manager.controller.refused(refusal)
        self.give(request.held)
        closes = request.closes or not request.head.keeps_alive or self._manager.controller.is_draining
        answer = refusal_bytes(refusal, request.head, self._manager.controller.engine.cors, closes=closes)
        spent_s, self._spent_s = self._spent_s, 0.0
        seconds = self.holder.unmetered_s(spent_s, self._manager.telemetry.clock())
        if closes:
            self.write(answer)
            self._linger()
        elif seconds:
            self._delay_answer(seconds, partial(self._answer_held, answer))
        else:
            self.write(answer)
            self._wait_for_request()

    def _delay_answer(self, seconds: float, go_on: Callable[[], None]) -> None:
        self.holder.delayed += 1
        self._exchange = DelayedAnswer(seconds, go_on)

    def _answer_held(self, answer: bytes) -> None:
        """An answer was delayed long enough."""
        self._exchange = None
        self.write(answer)
        if self._manager.controller.is_draining:
            self._close()
            return
        self._wait_for_request()
        self._next()

    def _wait_for_request(self) -> None:
        reader = self._reader
        if reader.phase is Phase.IDLE:
            self._idle_since = now = self._manager.telemetry.clock()
            reader.deadline = now + self._manager.settings.idle_timeout

    def _answer_and_linger(self, refusal: Refusal) -> None:
        self._manager.controller.refused(refusal)
        self.write(refusal_bytes(refusal, RequestHead(), self._manager.controller.engine.cors, closes=True))
        self._linger()

    # --- what the exchange asks for ---

    def write(self, data: bytes) -> None:
        """Send bytes of the response."""
        if self._transport is not None:
            self._transport.write(data)

    def on_relayed(self, *, keeps_alive: bool, is_refusal: bool) -> None:
        """The response is complete: serve the next request, or close."""
        self._exchange = None
        self._release()
        spent_s, self._spent_s = self._spent_s, 0.0
        if is_refusal:
            self.holder.unmetered_s(spent_s, self._manager.telemetry.clock())
        if keeps_alive and not self._manager.controller.is_draining:
            self._wait_for_request()
            if self._pending or self._reader.expects:
                self._next()
        else:
            self._close()

    def on_cut(self) -> None:
        """The response cannot be completed."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def refuse(self, refusal: Refusal, head: RequestHead) -> None:
        """Nothing of a response was sent: answer with a refusal, and close."""
        self._exchange = None
        self.write(refusal_bytes(refusal, head, self._manager.controller.engine.cors, closes=True))
        self._close()

    # --- closing ---

    def _close(self, within: float | None = None) -> None:
        """Close in good order: what is written leaves first, and over TLS both sides say goodbye."""
        self._pending.clear()
        self._reader.linger(within or self._manager.settings.write_timeout)
        if self._transport is not None:
            self._transport.close()

    def _linger(self) -> None:
        """Close for writing, and read on for a while, lest a reset destroy the answer on its way."""
        self._pending.clear()
        self._reader.linger(LINGER_S)
        transport = self._transport
        if transport is None:
            return
        self._reader.resume()
        if not transport.can_write_eof():
            transport.close()  # TLS has no half-closed state: it says goodbye, and reads on by itself
        elif not transport.is_closing():
            transport.write_eof()

    def _drop(self, count: int) -> None:
        self._lingered += count
        if self._lingered > LINGER_BYTES and self._transport is not None:
            self._transport.abort()

    @property
    def idle_since(self) -> float | None:
        """Since when it could make way. Until a request was accepted, a part of one protects nobody."""
        exchange, reader = self._exchange, self._reader
        if self.holder is self._manager.bounds.nobody:
            is_idle = exchange is None or isinstance(exchange, DelayedAnswer)
        else:
            is_idle = (
                exchange is None and not self._pending and reader.phase is Phase.IDLE and not reader.kept
            )
        return self._idle_since if is_idle else None

    @property
    def is_busy(self) -> bool:
        """Whether an exchange is under way."""
        return self._exchange is not None

    def close_if_idle(self) -> None:
        """Close unless a request is being read or served."""
        if self._exchange is None and self._reader.phase is Phase.IDLE and not self._pending:
            self._close(within=LINGER_S)

    def end_wait(self) -> None:
        """Refuse a request that waits undecided: the sidecar stops, and another one will answer."""
        if isinstance(self._exchange, Waiting):
            self._exchange.drain()

    def abort(self) -> None:
        """Close without waiting for anything."""
        if self._transport is not None:
            self._reader.forget()
            self._end()
            self._transport.abort()

    def drain(self) -> None:
        """End the exchange now."""
        if self._exchange is not None:
            self._exchange.drain()
        else:
            self._close()

    def sweep(self, now: float) -> None:
        """End what has taken too long."""
        transport, exchange = self._transport, self._exchange
        if transport is None:
            return
        if now > self._write_deadline:
            transport.abort()
        elif exchange is not None:
            if now - exchange.last_progress > self._manager.settings.upstream_timeout:
                exchange.time_out()
            elif self._reader.is_paused and _has_left(transport):
                transport.abort()
        elif now > self._reader.deadline:
            self._expire(transport)

    def _expire(self, transport: asyncio.Transport) -> None:
        reader = self._reader
        if reader.phase is Phase.LINGERING:
            transport.abort()
        elif reader.phase is Phase.IDLE or not reader.reads:
            self._close(within=LINGER_S)
        else:
            reader.time_out()


def _has_left(transport: asyncio.Transport) -> bool:
    """Whether the client is gone: where nothing is read, nobody tells."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False  # it is being closed: over TLS this is known a moment before we are told
    poll = select.poll()
    poll.register(sock.fileno(), _LEAVES)
    return bool(poll.poll(0))
