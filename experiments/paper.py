"""The paper's second experiment: elastic tenants with SLOs of 60 to 1 share a pool that loses a node.

The paper is "Token Management in Multi-Tenant AI Inference Platforms" (arXiv 2603.00356). Its experiment has
elastic tenants with SLOs of 500 ms and of 30 s, with five slots each. A node is lost at peak and recovers. An
analytics job joins after that. The form here, in real processes:

- Two nodes with five slots each. So the pool is full as long as both tenants use their five slots.
- All tenants are elastic with equal weights, and have a ceiling of five sequences. The load is closed loop,
  so demand lasts. All requests have one size.
- Phases: peak (both nodes), node lost, recovered, and analytics (three tenants want 15 of 10 slots).

``four`` is our own form of it: ``experiments.scarcity``, with four elastic tenants of different sizes,
weights and SLOs. Both forms run with debt and without it.

    python -m experiments paper --engine simulator
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments import scarcity
from experiments.goals import report
from experiments.processes import backends, finished, load, lose, sidecars
from experiments.shares import PhaseResult, by_phase, picture, table
from loadgen.records import Run
from loadgen.records import load as read_run
from toolbox.pictures import keep

OUT = Path(__file__).parent.parent / "out" / "paper"
FORMS = ("published", "four")
NODES, SLOTS = 2, 5
LEAST_JAIN = 0.98
"""The goal for each phase with scarcity, in the run with debt."""
LOST, ANALYTICS = "node lost", "analytics joins"


class Tenant(NamedTuple):
    """One elastic tenant of the published form."""

    slo_ms: int
    """The promised time to first token."""
    joins: bool = False
    """Whether it joins in the last phase."""


TENANTS: Mapping[str, Tenant] = {
    "elastic-500ms": Tenant(500),
    "elastic-30s": Tenant(30_000),
    "analytics": Tenant(30_000, joins=True),
}
WEIGHTS = dict.fromkeys(TENANTS, 1.0)
SCENARIO = """\
name: paper
model: small
duration_s: {duration:g}
drain_s: 5
spread: random
tenants:
{tenants}phases:
  - {{name: peak, from: 0, to: {lost:g}}}
  - {{name: {lost_name}, from: {lost:g}, to: {back:g}}}
  - {{name: recovered, from: {back:g}, to: {joins:g}}}
  - {{name: {joins_name}, from: {joins:g}, to: {duration:g}}}
"""
TENANT = """\
  - name: {name}
    key: {name}-key
    tier: elastic
    starts_s: {starts:g}
    arrivals: {{closed: {{workers: {workers}}}}}
    input: 24
    output: 48
    retries: {{most: 100000, honour_retry_after: true}}
"""
POOL = """\
pools:
  - name: chat
    models: [small]
    replica: {{tokens_per_second: auto, kv_tokens: auto, concurrency: {slots}}}
    replicas: {{min: 1, max: {nodes}}}
entitlements:
{entitlements}"""
ENTITLEMENT = """\
  - name: {name}
    pool: chat
    tier: elastic
    slo: {{ttft_ms: {slo}}}
    ceiling: {{concurrency: {slots}}}
    api_keys: [{name}-key]
"""


@dataclass(frozen=True)
class Sizes:
    """Durations of the phases in seconds, and each tenant's number of workers."""

    peak: float = 15.0
    lost: float = 60.0
    recovered: float = 15.0
    analytics: float = 50.0
    workers: int = 24
    four: scarcity.Sizes = scarcity.Sizes()


SHORT = Sizes(5.0, 20.0, 6.0, 15.0, 16, scarcity.Sizes(4, 25, 4))


@dataclass(frozen=True)
class Result:
    """One run of one form."""

    form: str
    system: str
    seed: int
    phases: list[PhaseResult]
    complaints: list[str]


def scenario(sizes: Sizes) -> str:
    """The scenario file of the published form for loadgen."""
    lost, back = sizes.peak, sizes.peak + sizes.lost
    joins = back + sizes.recovered
    tenants = "".join(
        TENANT.format(name=name, starts=joins if tenant.joins else 0, workers=sizes.workers)
        for name, tenant in TENANTS.items()
    )
    return SCENARIO.format(
        duration=joins + sizes.analytics,
        lost=lost,
        back=back,
        joins=joins,
        lost_name=LOST,
        joins_name=ANALYTICS,
        tenants=tenants,
    )


def pool_file() -> str:
    """The pool file of the published form."""
    entitlements = "".join(
        ENTITLEMENT.format(name=name, slo=tenant.slo_ms, slots=SLOTS) for name, tenant in TENANTS.items()
    )
    return POOL.format(slots=SLOTS, nodes=NODES, entitlements=entitlements)


def run(form: str, kind: str, system: scarcity.System, sizes: Sizes, seed: int, out: Path) -> Result:
    """Run one form of the experiment once. An earlier run in the folder is replaced."""
    shutil.rmtree(out / "run", ignore_errors=True)
    if form == "four":
        scarcity.run(kind, system, sizes.four, seed, out)
        return _kept(form, system, seed, scarcity.WEIGHTS, out)
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    file, pool = out / "scenario.yaml", folder / "pool.yaml"
    file.write_text(scenario(sizes))
    pool.write_text(pool_file())
    with (
        backends(kind, folder, NODES, (), SLOTS) as engines,
        sidecars(folder, pool, engines, (), system.debt_gain) as front,
    ):
        process = load(file, front, out / "run", seed, system.name)
        lose(engines[1:], sizes.peak, sizes.peak + sizes.lost)
        finished(process, sizes.recovered + sizes.analytics + 120)
    return _kept(form, system, seed, WEIGHTS, out)


def _kept(form: str, system: scarcity.System, seed: int, weights: Mapping[str, float], out: Path) -> Result:
    """The results of a recorded run, with its picture in the folder."""
    run_ = read_run(out / "run")
    made = picture(run_, weights, _HEADINGS[form], f"{system.name}, seed {seed}")
    keep(made, out / "curves.svg")
    return result_of(form, system.name, run_, weights)


_HEADINGS = {
    "published": "Elastic tenants with SLOs of 500 ms and 30 s while a node is lost",
    "four": "Four elastic tenants while one of two engines is lost",
}


def result_of(form: str, system: str, run_: Run, weights: Mapping[str, float]) -> Result:
    """The results of a recorded run."""
    return Result(form, system, run_.meta.seed, by_phase(run_, weights), run_.meta.complaints)


def goals(results: Sequence[Result]) -> list[tuple[str, bool]]:
    """The goals of the runs of the published form, and whether each is reached."""
    found = []
    for result in results:
        for phase in result.phases:
            if (
                result.form == "published"
                and result.system == "with debt"
                and phase.name in (LOST, ANALYTICS)
            ):
                text = f"seed {result.seed}, {phase.name}: Jain {phase.jain:.3f}, at least {LEAST_JAIN}"
                found.append((text, phase.jain >= LEAST_JAIN))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named forms, and return 1 if a goal is missed."""
    arguments = _arguments(argv)
    sizes = SHORT if arguments.short else Sizes()
    systems = [system for system in scarcity.SYSTEMS if arguments.only in ("", system.name)]
    results = []
    for form in arguments.forms:
        for number in range(arguments.seeds):
            for system in systems:
                seed = arguments.seed + number
                out = arguments.out / form / system.name.replace(" ", "-") / str(seed)
                results.append(run(form, arguments.engine, system, sizes, seed, out))
                _write(out / "result.json", asdict(results[-1]))
                print(f"\n{form}, {system.name}, seed {seed} {' '.join(results[-1].complaints)}\n")
                print(table(results[-1].phases), flush=True)
    return report(goals(results))


def _write(file: Path, result: dict[str, Any]) -> None:
    file.write_text(json.dumps(result, indent=1))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("forms", nargs="*", default=FORMS, help=f"{' and '.join(FORMS)} [both]")
    parser.add_argument("--engine", choices=("vllm", "simulator"), default="vllm")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each form and system [1]")
    parser.add_argument("--seed", type=int, default=1, help="the first seed [1]")
    parser.add_argument("--short", action="store_true", help="a few seconds of each phase, as in CI")
    names = [system.name for system in scarcity.SYSTEMS]
    parser.add_argument("--only", choices=names, default="", help="one system [both]")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the results")
    arguments = parser.parse_args(argv)
    for form in arguments.forms:
        if form not in FORMS:
            parser.error(f"{form!r} is not a form; the forms are {', '.join(FORMS)}")
    return arguments
