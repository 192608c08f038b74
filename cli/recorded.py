"""Reads recorded requests: from a coordinator, or from CSV such as its exports and Azure's public traces.

The first row names the columns. Times may be ISO 8601 or seconds. A usage record has the time of the
settlement: the arrival is earlier by its queue time and by its sequence-seconds. A request with several
sequences counts as earlier than it was. A file that ends in ``.gz`` is unpacked.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from urllib.parse import urlencode

from cli import admin_port
from cli.command import CommandFailed
from loadgen.fields import ScenarioError
from loadgen.workloads import azure
from loadgen.workloads.rows import content
from runtime.options import Origin
from simulation.setup import Recorded

_NAMES = {
    "time": "time",
    "input": "input_tokens",
    "output": "output_tokens",
    "cached": "cached_tokens",
    "queue": "queue_s",
    "running": "sequence_seconds",
    "entitlement": "entitlement",
    "pool": "pool",
}
"""The name of each column, in lower case."""
_REQUIRED = ("time", "input", "output")


@dataclass(frozen=True, slots=True)
class Row:
    """One request, with its absolute time."""

    time: float
    """Seconds of any clock that all files share."""
    pool: str
    """Empty if the file does not state it."""
    recorded: Recorded


def read(given: Iterable[str], pool: str) -> list[Recorded]:
    """The requests of files for one pool, in the order of their times. The first one is at 0 s.

    An item is ``FILE``, or ``ENTITLEMENT=FILE`` for a file without that column. Files that name different
    entitlements begin at the same time. Raises ``CommandFailed`` and ``OSError``.
    """
    parts: list[Row] = []
    for item in given:
        entitlement, _, path = item.rpartition("=")
        rows = [row for row in _rows(Path(path), entitlement) if row.pool in ("", pool)]
        if entitlement and rows:
            # Traces of different services were recorded at different times.
            start = min(row.time for row in rows)
            rows = [replace(row, time=row.time - start) for row in rows]
        parts += rows
    return _in_order(parts, pool)


def from_coordinator(where: Origin, query: Sequence[tuple[str, str]], pool: str) -> list[Recorded]:
    """The same from the usage store, through a coordinator. ``query`` names the period."""
    path = f"{admin_port.RECORDS}?{urlencode([*query, ('format', 'csv'), ('pool', pool)])}"
    with admin_port.answer(where, path) as response:
        text = admin_port.whole(where, response).decode()
    return _in_order(list(_parsed(text, Path(where.url), "")), pool)


def _in_order(parts: Sequence[Row], pool: str) -> list[Recorded]:
    if not parts:
        raise CommandFailed(f"simulate: the record has no request for pool {pool!r}")
    start = min(row.time for row in parts)
    return sorted((replace(row.recorded, at_s=row.time - start) for row in parts), key=lambda each: each.at_s)


def _rows(path: Path, entitlement: str) -> Iterator[Row]:
    try:
        if azure.is_trace(path):
            yield from _azure(path, entitlement)
        else:
            yield from _parsed(content(path).decode("utf-8-sig"), path, entitlement)
    except ScenarioError as error:
        raise CommandFailed(str(error)) from error


def _azure(path: Path, entitlement: str) -> Iterator[Row]:
    if not entitlement:
        raise CommandFailed(f"{path}: a trace names no entitlement; give it as ENTITLEMENT={path}")
    for row in azure.read(path):
        yield Row(row.at_s, "", Recorded(0.0, entitlement, row.input_tokens, row.output_tokens, 0))


def _parsed(text: str, path: Path, entitlement: str) -> Iterator[Row]:
    lines = csv.reader(io.StringIO(text))
    columns = _columns(path, next(lines, []), entitlement)
    for number, cells in enumerate(lines, 2):
        if not cells:
            continue
        try:
            yield _row({name: cells[place] for name, place in columns.items()}, entitlement)
        except (ValueError, IndexError) as error:
            raise CommandFailed(f"{path}:{number}: {error}; the row must have all columns") from error


def _columns(path: Path, heads: list[str], entitlement: str) -> dict[str, int]:
    """The place of each column that is known."""
    lower = [head.strip().lower() for head in heads]
    found = {column: lower.index(name) for column, name in _NAMES.items() if name in lower}
    missing = [column for column in _REQUIRED if column not in found]
    if missing:
        wanted = ", ".join(_NAMES[column] for column in missing)
        raise CommandFailed(f"{path}:1: there is no column {wanted}; the first row must name the columns")
    if "entitlement" not in found and not entitlement:
        raise CommandFailed(
            f"{path}:1: there is no column entitlement; give the file as ENTITLEMENT={path} to name it"
        )
    return found


def _row(cells: Mapping[str, str], entitlement: str) -> Row:
    spent = float(cells.get("queue") or 0.0) + float(cells.get("running") or 0.0)
    return Row(
        _time(cells["time"]) - spent,
        cells.get("pool", ""),
        Recorded(
            0.0,
            entitlement or cells["entitlement"],
            _tokens(cells["input"]),
            _tokens(cells["output"]),
            _tokens(cells.get("cached", "0") or "0"),
        ),
    )


def _time(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a time")
    return number


def _tokens(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(f"{text!r} is not a number of tokens")
    return number
