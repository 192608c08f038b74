"""``tokenpool check``: validates a pool file, and names file, line and fix of each problem."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

from cli import command, pool_file
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.yaml_nodes import Problem


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def add_parser(commands: command.Commands) -> None:
    """Declare the command."""
    parser = command.add(commands, "check", run, "validate a pool file; the status is 1 if it has problems")
    pool_file.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print problems and warnings; returns the exit status."""
    checked = _check(arguments)
    name = str(arguments.file)
    if arguments.json:
        command.print_json(
            {
                "valid": not checked.problems,
                "problems": _as_dicts(checked.problems, name),
                "warnings": _as_dicts(checked.warnings, name),
            }
        )
    else:
        _print(checked, name)
    return command.PROBLEMS if checked.problems else command.OK


def _check(arguments: argparse.Namespace) -> Checked:
    try:
        return Checked(warnings=pool_file.read(arguments.file).warnings)
    except PoolFileError as error:
        return Checked(problems=error.problems)


def _as_dicts(problems: Iterable[Problem], name: str) -> list[dict[str, str | int]]:
    return [
        {"file": each.file or name, "line": each.line, "message": each.message, "fix": each.fix}
        for each in problems
    ]


def _print(checked: Checked, name: str) -> None:
    for each in checked.problems:
        print(each.render(name))
    for each in checked.warnings:
        print(f"warning: {each.render(name)}")
    if checked.problems:
        print(f"invalid, {_count(len(checked.problems), 'problem')}")
    else:
        print(f"valid, {_count(len(checked.warnings), 'warning')}" if checked.warnings else "valid")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
