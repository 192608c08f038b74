"""Overload: a guaranteed tenant at a steady rate, while spot ramps to several times the engine's capacity.

One engine, one scenario, every system, with default options. The goals: the guaranteed P99 time to first
token stays within 1.5 times its P99 alone in the same run, none of its requests is shed, and the pool's
throughput stays within 5 % of the engine's throughput without a proxy. They apply to a real engine with and
without priority scheduling, and to the simulator without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from experiments.processes import Backend, Front, backends, finished, fixed_limit, load, own_core, sidecars
from loadgen.records import Outcome, Run
from loadgen.records import load as read_run
from loadgen.summary import Cell, first_token, requests, summarise
from toolbox.percentiles import percentile

SLOTS = 8
WINDOW_S, WINDOWS = 2.0, 5
RECOVERED_S = 30.0
"""Seconds from the start of spot until a wrong capacity must be corrected."""
GUARANTEED, SPOT = "guaranteed", "spot"
SCENARIO = """\
name: overload
model: small
duration_s: {duration:g}
drain_s: 5
tenants:
  - name: guaranteed
    key: g-key
    tier: guaranteed
    arrivals: {{poisson: {{rate: {guaranteed:g}}}}}
    input: 16
    output: 64{guaranteed_priority}
  - name: spot
    key: s-key
    tier: spot
    arrivals: {{ramp: {{from: {spot:g}, to: {spot:g}, over_s: {ramp:g}}}}}
    input: 16
    output: 128
    starts_s: {alone:g}{spot_priority}
phases:
  - {{name: alone, from: 0, to: {alone:g}}}
  - {{name: ramp, from: {alone:g}, to: {ramped:g}}}
  - {{name: overload, from: {ramped:g}, to: {duration:g}}}
"""
POOL = """\
pools:
  - name: chat
    models: [small]
    replica: {{tokens_per_second: auto, kv_tokens: auto, concurrency: {concurrency}}}
entitlements:
  - name: guaranteed
    pool: chat
    tier: guaranteed
    guarantee: {{tokens_per_second: 500, kv_tokens: 4000, concurrency: 8}}
    slo: {{ttft_ms: {slo_ms:g}}}
    api_keys: [g-key]
  - {{name: spot, pool: chat, tier: spot, preemptible: {preemptible}, api_keys: [s-key]}}
"""


@dataclass(frozen=True)
class Setting:
    """An engine and its flags."""

    name: str
    kind: str
    """``vllm`` or ``simulator``."""
    flags: Sequence[str] = ()


@dataclass(frozen=True)
class System:
    """One system under test."""

    name: str
    front: str = "none"
    """``none``, ``fixed`` or ``sidecar``."""
    engine: Sequence[str] = ()
    flags: Sequence[str] = ()
    sends_priority: bool = False
    debt_gain: float | None = None
    concurrency: str = "auto"
    is_preemptible: bool = True
    """Whether spot is preemptible in the pool file, which is the default."""
    setting: Setting | None = None
    """The engine, or ``None`` for that of the command line."""


PRIORITY = ("--scheduling-policy", "priority")
SETTINGS = (
    Setting("vllm fcfs", "vllm"),
    Setting("vllm priority", "vllm", PRIORITY),
    Setting("simulator fcfs", "simulator"),
)
ALONE, OURS = "engine alone", "tokenpool"


def named(system: str, setting: Setting) -> str:
    """The name of a system on an engine."""
    return f"{system} on {setting.name}"


HEADLINE = tuple(
    System(named(name, setting), front, setting.flags, setting=setting)
    for setting in SETTINGS
    for name, front in ((ALONE, "none"), (OURS, "sidecar"))
)
"""The system with the goals: default options in all parts."""
BASELINES = (
    System("engine's queue limit", engine=("--max-num-queued-reqs", "8")),
    System("engine's priority", engine=PRIORITY, sends_priority=True),
    System("fixed rate per tenant", "fixed"),
    System("tokenpool without debt", "sidecar", debt_gain=0.0),
)
WRONG = (
    System("starts 3x too high", "sidecar", concurrency="{auto: 24}"),
    System("starts 3x too low", "sidecar", concurrency="{auto: 3}"),
)
"""Systems that start with a wrong capacity, and must learn the right one in time."""
NO_PRIORITY = ("--engine-priority", "off")
NO_FEEDBACK = ("--slo-feedback", "false")
NO_QUEUE = ("--queue-timeout-guaranteed", "0", "--queue-timeout-elastic", "0")
ABLATIONS = (
    System("no preemption", "sidecar", is_preemptible=False),
    System("no preemption with priority", "sidecar", PRIORITY, is_preemptible=False),
    System("no priority", "sidecar", PRIORITY, NO_PRIORITY),
    System("no feedback", "sidecar", flags=NO_FEEDBACK),
    System("no queue", "sidecar", flags=NO_QUEUE),
    System("no policies", "sidecar", flags=(*NO_PRIORITY, *NO_FEEDBACK, *NO_QUEUE), is_preemptible=False),
)
"""Each policy switched off."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run. Seconds and requests per second."""

    alone: float = 20.0
    settle: float = 10.0
    overload: float = 30.0
    guaranteed: float = 3.0
    spot: float = 40.0
    slo_ms: float = 100.0
    """The guaranteed tenant's SLO: 1.5 times its P99 alone, after the first measurement of that."""

    @property
    def duration(self) -> float:
        """The duration of the whole scenario."""
        return self.alone + self.settle + self.overload


@dataclass(frozen=True)
class Result:
    """The results of one run."""

    system: str
    seed: int
    alone_p99_s: float
    p50_s: float
    p99_s: float
    recovered_p99_s: float
    """The P99 of requests due from ``RECOVERED_S`` after the start of spot; NaN in a shorter run."""
    waits_s: tuple[float, ...]
    """Medians of the waits of guaranteed requests due in each two seconds after the start of spot. A request
    without a first token counts with the time until its end."""
    tokens_per_s: float
    guaranteed: int
    guaranteed_shed: int
    spot_served: int
    spot_shed: int
    preempted: int
    complaints: tuple[str, ...] = ()
    kind: str = ""
    """The engine: ``vllm`` or ``simulator``."""

    @property
    def grows(self) -> bool:
        """Whether waits became longer and longer, as in an unbounded queue."""
        first, *_, last = self.waits_s
        return self.alone_p99_s < first < last and self.waits_s[1] > first

    @property
    def ratio(self) -> float:
        """The P99 in overload divided by the P99 alone."""
        return self.p99_s / self.alone_p99_s if self.alone_p99_s else float("inf")

    @property
    def recovered_ratio(self) -> float:
        """The same for requests after ``RECOVERED_S``."""
        return self.recovered_p99_s / self.alone_p99_s if self.alone_p99_s else float("inf")


def run(kind: str, system: System, sizes: Sizes, seed: int, out: Path) -> Result:
    """Run a system once."""
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    file = out / "scenario.yaml"
    file.write_text(scenario(system, sizes))
    with (
        backends(kind, folder, 1, system.engine, SLOTS) as engines,
        own_core(engines[0]),
        _front(system, sizes, folder, engines) as front,
    ):
        process = load(file, front, out / "run", seed, system.name)
        finished(process, sizes.duration + 120)
    return result_of(system.name, out / "run", kind)


def scenario(system: System, sizes: Sizes) -> str:
    """The scenario file of one system for loadgen."""
    priority = system.sends_priority
    return SCENARIO.format(
        duration=sizes.duration,
        guaranteed=sizes.guaranteed,
        spot=sizes.spot,
        ramp=max(sizes.settle / 2, 1),
        alone=sizes.alone,
        ramped=sizes.alone + sizes.settle,
        guaranteed_priority="\n    priority: 0" if priority else "",
        spot_priority="\n    priority: 10" if priority else "",
    )


def pool_file(system: System, sizes: Sizes) -> str:
    """The pool file of one system."""
    return POOL.format(
        concurrency=system.concurrency,
        slo_ms=sizes.slo_ms,
        preemptible="true" if system.is_preemptible else "false",
    )


@contextlib.contextmanager
def _front(system: System, sizes: Sizes, folder: Path, engines: Sequence[Backend]) -> Iterator[Front]:
    if system.front == "none":
        yield Front([engines[0].url])
    elif system.front == "fixed":
        # Each gets half of 600 tokens/s with prompts, about the engine's throughput in eight streams.
        with fixed_limit(folder, engines[0], {"g-key": 18_000, "s-key": 18_000}) as front:
            yield front
    else:
        pool = folder / "pool.yaml"
        pool.write_text(pool_file(system, sizes))
        with sidecars(folder, pool, engines, system.flags, system.debt_gain) as front:
            yield front


def result_of(name: str, folder: Path, kind: str) -> Result:
    """The results of a recorded run."""
    run_ = read_run(folder)
    summary = summarise(run_)
    alone, over = summary.cell(GUARANTEED, "alone"), summary.cell(GUARANTEED, "overload")
    spot, all_tenants = summary.cell(SPOT, "overload"), summary.cell("all tenants", "overload")
    assert alone is not None
    assert over is not None
    assert spot is not None
    assert all_tenants is not None
    return Result(
        name,
        summary.seed,
        _value(alone.ttft.p99),
        _value(over.ttft.p50),
        _value(over.ttft.p99),
        _recovered(run_),
        _waits(run_),
        _value(all_tenants.output_tokens_per_s),
        over.requests,
        _ended(over, Outcome.SHED, Outcome.UNAVAILABLE),
        _ended(spot, Outcome.SERVED),
        _ended(spot, Outcome.SHED, Outcome.UNAVAILABLE),
        _ended(spot, Outcome.PREEMPTED),
        tuple(summary.complaints),
        kind,
    )


def _spot_began_s(run_: Run) -> float:
    return next(phase.from_s for phase in run_.meta.phases if phase.name == "ramp")


def _recovered(run_: Run) -> float:
    since = _spot_began_s(run_) + RECOVERED_S
    tries = requests(a for a in run_.attempts if a.tenant == GUARANTEED)
    firsts = [first_token(t[-1], run_.meta.drain_s) for t in tries if t[0].intended_s >= since]
    return percentile((first[0] for first in firsts if first is not None), 0.99)


def _waits(run_: Run) -> tuple[float, ...]:
    began = _spot_began_s(run_)
    windows: list[list[float]] = [[] for _ in range(WINDOWS)]
    for attempt in run_.attempts:
        window = int((attempt.due_s - began) // WINDOW_S)
        first = first_token(attempt, run_.meta.drain_s)
        if attempt.tenant == GUARANTEED and 0 <= window < WINDOWS and first is not None:
            windows[window].append(first[0])
    return tuple(median(values) if values else float("nan") for values in windows)


def _ended(cell: Cell, *outcomes: Outcome) -> int:
    return sum(cell.ended(outcome) for outcome in outcomes)


def _value(estimate: object) -> float:
    value = getattr(estimate, "value", None)
    return float(value) if value is not None else float("nan")
