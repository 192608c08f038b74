"""Turns a graph of live objects into a value with a hash, and back.

A state of a small world is such a value. The shipped code runs on live objects, which are rebuilt from the
value at one fixed time ``NOW`` and turned into a value again. So all times in a value are relative, and two
states with the same future have the same value, whatever the time and the history.

``Rules`` names the fields that need more than a copy:

- A time is stored relative to now, between two bounds. A time in the past often has the same effect whatever
  its age; the bound says from which age on.
- A fixed field has no effect on the protocol in these worlds (a statistic), or an effect that a world leaves
  out. It is not stored, and has the same value in each rebuilt object.
- Any other field can have a pair of functions.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

NOW = 1024.0
"""The time of all live objects, in seconds. Multiples of 1/4 s around it are exact."""
PRECISION = 6
"""Decimals of a relative time in seconds."""

Value = Hashable
Encode = Callable[[Any, float], Value]
Decode = Callable[[Any], Any]


class Field(NamedTuple):
    """How one field is stored: from a live value and the time, and back."""

    encode: Encode
    decode: Decode


def time_field(least: float, most: float = math.inf, *, grid: float = 0.0) -> Field:
    """A time in seconds. Relative to now it counts as at least ``least`` and at most ``most``.

    With a ``grid`` it counts as the next multiple of it: the process is that late.
    """

    def encode(at: float, now: float) -> float:
        relative = min(max(at - now, least), most)
        if grid and relative < math.inf:
            relative = math.ceil(round(relative / grid, PRECISION)) * grid
        return round(relative, PRECISION) + 0.0

    return Field(encode, lambda relative: NOW + relative)


def fixed(value: Any) -> Field:
    """A field without effect, or whose effect is left out."""
    return Field(lambda _value, _now: None, lambda _stored: value)


def made(make: Callable[[], Any]) -> Field:
    """A field without effect that the code changes: each rebuilt object gets its own."""
    return Field(lambda _value, _now: None, lambda _stored: make())


class Rules:
    """The fields that are not copied, and the types whose values are stored as they are."""

    def __init__(
        self,
        fields: Mapping[tuple[type, str], Field],
        atoms: frozenset[type],
        makers: Mapping[type, Callable[[], Any]] | None = None,
    ) -> None:
        """``makers`` build an object of a class that has no plain ``__new__``."""
        self._fields = fields
        self._atoms = atoms | {type(None), bool, int, float, str, bytes}
        self._makers = makers or {}

    def freeze(self, root: object, now: float) -> Value:
        """The value of a graph of objects at ``now``."""
        return _Freezing(self._fields, self._atoms, now).value(root)

    def thaw(self, value: Any) -> Any:
        """A new graph of objects with this value, at ``NOW``."""
        return _Thawing(self._fields, self._makers).live(value)


class _Freezing:
    def __init__(self, fields: Mapping[tuple[type, str], Field], atoms: frozenset[type], now: float) -> None:
        self._fields, self._atoms, self._now = fields, atoms, now
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []

    def value(self, live: Any) -> Value:
        kind = type(live)
        if kind in self._atoms or isinstance(live, enum.Enum):
            return live  # type: ignore[no-any-return]
        if kind is dict:
            return ("d", *((self.value(key), self.value(each)) for key, each in live.items()))
        if kind is tuple:
            return ("t", *map(self.value, live))
        if kind is list:
            return ("l", *map(self.value, live))
        if kind is set:
            return ("s", *sorted(map(self.value, live)))  # type: ignore[type-var]
        if kind is deque:
            return ("q", live.maxlen, *map(self.value, live))
        number = self._seen.get(id(live))
        if number is not None:
            return ("r", number)
        self._seen[id(live)] = len(self._seen)
        self._kept.append(live)  # so that no other object gets its id
        parts: list[Value] = []
        for name in names_of(kind, live):
            rule = self._fields.get((kind, name))
            part = getattr(live, name)
            parts.append(self.value(part) if rule is None else rule.encode(part, self._now))
        tagged: list[Any] = ["o", kind, *parts]
        return tuple(tagged)


class _Thawing:
    def __init__(
        self, fields: Mapping[tuple[type, str], Field], makers: Mapping[type, Callable[[], Any]]
    ) -> None:
        self._fields, self._makers = fields, makers
        self._made: list[Any] = []

    def live(self, value: Any) -> Any:
        if type(value) is not tuple:
            return value
        tag = value[0]
        if tag == "o":
            kind = value[1]
            maker = self._makers.get(kind)
            made_now = kind.__new__(kind) if maker is None else maker()
            self._made.append(made_now)
            for name, part in zip(names_of(kind), value[2:], strict=True):
                rule = self._fields.get((kind, name))
                setattr(made_now, name, self.live(part) if rule is None else rule.decode(part))
            return made_now
        if tag == "r":
            return self._made[value[1]]
        if tag == "d":
            return {self.live(key): self.live(part) for key, part in value[1:]}
        if tag == "t":
            return tuple(map(self.live, value[1:]))
        if tag == "l":
            return list(map(self.live, value[1:]))
        if tag == "s":
            return set(value[1:])
        return deque(map(self.live, value[2:]), maxlen=value[1])


_NAMES: dict[type, tuple[str, ...]] = {}


def names_of(kind: type, live: object = None) -> tuple[str, ...]:
    """The fields of a class, in a fixed order. A class without slots is known from its first object.

    Classes that mypyc compiled list their fields.
    """
    found = _NAMES.get(kind)
    if found is None:
        names: dict[str, None] = {}
        for base in reversed(kind.__mro__):
            for listed in ("__slots__", "__mypyc_attrs__", "__struct_fields__"):
                slots = base.__dict__.get(listed, ())
                if isinstance(slots, tuple | list):
                    names.update(dict.fromkeys(slots))
        names.update(dict.fromkeys(getattr(live, "__dict__", ())))
        names.pop("__dict__", None)
        names.pop("__weakref__", None)
        found = _NAMES[kind] = tuple(names)
    return found
