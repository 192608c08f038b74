"""One pool: replicas with random placement are compared with one queue for all their slots.

It starts real processes: Redis, a coordinator, and sidecars. Each sidecar is in front of an engine with a
fixed time per token, so that the load is exact. Two elastic tenants without a ceiling send Poisson arrivals,
each request to a random replica, without retries. Sidecars have default options. Every point starts a new
pool. Its first seconds are not counted. Beside each point are the bounds of ``experiments.queues``.

    python -m experiments one-pool --loads 60,80,95 --seconds 30 --skew 0.9

With ``--guaranteed`` it measures a guarantee beside floods instead: ``experiments.pool_guarantee``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments import pool_guarantee
from experiments.fixed_pool import INPUT, STEP_S, TENANT, TOKENS, Case, Counts, calibrated, record
from experiments.goals import report
from experiments.processes import MODEL
from experiments.queues import Arrival, Bound, Placement, Shape, poisson, simulate
from loadgen.records import Attempt, Outcome, Run
from toolbox.percentiles import percentile

OUT = Path(__file__).parent.parent / "out" / "one_pool"
WARM_UP = 2.0
"""The warm-up, in durations of a request. An empty pool refuses fewer requests."""
QUEUE_S = 1.0
"""The default of ``--queue-timeout-elastic``."""
SIMULATED = 40_000
"""Simulated requests of a bound. A share of 1 % then varies by a twentieth of itself."""
MOST_REFUSED = {60: 0.002, 80: 0.01, 95: 0.04}
"""Goals: the largest share of refused requests, by load in percent ..."""
MOST_TTFT_P99_S = {60: 0.15, 80: 0.5}
"""... and the largest P99 of the time to first token, in seconds."""
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
    one_queue: Bound
    """One central queue with the same arrivals."""
    complaints: list[str]
    """Reasons why the load generator's figures are unreliable."""

    @property
    def refused_share(self) -> float:
        """The share of requests that were not served."""
        return 1 - self.served / self.offered if self.offered else 1.0

    @property
    def handovers_per_request(self) -> float:
        """The part of the requests that ran at another replica."""
        return self.handovers.get("taken", 0) / max(self.offered, 1)


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


def scenario(case: Case) -> str:
    """The scenario file for loadgen."""
    shape = case.shape
    rate = shape.rate(case.load / 100) / len(TENANTS)
    more = {"rate": rate, "input": INPUT, "output": shape.tokens, "starts": 0}
    rows = [TENANT.format(name=name, **more) for name in TENANTS]
    return SCENARIO.format(
        model=MODEL, duration=_warm_up_s(case) + case.seconds, spread=shape.weights, tenants="".join(rows)
    )


def measure(case: Case, out: Path) -> Point:
    """Start a pool, and measure one point."""
    duration = _warm_up_s(case) + case.seconds
    run, counts = record(case, scenario(case), duration, dict.fromkeys(TENANTS, "tier: elastic"), out)
    return point_of(run, case, counts)


def _warm_up_s(case: Case) -> float:
    return WARM_UP * case.shape.service_s


def point_of(run: Run, case: Case, counts: Counts) -> Point:
    """The figures of a recorded run."""
    shape, counted = case.shape, [a for a in run.attempts if a.intended_s >= _warm_up_s(case)]
    served = [attempt for attempt in counted if attempt.outcome is Outcome.SERVED]
    firsts = [a.first_s - a.intended_s for a in served if a.first_s is not None]
    capacity = shape.replicas * shape.slots * (_warm_up_s(case) + case.seconds)
    return Point(
        load=case.load,
        skew=shape.skew,
        seed=case.seed,
        seconds=case.seconds,
        offered=len(counted),
        served=len(served),
        refused=dict(Counter(map(why, counted)) - Counter({"": len(served)})),
        ttft_p50_s=percentile(firsts, 0.5),
        ttft_p99_s=percentile(firsts, 0.99),
        served_in_all=sum(attempt.outcome is Outcome.SERVED for attempt in run.attempts),
        finished=counts.finished,
        aborted=counts.endings["abort"],
        used=counts.tokens * shape.step_s / capacity,
        handovers=dict(counts.handovers),
        one_queue=simulate(
            Placement.CENTRAL,
            shape,
            sorted(Arrival(attempt.intended_s, attempt.url) for attempt in run.attempts),
            QUEUE_S,
            from_s=_warm_up_s(case),
        ),
        complaints=run.meta.complaints,
    )


def why(attempt: Attempt) -> str:
    """The reason of a failure; empty for served requests."""
    return "" if attempt.outcome is Outcome.SERVED else attempt.reason or str(attempt.outcome)


BOUNDS = tuple((placement, queue_s) for placement in Placement for queue_s in (0.0, QUEUE_S))
"""The bounds beside each point, each without a queue and with one."""


def bound(placement: Placement, queue_s: float, shape: Shape, load: int) -> Bound:
    """One bound for a load in percent."""
    return simulate(placement, shape, poisson(shape, load / 100, SIMULATED, seed=1), queue_s)


HEAD = """\
| load, % | | offered | served | refused, % | first token P50, ms | P99 | slots used, % | finished - served \
| handovers per request | reasons |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def lines(point: Point) -> str:
    """The rows of the table for a measured point and for one queue with the same arrivals."""
    handed = f"{point.handovers_per_request:.2f}" if point.handovers else "-"
    best = point.one_queue
    return (
        f"| {point.load} | one central queue, the arrivals of seed {point.seed} | | |"
        f" {100 * best.refused:.2f} | {1000 * best.ttft_p50_s:.0f} | {1000 * best.ttft_p99_s:.0f} | | | | |\n"
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
    out = Path(arguments.out)
    step_s = STEP_S * arguments.slower
    shape = Shape(arguments.replicas, arguments.slots, arguments.tokens, step_s, arguments.skew)
    if arguments.engine == "vllm":
        shape = calibrated(arguments.engine, shape, 1, out / "calibration")
        print(f"{1000 * shape.step_s:.1f} ms per token with all slots in use\n", flush=True)
    reached = (_measure_guarantee if arguments.guaranteed else _measure_points)(arguments, shape, out)
    return report(reached)


def _measure_points(arguments: argparse.Namespace, shape: Shape, out: Path) -> list[tuple[str, bool]]:
    points = []
    print(HEAD, flush=True)
    for load in (int(part) for part in arguments.loads.split(",")):
        for seed in range(1, arguments.seeds + 1):
            points.append(measure(_case(arguments, shape, load, seed), out / f"load{load}" / str(seed)))
            print(lines(points[-1]), flush=True)
        for placement, queue_s in BOUNDS:
            print(bound_line(placement, queue_s, load, bound(placement, queue_s, shape, load)), flush=True)
    _keep(points, out / "points.json")
    return [goal for point in points for goal in goals(point)]


def _measure_guarantee(arguments: argparse.Namespace, shape: Shape, out: Path) -> list[tuple[str, bool]]:
    results = []
    print(pool_guarantee.HEAD, flush=True)
    for seed in range(1, arguments.seeds + 1):
        case = _case(arguments, shape, 0, seed)
        results.append(pool_guarantee.measure(case, out / "guarantee" / str(seed)))
        print(pool_guarantee.lines(results[-1]), flush=True)
    _keep(results, out / "guarantee.json")
    return pool_guarantee.goals(results)


def _case(arguments: argparse.Namespace, shape: Shape, load: int, seed: int) -> Case:
    return Case(shape, load, arguments.seconds, seed, arguments.engine, tuple(shlex.split(arguments.options)))


def _keep(results: Sequence[Point] | Sequence[pool_guarantee.Result], file: Path) -> None:
    file.write_text(json.dumps([asdict(result) for result in results], indent=1))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments one-pool", description=__doc__)
    parser.add_argument("--engine", choices=("vllm", "simulator"), default="simulator")
    parser.add_argument("--guaranteed", action="store_true", help="measure a guarantee beside floods")
    parser.add_argument("--loads", default="60,80,95", help="percent of all slots [60,80,95]")
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of each point [30]")
    parser.add_argument("--replicas", type=int, default=4, help="replicas [4]")
    parser.add_argument("--slots", type=int, default=8, help="slots of each replica [8]")
    parser.add_argument(
        "--skew", type=float, metavar="SHARE", help="share of the requests at the first replica [equal]"
    )
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, help=f"tokens of each response, {STEP_S:g} s each [{TOKENS}]"
    )
    parser.add_argument(
        "--slower",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="a token takes this many times as long, and requests arrive at the same load [1]",
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each point [1]")
    parser.add_argument("--options", default="", help="options of the sidecars, in one argument")
    parser.add_argument("--out", default=str(OUT), help="the folder of the results")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
