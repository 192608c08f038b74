"""The options of every command of ``loadgen``. ``docs/reference/loadgen.md`` is generated from them. Pure."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.exports import FORMATS
from loadgen.fields import LONGEST_NAME, MOST, MOST_SEED
from loadgen.rates.options import add_capacity_options, add_sweep_options
from runtime.build import add_version

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - it has no public name

MOST_PROCESSES = 256


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. ``engine`` has a parser of its own, in ``loadgen.engine``."""
    parser = argparse.ArgumentParser(
        prog="loadgen",
        description="Sends load to LLM servers as many tenants do, and measures what each of them sees. "
        "Begin with 'loadgen init'.",
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_init(commands)
    _add_check(commands)
    _add_run(commands)
    _add_sweep(commands)
    _add_capacity(commands)
    _add_compare(commands)
    commands.add_parser(
        "engine", help="simulate an engine, for trials without a model; see 'loadgen engine --help'"
    )
    return parser


def _add_init(commands: Commands) -> None:
    init = commands.add_parser(
        "init",
        help="write an example scenario for a question",
        description="Writes an example scenario, to be changed and run. Without QUESTION, it lists the "
        "questions. Exit status: 0 written or listed, 2 wrong usage.",
    )
    init.add_argument("question", nargs="?", metavar="QUESTION", help="one of the listed questions")
    init.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: QUESTION.yaml)")
    _add_force(init, "overwrite the file")


def _add_check(commands: Commands) -> None:
    check = commands.add_parser(
        "check",
        help="validate a scenario and explain it",
        description="Validates a scenario and explains it: tenants, expected requests, lengths and tokens. "
        "It sends nothing. Exit status: 0 valid, 2 not valid.",
    )
    _add_scenario(check)
    _add_changes(check)


def _add_run(commands: Commands) -> None:
    run = commands.add_parser(
        "run",
        help="run a scenario, and report",
        description="Runs a scenario, and reports. Exit status: 0 measured; 1 nothing served, a goal missed, "
        "a server not usable, or a process ended early; 2 wrong usage; 130 interrupted (the report has the "
        "measurements so far).",
    )
    _add_order(run)
    run.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="GOAL",
        help="exit with 1 if this goal is missed, such as 'guaranteed.ttft.p99<=300ms'; repeat for several",
    )


def _add_sweep(commands: Commands) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="run a scenario at rising rates, and find the knee",
        description="Runs a scenario at rising rates of all tenants, and finds the knee of the rate-latency "
        "curve: the rate with the largest served requests per second / mean latency. Exit status: 0 "
        "measured; 1 nothing served, or a server not usable; 2 wrong usage; 130 interrupted.",
    )
    _add_order(sweep)
    add_sweep_options(sweep)


def _add_capacity(commands: Commands) -> None:
    capacity = commands.add_parser(
        "capacity",
        help="find the highest rate that meets goals",
        description="Searches by bisection for the highest rate of all tenants that meets all goals. "
        "Exit status: 0 found; 1 no rate meets them with certainty, or a server not usable; 2 wrong usage; "
        "130 interrupted.",
    )
    _add_order(capacity)
    add_capacity_options(capacity)


def _add_compare(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare runs; those with one label form a group",
        description="Compares runs; those with one label form a group. Exit status: 0 compared, 1 a "
        "regression of --fail-if, 2 wrong usage.",
    )
    compare.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="the --out of a run")
    compare.add_argument("--out", type=Path, metavar="FILE", help="an HTML file to write")
    _add_force(compare, "overwrite the file of --out")
    compare.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="REGRESSION",
        help="exit with 1 if a label is worse than the first, such as 'ttft.p99>+10%%'; repeat for several",
    )


def _add_scenario(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", type=Path, metavar="SCENARIO", help="a YAML file; see 'loadgen init'")


def _add_force(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("--force", action="store_true", help=meaning)


def _add_order(parser: argparse.ArgumentParser) -> None:
    """The options of commands that send load."""
    _add_scenario(parser)
    parser.add_argument(
        "--url",
        action="append",
        required=True,
        help="a server, such as http://127.0.0.1:8080; repeat for several",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder for the results, which is created"
    )
    _add_force(parser, "delete the results of an earlier run in --out")
    parser.add_argument(
        "--state",
        action="append",
        default=[],
        metavar="URL",
        help="a sidecar, coordinator or engine, or its state page; its state is recorded during the run; "
        "repeat for several",
    )
    parser.add_argument(
        "--label",
        type=_label,
        default="",
        metavar="NAME",
        help="the run's name in comparisons (default: --out's name)",
    )
    parser.add_argument(
        "--allow-faults", action="store_true", help="run the commands and signals of the scenario's faults"
    )
    parser.add_argument(
        "--export",
        type=_formats,
        action="extend",
        default=[],
        metavar="FORMAT",
        help="also write the results into --out in the format of another tool: "
        f"{' or '.join(FORMATS)}; separate several by commas",
    )
    parser.add_argument("--skip-faults", action="store_true", help="run the scenario without its faults")
    parser.add_argument(
        "--processes",
        type=_count,
        default=1,
        metavar="N",
        help="send the same requests from N processes, for loads that one core cannot send (default: 1)",
    )
    parser.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="PEM file of the authorities that verify servers"
    )
    parser.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="PEM file with the client's certificate"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM file with the certificate's key")
    parser.add_argument("--tls-insecure", action="store_true", help="accept any certificate of a server")
    _add_changes(parser)


def _add_changes(parser: argparse.ArgumentParser) -> None:
    """The options that change a scenario."""
    parser.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="the seed of arrivals, lengths and prompts (default: the scenario's)",
    )
    parser.add_argument("--scale-rate", type=_factor, metavar="X", help="multiply every tenant's rate")
    parser.add_argument(
        "--duration",
        type=_factor,
        metavar="SECONDS",
        help="another duration; times of phases, faults, ramps, pauses, warm-up and cool-down scale with it",
    )
    parser.add_argument(
        "--warm-up",
        type=_span,
        metavar="SECONDS",
        help="requests that are due in this time from the start do not count",
    )
    parser.add_argument(
        "--cool-down",
        type=_span,
        metavar="SECONDS",
        help="requests that are due in this time before the end do not count",
    )


def _formats(text: str) -> list[str]:
    """The names of a list with commas."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a format; use {' or '.join(FORMATS)}")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to {MOST_PROCESSES}")
    return int(text)


def _label(text: str) -> str:
    if not text.isprintable() or len(text) > LONGEST_NAME:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not a name of one line with at most {LONGEST_NAME} characters"
        )
    return text


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > len(str(MOST_SEED)) or int(text) > MOST_SEED:
        raise argparse.ArgumentTypeError(f"{text[:40]} is not a whole number from 0 to {MOST_SEED}")
    return int(text)


def _factor(text: str) -> float:
    value = _number(text)
    if not 0 < value <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0, and {MOST:g} at most")
    return value


def _span(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to {MOST:g}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
