"""Azure's public LLM inference traces, of 2023 and of 2024 (CC-BY 4.0).

CSV with the columns ``TIMESTAMP``, ``ContextTokens`` and ``GeneratedTokens``. In 2023 a timestamp has seven
decimals and no time zone; in 2024 it has six decimals or none, and an offset such as ``+00:00``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from loadgen.workloads.rows import Row, Table, broken, lines

COLUMNS = {"time": "TIMESTAMP", "input": "ContextTokens", "output": "GeneratedTokens"}


def is_trace(path: Path) -> bool:
    """Whether the first line of a file names the columns of these traces. Raises ``ScenarioError``."""
    heads = {head.strip() for head in next(lines(path), "").split(",")}
    return heads.issuperset(COLUMNS.values())


def read(path: Path) -> Iterator[Row]:
    """The requests, in the order of the file. Times are Unix times. Raises ``ScenarioError``."""
    table = Table(path, COLUMNS, "an Azure LLM trace")
    for line, (time, inputs, outputs) in table:
        yield Row(
            line,
            _seconds(path, line, time),
            table.whole(line, COLUMNS["input"], inputs),
            table.whole(line, COLUMNS["output"], outputs),
        )


def _seconds(path: Path, line: int, text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        broken(path, line, f"TIMESTAMP is {text!r}", "write a time such as 2023-11-16 18:15:46.6805900")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
