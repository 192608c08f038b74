"""The command line: ``loadgen run``, ``sweep``, ``capacity``, ``compare``, ``check`` and ``engine``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from loadgen import reading
from loadgen.fields import ScenarioError
from loadgen.rates.options import add_capacity_options, add_sweep_options
from loadgen.records import RunUnreadable, TenantMeta
from loadgen.scenario import Scenario, faster, lasting, unmeasured
from loadgen.tls import Tls
from runtime.build import add_version

if TYPE_CHECKING:
    from loadgen.goals import Goal
    from loadgen.run import Order

FAILED = 1
"""Nothing was served, a process of the run failed, a goal was missed, or a regression found."""
USAGE_ERROR = 2
INTERRUPTED = 130
MOST_PROCESSES = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["engine"]:
        # Imported here, because the engine and the client do not need each other's modules.
        from loadgen.engine import __main__ as engine  # noqa: PLC0415

        return engine.main(given[1:])
    arguments = _parser().parse_args(given)
    command = {"compare": _compare, "check": _check}.get(arguments.command, _sending)
    try:
        return command(arguments)
    except (ScenarioError, RunUnreadable, OSError) as error:
        print(f"loadgen: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loadgen", description="Sends open-loop load to LLM servers, and measures it."
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run",
        help="run a scenario, and report",
        description="Runs a scenario, and reports. Exit status: 0 measured, 1 nothing served or a goal "
        "missed, 2 wrong usage, 130 interrupted (a report of the measurements so far is written).",
    )
    _add_order(run)
    run.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="GOAL",
        help="exit with 1 if this goal is missed, such as 'guaranteed.ttft.p99<=300ms'; repeat for several",
    )
    sweep = commands.add_parser(
        "sweep",
        help="run a scenario at rising rates, and find the knee",
        description="Runs a scenario at rising rates of all tenants, and finds the knee of the rate-latency "
        "curve: the rate with the largest served requests per second / mean latency.",
    )
    _add_order(sweep)
    add_sweep_options(sweep)
    capacity = commands.add_parser(
        "capacity",
        help="find the highest rate that meets goals",
        description="Searches by bisection for the highest rate of all tenants that meets all goals. "
        "Exit status: 0 found, 1 not met at any rate, 2 wrong usage, 130 interrupted.",
    )
    _add_order(capacity)
    add_capacity_options(capacity)
    compare = commands.add_parser("compare", help="compare runs; those with one label form a group")
    compare.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    compare.add_argument("--out", type=Path, help="an HTML file to write")
    compare.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="REGRESSION",
        help="exit with 1 if a label is worse than the first, such as 'ttft.p99>+10%%'; repeat for several",
    )
    check = commands.add_parser("check", help="validate a scenario and explain it")
    check.add_argument("scenario", type=Path)
    _add_changes(check)
    commands.add_parser("engine", help="simulate an engine; see 'loadgen engine --help'")
    return parser


def _add_order(parser: argparse.ArgumentParser) -> None:
    """The options of commands that send load."""
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--url", action="append", required=True, help="a server; repeat for several")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--state",
        action="append",
        default=[],
        help="URL of a sidecar, coordinator or engine, or of its state page",
    )
    parser.add_argument("--label", default="", help="the run's name in comparisons (default: --out's name)")
    parser.add_argument(
        "--allow-faults", action="store_true", help="run the commands of the scenario's faults"
    )
    parser.add_argument("--skip-faults", action="store_true", help="run the scenario without its faults")
    parser.add_argument(
        "--processes",
        type=_count,
        default=1,
        metavar="N",
        help="send the same requests from N processes, for loads beyond one core (default: 1)",
    )
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="PEM file of the authorities of servers")
    parser.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="PEM file with the client's certificate"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM file with the certificate's key")
    parser.add_argument("--tls-insecure", action="store_true", help="accept any certificate of a server")
    _add_changes(parser)


def _add_changes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="instead of the scenario's")
    parser.add_argument("--scale-rate", type=_factor, metavar="X", help="multiply every tenant's rate")
    parser.add_argument(
        "--duration",
        type=_factor,
        metavar="SECONDS",
        help="another duration; phases, faults, ramps, pauses, warm-up and cool-down scale with it",
    )
    parser.add_argument(
        "--warm-up", type=_span, metavar="SECONDS", help="requests of this time from the start do not count"
    )
    parser.add_argument(
        "--cool-down", type=_span, metavar="SECONDS", help="requests of this time before the end do not count"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to {MOST_PROCESSES}")
    return int(text)


def _factor(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _span(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def _scenario(arguments: argparse.Namespace) -> Scenario:
    scenario = reading.read(arguments.scenario, os.environ)
    if arguments.seed is not None:
        scenario = replace(scenario, seed=arguments.seed)
    if arguments.scale_rate is not None:
        scenario = faster(scenario, arguments.scale_rate)
    if arguments.duration is not None:
        scenario = lasting(scenario, arguments.duration)
    if arguments.warm_up is not None:
        scenario = replace(scenario, warm_up_s=arguments.warm_up)
    if arguments.cool_down is not None:
        scenario = replace(scenario, cool_down_s=arguments.cool_down)
    if problem := unmeasured(scenario.duration_s, scenario.warm_up_s, scenario.cool_down_s):
        raise ScenarioError(f"{arguments.scenario} {problem}; give a longer --duration, or less --warm-up")
    return scenario


def _check(arguments: argparse.Namespace) -> int:
    from loadgen.explaining import explain  # noqa: PLC0415

    print(explain(_scenario(arguments)))
    return 0


def _sending(arguments: argparse.Namespace) -> int:
    """A command that sends load."""
    # Imported here: `check` and `compare` need neither an event loop nor a client.
    from loadgen.probe import ServerUnusable  # noqa: PLC0415
    from loadgen.processes.parent import ProcessFailed  # noqa: PLC0415

    command = {"run": _run, "sweep": _sweep, "capacity": _capacity}[arguments.command]
    try:
        return command(arguments)
    except (ServerUnusable, ProcessFailed) as error:
        print(f"loadgen: {error}", file=sys.stderr)
        return FAILED


def _run(arguments: argparse.Namespace) -> int:
    from loadgen import goals, report  # noqa: PLC0415
    from loadgen.performing import performed  # noqa: PLC0415
    from loadgen.records import REPORT  # noqa: PLC0415

    asked = [goals.parse(text) for text in arguments.fail_on]
    order = _order(arguments, asked)
    done = performed(order, arguments.processes, asked)
    print(report.text(done.run.meta, done.summary, done.goals))
    print(f"The report is {order.out / REPORT}")
    if done.run.meta.is_interrupted:
        return INTERRUPTED
    is_missed = any(not result.is_met for result in done.goals)
    return FAILED if is_missed or not done.summary.served else 0


def _order(arguments: argparse.Namespace, asked: Sequence[Goal] = ()) -> Order:
    """The run that the options describe, after a request to each server that it needs.

    Raises ``ScenarioError`` for goals ``asked`` that it cannot be judged by.
    """
    import uvloop  # noqa: PLC0415

    from loadgen import goals  # noqa: PLC0415
    from loadgen.preparing import prepare  # noqa: PLC0415
    from loadgen.probe import probe  # noqa: PLC0415
    from loadgen.run import Order  # noqa: PLC0415

    scenario = _scenario(arguments)
    _check_order(scenario, arguments)
    goals.check(asked, [TenantMeta(tenant.name, tenant.tier, tenant.slo) for tenant in scenario.tenants])
    tls = Tls(arguments.tls_ca, arguments.tls_cert, arguments.tls_key, arguments.tls_insecure)
    uvloop.run(probe(scenario, arguments.url, tls=tls.context()))
    scenario, notes = uvloop.run(prepare(scenario, arguments.url[0], tls=tls.context()))
    return Order(
        scenario,
        arguments.url,
        arguments.out,
        arguments.label or arguments.out.resolve().name,
        arguments.state,
        arguments.allow_faults,
        ["loadgen", *sys.argv[1:]],
        notes,
        tls=tls,
    )


def _sweep(arguments: argparse.Namespace) -> int:
    from loadgen.performing import performed  # noqa: PLC0415
    from loadgen.rates import outcome  # noqa: PLC0415
    from loadgen.rates.steps import Steps  # noqa: PLC0415
    from loadgen.rates.sweep import sweep  # noqa: PLC0415

    steps = Steps(_order(arguments), lambda order: performed(order, arguments.processes).run)
    result = sweep(steps, arguments, partial(print, flush=True))
    print(outcome.told(steps, result))
    if steps.is_interrupted:
        return INTERRUPTED
    return 0 if any(point.summary.served for point in steps.points.values()) else FAILED


def _capacity(arguments: argparse.Namespace) -> int:
    from loadgen import goals  # noqa: PLC0415
    from loadgen.performing import performed  # noqa: PLC0415
    from loadgen.rates import outcome  # noqa: PLC0415
    from loadgen.rates.capacity import capacity  # noqa: PLC0415
    from loadgen.rates.steps import Steps  # noqa: PLC0415

    asked = [goals.parse(text) for text in arguments.slo]
    steps = Steps(_order(arguments, asked), lambda order: performed(order, arguments.processes).run)
    result = capacity(steps, asked, arguments, partial(print, flush=True))
    print(outcome.told(steps, result))
    if steps.is_interrupted:
        return INTERRUPTED
    return 0 if result.numbers["met_at"] is not None else FAILED


def _check_order(scenario: Scenario, arguments: argparse.Namespace) -> None:
    """Raise ``ScenarioError`` if the options and the scenario do not allow a run."""
    for url in (*arguments.url, *arguments.state):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ScenarioError(f"{url!r} is not the URL of a server; write http://host:port")
    if not isinstance(scenario.spread, str) and len(scenario.spread) != len(arguments.url):
        raise ScenarioError(
            f"{arguments.scenario}: spread has {len(scenario.spread)} weights for {len(arguments.url)} URLs; "
            "give one for each --url"
        )
    if scenario.faults and not (arguments.allow_faults or arguments.skip_faults):
        raise ScenarioError(
            f"{arguments.scenario}: the scenario has faults, the first being '{scenario.faults[0].name}'; "
            "give --allow-faults to inflict them, or --skip-faults"
        )


def _compare(arguments: argparse.Namespace) -> int:
    from loadgen import compare, regressions  # noqa: PLC0415
    from loadgen.records import load  # noqa: PLC0415
    from loadgen.summary import summarise  # noqa: PLC0415

    asked = [regressions.parse(text) for text in arguments.fail_if]
    runs = [load(folder) for folder in arguments.folders]
    groups = compare.groups(runs, [summarise(run) for run in runs])
    if asked and len(groups) < 2:
        raise ScenarioError("--fail-if compares labels, and all runs have the same; give runs of two labels")
    judged = compare.judge(asked, groups)
    print(compare.text(groups, judged))
    if arguments.out is not None:
        arguments.out.write_text(compare.html(groups, judged), encoding="utf-8")
        print(f"The page is {arguments.out}")
    return FAILED if any(result.is_failed for result in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
