"""The load generator's own format: JSON lines such as ``{"at": 0.5, "input": 100, "output": 20}``.

``at`` is in seconds from the start; the others are tokens. The order of the lines does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

import msgspec

from loadgen.length_fields import LONGEST_TOKENS
from loadgen.workloads.jsonlines import decoded
from loadgen.workloads.rows import Row, broken

_FIX = 'write lines such as {"at": 0.5, "input": 100, "output": 20}'


class _Line(msgspec.Struct):
    at: float
    input: int
    output: int


def read(path: Path) -> list[Row]:
    """The requests, in the order of their times. Raises ``ScenarioError``."""
    return sorted(_rows(path), key=attrgetter("at_s"))


def _rows(path: Path) -> Iterator[Row]:
    for number, line in decoded(path, _Line, _FIX):
        if not (math.isfinite(line.at) and line.at >= 0):
            broken(path, number, f"at is {line.at:g}", "write seconds from the start, at least 0")
        for name, tokens in (("input", line.input), ("output", line.output)):
            if not 1 <= tokens <= LONGEST_TOKENS:
                broken(path, number, f"{name} is {tokens}", f"write from 1 to {LONGEST_TOKENS} tokens")
        yield Row(number, line.at, line.input, line.output)
