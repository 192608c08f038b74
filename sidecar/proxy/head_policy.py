"""Decisions from the head of a request, before its body is read: the caller, and the size of the body.

A refused request costs one authorization and one answer; its body is not read. The body of any other request
counts against its caller's share of the sidecar's memory before it arrives.

Each decision is a value: ``None`` to go on, or the refusal. This file has no access to sockets or the parser.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sidecar.decisions import Refusal
from sidecar.dialects.routes import Route
from sidecar.proxy.bounds import LARGE_BODY, REQUEST_BYTES, Caller
from sidecar.proxy.connection_manager import ConnectionManager, CountedConnection
from sidecar.proxy.events import HeadReceived
from sidecar.proxy.head_cache import CachedHead
from sidecar.proxy.heads import RequestHead
from tokenpool.accounting.account import Account
from tokenpool.outcomes import Reason

UNIDENTIFIED_BODY_BYTES: Final = 64 * 1024
"""The largest body without a key, on the few routes that need no key."""
CHUNKED_BYTES: Final = 16 * 1024
"""Bytes that are first reserved for a body without a stated length."""


class Request:
    """One request of a connection, from its head until it is served."""

    __slots__ = (
        "account",
        "body",
        "body_bytes",
        "closes",
        "head",
        "max_body_bytes",
        "refusal",
        "reserved_bytes",
        "route",
    )

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.body = b""
        self.reserved_bytes = 0
        """The bytes of memory that it counts for."""
        self.body_bytes = 0
        """The part of ``reserved_bytes`` for its body."""
        self.max_body_bytes = 0
        self.route: Route | None = None
        self.account: Account | None = None
        self.refusal: Refusal | None = None
        self.closes = False
        """Whether the connection ends after it."""


class CachedRequest(NamedTuple):
    """A request head with its route, account and caller, in one epoch of the controller."""

    wire: CachedHead
    head: RequestHead
    route: Route
    account: Account | None
    caller: Caller
    epoch: int


def decide_head(
    event: HeadReceived, request: Request, connection: CountedConnection, manager: ConnectionManager
) -> Refusal | None:
    """Identify the caller, and reserve memory for the body. Returns ``None`` if the request may be read.

    A refused request without a body is read: ``request.refusal`` is its answer then, and
    the connection stays open.
    """
    authorized = manager.controller.authorize(event.head)
    if isinstance(authorized, Refusal):
        request.refusal = authorized
        if event.length or event.is_chunked:
            return authorized
    else:
        request.route, request.account = authorized
        account = request.account
        if account is not None:
            caller = manager.bounds.of(account)
            if caller is not connection.caller and not manager.assign(connection, caller):
                return caller.connections_refusal(account)
    return _reserve(event, request, connection, manager)


def _reserve(
    event: HeadReceived, request: Request, connection: CountedConnection, manager: ConnectionManager
) -> Refusal | None:
    """Reserve memory for the request before its body arrives."""
    most = manager.settings.max_body_bytes
    if request.account is None:
        most = min(most, UNIDENTIFIED_BODY_BYTES)
    elif request.route is None or request.route.parse is None:
        most //= 4
    request.max_body_bytes = most
    if event.length > most:
        return _too_large(request, manager)
    room = min(CHUNKED_BYTES, most) if event.is_chunked else event.length
    is_large = room > LARGE_BODY
    if is_large and (wait_s := _wait_s(connection, manager)):
        return connection.caller.large_body_refusal(wait_s, request.account)
    size = REQUEST_BYTES + event.size + room
    if not reserve_for(connection, size):
        return connection.caller.memory_refusal(size, request.account)
    request.reserved_bytes = size
    request.body_bytes = room
    if is_large:
        connection.caller.read_large(room)
    return None


def extend_body(
    size: int, request: Request, connection: CountedConnection, manager: ConnectionManager
) -> Refusal | None:
    """A chunked body has reached ``size`` bytes: double its reservation, or refuse it."""
    most = request.max_body_bytes
    if size > most:
        return _too_large(request, manager)
    room = min(max(2 * request.body_bytes, size), most)
    more, becomes_large = room - request.body_bytes, request.body_bytes <= LARGE_BODY < room
    if becomes_large and (wait_s := _wait_s(connection, manager)):
        return connection.caller.large_body_refusal(wait_s, request.account)
    if not reserve_for(connection, more):
        return connection.caller.memory_refusal(more, request.account)
    request.reserved_bytes += more
    request.body_bytes = room
    if room > LARGE_BODY:
        connection.caller.read_large(room if becomes_large else more)
    return None


def reserve_for(connection: CountedConnection, size: int) -> bool:
    """Reserve ``size`` bytes for a connection if the bounds allow it. Returns whether they did."""
    if not connection.caller.reserve_bytes(size):
        return False
    connection.buffered += size
    return True


def _wait_s(connection: CountedConnection, manager: ConnectionManager) -> float:
    """Seconds until the next large body of this caller may arrive."""
    return connection.caller.large_body_wait_s(manager.telemetry.clock())


def _too_large(request: Request, manager: ConnectionManager) -> Refusal:
    message = f"the request body is larger than {request.max_body_bytes} bytes"
    if request.max_body_bytes < manager.settings.max_body_bytes:
        message += ", the limit of routes that cost no tokens"
    return Refusal(Reason.BODY_TOO_LARGE, message)
