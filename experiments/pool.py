"""A larger pool: eight simulated engines, thirty tenants of three tiers, overload, and lost engines.

It shows guarantees, fair shares and spot across many sidecars with one lease store. Guaranteed tenants are
alone at first. Then spot sends several times the capacity, and later elastic tenants send persistent demand.
Then four engines are killed, which restart at the end. The guarantees are compared with spot only, as on one
engine, because no elastic request within its share is ended for a guarantee.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.processes import Backend, Front, backends, finished, load, lose, sidecars
from experiments.service import service, spans, tokens
from loadgen.records import Attempt, Outcome, Run
from loadgen.records import load as read_run
from loadgen.summary import first_token, requests
from toolbox.fairness import deviation, jain_by_weight
from toolbox.percentiles import percentile

ENGINES, LOST, SLOTS = 8, 4, 8
ENGINE = ("--step", "0.06", "--per-sequence", "0.001", "--scheduling-policy", "priority")
GUARANTEED = tuple(f"guaranteed-{n}" for n in range(6))
ELASTIC = {f"elastic-{n}": 1.0 + n % 2 for n in range(10)}
"""Weights. With half of the engines a unit of weight is a slot and a half, so each tenant keeps a slot:
shares below one slot would depend on rounding."""
SPOT = tuple(f"spot-{n:02}" for n in range(14))
TENANT = """\
  - {{name: {name}, key: {name}-key, tier: {tier}, arrivals: {arrivals}, input: {input}, output: {output},
     starts_s: {starts:g}, retries: {{most: {retries}, honour_retry_after: true}}}}
"""
SCENARIO = """\
name: pool
model: small
duration_s: {duration:g}
drain_s: 5
spread: random
tenants:
{tenants}phases:
  - {{name: alone, from: 0, to: {alone:g}}}
  - {{name: overload, from: {alone:g}, to: {full:g}}}
  - {{name: all tenants, from: {full:g}, to: {cut:g}}}
  - {{name: half, from: {cut:g}, to: {back:g}}}
  - {{name: whole again, from: {back:g}, to: {duration:g}}}
"""
POOL = """\
pools:
  - name: chat
    models: [small]
    replica: {{tokens_per_second: auto, kv_tokens: auto, concurrency: {slots}}}
    replicas: {{min: 1, max: {engines}}}
entitlements:
{entitlements}"""
ENTITLEMENT = "  - {{name: {name}, pool: chat, tier: {tier}, api_keys: [{name}-key]{more}}}\n"


@dataclass(frozen=True)
class System:
    """One system under test."""

    name: str
    has_sidecars: bool = True
    debt_gain: float | None = None


SYSTEMS = (
    System("engines alone", has_sidecars=False),
    System("tokenpool without debt", debt_gain=0.0),
    System("tokenpool"),
)


@dataclass(frozen=True)
class Sizes:
    """The duration of each part, in seconds."""

    alone: float = 20.0
    overload: float = 60.0
    all_tenants: float = 20.0
    half: float = 90.0
    after: float = 20.0

    @property
    def full(self) -> float:
        """The time at which elastic tenants begin."""
        return self.alone + self.overload

    @property
    def cut(self) -> float:
        """The time at which engines are lost."""
        return self.full + self.all_tenants

    @property
    def back(self) -> float:
        """The time at which they return."""
        return self.cut + self.half

    @property
    def duration(self) -> float:
        """The duration of the whole scenario."""
        return self.back + self.after


@dataclass(frozen=True)
class Result:
    """One run."""

    system: str
    seed: int
    alone_p99_s: float
    p99_s: float
    """The P99 of guaranteed requests in overload."""
    guaranteed: int
    guaranteed_shed: int
    """In overload."""
    tokens_per_s: float
    """In overload."""
    first_jain: float
    """Jain's index over the first 20 s with half the engines."""
    later_jain: float
    deviation: float
    """The largest deviation from a fair share over any later 60 s."""
    tokens_per_s_half: float

    @property
    def ratio(self) -> float:
        """The P99 in overload divided by the P99 alone."""
        return self.p99_s / self.alone_p99_s if self.alone_p99_s else float("inf")


def scenario(sizes: Sizes) -> str:
    """The scenario file for loadgen."""
    lines = [_tenant(name, "guaranteed", "{poisson: {rate: 0.5}}", (16, 48), 0.0, 0) for name in GUARANTEED]
    for number, name in enumerate(ELASTIC):
        size = ((8, 16), (16, 32), (32, 64))[number % 3]
        lines.append(_tenant(name, "elastic", "{closed: {workers: 24}}", size, sizes.full, 100_000))
    lines += [_tenant(name, "spot", "{poisson: {rate: 4.5}}", (16, 64), sizes.alone, 0) for name in SPOT]
    return SCENARIO.format(
        tenants="".join(lines),
        duration=sizes.duration,
        alone=sizes.alone,
        full=sizes.full,
        cut=sizes.cut,
        back=sizes.back,
    )


def _tenant(name: str, tier: str, arrivals: str, size: tuple[int, int], starts: float, retries: int) -> str:
    return TENANT.format(
        name=name,
        tier=tier,
        arrivals=arrivals,
        input=size[0],
        output=size[1],
        starts=starts,
        retries=retries,
    )


def pool_file() -> str:
    """The entitlements of all tenants."""
    promise = ", guarantee: {tokens_per_second: 120, kv_tokens: 1200, concurrency: 6}, slo: {ttft_ms: 500}"
    entitlements = [_entitlement(name, "guaranteed", promise) for name in GUARANTEED]
    for number, (name, weight) in enumerate(ELASTIC.items()):
        slo = (250, 1000, 500, 330)[number % 4]
        entitlements.append(_entitlement(name, "elastic", f", weight: {weight:g}, slo: {{ttft_ms: {slo}}}"))
    entitlements += [_entitlement(name, "spot", "") for name in SPOT]
    return POOL.format(slots=SLOTS, engines=ENGINES, entitlements="".join(entitlements))


def _entitlement(name: str, tier: str, more: str) -> str:
    return ENTITLEMENT.format(name=name, tier=tier, more=more)


def run(system: System, sizes: Sizes, seed: int, out: Path) -> Result:
    """Run a system once."""
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    file = out / "scenario.yaml"
    file.write_text(scenario(sizes))
    with (
        backends("simulator", folder, ENGINES, ENGINE, SLOTS) as engines,
        _front(system, folder, engines) as front,
    ):
        process = load(file, front, out / "run", seed, system.name)
        lose(engines[-LOST:], sizes.cut, sizes.back)
        finished(process, sizes.after + 120)
    return result_of(system.name, read_run(out / "run"), sizes)


@contextlib.contextmanager
def _front(system: System, folder: Path, engines: Sequence[Backend]) -> Iterator[Front]:
    if not system.has_sidecars:
        yield Front([engine.url for engine in engines])
        return
    file = folder / "pool.yaml"
    file.write_text(pool_file())
    with sidecars(folder, file, engines, (), system.debt_gain) as front:
        yield front


def result_of(name: str, run_: Run, sizes: Sizes) -> Result:
    """The results of a recorded run."""
    full, cut, back = sizes.full, sizes.cut, sizes.back
    settled = sizes.alone + min(10.0, sizes.overload / 3)
    first = service(run_, ELASTIC, cut, cut + 20)
    later = [service(run_, ELASTIC, *window) for window in spans(cut + 20, back, 60.0)]
    all_tenants = (*GUARANTEED, *ELASTIC, *SPOT)
    shed = [
        last
        for last in _guaranteed(run_, settled, full)
        if last.outcome in (Outcome.SHED, Outcome.UNAVAILABLE)
    ]
    return Result(
        name,
        run_.meta.seed,
        _p99(run_, 0.0, sizes.alone),
        _p99(run_, settled, full),
        len(_guaranteed(run_, settled, full)),
        len(shed),
        sum(tokens(run_, all_tenants, settled, full, prompts=False).values()) / (full - settled),
        jain_by_weight(first, ELASTIC),
        min(jain_by_weight(window, ELASTIC) for window in later),
        max(deviation(window, ELASTIC) for window in later),
        sum(tokens(run_, all_tenants, cut + 5, back, prompts=False).values()) / (back - cut - 5),
    )


def _guaranteed(run_: Run, start: float, end: float) -> list[Attempt]:
    """The last attempts of the guaranteed requests due in a span."""
    tries = requests(a for a in run_.attempts if a.tenant in GUARANTEED)
    return [request[-1] for request in tries if start <= request[0].intended_s < end]


def _p99(run_: Run, start: float, end: float) -> float:
    firsts = [first_token(last, run_.meta.drain_s) for last in _guaranteed(run_, start, end)]
    return percentile((first[0] for first in firsts if first is not None), 0.99)
