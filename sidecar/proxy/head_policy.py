"""What the head of a request decides before its body is read: the caller, and how much of a body may arrive.

A request that may not pass costs one look at its head and one answer; its body is not read. The body of
any other request counts against its caller's share of the sidecar's memory before it arrives.

Each decision is a value: ``None`` to go on, or the refusal. Sockets and the parser are not known here.
"""

from __future__ import annotations

from typing import NamedTuple

from sidecar.decisions import Refusal
from sidecar.dialects.routes import Route
from sidecar.proxy.bounds import LARGE_BODY, REQUEST_BYTES, Holder
from sidecar.proxy.connection_manager import ConnectionManager, Counted
from sidecar.proxy.events import HeadReceived
from sidecar.proxy.head_cache import CachedHead
from sidecar.proxy.heads import RequestHead
from tokenpool.accounting.account import Account
from tokenpool.outcomes import Reason

UNIDENTIFIED_BODY_BYTES = 64 * 1024
"""The largest body of a caller without a key, on the few routes that ask for none."""
CHUNKED_BYTES = 16 * 1024
"""Reserved at first for a body without a stated length."""


class Request:
    """One request of a connection, from its head until it is served."""

    __slots__ = ("account", "body", "closes", "head", "held", "max_body_bytes", "refusal", "room", "route")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.body = b""
        self.held = 0
        """The bytes that it counts for."""
        self.room = 0
        """Of these: the bytes for its body."""
        self.max_body_bytes = 0
        self.route: Route | None = None
        self.account: Account | None = None
        self.refusal: Refusal | None = None
        self.closes = False
        """Whether nothing that follows it on the connection is read."""


class CachedRequest(NamedTuple):
    """A request head and what it was decided to be, in one epoch of the controller."""

    wire: CachedHead
    head: RequestHead
    route: Route
    account: Account | None
    holder: Holder
    epoch: int


def decide_head(
    event: HeadReceived, request: Request, guest: Counted, manager: ConnectionManager
) -> Refusal | None:
    """Identify the caller, and reserve memory for the body: ``None`` if the request may be read.

    A request without a body may be read although it is refused: ``request.refusal`` is its answer then, and
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
            holder = manager.bounds.of(account)
            if holder is not guest.holder and not manager.assign(guest, holder):
                return holder.connections_refusal(account)
    return _reserve(event, request, guest, manager)


def _reserve(
    event: HeadReceived, request: Request, guest: Counted, manager: ConnectionManager
) -> Refusal | None:
    """Count a body before it arrives."""
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
    if is_large and (wait_s := _wait_s(guest, manager)):
        return guest.holder.large_body_refusal(wait_s, request.account)
    size = REQUEST_BYTES + event.size + room
    if not take(guest, size):
        return guest.holder.memory_refusal(size, request.account)
    request.held = size
    request.room = room
    if is_large:
        guest.holder.read_large(room)
    return None


def extend_body(size: int, request: Request, guest: Counted, manager: ConnectionManager) -> Refusal | None:
    """A chunked body has reached ``size`` bytes: reserve twice as much as before, or refuse it."""
    most = request.max_body_bytes
    if size > most:
        return _too_large(request, manager)
    room = min(max(2 * request.room, size), most)
    more, becomes_large = room - request.room, request.room <= LARGE_BODY < room
    if becomes_large and (wait_s := _wait_s(guest, manager)):
        return guest.holder.large_body_refusal(wait_s, request.account)
    if not take(guest, more):
        return guest.holder.memory_refusal(more, request.account)
    request.held += more
    request.room = room
    if room > LARGE_BODY:
        guest.holder.read_large(room if becomes_large else more)
    return None


def take(guest: Counted, size: int) -> bool:
    """Count so many bytes more for a connection, if that is within the bound; whether it was."""
    if not guest.holder.take(size):
        return False
    guest.buffered += size
    return True


def _wait_s(guest: Counted, manager: ConnectionManager) -> float:
    """Seconds until the next large body of this caller may arrive."""
    return guest.holder.large_body_wait_s(manager.telemetry.clock())


def _too_large(request: Request, manager: ConnectionManager) -> Refusal:
    message = f"the request body is larger than {request.max_body_bytes} bytes"
    if request.max_body_bytes < manager.settings.max_body_bytes:
        message += ", the most on a route that costs no tokens"
    return Refusal(Reason.BODY_TOO_LARGE, message)
