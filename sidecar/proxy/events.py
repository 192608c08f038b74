"""The events of the request parser: the content of one client connection's bytes, in order.

Events are values. They have no data about callers, limits per caller or connections. An event belongs to the
request of the last ``HeadReceived``. The exception is a ``BadRequest`` before the head of its request is
complete.
"""

from __future__ import annotations

from typing import Final

from sidecar.proxy.heads import RequestHead
from tokenpool.outcomes import Reason


class HeadReceived:
    """The head of a request is complete and valid.

    The connection decides now whether the request goes on. If not, it calls ``RequestParser.end``. If so, and
    the body is chunked, it states with ``RequestParser.allow_body`` how many bytes may be collected.
    """

    __slots__ = ("head", "is_as_sent", "is_chunked", "length", "size")

    def __init__(self, head: RequestHead, length: int, is_chunked: bool, size: int, is_as_sent: bool) -> None:
        self.head = head
        self.length = length
        """The bytes of the body; 0 if there is none, or if it is chunked."""
        self.is_chunked = is_chunked
        self.size = size
        """The approximate size of the head: the bytes of its target and headers."""
        self.is_as_sent = is_as_sent
        """Whether the head can be cached: no upgrade was declined, and no ``Expect`` was sent."""


class ContinueExpected:
    """The client waits for a ``100 Continue`` before it sends the body, or sends it after a timeout."""

    __slots__ = ()


class BodyOutgrew:
    """A chunked body is larger than ``allow_body`` permitted."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size
        """The bytes of the body so far."""


class RequestReceived:
    """The request is complete."""

    __slots__ = ("body", "closes")

    def __init__(self, body: bytes, closes: bool) -> None:
        self.body = body
        self.closes = closes
        """Whether the parser reads nothing after it."""


class BadRequest:
    """The bytes are no valid request, or exceed a limit of the parser. Nothing after them is read."""

    __slots__ = ("head", "message", "reason")

    def __init__(self, head: RequestHead, reason: Reason, message: str) -> None:
        self.head = head
        """The part of the request's head that was read."""
        self.reason = reason
        self.message = message


class NeedData:
    """All bytes are parsed."""

    __slots__ = ()


class Paused:
    """Bytes are left, but the turn is over: go on with ``RequestParser.begin_turn``."""

    __slots__ = ()


Event = HeadReceived | ContinueExpected | BodyOutgrew | RequestReceived | BadRequest | NeedData | Paused

CONTINUE_EXPECTED: Final = ContinueExpected()
NEED_DATA: Final = NeedData()
PAUSED: Final = Paused()
