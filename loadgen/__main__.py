"""The commands of ``loadgen``: init, check, run, sweep, capacity, compare and engine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen import examples, outputs, reading, server_urls
from loadgen.examples import UnknownQuestion
from loadgen.fields import ScenarioError
from loadgen.options import make_parser
from loadgen.outputs import OutputExists
from loadgen.records import RunUnreadable, TenantMeta
from loadgen.scenario import Scenario, faster, lasting, unmeasured
from loadgen.tls import Tls

if TYPE_CHECKING:
    from loadgen.goals import Goal
    from loadgen.rates.steps import Steps
    from loadgen.run import Order

FAILED = 1
"""Nothing was served, a process of the run failed, a goal was missed, or a regression found."""
USAGE_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["engine"]:
        # Imported here, because the engine and the client do not need each other's modules.
        from loadgen.engine import __main__ as engine  # noqa: PLC0415

        return engine.main(given[1:])
    try:
        arguments = make_parser().parse_args(given)
        command = {"compare": _compare, "check": _check, "init": _init}.get(arguments.command, _sending)
        return command(arguments)
    except (ScenarioError, RunUnreadable, OutputExists, UnknownQuestion) as error:
        print(f"loadgen: {error}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        print(f"loadgen: {outputs.problem(error)}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


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
        raise ScenarioError(
            f"{arguments.scenario} {problem}; give a longer --duration, or a shorter --warm-up or --cool-down"
        )
    return scenario


def _init(arguments: argparse.Namespace) -> int:
    if arguments.question is None:
        print(examples.listed())
        return 0
    example = examples.find(arguments.question)
    made = examples.written(example, arguments.out or Path(example.name), force=arguments.force)
    print(examples.next_steps(example, made))
    return 0


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
    outputs.check_folder(arguments.out, force=arguments.force)
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
    outputs.clear(order.out)
    done = performed(order, arguments.processes, asked, arguments.export)
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
    goals.check(asked, [TenantMeta.of(tenant) for tenant in scenario.tenants])
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


def _steps(arguments: argparse.Namespace, asked: Sequence[Goal] = ()) -> Steps:
    """The runs of a sweep or a search, before the first."""
    from loadgen.performing import performed  # noqa: PLC0415
    from loadgen.rates.steps import Steps, own_rate  # noqa: PLC0415

    order = _order(arguments, asked)
    own_rate(order.scenario)  # a scenario without a rate is refused before results are deleted
    outputs.clear(order.out)
    return Steps(order, lambda order: performed(order, arguments.processes, (), arguments.export).run)


def _sweep(arguments: argparse.Namespace) -> int:
    from loadgen.rates import outcome  # noqa: PLC0415
    from loadgen.rates.sweep import sweep  # noqa: PLC0415

    steps = _steps(arguments)
    result = sweep(steps, arguments, partial(print, flush=True))
    print(outcome.told(steps, result))
    if steps.is_interrupted:
        return INTERRUPTED
    return 0 if any(point.summary.served for point in steps.points.values()) else FAILED


def _capacity(arguments: argparse.Namespace) -> int:
    from loadgen import goals  # noqa: PLC0415
    from loadgen.rates import outcome  # noqa: PLC0415
    from loadgen.rates.capacity import capacity  # noqa: PLC0415

    asked = [goals.parse(text) for text in arguments.slo]
    steps = _steps(arguments, asked)
    result = capacity(steps, asked, arguments, partial(print, flush=True))
    print(outcome.told(steps, result))
    if steps.is_interrupted:
        return INTERRUPTED
    return 0 if result.numbers["met_at"] is not None else FAILED


def _check_order(scenario: Scenario, arguments: argparse.Namespace) -> None:
    """Raise ``ScenarioError`` if the options and the scenario do not allow a run."""
    for url in arguments.url:
        server_urls.check_server(url)
    for url in arguments.state:
        server_urls.check(url)
    if not isinstance(scenario.spread, str) and len(scenario.spread) != len(arguments.url):
        raise ScenarioError(
            f"{arguments.scenario}: spread has {len(scenario.spread)} weights for {len(arguments.url)} URLs; "
            "give one for each --url"
        )
    if scenario.faults and not (arguments.allow_faults or arguments.skip_faults):
        raise ScenarioError(
            f"{arguments.scenario}: the scenario has faults, the first being '{scenario.faults[0].name}'; "
            "give --allow-faults to run them, or --skip-faults to leave them out"
        )


def _compare(arguments: argparse.Namespace) -> int:
    from loadgen import compare, regressions  # noqa: PLC0415
    from loadgen.records import load  # noqa: PLC0415
    from loadgen.summary import summarise  # noqa: PLC0415

    asked = [regressions.parse(text) for text in arguments.fail_if]
    if arguments.out is not None:
        outputs.check_file(arguments.out, force=arguments.force)
    runs = [load(folder) for folder in arguments.folders]
    groups = compare.groups(runs, [summarise(run) for run in runs])
    if asked and len(groups) < 2:
        raise ScenarioError(
            "--fail-if compares labels, and all runs have the same label; give runs of two labels"
        )
    judged = compare.judge(asked, groups)
    print(compare.text(groups, judged))
    if arguments.out is not None:
        arguments.out.write_text(compare.html(groups, judged), encoding="utf-8")
        print(f"The page is {arguments.out}")
    return FAILED if any(result.is_failed for result in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
