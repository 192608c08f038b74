"""The pool of ``experiments.one_pool``: real processes, and engines with a fixed time per token."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from experiments import metrics
from experiments.processes import MODEL, Backend, Front, backends, finished, load, sidecars
from experiments.queues import Shape
from experiments.service import tokens
from loadgen.records import Run
from loadgen.records import load as read_run

STEP_S, TOKENS = 0.02, 50
"""A request takes a second. 30 of them per second leave half of two cores idle."""
INPUT = 16
JOINED_S = 4.0
"""Seconds until every sidecar has joined and read all limits twice."""
TENANT = """\
  - {{name: {name}, key: {name}-key, arrivals: {{poisson: {{rate: {rate:.4f}}}}}, input: {input},
     output: {output}, starts_s: {starts:g}}}
"""
POOL = """\
pools:
  - name: chat
    models: [{model}]
    replica: {{tokens_per_second: auto, kv_tokens: auto, concurrency: {slots}}}
    replicas: {{min: {replicas}, max: {replicas}}}
entitlements:
{entitlements}"""


class Case(NamedTuple):
    """One point to measure."""

    shape: Shape
    load: int
    """Percent of all slots."""
    seconds: float
    seed: int
    engine: str = "simulator"
    options: tuple[str, ...] = ()
    """Options of the sidecars."""


class Counts(NamedTuple):
    """Counters of the engines and sidecars."""

    endings: Counter[str]
    tokens: float
    handovers: Counter[str]

    @property
    def finished(self) -> int:
        """Requests that the engines finished."""
        return self.endings["stop"] + self.endings["length"]

    def __sub__(self, before: Counts) -> Counts:
        return Counts(
            self.endings - before.endings, self.tokens - before.tokens, self.handovers - before.handovers
        )


def pool_file(shape: Shape, entitlements: Mapping[str, str]) -> str:
    """The pool file. ``entitlements`` has the terms of each entitlement by name."""
    rows = [f"  - {{name: {n}, pool: chat, api_keys: [{n}-key], {t}}}\n" for n, t in entitlements.items()]
    return POOL.format(model=MODEL, slots=shape.slots, replicas=shape.replicas, entitlements="".join(rows))


def engine_flags(case: Case) -> list[str]:
    """The options of an engine. A simulated one has a fixed time per step."""
    if case.engine == "vllm":
        return []
    fixed = ("--per-sequence", "0", "--per-prompt-token", "0", "--per-request", "0")
    return ["--step", f"{case.shape.step_s:g}", *fixed]


@dataclass(frozen=True)
class Parts:
    """A running pool."""

    engines: Sequence[Backend]
    front: Front

    @property
    def engine_pages(self) -> list[str]:
        """The engines' metrics pages."""
        return [f"{engine.url}/metrics" for engine in self.engines]

    @property
    def sidecar_pages(self) -> list[str]:
        """The sidecars' metrics pages."""
        return [state.replace("/debug/state", "/metrics") for state in self.front.states]

    def counts(self) -> Counts:
        """The counters now."""
        ours = self.sidecar_pages
        return Counts(
            metrics.by_label(self.engine_pages, "vllm:request_success_total", "finished_reason"),
            metrics.total(self.engine_pages, "vllm:generation_tokens_total"),
            metrics.by_label(ours, "tokenpool_handovers_total", "result"),
        )


@contextlib.contextmanager
def running(
    engine: str, shape: Shape, flags: Sequence[str], pool: str, options: Sequence[str], out: Path
) -> Iterator[Parts]:
    """Start a pool. ``flags`` are options of the engines, ``options`` those of the sidecars."""
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pool.yaml"
    file.write_text(pool)
    with (
        backends(engine, folder, shape.replicas, flags, shape.slots) as engines,
        sidecars(folder, file, engines, options, None) as front,
    ):
        time.sleep(JOINED_S)
        yield Parts(engines, front)


CALIBRATION = """\
name: calibration
model: {model}
duration_s: {duration:g}
drain_s: 10
tenants:
  - {{name: all, arrivals: {{closed: {{workers: {slots}}}}}, input: {input}, output: {output}}}
"""
CALIBRATION_S = 20.0


def calibrated(engine: str, shape: Shape, seed: int, out: Path) -> Shape:
    """The shape with the time per token while all slots of all engines are in use. Starts no sidecars.

    A real engine takes longer per token with more sequences. Engines that share cores slow each other down.
    """
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    file, slots = out / "scenario.yaml", shape.replicas * shape.slots
    file.write_text(
        CALIBRATION.format(model=MODEL, duration=CALIBRATION_S, slots=slots, input=INPUT, output=shape.tokens)
    )
    with backends(engine, folder, shape.replicas, (), shape.slots) as engines:
        front = Front([each.url for each in engines])
        finished(load(file, front, out / "run", seed, out.name), CALIBRATION_S + 120)
    start, end = CALIBRATION_S / 4, CALIBRATION_S
    made = tokens(read_run(out / "run"), ["all"], start, end, prompts=False)["all"]
    return shape._replace(step_s=slots * (end - start) / made)


def record(
    case: Case, scenario: str, duration_s: float, entitlements: Mapping[str, str], out: Path
) -> tuple[Run, Counts]:
    """Start a pool, and run a scenario once. ``entitlements`` has the terms of each entitlement by name."""
    pool = pool_file(case.shape, entitlements)
    with running(case.engine, case.shape, engine_flags(case), pool, case.options, out) as parts:
        file = out / "scenario.yaml"
        file.write_text(scenario)
        before = parts.counts()
        finished(load(file, parts.front, out / "run", case.seed, out.name), duration_s + 120)
        counts = parts.counts() - before
    return read_run(out / "run"), counts
