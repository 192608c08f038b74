"""The formats of ``--export``: names, files, and their writing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from loadgen.exports import guidellm, vllm_bench
from loadgen.exports.measured import Measured, measured
from loadgen.records import Run
from loadgen.summary import Summary

FORMATS: dict[str, Callable[[Measured, Summary], dict[str, object]]] = {
    "vllm-bench": vllm_bench.result,
    "guidellm": lambda made, _: guidellm.report(made),
}
"""The name of each format, which is that of its file, and its content."""


def write(folder: Path, run: Run, summary: Summary, names: Iterable[str]) -> list[Path]:
    """Write a run in each of these formats; returns the files."""
    made, written = measured(run), []
    for name in names:
        path = folder / f"{name}.json"
        path.write_bytes(msgspec.json.encode(FORMATS[name](made, summary)))
        written.append(path)
    return written
