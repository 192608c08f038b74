"""Helpers for files with one JSON object in each line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from loadgen.decoding import UNDECODABLE
from loadgen.workloads.rows import broken, lines

_Record = TypeVar("_Record")


def decoded(path: Path, kind: type[_Record], fix: str) -> Iterator[tuple[int, _Record]]:
    """The number and the record of each line that is not blank. Raises ``ScenarioError`` with ``fix``."""
    decode = msgspec.json.Decoder(kind).decode
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            try:
                yield number, decode(line)
            except UNDECODABLE as error:
                broken(path, number, str(error), fix)
