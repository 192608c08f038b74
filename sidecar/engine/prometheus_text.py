"""One line of the Prometheus text format: bytes in, a sample out. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

Labels = dict[bytes, bytes]

_LABEL = re.compile(
    rb'[ \t]*(?:([a-zA-Z_][a-zA-Z0-9_]*)|"((?:[^"\\]|\\.)*)")[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*(,|(?=\}))'
)
_LABELS_END = re.compile(rb"[ \t]*\}")
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?Inf|NaN")
_ESCAPE = re.compile(rb'\\([\\"n])')
_UNESCAPED = {b"\\": b"\\", b'"': b'"', b"n": b"\n"}


class Sample(NamedTuple):
    """One line of a page."""

    name: bytes
    labels: Labels
    value: float


def read_sample(name: bytes, rest: bytes) -> Sample | None:
    """A sample from the rest of the line after its name; ``None`` if the line violates the format.

    A timestamp or an exemplar may follow the value. Both are ignored.
    """
    labels: Labels = {}
    rest = rest.strip(b" \t\r")
    if rest.startswith(b"{"):
        at = 1
        while (label := _LABEL.match(rest, at)) is not None:
            plain, quoted, value, _ = label.groups()
            labels[plain if plain is not None else _unescaped(quoted)] = _unescaped(value)
            at = label.end()
        end = _LABELS_END.match(rest, at)
        if end is None:
            return None
        rest = rest[end.end() :]
    words = rest.split(None, 1)
    if not words or _NUMBER.fullmatch(words[0]) is None:
        return None
    return Sample(name, labels, float(words[0]))


def _unescaped(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: _UNESCAPED[found[1]], text) if b"\\" in text else text
