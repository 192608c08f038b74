"""The pool of ``experiments.one_pool``: real processes, with engines that have a fixed time per token."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import metrics
from experiments.processes import MODEL, Backend, Front, backends, finished, load, sidecars
from experiments.queues import Shape
from loadgen.records import Run
from loadgen.records import load as read_run

STEP_S, TOKENS = 0.02, 50
"""A request of a second. 30 of them a second leave half of two cores idle."""
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

    @classmethod
    def read(cls, engines: Sequence[Backend], front: Front) -> Counts:
        """The counters now."""
        pages = [f"{engine.url}/metrics" for engine in engines]
        ours = [state.replace("/debug/state", "/metrics") for state in front.states]
        return cls(
            metrics.by_label(pages, "vllm:request_success_total", "finished_reason"),
            metrics.total(pages, "vllm:generation_tokens_total"),
            metrics.by_label(ours, "tokenpool_handovers_total", "result"),
        )

    def __sub__(self, before: Counts) -> Counts:
        return Counts(
            self.endings - before.endings, self.tokens - before.tokens, self.handovers - before.handovers
        )


def pool_file(shape: Shape, entitlements: Mapping[str, str]) -> str:
    """The pool file. ``entitlements`` are terms by name."""
    rows = [f"  - {{name: {n}, pool: chat, api_keys: [{n}-key], {t}}}\n" for n, t in entitlements.items()]
    return POOL.format(model=MODEL, slots=shape.slots, replicas=shape.replicas, entitlements="".join(rows))


def engine_flags(case: Case) -> list[str]:
    """The options of an engine. A simulated one has a fixed time per step."""
    if case.engine == "vllm":
        return []
    fixed = ("--per-sequence", "0", "--per-prompt-token", "0", "--per-request", "0")
    return ["--step", f"{case.shape.step_s:g}", *fixed]


def record(
    case: Case, scenario: str, duration_s: float, entitlements: Mapping[str, str], out: Path
) -> tuple[Run, Counts]:
    """Start a pool, and run a scenario once. ``entitlements`` are terms by name."""
    folder, shape = out / "parts", case.shape
    folder.mkdir(parents=True, exist_ok=True)
    file, pool = out / "scenario.yaml", folder / "pool.yaml"
    file.write_text(scenario)
    pool.write_text(pool_file(shape, entitlements))
    with (
        backends(case.engine, folder, shape.replicas, engine_flags(case), shape.slots) as engines,
        sidecars(folder, pool, engines, case.options, None) as front,
    ):
        time.sleep(JOINED_S)
        before = Counts.read(engines, front)
        finished(load(file, front, out / "run", case.seed, out.name), duration_s + 120)
        counts = Counts.read(engines, front) - before
    return read_run(out / "run"), counts
