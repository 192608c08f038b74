"""What the commands share: exit statuses, failures, and the output as JSON or as a table.

Results go to standard output, everything else to standard error. So a script can read the output of
``--json`` without a check of each line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

OK = 0
PROBLEMS = 1
"""The command ran, and its answer is negative: for example, the pool file has problems."""
USAGE_ERROR = 2
"""The command could not run: a wrong option, a missing file, a process that does not answer."""
INTERRUPTED = 130

Commands = Any
"""The object that ``argparse.ArgumentParser.add_subparsers`` returns; its class has no public name."""
Run = Callable[[argparse.Namespace], int]
"""Runs a command; returns the exit status."""


class CommandFailed(Exception):
    """A command cannot run. The text names the cause and the next step."""


def add(commands: Commands, name: str, run: Run, summary: str) -> argparse.ArgumentParser:
    """Declare a command with the option ``--json``. ``summary`` is a sentence without a full stop."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.", allow_abbrev=False
    )
    add_json(parser)
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare ``--json``, which every command has."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def print_json(value: Any) -> None:
    """Print a value as JSON, indented."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Print a line to standard error, with the name of the program."""
    print(f"tokenpool: {text}", file=sys.stderr)


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, last_left: bool = False
) -> str:
    """Rows in columns. The first ``left`` columns align at their left side, the others at their right.

    ``last_left`` aligns the last column at its left side, too, for a column of words.
    """
    lines = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lefts = {*range(left), *((len(widths) - 1,) if last_left else ())}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in lefts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
