"""BurstGPT's traces of ChatGPT and GPT-4 (CC-BY 4.0).

CSV with the columns ``Timestamp`` (seconds), ``Model``, ``Request tokens``, ``Response tokens``, ``Total
tokens`` and ``Log Type``. Newer files have ``Session ID`` and ``Elapsed time``, too. A failed request has no
response tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from loadgen.workloads.rows import Row, Table

COLUMNS = {
    "time": "Timestamp",
    "model": "Model",
    "input": "Request tokens",
    "output": "Response tokens",
    "log": "Log Type",
}


def read(path: Path, model: str = "", log_type: str = "") -> Iterator[Row]:
    """The requests of one model and log type, or of all, in the file's order. Raises ``ScenarioError``."""
    table = Table(path, COLUMNS, "BurstGPT")
    for line, (time, of_model, inputs, outputs, log) in table:
        if (model and of_model != model) or (log_type and log != log_type):
            continue
        yield Row(
            line,
            table.seconds(line, COLUMNS["time"], time),
            table.whole(line, COLUMNS["input"], inputs),
            table.whole(line, COLUMNS["output"], outputs),
        )
