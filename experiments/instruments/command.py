"""Load generators side by side on one server.

Each instrument sends the same load: streaming completions with 64 tokens in and 64 out, at constant rates,
from one core to a server on another. Its figures stand beside the server's own. Tools come from PyPI into
environments of their own under .cache/instruments; ``vllm bench serve`` is the one of ``make engine``. A tool
that cannot be installed is named and left out. After a rate at which it does not keep up, an instrument gets
no higher one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.goals import report
from experiments.instruments import comparison, running, server
from experiments.instruments.environments import Unavailable, known_interpreters
from experiments.instruments.running import Result
from experiments.instruments.tools import INSTRUMENTS, Call, Instrument
from experiments.instruments.workload import Workload
from experiments.processes import commit
from loadgen.records import machine, versions

OUT = Path(__file__).parents[2] / "out" / "instruments"
RATES = {"simulator": (5.0, 20.0, 50.0, 100.0, 200.0, 300.0), "vllm": (2.0, 4.0)}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, write the tables, and return 1 if a goal is missed."""
    arguments = _arguments(argv)
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "engine": arguments.engine,
        "commit": commit(),
        "machine": str(machine()),
        "versions": versions(),
    }
    print(f"instruments: {about}", flush=True)
    wanted = [instrument for instrument in INSTRUMENTS if instrument.name in arguments.only]
    chosen = available(wanted, list(known_interpreters(arguments.python)))
    try:
        results = _results(arguments, chosen, out)
    except server.OneCore as error:
        print(f"instruments: {error}")
        return 2
    tables = comparison.table(results) + "\n" + comparison.cost_table(results)
    (out / "results.md").write_text(tables)
    (out / "results.json").write_text(json.dumps(comparison.record(results, about), indent=1))
    print("\n" + tables)
    for note in comparison.notes(results):
        print(f"note     {note}")
    return report(comparison.goals(results))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments instruments", description=__doc__)
    names = [instrument.name for instrument in INSTRUMENTS]
    parser.add_argument("--engine", choices=server.KINDS, default="simulator")
    parser.add_argument("--rates", help="requests per second, separated by commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of load at each rate [5]")
    parser.add_argument("--input-tokens", type=int, default=64, help="tokens of a prompt [64]")
    parser.add_argument("--output-tokens", type=int, default=64, help="tokens of a response [64]")
    parser.add_argument("--only", default="", help=f"instruments, separated by commas: {', '.join(names)}")
    parser.add_argument("--python", help="an interpreter for tools that need a newer one than this")
    parser.add_argument("--seed", type=int, default=1, help="selects the prompts [1]")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the results")
    arguments = parser.parse_args(argv)
    arguments.only = [name.strip() for name in arguments.only.split(",") if name.strip()] or names
    if unknown := [name for name in arguments.only if name not in names]:
        parser.error(f"{unknown[0]!r} is not an instrument; these are {', '.join(names)}")
    try:
        rates = arguments.rates.split(",") if arguments.rates else RATES[arguments.engine]
        arguments.rates = sorted(float(rate) for rate in rates)
    except ValueError:
        parser.error(f"--rates {arguments.rates}: write numbers separated by commas, such as 20,100")
    numbers = (*arguments.rates, arguments.seconds, arguments.input_tokens, arguments.output_tokens)
    if min(numbers) <= 0:
        parser.error("rates, seconds and tokens must be above 0")
    return arguments


def available(
    instruments: Iterable[Instrument], interpreters: Sequence[str]
) -> list[tuple[Instrument, Path]]:
    """The instruments that can be used, each with the folder of its programs. The others are named."""
    found = []
    for instrument in instruments:
        try:
            found.append((instrument, instrument.programs(interpreters)))
        except Unavailable as error:
            print(f"instruments: {instrument.name} is left out: {error}", flush=True)
    return found


def _results(
    arguments: argparse.Namespace, chosen: Sequence[tuple[Instrument, Path]], out: Path
) -> list[Result]:
    theirs, ours = server.cores()
    sizes = arguments.input_tokens, arguments.output_tokens
    loads = [Workload.of(rate, arguments.seconds, *sizes) for rate in arguments.rates]
    results: list[Result] = []
    slow: set[str] = set()
    with server.serving(arguments.engine, theirs, out) as target:
        count = max(load.requests for load in loads)
        files = server.made_files(arguments.engine, target, out, sizes, count, arguments.seed)
        for load in loads:
            for instrument, programs in chosen:
                if instrument.name in slow:
                    continue
                folder = _empty(out / f"{instrument.name.replace(' ', '-')}-{load.rate:g}")
                call = Call(load, target, files, folder, arguments.seed)
                result = running.run(instrument, programs, call, ours)
                results.append(result)
                print(_line(result), flush=True)
                if not result.keeps_up:
                    slow.add(instrument.name)
    return results


def _line(result: Result) -> str:
    if result.figures is None:
        return f"{result.instrument:16} {result.rate:g}/s: {result.problem}; it gets no higher rate"
    fate = "" if result.keeps_up else "; it does not keep up, and gets no higher rate"
    return f"{result.instrument:16} {result.rate:g}/s: sent {result.figures.rate:.1f}/s{fate}"


def _empty(folder: Path) -> Path:
    """The folder, without the files of an earlier comparison."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder
