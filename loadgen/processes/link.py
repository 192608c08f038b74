"""The messages between the parent and a child. No I/O.

The parent writes the length of an order, the order, and ``start`` with the beginning of the run on the
monotonic clock, which all processes of a machine share. The end of its output asks the child to end its part.
The child writes one JSON message a line.
"""

from __future__ import annotations

import pickle
import struct

import msgspec

from loadgen.run import Order

HEAD = struct.Struct("!Q")
"""The length of an order in bytes."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child has read its order, and waits for the start."""


class Reached(msgspec.Struct, frozen=True, tag="reached"):
    """The progress of a part."""

    in_flight: int
    ended: dict[str, int]
    """The number of attempts with each outcome."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The part has ended, and its files are complete. ``error`` is empty, or the reason why it failed."""

    error: str = ""


Message = Ready | Reached | Done
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode


def packed(order: Order) -> bytes:
    """An order with its length. It contains keys, so it passes through a pipe only."""
    content = pickle.dumps(order)
    return HEAD.pack(len(content)) + content


def unpacked(content: bytes) -> Order:
    """The order of the parent."""
    order = pickle.loads(content)
    assert isinstance(order, Order)
    return order


def line(message: Message) -> bytes:
    """A message as a line."""
    return _encode(message) + b"\n"


def read(text: bytes) -> Message:
    """The message of a line. Raises ``msgspec.DecodeError``."""
    return _decode(text)


def start(zero_s: float) -> bytes:
    """The line that begins a run."""
    return b"%r\n" % zero_s


def started(text: bytes) -> float | None:
    """The beginning of the run; ``None`` if the parent ended before it."""
    return float(text) if text else None
