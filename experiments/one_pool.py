"""One pool: replicas with random placement are compared with one queue for all their slots.

Real processes: Redis, a coordinator, and sidecars, each before an engine with a fixed time per token, so that
the load is exact. Two elastic tenants without a ceiling send Poisson arrivals, each request to a random
replica, without retries. Sidecars have default options. Every point starts a new pool. Its first seconds
are not counted. Beside each point are the bounds of ``experiments.queues``.

    python -m experiments one-pool --loads 60,80,95 --seconds 30 --skew 0.9
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from experiments import metrics
from experiments.processes import MODEL, Backend, Front, backends, finished, load, sidecars
from experiments.queues import Bound, Placement, Shape, simulate
from loadgen.records import Attempt, Outcome, Run
from loadgen.records import load as read_run
from toolbox.percentiles import percentile

OUT = Path(__file__).parent.parent / "out" / "one_pool"
STEP_S, TOKENS = 0.02, 50
"""A request of a second. 30 of them a second leave half of two cores idle."""
INPUT = 16
JOINED_S = 4.0
"""Seconds until every sidecar has joined and read all limits twice."""
WARM_UP = 2.0
"""Times of a request. An empty pool refuses less."""
QUEUE_S = 1.0
"""The default of ``--queue-timeout-elastic``."""
SIMULATED = 40_000
"""Requests of a bound. Shares of 1 % then vary by a twentieth."""
MOST_REFUSED = {60: 0.002, 80: 0.01, 95: 0.04}
"""Goals: the share of refused requests by load in percent ..."""
MOST_TTFT_P99_S = {60: 0.15, 80: 0.5}
"""... and the P99 of the time to first token."""
TENANTS = ("a", "b")
SCENARIO = """\
name: one pool
model: {model}
duration_s: {duration:g}
drain_s: 10
timeout_s: 30
spread: {spread}
tenants:
{tenants}"""
TENANT = "  - {{name: {name}, key: {name}-key, arrivals: {{poisson: {{rate: {rate:.4f}}}}}, "
SIZES = "input: {input}, output: {output}}}\n"
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

    @property
    def warm_up_s(self) -> float:
        """The time at the beginning that does not count, s."""
        return WARM_UP * self.shape.service_s


@dataclass(frozen=True)
class Point:
    """One measured point."""

    load: int
    skew: float | None
    seed: int
    seconds: float
    offered: int
    served: int
    refused: dict[str, int]
    """Refused or failed requests, by reason."""
    ttft_p50_s: float
    ttft_p99_s: float
    served_in_all: int
    """Served requests, with those of the warm-up."""
    finished: int
    """Requests that the engines finished, with those of the warm-up."""
    aborted: int
    """Requests that the engines began and did not finish."""
    used: float
    """The share of all slots that were in use."""
    handovers: dict[str, int]
    """Handovers by result; empty if the sidecars have no such metric."""
    complaints: list[str]
    """Reasons why the load generator's figures are unreliable."""

    @property
    def refused_share(self) -> float:
        """The share of requests that were not served."""
        return 1 - self.served / self.offered if self.offered else 1.0

    @property
    def handovers_per_request(self) -> float:
        """Handovers, whatever their result, for each request."""
        return sum(self.handovers.values()) / max(self.offered, 1)


def goals(point: Point) -> list[tuple[str, bool]]:
    """The goals of a point, and whether each is reached."""
    where = f"{point.load} % load" + (f", {point.skew:.0%} at one replica" if point.skew is not None else "")
    found = [
        (
            f"{where}: engines finished {point.finished} requests, exactly the {point.served_in_all} served",
            point.finished == point.served_in_all > 0,
        )
    ]
    if (most := MOST_REFUSED.get(point.load)) is not None:
        share = point.refused_share
        found.append((f"{where}: {share:.2%} refused, at most {most:.1%}", share <= most))
    if (most := MOST_TTFT_P99_S.get(point.load)) is not None:
        p99 = point.ttft_p99_s
        text = f"{where}: P99 of the first token is {1000 * p99:.0f} ms, at most {1000 * most:.0f}"
        found.append((text, p99 <= most))
    return found


def pool_file(shape: Shape, entitlements: Mapping[str, str]) -> str:
    """The pool file. ``entitlements`` are terms by name."""
    rows = [f"  - {{name: {n}, pool: chat, api_keys: [{n}-key], {t}}}\n" for n, t in entitlements.items()]
    return POOL.format(model=MODEL, slots=shape.slots, replicas=shape.replicas, entitlements="".join(rows))


def engine_flags(kind: str, shape: Shape) -> list[str]:
    """The options of an engine. A simulated one has a fixed time per step."""
    if kind == "vllm":
        return []
    fixed = ("--per-sequence", "0", "--per-prompt-token", "0", "--per-request", "0")
    return ["--step", f"{shape.step_s:g}", *fixed]


def scenario(case: Case) -> str:
    """The scenario file for loadgen."""
    shape = case.shape
    rate = shape.rate(case.load / 100) / len(TENANTS)
    row = TENANT + SIZES
    rows = [row.format(name=name, rate=rate, input=INPUT, output=shape.tokens) for name in TENANTS]
    return SCENARIO.format(
        model=MODEL, duration=case.warm_up_s + case.seconds, spread=shape.weights, tenants="".join(rows)
    )


def measure(case: Case, out: Path) -> Point:
    """Start a pool, and measure one point."""
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    file, pool = out / "scenario.yaml", folder / "pool.yaml"
    file.write_text(scenario(case))
    pool.write_text(pool_file(case.shape, dict.fromkeys(TENANTS, "tier: elastic")))
    shape, flags = case.shape, engine_flags(case.engine, case.shape)
    with (
        backends(case.engine, folder, shape.replicas, flags, shape.slots) as engines,
        sidecars(folder, pool, engines, case.options, None) as front,
    ):
        time.sleep(JOINED_S)
        before = Counts.read(engines, front)
        finished(load(file, front, out / "run", case.seed, "one pool"), case.seconds + 120)
        counts = Counts.read(engines, front) - before
    return point_of(read_run(out / "run"), case, counts)


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


def point_of(run: Run, case: Case, counts: Counts) -> Point:
    """The results of a recorded run."""
    shape, counted = case.shape, [a for a in run.attempts if a.intended_s >= case.warm_up_s]
    served = [attempt for attempt in counted if attempt.outcome is Outcome.SERVED]
    firsts = [a.first_s - a.intended_s for a in served if a.first_s is not None]
    capacity = shape.replicas * shape.slots * (case.warm_up_s + case.seconds)
    return Point(
        load=case.load,
        skew=shape.skew,
        seed=case.seed,
        seconds=case.seconds,
        offered=len(counted),
        served=len(served),
        refused=dict(Counter(map(_why, counted)) - Counter({"": len(served)})),
        ttft_p50_s=percentile(firsts, 0.5),
        ttft_p99_s=percentile(firsts, 0.99),
        served_in_all=sum(attempt.outcome is Outcome.SERVED for attempt in run.attempts),
        finished=sum(n for ending, n in counts.endings.items() if ending in ("stop", "length")),
        aborted=counts.endings["abort"],
        used=counts.tokens * shape.step_s / capacity,
        handovers=dict(counts.handovers),
        complaints=run.meta.complaints,
    )


def _why(attempt: Attempt) -> str:
    """The reason of a failure; empty for served requests."""
    return "" if attempt.outcome is Outcome.SERVED else attempt.reason or str(attempt.outcome)


BOUNDS = tuple((placement, queue_s) for placement in Placement for queue_s in (0.0, QUEUE_S))
"""The bounds beside each point, each without a queue and with one."""


def bound(placement: Placement, queue_s: float, shape: Shape, load: int) -> Bound:
    """One bound for a load in percent."""
    return simulate(placement, shape, load / 100, queue_s, SIMULATED, seed=1)


HEAD = (
    """\
| load, % | | offered | served | refused, % | first token P50, ms | P99 | slots used, % | finished - served \
| handovers per request | reasons |
| --- |"""
    + " --- |" * 10
)


def line(point: Point) -> str:
    """A row of the table for a measured point."""
    handed = f"{point.handovers_per_request:.2f}" if point.handovers else "-"
    return (
        f"| {point.load} | measured, seed {point.seed} | {point.offered} | {point.served}"
        f" | {100 * point.refused_share:.2f} | {1000 * point.ttft_p50_s:.0f} | {1000 * point.ttft_p99_s:.0f}"
        f" | {100 * point.used:.0f} | {point.finished - point.served_in_all} | {handed}"
        f" | {_listed(point.refused)} {' '.join(point.complaints)} |"
    )


def bound_line(placement: Placement, queue_s: float, load: int, found: Bound) -> str:
    """A row of the table for a bound."""
    name = f"{placement}, {f'wait up to {queue_s:g} s' if queue_s else 'no wait'}"
    return (
        f"| {load} | {name} | | | {100 * found.refused:.2f} | {1000 * found.ttft_p50_s:.0f}"
        f" | {1000 * found.ttft_p99_s:.0f} | | | | |"
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all points, and return 1 if a goal is missed."""
    arguments = _arguments(argv)
    shape = Shape(arguments.replicas, arguments.slots, arguments.tokens, STEP_S, arguments.skew)
    out = Path(arguments.out)
    points, reached = [], True
    print(HEAD, flush=True)
    for percent in (int(part) for part in arguments.loads.split(",")):
        for seed in range(1, arguments.seeds + 1):
            case = Case(
                shape,
                percent,
                arguments.seconds,
                seed,
                arguments.engine,
                tuple(shlex.split(arguments.options)),
            )
            points.append(measure(case, out / f"load{percent}" / str(seed)))
            print(line(points[-1]), flush=True)
        for placement, queue_s in BOUNDS:
            print(
                bound_line(placement, queue_s, percent, bound(placement, queue_s, shape, percent)), flush=True
            )
    (out / "results.json").write_text(json.dumps([asdict(point) for point in points], indent=1))
    for goal, is_reached in [goal for point in points for goal in goals(point)]:
        print(f"{'reached' if is_reached else 'MISSED '}  {goal}")
        reached = reached and is_reached
    return 0 if reached else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments one-pool", description=__doc__)
    parser.add_argument("--engine", choices=("vllm", "simulator"), default="simulator")
    parser.add_argument("--loads", default="60,80,95", help="percent of all slots [60,80,95]")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each point [30]")
    parser.add_argument("--replicas", type=int, default=4, help="replicas [4]")
    parser.add_argument("--slots", type=int, default=8, help="slots of each replica [8]")
    parser.add_argument(
        "--skew", type=float, metavar="SHARE", help="share of the requests at the first replica [equal]"
    )
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, help=f"of each response, {STEP_S:g} s each [{TOKENS}]"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each point [1]")
    parser.add_argument("--options", default="", help="options of the sidecars, in one argument")
    parser.add_argument("--out", default=str(OUT), help="the folder of the results")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
