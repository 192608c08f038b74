"""Fidelity: the same scenario on a real engine and on the simulator calibrated to it.

The engine is measured first (``loadgen.engine.calibrate``). Then both serve a light load, a heavy load and
an overload. The result is their difference; there is no goal.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.processes import MODEL, Backend, Front, backends, finished, load, own_core
from loadgen.records import load as read_run
from loadgen.statistics import Estimate
from loadgen.summary import Cell, summarise
from toolbox.processes import module

SLOTS = 8
PHASES = ("light", "heavy", "too much")
SCENARIO = """\
name: fidelity
model: small
duration_s: {duration:g}
drain_s: 20
tenants:
  - name: mixed
    key: none
    arrivals: {{poisson: {{rate: 1}}}}
    input: {{uniform: {{least: 16, most: 256}}}}
    output: {{uniform: {{least: 16, most: 128}}}}
phases:
  - {{name: light, from: 0, to: {step:g}, rates: {{mixed: {light:g}}}}}
  - {{name: heavy, from: {step:g}, to: {second:g}, rates: {{mixed: {heavy:g}}}}}
  - {{name: too much, from: {second:g}, to: {duration:g}, rates: {{mixed: {over:g}}}}}
"""


@dataclass(frozen=True)
class Sizes:
    """The duration of each phase, in seconds, and its requests per second.

    An engine with the small model serves about 500 tokens/s in eight streams: 7 requests/s of 72 tokens.
    """

    step: float = 20.0
    light: float = 1.5
    heavy: float = 4.5
    over: float = 9.0


@dataclass(frozen=True)
class Row:
    """One number of one phase, on both engines."""

    phase: str
    what: str
    real: float
    simulated: float

    @property
    def ratio(self) -> float:
        """The simulated number divided by the real one."""
        return self.simulated / self.real if self.real else float("nan")


def scenario(sizes: Sizes) -> str:
    """The scenario file for loadgen."""
    step = sizes.step
    return SCENARIO.format(
        step=step, second=2 * step, duration=3 * step, light=sizes.light, heavy=sizes.heavy, over=sizes.over
    )


def run(sizes: Sizes, seed: int, out: Path) -> list[Row]:
    """Calibrate the simulator to the engine, and run the scenario on both."""
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    file, costs = out / "scenario.yaml", folder / "costs.json"
    file.write_text(scenario(sizes))
    with backends("vllm", folder, 1, (), SLOTS) as engines, own_core(engines[0]):
        calibrate(engines[0], costs)
        _load(file, engines, out / "vllm" / str(seed) / "run", seed, "vllm")
    with backends("simulator", folder, 1, ("--like", str(costs)), SLOTS) as engines:
        _load(file, engines, out / "simulator" / str(seed) / "run", seed, "simulator")
    return compared(out / "vllm" / str(seed) / "run", out / "simulator" / str(seed) / "run")


def calibrate(engine: Backend, costs: Path) -> None:
    """Measure an idle engine, and write what the simulator needs to imitate it: ``--like``."""
    command = [*module("loadgen.engine.calibrate"), "--url", engine.url, "--model", MODEL, "--force"]
    command += ["--streams", "1,2,4,8", "--lengths", "16,64,128,256,512", "--out", str(costs)]
    with costs.with_suffix(".txt").open("wb") as text:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=text, stderr=text)


def _load(file: Path, engines: Sequence[Backend], out: Path, seed: int, label: str) -> None:
    process = load(file, Front([engines[0].url]), out, seed, label)
    finished(process, 600)


def compared(real: Path, simulated: Path) -> list[Row]:
    """All numbers of all phases of two runs."""
    one, other = summarise(read_run(real)), summarise(read_run(simulated))
    rows = []
    for phase in PHASES:
        mine, theirs = one.cell("mixed", phase), other.cell("mixed", phase)
        assert mine is not None
        assert theirs is not None
        left, right = _numbers(mine), _numbers(theirs)
        rows += [Row(phase, what, left[what], right[what]) for what in left]
    return rows


def _numbers(cell: Cell) -> dict[str, float]:
    return {
        "TTFT P50, ms": 1000 * _value(cell.ttft.p50),
        "TTFT P99, ms": 1000 * _value(cell.ttft.p99),
        "between tokens P50, ms": 1000 * (cell.gap_p50_s or 0.0),
        "between tokens P99, ms": 1000 * (cell.gap_p99_s or 0.0),
        "whole P50, ms": 1000 * _value(cell.e2e.p50),
        "output tokens/s": _value(cell.output_tokens_per_s),
    }


def _value(estimate: Estimate | None) -> float:
    return estimate.value if estimate is not None else float("nan")


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| load | | vLLM | simulator | ratio |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {row.phase} | {row.what} | {row.real:.0f} | {row.simulated:.0f} | {row.ratio:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"
