"""Peers side by side, on one engine and under the same loads.

Each system serves the same tenants with one configuration. The systems are no proxy, the engine's own
priority and queue limit, LiteLLM, Envoy, two routers in Rust, and tokenpool with default options. Results
of several calls add up in the folder of ``--out``. The load goes to loopback only.

    python -m experiments peers --install
    python -m experiments peers
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import msgspec

from experiments.goals import report
from experiments.peers import environment, measuring, table
from experiments.peers.loads import Sizes
from experiments.peers.measuring import Result
from experiments.peers.system import Capacity
from experiments.peers.systems import ALONE, SYSTEMS
from experiments.processes import commit
from loadgen.records import machine, versions

OUT = Path(__file__).parents[2] / "out" / "peers"
KINDS = ("simulator", "vllm")
LEAST_SECONDS = 4.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the systems, write the table, and return 1 if a goal is missed, 2 if a peer is not installed."""
    arguments = _arguments(argv)
    try:
        if arguments.install:
            environment.install(arguments.python, arguments.home)
            return 0
        results = _results(arguments)
    except environment.NotInstalled as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    groups = grouped(results)
    text = table.table(groups)
    text += "\n" + "".join(f"- {line}\n" for line in table.verdicts(groups))
    (arguments.out / "results.md").write_text(text)
    print("\n" + text)
    for result in results:
        for line in result.complaints:
            print(f"note     {result.system}, seed {result.seed}: {line}")
    return report(table.goals(groups))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = [system.name for system in SYSTEMS]
    parser = argparse.ArgumentParser(prog="python -m experiments peers", description=__doc__)
    parser.add_argument("--install", action="store_true", help="install the pinned peers, and do no more")
    parser.add_argument(
        "--python", default=sys.executable, help="the interpreter for --install; Python 3.11 [this one]"
    )
    parser.add_argument(
        "--home", type=Path, default=environment.HOME, help="the environment of the peers [.cache/peers]"
    )
    parser.add_argument("--engine", choices=KINDS, default="simulator", help="[simulator]")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each system [5]")
    parser.add_argument("--seed", type=int, default=1, help="the first seed [1]")
    parser.add_argument(
        "--seconds",
        type=float,
        default=24.0,
        help="duration of a load, s; the third is longer by a third [24]",
    )
    parser.add_argument("--only", default="", help=f"systems, separated by semicolons: {'; '.join(names)}")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the results")
    arguments = parser.parse_args(argv)
    arguments.out, arguments.home = arguments.out.resolve(), arguments.home.absolute()
    arguments.only = [name.strip() for name in arguments.only.split(";") if name.strip()] or names
    for name in arguments.only:
        if name not in names:
            parser.error(f"{name!r} is not a system; the systems are {'; '.join(names)}")
    if arguments.seeds < 1:
        parser.error("--seeds must be 1 or more")
    if arguments.seconds < LEAST_SECONDS:
        parser.error(f"--seconds must be {LEAST_SECONDS:g} or more")
    return arguments


def _results(arguments: argparse.Namespace) -> list[Result]:
    out: Path = arguments.out
    chosen = [system for system in SYSTEMS if system.name in arguments.only]
    for system in chosen:
        if system.program:
            environment.program(system.program, arguments.home)
    out.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(arguments.seconds)
    about = {
        "engine": arguments.engine,
        "seconds": arguments.seconds,
        "commit": commit(),
        "machine": str(machine()),
        "versions": versions(),
        "peers": environment.pinned(environment.REQUIREMENTS.read_text()),
    }
    file = out / "results.json"
    record = msgspec.json.decode(file.read_bytes()) if file.exists() else {}
    results = msgspec.convert(record.get("results", []), list[Result])
    capacity = (
        msgspec.convert(record["capacity"], Capacity)
        if "capacity" in record
        else measuring.measured_capacity(arguments.engine, out / "capacity")
    )
    print(f"peers: {arguments.engine}, commit {about['commit']}, {about['machine']}, {capacity}", flush=True)
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for system in chosen:
            folder = out / _slug(system.name) / str(seed)
            known = promised(capacity, results)
            result = measuring.run(arguments.engine, system, sizes, known, seed, folder, arguments.home)
            results = [one for one in results if (one.system, one.seed) != (system.name, seed)] + [result]
            print(line(result), flush=True)
            kept = about | {"capacity": asdict(capacity), "results": [asdict(one) for one in results]}
            file.write_text(json.dumps(kept, indent=1))
    return results


def promised(capacity: Capacity, results: Sequence[Result]) -> Capacity:
    """The capacity with the guaranteed tenant's P99 alone, as far as it was measured without a proxy."""
    alone = [one.alone_ttft_p99_s for one in results if one.system == ALONE]
    return replace(capacity, alone_p99_ttft_s=median(alone)) if alone else capacity


def grouped(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results by system, in the order of the systems."""
    names = [system.name for system in SYSTEMS]
    return {name: found for name in names if (found := [one for one in results if one.system == name])}


def line(result: Result) -> str:
    """One line about one run."""
    cpu = "" if result.cpu_s is None else f", {1000 * result.cpu_s:.1f} ms CPU per request"
    return (
        f"{result.system:34} seed {result.seed}: P99 {1000 * result.alone_ttft_p99_s:.0f} ms alone,"
        f" {1000 * result.ttft_p99_s:.0f} in overload,"
        f" {result.guaranteed_refused} of {result.guaranteed} guaranteed refused,"
        f" {result.tokens_per_s:.0f} tokens/s, {result.idle_refused} of {result.idle_requests} refused while"
        f" idle, Jain {result.jain:.3f} with {result.used:.0%} of the slots in use{cpu}"
    )


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)
