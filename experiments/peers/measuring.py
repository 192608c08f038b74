"""Runs the loads on one system, and reads its results from the recorded runs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.peers import loads
from experiments.peers.environment import FILES
from experiments.peers.latency import Added, added, settled
from experiments.peers.loads import Sizes
from experiments.peers.sampling import running
from experiments.peers.system import Capacity, Place, Proxy, System
from experiments.peers.systems import ALONE, SYSTEMS
from experiments.peers.tenants import GUARANTEED, SLOTS, WEIGHTS
from experiments.processes import Backend, Front, backends, finished, load, own_core
from experiments.service import service, tokens
from loadgen.engine.model import read_like
from loadgen.records import FAILED, REFUSED, Attempt, Outcome, Run
from loadgen.records import load as read_run
from loadgen.summary import first_token, requests
from toolbox.fairness import jain_by_weight
from toolbox.percentiles import percentile

SLOWER = 5.0
"""The simulator computes so many times slower than the measured engine. A request costs as much as there.

That engine has a very small model. On two cores it would be faster than some proxies and the load generator.
"""
_SPELLED = {
    "step_s": "--step",
    "per_sequence_s": "--per-sequence",
    "per_prompt_token_s": "--per-prompt-token",
}
CAPACITY_S, ALONE_S, WARM_UP_S = 6.0, 3.0, 2.0
START_S = 1.0
SETTLE_S = 90.0
"""The longest time in seconds until a system is idle after a load."""
PAIRS_PER_S = 5
"""Pairs of small requests for each second of a load."""


@dataclass(frozen=True)
class Result:
    """One system with one seed. Latencies are those of the guaranteed tenant, from the due time."""

    system: str
    seed: int
    alone_ttft_p99_s: float
    alone_whole_p99_s: float
    ttft_p99_s: float
    """In overload. A request without an end counts with the time that it waited."""
    whole_p99_s: float
    guaranteed: int
    """Guaranteed requests in overload."""
    guaranteed_refused: int
    """Those that were refused, or that failed."""
    tokens_per_s: float
    """Output tokens in overload."""
    used: float
    """The part of the engine's slots in use with persistent demand, by the engine's metrics."""
    idle_requests: int
    """Requests of the moderate load."""
    idle_refused: int
    """Those that were refused, or that failed."""
    jain: float
    added_p50_s: float | None
    """``None`` without a proxy."""
    added_p99_s: float | None
    cpu_s: float | None
    """The proxy's CPU time for a request of the moderate load."""
    complaints: tuple[str, ...] = ()
    """Warnings of the load generator about its own figures."""


def engine_flags(kind: str, system: System) -> tuple[str, ...]:
    """The engine's flags: those of the system, and the costs of the simulator's steps."""
    if kind != "simulator":
        return tuple(system.engine)
    file = FILES / "costs.json"
    costs = read_like(file)
    slower = [part for name, flag in _SPELLED.items() for part in (flag, f"{SLOWER * costs[name]:.6f}")]
    return ("--like", str(file), *slower, *system.engine)


@contextlib.contextmanager
def _engine(kind: str, system: System, folder: Path) -> Iterator[Backend]:
    flags = engine_flags(kind, system)
    with backends(kind, folder, 1, flags, SLOTS) as engines, own_core(engines[0]):
        yield engines[0]


def measured_capacity(kind: str, out: Path) -> Capacity:
    """Measure the engine without a proxy."""
    alone = next(system for system in SYSTEMS if system.name == ALONE)
    with _engine(kind, alone, _made(out / "parts")) as engine:
        url, whole, single = engine.url, CAPACITY_S + WARM_UP_S, ALONE_S
        busy = _run(out, "capacity", loads.capacity(alone, whole), url, 0, whole)
        idle = _run(out, "one-by-one", loads.one_by_one(alone, single), url, 0, single)
    return capacity_of(busy, idle)


def capacity_of(busy: Run, idle: Run) -> Capacity:
    """The capacity from two recorded runs."""
    end = busy.meta.duration_s
    served = [a for a in busy.attempts if a.outcome is Outcome.SERVED and WARM_UP_S <= a.end_s < end]
    times = [a.end_s - a.sent_s for a in idle.attempts if a.outcome is Outcome.SERVED]
    seconds = end - WARM_UP_S
    return Capacity(
        len(served) / seconds,
        sum(a.prompt_tokens + a.tokens for a in served) / seconds,
        percentile(times, 0.5),
    )


def run(
    kind: str, system: System, sizes: Sizes, capacity: Capacity, seed: int, out: Path, home: Path
) -> Result:
    """Run all loads on a system, one after the other. Raises ``NotInstalled`` and ``ProbeFailed``.

    ``home`` is the environment with the peers' programs.
    """
    folder = _made(out / "parts")
    rate = capacity.requests_per_s
    with _engine(kind, system, folder) as engine, _proxy(system, folder, engine, capacity, home) as proxy:
        url = engine.url if proxy is None else proxy.url
        extra = _added(engine, proxy, sizes)
        before = 0.0 if proxy is None else proxy.process.cpu_seconds()
        moderate = _run(
            out, "moderate", loads.moderate(system, sizes, rate), url, seed, sizes.seconds, system.name
        )
        spent = None if proxy is None else proxy.process.cpu_seconds() - before
        overload = _run(
            out, "overload", loads.overload(system, sizes, rate), url, seed, sizes.seconds, system.name
        )
        with running(engine.url) as samples:
            fair = _run(out, "fairness", loads.fairness(system, sizes), url, seed, sizes.fair, system.name)
        # The load begins a second or two after its process.
        used = samples.mean(sizes.settle_fair + START_S, sizes.fair + START_S) / SLOTS
    return result_of(system.name, seed, sizes, (moderate, overload, fair), used, extra, spent)


@contextlib.contextmanager
def _proxy(
    system: System, folder: Path, engine: Backend, capacity: Capacity, home: Path
) -> Iterator[Proxy | None]:
    if system.start is None:
        yield None
        return
    port = int(engine.url.rpartition(":")[2])
    with system.start(Place(folder, port, capacity, home)) as proxy:
        yield proxy


def _added(engine: Backend, proxy: Proxy | None, sizes: Sizes) -> Added | None:
    if proxy is None:
        return None
    pairs = max(round(PAIRS_PER_S * sizes.seconds), 10)
    return added(int(engine.url.rpartition(":")[2]), proxy.port, f"{GUARANTEED}-key", pairs)


def _run(out: Path, name: str, text: str, url: str, seed: int, seconds: float, label: str = "") -> Run:
    settled(int(url.rpartition(":")[2]), f"{GUARANTEED}-key", SETTLE_S)
    file = out / f"{name}.yaml"
    file.write_text(text)
    shutil.rmtree(out / name, ignore_errors=True)  # loadgen keeps the results of an earlier run
    finished(load(file, Front([url]), out / name, seed, label or name), seconds + 60)
    return read_run(out / name)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def result_of(
    system: str,
    seed: int,
    sizes: Sizes,
    runs: tuple[Run, Run, Run],
    used: float,
    extra: Added | None,
    cpu_s: float | None,
) -> Result:
    """The results of the recorded runs of the moderate load, the overload and the persistent demand."""
    moderate, overload, fair = runs
    alone = _guaranteed(moderate, 0, sizes.alone)
    over = _guaranteed(overload, sizes.settle, sizes.seconds)
    last = [tries[-1] for tries in requests(moderate.attempts)]
    span, fair_span = (sizes.settle, sizes.seconds), (sizes.settle_fair, sizes.fair)
    return Result(
        system=system,
        seed=seed,
        alone_ttft_p99_s=ttft_p99(alone, moderate.meta.drain_s),
        alone_whole_p99_s=whole_p99(alone),
        ttft_p99_s=ttft_p99(over, overload.meta.drain_s),
        whole_p99_s=whole_p99(over),
        guaranteed=len(over),
        guaranteed_refused=sum(is_refused(attempt) for attempt in over),
        tokens_per_s=_throughput(overload, span),
        used=used,
        idle_requests=len(last),
        idle_refused=sum(is_refused(attempt) for attempt in last),
        jain=jain_by_weight(service(fair, WEIGHTS, *fair_span), WEIGHTS),
        added_p50_s=None if extra is None else extra.p50_s,
        added_p99_s=None if extra is None else extra.p99_s,
        cpu_s=None if cpu_s is None else cpu_s / max(len(moderate.attempts), 1),
        complaints=tuple(line for each in runs for line in each.meta.complaints),
    )


def _guaranteed(run_: Run, from_s: float, to_s: float) -> list[Attempt]:
    """The last attempts of the guaranteed requests that were due in a span."""
    tries = requests(attempt for attempt in run_.attempts if attempt.tenant == GUARANTEED)
    return [each[-1] for each in tries if from_s <= each[0].intended_s < to_s]


def is_refused(last: Attempt) -> bool:
    """Whether a request was refused or failed. One that still waited at the end of the run does not count."""
    return last.outcome in REFUSED or (last.outcome in FAILED and last.outcome is not Outcome.CUT)


def ttft_p99(last: Iterable[Attempt], drain_s: float) -> float:
    """The 99th percentile of the time to first token of requests that were not refused; NaN without any."""
    firsts = (first_token(attempt, drain_s) for attempt in last if not is_refused(attempt))
    return percentile((first[0] for first in firsts if first is not None), 0.99)


def whole_p99(last: Iterable[Attempt]) -> float:
    """The same for the time until the end of the response."""
    return percentile(
        (attempt.end_s - attempt.intended_s for attempt in last if not is_refused(attempt)), 0.99
    )


def _throughput(run_: Run, span: tuple[float, float]) -> float:
    names = {attempt.tenant for attempt in run_.attempts}
    return sum(tokens(run_, names, *span, prompts=False).values()) / (span[1] - span[0])
