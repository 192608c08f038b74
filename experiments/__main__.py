"""``make experiments``: runs the experiments with several seeds, and writes reports to out/.

They are: overload and scarcity on a real engine with all baselines, a larger pool of simulated engines, a
comparison of the simulator with a real engine, a hostile tenant, and prices by prefix. CI runs them with
``--short``.
``--engine simulator`` needs no vLLM. Results of several calls accumulate in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

import msgspec

from experiments import (
    coverage,
    fidelity,
    hostile,
    one_pool,
    overload,
    paper,
    pool,
    prefix_caches,
    prices,
    quotas,
    scarcity,
    soak,
    traces,
    usage,
    what_if,
    workloads,
)
from experiments.attacks import KINDS
from experiments.goals import report
from experiments.instruments import command as instruments
from experiments.peers import command as peers
from loadgen.records import machine, versions
from toolbox.processes import module

OUT = Path(__file__).parent.parent / "out" / "experiments"
MOST_RATIO, LEAST_THROUGHPUT = 1.5, 0.95

WHAT = ("overload", "scarcity", "pool", "fidelity", "hostile", "prices")
SOAK = "soak"
"""An experiment of half an hour. It runs only if the command line names it."""
EVERY = (*WHAT, SOAK)
SEPARATE = {
    "coverage": coverage.main,
    "instruments": instruments.main,
    "one-pool": one_pool.main,
    "paper": paper.main,
    "peers": peers.main,
    "prefix-caches": prefix_caches.main,
    "quotas": quotas.main,
    "traces": traces.main,
    "usage": usage.main,
    "what-if": what_if.main,
    "workloads": workloads.main,
}
"""Experiments with options of their own. The name is the first argument."""

System = overload.System | scarcity.System | pool.System
SYSTEMS: tuple[System, ...] = (
    *overload.HEADLINE,
    *overload.BASELINES,
    *overload.WRONG,
    *overload.ABLATIONS,
    *scarcity.SYSTEMS,
    *pool.SYSTEMS,
)
Result = overload.Result | scarcity.Result | pool.Result
_S = TypeVar("_S", overload.System, scarcity.System, pool.System)
_R = TypeVar("_R", overload.Result, scarcity.Result, pool.Result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named experiments, and return 1 if a goal is missed."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in SEPARATE:
        return SEPARATE[words[0]](words[1:])
    arguments = _arguments(argv)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    seeds = [arguments.seed + number for number in range(arguments.seeds)]
    print(f"experiments: {arguments.engine}, seeds {seeds}, {machine()}, {versions()}", flush=True)
    goals: list[tuple[str, bool]] = []
    if "overload" in arguments.what:
        goals += _overload(arguments, seeds, out / "overload")
    if "scarcity" in arguments.what:
        goals += _scarcity(arguments, seeds, out / "scarcity")
    if "pool" in arguments.what:
        goals += _pool(arguments, seeds, out / "pool")
    if "fidelity" in arguments.what:
        _fidelity(arguments, out / "fidelity")
    if "hostile" in arguments.what:
        goals += _hostile(arguments, out / "hostile")
    if "prices" in arguments.what:
        goals += _prices(arguments, out / "prices")
    if SOAK in arguments.what:
        goals += _soak(arguments, out / SOAK)
    return report(goals)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument(
        "what", nargs="*", default=WHAT, help=f"{', '.join(WHAT)}; or {SOAK}; or first {', '.join(SEPARATE)}"
    )
    parser.add_argument("--engine", choices=("vllm", "simulator"), default="vllm")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each system [5]")
    parser.add_argument("--seed", type=int, default=1, help="the first seed [1]")
    parser.add_argument("--short", action="store_true", help="a few seconds of each, as in CI")
    parser.add_argument("--ablations", action="store_true", help="also run each policy switched off")
    parser.add_argument(
        "--only", default="", help="systems (ablations too) or attacks by name, separated by commas"
    )
    parser.add_argument("--attackers", type=int, default=1, help="concurrent attacker processes [1]")
    parser.add_argument("--traces", type=Path, help="the folder of the real traces, for prices")
    parser.add_argument("--out", default=str(OUT), help="the folder of the reports")
    arguments = parser.parse_args(argv)
    for what in arguments.what:
        if what not in EVERY:
            parser.error(f"{what!r} is not an experiment; the experiments are {', '.join(EVERY)}")
    if arguments.attackers < 1:
        parser.error("--attackers must be 1 or more")
    arguments.only = [name.strip() for name in arguments.only.split(",") if name.strip()]
    names = [*dict.fromkeys(system.name for system in SYSTEMS), *KINDS]
    for name in arguments.only:
        if name not in names:
            parser.error(f"{name!r} is neither a system nor an attack; these are {', '.join(names)}")
    if arguments.engine == "simulator":
        arguments.what = [what for what in arguments.what if what != "fidelity"]
    return arguments


def _wanted(
    arguments: argparse.Namespace, systems: Sequence[_S], ablations: Sequence[_S] = ()
) -> dict[str, _S]:
    """Systems by name: those in ``--only``, or else all; ablations with ``--ablations`` or ``--only``."""
    every: list[_S] = list(systems)
    if arguments.only or arguments.ablations:
        every += ablations
    return {s.name: s for s in every if not arguments.only or s.name in arguments.only}


def _measured(
    out: Path,
    kind: type[_R],
    seeds: Iterable[int],
    systems: Iterable[str],
    once: Callable[[str, int, Path, Sequence[_R]], _R],
    line: Callable[[_R], str],
    columns: Sequence[_Column],
) -> dict[str, list[_R]]:
    """Run every system with every seed. Print and store the results, and return them by system."""
    results = _kept(out, kind)
    for seed in seeds:
        for name in systems:
            result = once(name, seed, out / _slug(name) / str(seed), results)
            results = _replaced(results, result)
            print(line(result), flush=True)
            _keep(out, results)
    groups = _grouped(results)
    print("\n" + _table(columns, groups), flush=True)
    _compare(out)
    return groups


def _overload(arguments: argparse.Namespace, seeds: Iterable[int], out: Path) -> list[tuple[str, bool]]:
    sizes = overload.Sizes(8, 6, 13) if arguments.short else overload.Sizes()
    headline = [
        system
        for system in overload.HEADLINE
        if system.setting is None or arguments.engine in ("vllm", system.setting.kind)
    ]
    systems = _wanted(arguments, (*headline, *overload.BASELINES, *overload.WRONG), overload.ABLATIONS)

    def once(name: str, seed: int, folder: Path, before: Sequence[overload.Result]) -> overload.Result:
        system = systems[name]
        kind = system.setting.kind if system.setting is not None else arguments.engine
        alone = [r.alone_p99_s for r in before if r.kind == kind]
        promised = replace(sizes, slo_ms=MOST_RATIO * 1000 * median(alone)) if alone else sizes
        return overload.run(kind, system, promised, seed, folder)

    groups = _measured(out, overload.Result, seeds, systems, once, _overload_line, _OVERLOAD)
    print(_headline(groups), flush=True)
    return _overload_goals(groups)


def _headline(groups: Mapping[str, Sequence[overload.Result]]) -> str:
    """A Markdown table of the measurements of each seed."""
    lines = [
        "| engine | seed | P99 alone, ms | P99 engine alone, ms | P99 tokenpool, ms | ratio"
        " | guaranteed shed | tokens/s engine alone | tokens/s tokenpool | share |",
        "| --- |" + " --- |" * 9,
    ]
    for setting in overload.SETTINGS:
        alone = {r.seed: r for r in groups.get(overload.named(overload.ALONE, setting), [])}
        for ours in sorted(groups.get(overload.named(overload.OURS, setting), []), key=lambda r: r.seed):
            other = alone.get(ours.seed)
            p99_ms, tokens, share = "", "", ""
            if other is not None:
                p99_ms, tokens = f"{1000 * other.p99_s:.0f}", f"{other.tokens_per_s:.0f}"
                share = f"{ours.tokens_per_s / other.tokens_per_s:.3f}"
            lines.append(
                f"| {setting.name} | {ours.seed} | {1000 * ours.alone_p99_s:.0f} | {p99_ms}"
                f" | {1000 * ours.p99_s:.0f} | {ours.ratio:.2f} | {ours.guaranteed_shed} of {ours.guaranteed}"
                f" | {tokens} | {ours.tokens_per_s:.0f} | {share} |"
            )
    return "\n".join(lines) + "\n"


def _overload_goals(groups: dict[str, list[overload.Result]]) -> list[tuple[str, bool]]:
    goals: list[tuple[str, bool]] = []
    recovers = [system.name for system in overload.WRONG]
    for setting in overload.SETTINGS:
        name = overload.named(overload.OURS, setting)
        ours, alone = groups.get(name, []), groups.get(overload.named(overload.ALONE, setting), [])
        if not ours:
            continue
        recovers.append(name)
        goals += [(f"{setting.name}: {goal}", is_reached) for goal, is_reached in _guarantee_goals(ours)]
        if alone:
            # The mean over all seeds: on a shared machine the engine alone varies by a fifth between runs.
            share = fmean(r.tokens_per_s for r in ours) / fmean(r.tokens_per_s for r in alone)
            text = f"{setting.name}: throughput is {share:.1%} of the engine's alone, at least 95 %"
            goals.append((text, share >= LEAST_THROUGHPUT))
            text = f"{setting.name}: waits at the engine alone become longer and longer"
            goals.append((text, all(r.grows for r in alone)))
    for system in recovers:
        ratios = [r.recovered_ratio for r in groups.get(system, []) if not math.isnan(r.recovered_ratio)]
        if ratios:
            ratio = median(ratios)
            goals.append(
                (
                    f"{system}: {ratio:.2f} x from {overload.RECOVERED_S:.0f} s on, at most {MOST_RATIO}",
                    ratio <= MOST_RATIO,
                )
            )
    return goals


def _guarantee_goals(ours: Sequence[overload.Result] | Sequence[pool.Result]) -> list[tuple[str, bool]]:
    """The goals of a guarantee."""
    ratio, shed = median(r.ratio for r in ours), sum(r.guaranteed_shed for r in ours)
    return [
        (f"guaranteed P99 is {ratio:.2f} x alone, at most {MOST_RATIO}", ratio <= MOST_RATIO),
        (f"{shed} guaranteed requests shed, none", shed == 0),
    ]


def _fairness_goals(ours: Sequence[scarcity.Result] | Sequence[pool.Result]) -> list[tuple[str, bool]]:
    """The goals of fairness in scarcity."""
    first, later = median(r.first_jain for r in ours), median(r.later_jain for r in ours)
    typical, worst = median(r.deviation for r in ours), max(r.deviation for r in ours)
    return [
        (f"Jain over the first 20 s is {first:.3f}, at least 0.98", first >= 0.98),
        (f"Jain over any later 60 s is {later:.3f}, at least 0.99", later >= 0.99),
        (f"deviation is {typical:.1%}, at most 5 %", typical <= 0.05),
        (f"deviation in the worst run is {worst:.1%}, at most 10 %", worst <= 0.10),
    ]


def _scarcity(arguments: argparse.Namespace, seeds: Iterable[int], out: Path) -> list[tuple[str, bool]]:
    sizes = scarcity.Sizes(4, 30, 4) if arguments.short else scarcity.Sizes()
    systems = _wanted(arguments, scarcity.SYSTEMS)

    def once(name: str, seed: int, folder: Path, _: object) -> scarcity.Result:
        return scarcity.run(arguments.engine, systems[name], sizes, seed, folder)

    groups = _measured(out, scarcity.Result, seeds, systems, once, _scarcity_line, _SCARCITY)
    ours, unfair = groups.get("with debt", []), groups.get("without debt", [])
    if not ours:
        return []
    goals = _fairness_goals(ours)
    if unfair:
        typical = median(r.deviation for r in ours)
        goals.append(("without debt the deviation is larger", median(r.deviation for r in unfair) > typical))
    return goals


def _pool(arguments: argparse.Namespace, seeds: Iterable[int], out: Path) -> list[tuple[str, bool]]:
    sizes = pool.Sizes(8, 20, 10, 40, 5) if arguments.short else pool.Sizes()
    systems = _wanted(arguments, pool.SYSTEMS)

    def once(name: str, seed: int, folder: Path, _: object) -> pool.Result:
        return pool.run(systems[name], sizes, seed, folder)

    groups = _measured(out, pool.Result, seeds, systems, once, _pool_line, _POOL)
    ours = groups.get("tokenpool", [])
    goals = [*_guarantee_goals(ours), *_fairness_goals(ours)] if ours else []
    return [(f"pool: {goal}", is_reached) for goal, is_reached in goals]


def _fidelity(arguments: argparse.Namespace, out: Path) -> None:
    sizes = fidelity.Sizes(6) if arguments.short else fidelity.Sizes()
    rows = fidelity.run(sizes, arguments.seed, out)
    print("\nfidelity: the simulator compared with the engine that it imitates\n\n" + fidelity.table(rows))
    _compare(out)


def _hostile(arguments: argparse.Namespace, out: Path) -> list[tuple[str, bool]]:
    sizes = hostile.Sizes(1.0, 0.3) if arguments.short else hostile.Sizes()
    sizes = replace(sizes, attackers=arguments.attackers)
    results = hostile.run(arguments.engine, sizes, arguments.seed, out, arguments.only)
    (out / "results.json").write_text(json.dumps([asdict(one) for one in results], indent=1))
    print(hostile.table(results))
    return hostile.goals(results)


def _prices(arguments: argparse.Namespace, out: Path) -> list[tuple[str, bool]]:
    sizes = prices.Sizes(20_000, 100, 800, 200) if arguments.short else prices.Sizes()
    result = prices.run(sizes, arguments.seed, arguments.traces)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text(prices.table(result))
    print("\n" + prices.table(result))
    return prices.goals(result)


def _soak(arguments: argparse.Namespace, out: Path) -> list[tuple[str, bool]]:
    sizes = soak.Sizes(25.0, 4.0) if arguments.short else soak.Sizes()
    result = soak.run(sizes, arguments.seed, out)
    (out / "results.json").write_text(json.dumps(asdict(result), indent=1))
    print(f"soak      {result}")
    return soak.goals(result)


@dataclass(frozen=True)
class _Column:
    """One column of a table of results."""

    title: str
    field: str
    form: str
    worst: Callable[[Iterable[float]], float]
    """Selects the worst of several values."""
    scale: float = 1.0

    def cell(self, results: Sequence[Result]) -> str:
        """The median and the worst value."""
        values = [float(getattr(result, self.field)) * self.scale for result in results]
        shown = self.form.format(median(values))
        return f"{shown} ({self.form.format(self.worst(values))})" if len(values) > 1 else shown


def _ms(title: str, field: str) -> _Column:
    return _Column(title, field, "{:.0f}", max, 1000.0)


_OVERLOAD = (
    _ms("P99 alone, ms", "alone_p99_s"),
    _ms("P50", "p50_s"),
    _ms("P99", "p99_s"),
    _Column("ratio", "ratio", "{:.2f}", max),
    _Column("from 30 s on", "recovered_ratio", "{:.2f}", max),
    _Column("tokens/s", "tokens_per_s", "{:.0f}", min),
    _Column("shed", "guaranteed_shed", "{:.0f}", max),
    _Column("spot served", "spot_served", "{:.0f}", min),
    _Column("ended", "preempted", "{:.0f}", max),
)
_SCARCITY = (
    _Column("Jain, first 20 s", "first_jain", "{:.3f}", min),
    _Column("any later 60 s", "later_jain", "{:.3f}", min),
    _Column("deviation", "deviation", "{:.1%}", max),
    _Column("in tokens", "tokens_deviation", "{:.1%}", max),
    _Column("in sequence-seconds", "sequences_deviation", "{:.1%}", max),
    _Column("tokens/s, one engine", "tokens_per_s", "{:.0f}", min),
    _Column("two again", "tokens_per_s_after", "{:.0f}", min),
)


_POOL = (
    _ms("P99 alone, ms", "alone_p99_s"),
    _ms("P99", "p99_s"),
    _Column("ratio", "ratio", "{:.2f}", max),
    _Column("shed", "guaranteed_shed", "{:.0f}", max),
    _Column("tokens/s", "tokens_per_s", "{:.0f}", min),
    _Column("half the engines: Jain, first 20 s", "first_jain", "{:.3f}", min),
    _Column("any later 60 s", "later_jain", "{:.3f}", min),
    _Column("deviation", "deviation", "{:.1%}", max),
    _Column("tokens/s", "tokens_per_s_half", "{:.0f}", min),
)


def _table(columns: Sequence[_Column], groups: Mapping[str, Sequence[Result]]) -> str:
    """A Markdown table of the median and the worst value of each system."""
    lines = ["| | " + " | ".join(c.title for c in columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, results in groups.items():
        lines.append(f"| {name} | " + " | ".join(column.cell(results) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _overload_line(result: overload.Result) -> str:
    return (
        f"overload  {result.system:29} seed {result.seed}: P99 {1000 * result.alone_p99_s:.0f} ms alone,"
        f" {1000 * result.p99_s:.0f} in overload ({result.ratio:.2f} x), {result.tokens_per_s:.0f} tokens/s,"
        f" {result.guaranteed_shed} of {result.guaranteed} guaranteed shed, {result.preempted} spot ended"
        f" {' '.join(result.complaints)}"
    )


def _scarcity_line(result: scarcity.Result) -> str:
    shares = ", ".join(f"{tenant} {share:.2f}" for tenant, share in result.shares.items())
    return (
        f"scarcity  {result.system:13} seed {result.seed}: Jain {result.first_jain:.3f} then"
        f" {result.later_jain:.3f}, deviation {result.deviation:.1%} ({shares}),"
        f" {result.tokens_per_s:.0f} tokens/s"
    )


def _pool_line(result: pool.Result) -> str:
    return (
        f"pool      {result.system:22} seed {result.seed}: P99 {1000 * result.alone_p99_s:.0f} ms alone,"
        f" {1000 * result.p99_s:.0f} in overload ({result.ratio:.2f} x), {result.guaranteed_shed} of"
        f" {result.guaranteed} guaranteed shed, {result.tokens_per_s:.0f} tokens/s;"
        f" with half the engines Jain {result.first_jain:.3f} then {result.later_jain:.3f}, deviation"
        f" {result.deviation:.1%}, {result.tokens_per_s_half:.0f} tokens/s"
    )


def _grouped(results: Iterable[_R]) -> dict[str, list[_R]]:
    groups: dict[str, list[_R]] = {}
    for result in results:
        groups.setdefault(result.system, []).append(result)
    return groups


def _keep(out: Path, results: Sequence[Result]) -> None:
    record = {
        "machine": str(machine()),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions(),
        "results": [asdict(result) for result in results],
    }
    (out / "results.json").write_text(json.dumps(record, indent=1))


def _kept(out: Path, kind: type[_R]) -> list[_R]:
    """The results in the folder. They count until the folder is deleted."""
    file = out / "results.json"
    if not file.exists():
        return []
    return [msgspec.convert(result, kind) for result in json.loads(file.read_text())["results"]]


def _replaced(results: Sequence[_R], new: _R) -> list[_R]:
    """The results with this one, which replaces an earlier one of the same system and seed."""
    return [r for r in results if (r.system, r.seed) != (new.system, new.seed)] + [new]


def _compare(out: Path) -> None:
    """Write a page that compares all runs."""
    runs = sorted(str(path.parent) for path in out.glob("*/*/run/meta.json"))
    command = [*module("loadgen"), "compare", *runs, "--out", str(out / "compare.html")]
    with (out / "compare.txt").open("wb") as text:
        subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=text, stderr=subprocess.STDOUT)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


if __name__ == "__main__":
    sys.exit(main())
