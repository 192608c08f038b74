"""Scarcity: elastic tenants of different sizes, weights and SLOs. One of two engines is lost, and returns.

Demand is persistent (closed loop). There are a Redis and a coordinator, and a run without debt to compare.
Goal: weighted service converges. Jain's index is at least 0.98 over the first 20 s after the loss, and 0.99
over any later 60 s. Each tenant is within 5 % of its fair share (10 % in the worst run).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from experiments.processes import backends, finished, load, lose, sidecars
from experiments.service import sequence_seconds, service, spans, tokens
from loadgen.records import Run
from loadgen.records import load as read_run
from toolbox.fairness import by_weight, deviation, jain_by_weight

SLOTS = 16
WEIGHTS = {"small": 1.0, "large": 2.0, "middle": 1.0, "long": 2.0}
_SIZES = {"small": (8, 24), "large": (80, 240), "middle": (24, 72), "long": (40, 120)}
"""Input and output tokens: 10 to 1."""
_SLOS = {"small": 250, "large": 500, "middle": 1000, "long": 330}


class System(NamedTuple):
    """One system under test."""

    name: str
    debt_gain: float | None
    """``None`` means the default."""


SYSTEMS = (System("with debt", None), System("without debt", 0.0))
TENANT = """\
  - name: {name}
    key: {name}-key
    tier: elastic
    arrivals: {{closed: {{workers: {workers}}}}}
    input: {input}
    output: {output}
    retries: {{most: 100000, honour_retry_after: true}}
"""
SCENARIO = """\
name: scarcity
model: small
duration_s: {duration:g}
drain_s: 5
spread: random
tenants:
{tenants}phases:
  - {{name: two engines, from: 0, to: {cut:g}}}
  - {{name: one engine, from: {cut:g}, to: {back:g}}}
  - {{name: two again, from: {back:g}, to: {duration:g}}}
"""
POOL = """\
pools:
  - name: chat
    models: [small]
    replica: {{tokens_per_second: auto, kv_tokens: auto, concurrency: {slots}}}
    replicas: {{min: 1, max: 2}}
entitlements:
{tenants}"""
ENTITLEMENT = """\
  - name: {name}
    pool: chat
    tier: elastic
    weight: {weight:g}
    slo: {{ttft_ms: {slo}}}
    api_keys: [{name}-key]
"""


@dataclass(frozen=True)
class Sizes:
    """Durations in seconds, and each tenant's number of workers."""

    whole: float = 15.0
    one: float = 90.0
    after: float = 30.0
    workers: int = 24


@dataclass(frozen=True)
class Result:
    """One run."""

    system: str
    seed: int
    first_jain: float
    later_jain: float
    """The lowest index over any later 60 s, or over the rest of the run if that is shorter."""
    deviation: float
    """The largest relative deviation from a fair share in such a window."""
    tokens_deviation: float
    sequences_deviation: float
    """The same in tokens only, and in sequence-seconds only."""
    shares: Mapping[str, float]
    """Service by weight in the last window, relative to the mean."""
    tokens_per_s: float
    """The throughput with one engine."""
    tokens_per_s_after: float


def run(kind: str, system: System, sizes: Sizes, seed: int, out: Path) -> Result:
    """Run a system once."""
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    cut, back = sizes.whole, sizes.whole + sizes.one
    file = out / "scenario.yaml"
    file.write_text(scenario(sizes))
    pool = folder / "pool.yaml"
    entitlements = "".join(ENTITLEMENT.format(name=t, weight=w, slo=_SLOS[t]) for t, w in WEIGHTS.items())
    pool.write_text(POOL.format(slots=SLOTS, tenants=entitlements))
    with (
        backends(kind, folder, 2, (), SLOTS) as engines,
        sidecars(folder, pool, engines, (), system.debt_gain) as front,
    ):
        process = load(file, front, out / "run", seed, system.name)
        lose(engines[1:], cut, back)
        finished(process, sizes.after + 120)
    return result_of(system.name, read_run(out / "run"), cut, back)


def scenario(sizes: Sizes) -> str:
    """The scenario file for loadgen."""
    cut, back = sizes.whole, sizes.whole + sizes.one
    tenants = "".join(
        TENANT.format(name=t, workers=sizes.workers, input=_SIZES[t][0], output=_SIZES[t][1]) for t in WEIGHTS
    )
    return SCENARIO.format(duration=back + sizes.after, cut=cut, back=back, tenants=tenants)


def result_of(name: str, run_: Run, cut: float, back: float) -> Result:
    """The results of a recorded run."""
    first = service(run_, WEIGHTS, cut, cut + 20)
    windows = spans(cut + 20, back, 60.0)
    later = [service(run_, WEIGHTS, *window) for window in windows]
    last = by_weight(later[-1], WEIGHTS)
    return Result(
        name,
        run_.meta.seed,
        jain_by_weight(first, WEIGHTS),
        min(jain_by_weight(window, WEIGHTS) for window in later),
        max(deviation(window, WEIGHTS) for window in later),
        max(deviation(tokens(run_, WEIGHTS, *window), WEIGHTS) for window in windows),
        max(deviation(sequence_seconds(run_, WEIGHTS, *window), WEIGHTS) for window in windows),
        {tenant: share / fmean(last.values()) for tenant, share in last.items()},
        sum(tokens(run_, WEIGHTS, cut + 5, back).values()) / (back - cut - 5),
        sum(tokens(run_, WEIGHTS, run_.meta.duration_s - 10, run_.meta.duration_s).values()) / 10,
    )
