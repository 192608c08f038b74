"""Writes the formats of ``--export``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from loadgen.exports import FILES, guidellm, vllm_bench
from loadgen.exports.measured import Measured, measured
from loadgen.records import Run
from loadgen.summary import Summary

_MAKERS: dict[str, Callable[[Measured, Summary], dict[str, object]]] = {
    "vllm-bench": vllm_bench.result,
    "guidellm": lambda made, _: guidellm.report(made),
}


def write(folder: Path, run: Run, summary: Summary, names: Iterable[str]) -> None:
    """Write a run into its folder in each of these formats of `exports.FORMATS`."""
    made = measured(run)
    for name in names:
        (folder / FILES[name]).write_bytes(msgspec.json.encode(_MAKERS[name](made, summary)))
