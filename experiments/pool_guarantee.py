"""A guarantee in one pool: a guaranteed tenant alone, and beside floods of requests, mostly at one replica.

The pool and its processes are those of ``experiments.one_pool``. The guaranteed tenant is alone at first.
Then elastic requests ask for 60 % of the pool, and spot for 150 %. All tenants send the same share of
their requests to the first replica. Goals: no guaranteed request is refused. The P99 of the time to first
token, and that of the whole time, are at most 1.5 times the P99 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from experiments.fixed_pool import INPUT, STEP_S, TENANT, Case, Counts, record
from experiments.processes import MODEL
from loadgen.records import Attempt, Outcome, Run
from toolbox.percentiles import percentile

GUARANTEED = "guaranteed"
FLOODS = {"elastic": 0.6, "spot": 1.5}
"""The share of the pool that each flood asks for."""
SEQUENCES, RATE, OUTPUT = 4, 3.0, 12
"""The guarantee in sequences, the requests per second, and the tokens of a response. With 20 ms per token,
0.6 % of the requests arrive while four others run. These are bursts."""
TERMS = f"tier: guaranteed, guarantee: {{tokens_per_second: 200, kv_tokens: 1024, concurrency: {SEQUENCES}}}"
MOST_RATIO = 1.5
SETTLED_S = 2.0
"""The first seconds of the floods, which do not count: limits are recomputed meanwhile."""
SCENARIO = """\
name: a guarantee in one pool
model: {model}
duration_s: {duration:g}
drain_s: 10
timeout_s: 30
spread: {spread}
tenants:
{tenants}phases:
  - {{name: alone, from: 0, to: {alone:g}}}
  - {{name: floods, from: {alone:g}, to: {duration:g}}}
"""


@dataclass(frozen=True)
class Times:
    """The guaranteed requests of one phase."""

    requests: int
    refused: int
    """Refused or failed requests."""
    ttft_p50_s: float
    ttft_p99_s: float
    total_p99_s: float
    """The whole time of a request."""

    @classmethod
    def of(cls, attempts: Sequence[Attempt], start: float, end: float) -> Times:
        """The times of the guaranteed requests due in a span."""
        due = [a for a in attempts if a.tenant == GUARANTEED and start <= a.intended_s < end]
        served = [attempt for attempt in due if attempt.outcome is Outcome.SERVED]
        firsts = [a.first_s - a.intended_s for a in served if a.first_s is not None]
        return cls(
            len(due),
            len(due) - len(served),
            percentile(firsts, 0.5),
            percentile(firsts, 0.99),
            percentile((attempt.end_s - attempt.intended_s for attempt in served), 0.99),
        )


@dataclass(frozen=True)
class Result:
    """One run."""

    seed: int
    skew: float | None
    alone: Times
    floods: Times
    served: dict[str, float]
    """The served share of each flood."""
    preempted: int
    used: float
    """The share of all slots in use during the whole run."""
    handovers: dict[str, int]
    complaints: list[str]

    @property
    def ttft_ratio(self) -> float:
        """The P99 of the time to first token in the floods divided by that alone."""
        return self.floods.ttft_p99_s / self.alone.ttft_p99_s

    @property
    def total_ratio(self) -> float:
        """The P99 of the whole time in the floods divided by that alone."""
        return self.floods.total_p99_s / self.alone.total_p99_s


def goals(results: Sequence[Result]) -> list[tuple[str, bool]]:
    """The goals over all seeds, and whether each is reached. Ratios are medians: few requests make a P99."""
    first, whole = median(r.ttft_ratio for r in results), median(r.total_ratio for r in results)
    refused, requests = (sum(getattr(r.floods, name) for r in results) for name in ("refused", "requests"))
    return [
        (f"P99 of the first token is {first:.2f} x alone, at most {MOST_RATIO}", first <= MOST_RATIO),
        (f"P99 of the whole time is {whole:.2f} x alone, at most {MOST_RATIO}", whole <= MOST_RATIO),
        (f"{refused} of {requests} guaranteed requests refused, none", refused == 0),
    ]


def scenario(case: Case) -> str:
    """The scenario file for loadgen. Each phase takes the case's seconds."""
    shape, alone = case.shape, case.seconds
    guaranteed = RATE * STEP_S / shape.step_s
    rows = [TENANT.format(name=GUARANTEED, rate=guaranteed, input=INPUT, output=OUTPUT, starts=0)]
    for name, share in FLOODS.items():
        rate = shape.rate(share)
        rows.append(TENANT.format(name=name, rate=rate, input=INPUT, output=shape.tokens, starts=alone))
    return SCENARIO.format(
        model=MODEL, duration=2 * alone, spread=shape.weights, tenants="".join(rows), alone=alone
    )


def terms() -> dict[str, str]:
    """The terms of all tenants, by name."""
    return {GUARANTEED: TERMS, **{name: f"tier: {name}" for name in FLOODS}}


def measure(case: Case, out: Path) -> Result:
    """Start a pool, and measure one run. The case's load has no meaning here."""
    run, counts = record(case, scenario(case), 2 * case.seconds, terms(), out)
    return result_of(run, case, counts)


def result_of(run: Run, case: Case, counts: Counts) -> Result:
    """The figures of a recorded run."""
    shape, cut = case.shape, case.seconds
    outcomes = {name: [a.outcome for a in run.attempts if a.tenant == name] for name in FLOODS}
    return Result(
        seed=case.seed,
        skew=shape.skew,
        alone=Times.of(run.attempts, 0.0, cut),
        floods=Times.of(run.attempts, cut + min(SETTLED_S, cut / 4), 2 * cut),
        served={name: found.count(Outcome.SERVED) / max(len(found), 1) for name, found in outcomes.items()},
        preempted=outcomes["spot"].count(Outcome.PREEMPTED),
        used=counts.tokens * shape.step_s / (shape.replicas * shape.slots * 2 * cut),
        handovers=dict(counts.handovers),
        complaints=run.meta.complaints,
    )


HEAD = """\
| seed | | requests | refused | first token P50, ms | P99 | ratio | whole time P99 | ratio | served | other |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def lines(result: Result) -> str:
    """The rows of the table for a run."""
    served = ", ".join(f"{name} {share:.1%}" for name, share in result.served.items())
    other = f"{result.preempted} preempted, handovers {result.handovers or '-'} {' '.join(result.complaints)}"
    return (
        f"| {result.seed} | alone | {_cells(result.alone)} | {1000 * result.alone.total_p99_s:.0f} | | | |\n"
        f"| {result.seed} | floods | {_cells(result.floods, f'{result.ttft_ratio:.2f}')}"
        f" | {1000 * result.floods.total_p99_s:.0f} | {result.total_ratio:.2f} | {served} | {other} |"
    )


def _cells(times: Times, ratio: str = "") -> str:
    first = f"{1000 * times.ttft_p50_s:.0f} | {1000 * times.ttft_p99_s:.0f}"
    return f"{times.requests} | {times.refused} | {first} | {ratio}"
