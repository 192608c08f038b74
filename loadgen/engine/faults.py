"""Faults of a simulated engine: their fields, their validation, and the choice for each request. Pure.

A fault is an object, as JSON or as ``KIND:name=value,...`` on the command line. Time and randomness are
arguments. ``Faults`` decides; ``injection`` and ``process`` carry the decisions out.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class Kind(enum.StrEnum):
    """What a fault does."""

    STATUS = "status"
    """A request is answered with an error status at once."""
    DELAY = "delay"
    """The answer to a request begins later."""
    HANG = "hang"
    """A request has no answer until the fault ends."""
    BROKEN = "broken"
    """A page has the first half of its bytes."""
    ERROR_EVENT = "error-event"
    """A stream ends with an error event; a response without a stream is an error."""
    CUT = "cut"
    """The connection is closed in the middle of a stream, or before a response without a stream."""
    CRLF = "crlf"
    """The lines of events end in CR LF."""
    COMMENTS = "comments"
    """Comments stand between the events of a stream."""
    GZIP = "gzip"
    """The response is compressed, also if the client did not ask for it."""
    NO_USAGE = "no-usage"
    """The response has no usage."""
    SPLIT_USAGE = "split-usage"
    """A Messages stream tells its input tokens only at its start, and its output tokens only at its end."""
    STALL = "stall"
    """The engine computes nothing for some seconds."""
    RESTART = "restart"
    """The engine loses its requests and counters, and is away for some seconds."""


MOST_S = 1e6
"""The longest delay, stall or absence, s. A longer one would be an engine that never answers again."""
PAGES = {Kind.STATUS, Kind.DELAY, Kind.HANG, Kind.BROKEN}
ONCE = {Kind.STALL, Kind.RESTART}
"""Kinds that happen to the whole engine at one time."""
_FIELDS: Mapping[Kind, set[str]] = {
    Kind.STATUS: {"status"},
    Kind.DELAY: {"seconds"},
    Kind.ERROR_EVENT: {"status", "tokens"},
    Kind.CUT: {"tokens"},
    Kind.STALL: {"seconds"},
    Kind.RESTART: {"seconds"},
}
"""The fields of each kind, besides those of all kinds."""
_OF_REQUESTS = {"path", "share", "for_s"}


class FaultError(ValueError):
    """A fault is not valid. The text names the field and the fix."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    kind: Kind
    path: str = "/v1/"
    """The beginning of the paths that it concerns."""
    share: float = 1.0
    """The share of the requests that it concerns, drawn for each."""
    at_s: float = 0.0
    """Its beginning, in seconds from its creation."""
    for_s: float = math.inf
    """Its duration, s."""
    status: int = 500
    seconds: float = 1.0
    """The delay, or the time without steps or without a listener, s."""
    tokens: int = 1
    """The tokens of the stream before its end."""

    def __post_init__(self) -> None:
        for name in ("at_s", "for_s", "seconds"):
            if not getattr(self, name) >= 0:
                raise FaultError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("at_s", "seconds"):
            if not getattr(self, name) <= MOST_S:
                raise FaultError(f"{name} is {getattr(self, name)}; it must be {MOST_S:g} at most")
        if not 0 < self.share <= 1:
            raise FaultError(f"share is {self.share}; it must be above 0, and 1 at most")
        if not 400 <= self.status <= 599:
            raise FaultError(f"status is {self.status}; it must be from 400 to 599")
        if self.tokens < 0:
            raise FaultError(f"tokens is {self.tokens}; it must be 0 or more")
        if not self.path.startswith("/"):
            raise FaultError(f"path is {self.path!r}; it must begin with /")

    def shown(self) -> dict[str, Any]:
        """Its fields as JSON."""
        told = {name: getattr(self, name) for name in sorted(_names(self.kind))}
        return {"kind": str(self.kind)} | {
            name: value for name, value in told.items() if value is not None and value != math.inf
        }


def read_fault(content: Mapping[str, object]) -> Fault:
    """A fault from its fields; numbers may be text. Raises ``FaultError``."""
    kinds = ", ".join(Kind)
    if "kind" not in content:
        raise FaultError(f"kind is missing; give one of {kinds}")
    try:
        kind = Kind(str(content["kind"]))
    except ValueError:
        raise FaultError(f"kind is {content['kind']!r}; it must be one of {kinds}") from None
    given: dict[str, Any] = {}
    for name, value in content.items():
        if name == "kind":
            continue
        if name not in _names(kind):
            names = ", ".join(sorted(_names(kind)))
            raise FaultError(f"{name} is not a field of {kind}; its fields are {names}")
        given[name] = _value(name, value)
    return Fault(kind, **given)


def parse_fault(text: str) -> Fault:
    """A fault from ``KIND:name=value,...``. Raises ``FaultError``."""
    kind, _, rest = text.partition(":")
    content: dict[str, object] = {"kind": kind}
    for each in filter(None, rest.split(",")):
        name, equals, value = each.partition("=")
        if not equals:
            raise FaultError(f"{each!r} in {text!r} is not name=value")
        content[name] = value
    return read_fault(content)


@dataclass(frozen=True, slots=True)
class Drawn:
    """The faults of one request."""

    faults: tuple[Fault, ...]

    def of(self, *kinds: Kind) -> Fault | None:
        """The first fault of one of these kinds."""
        return next((fault for fault in self.faults if fault.kind in kinds), None)


class Faults:
    """The faults of one engine, each with a number and the time of its beginning."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._faults: dict[int, tuple[Fault, float]] = {}
        self._last = 0

    def add(self, fault: Fault, now: float) -> int:
        """Add a fault; returns its number."""
        self._last += 1
        self._faults[self._last] = fault, now + fault.at_s
        return self._last

    @property
    def numbers(self) -> list[int]:
        """The numbers of all faults."""
        return list(self._faults)

    def remove(self, number: int) -> bool:
        """Remove a fault; ``False`` for an unknown one."""
        return self._faults.pop(number, None) is not None

    def clear(self) -> None:
        """Remove all faults."""
        self._faults.clear()

    def drawn(self, path: str, now: float) -> Drawn | None:
        """The faults of a request; ``None`` without any."""
        if not self._faults:
            return None
        chosen = [
            fault
            for fault, begin in self._faults.values()
            if fault.kind not in ONCE
            and begin <= now < begin + fault.for_s
            and path.startswith(fault.path)
            and (fault.share >= 1 or self._chance.random() < fault.share)
        ]
        return Drawn(tuple(chosen)) if chosen else None

    def due(self, now: float) -> list[Fault]:
        """The faults of the whole engine that begin by now. They are removed."""
        due = [
            number for number, (fault, begin) in self._faults.items() if fault.kind in ONCE and begin <= now
        ]
        return [self._faults.pop(number)[0] for number in due]

    def next_at(self) -> float | None:
        """The time of the next fault of the whole engine."""
        return min((begin for fault, begin in self._faults.values() if fault.kind in ONCE), default=None)

    def holds(self, fault: Fault, now: float) -> bool:
        """Whether a fault of ``drawn`` still lasts."""
        return any(each is fault and now < begin + fault.for_s for each, begin in self._faults.values())

    def shown(self, now: float) -> Iterator[dict[str, Any]]:
        """All faults as JSON, each with its number and whether it is active."""
        for number, (fault, begin) in self._faults.items():
            active = begin <= now < begin + fault.for_s
            yield {"id": number, "active": active, **fault.shown()}


def _names(kind: Kind) -> set[str]:
    return {"at_s"} | (set() if kind in ONCE else _OF_REQUESTS) | _FIELDS.get(kind, set())


def _value(name: str, value: object) -> object:
    if name == "path":
        return str(value)
    kind = int if name in ("status", "tokens") else float
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise FaultError(f"{name} is {value!r}; it must be a number")
    try:
        made = kind(value)
    except (ValueError, OverflowError):
        raise FaultError(f"{name} is {value!r}; it must be a number") from None
    if kind is int and isinstance(value, float) and made != value:
        raise FaultError(f"{name} is {value!r}; it must be a whole number")
    return made
