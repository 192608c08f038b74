"""``tokenpool explain``: the promises of a pool file, or the meaning of a reason for a refusal."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields, is_dataclass
from typing import Any

from cli import command, pool_file
from tokenpool.amounts import Amount
from tokenpool.outcomes import Reason
from tokenpool.poolfile.explain import explain


def add_parser(commands: command.Commands) -> None:
    """Declare the command."""
    parser = command.add(
        commands, "explain", run, "explain a pool file, or the reason of a refusal in x-tokenpool-reason"
    )
    pool_file.add_argument(parser, optional=True)
    parser.add_argument("--reason", metavar="REASON", help="explain this reason instead, such as engine_full")


def run(arguments: argparse.Namespace) -> int:
    """Print the explanation; returns the exit status."""
    if arguments.reason is not None:
        return _reason(arguments)
    if arguments.file is None:
        raise command.CommandFailed(
            "explain: give a pool file, or --reason with a value of x-tokenpool-reason"
        )
    parsed = pool_file.read(arguments.file)
    if arguments.json:
        command.print_json(as_json(parsed.file))
    else:
        print(explain(parsed))
    return command.OK


def _reason(arguments: argparse.Namespace) -> int:
    known = [each.value for each in Reason]
    if arguments.reason not in known:
        raise command.CommandFailed(f"explain: {arguments.reason!r} is not one of {', '.join(known)}")
    reason = Reason(arguments.reason)
    if arguments.json:
        command.print_json(
            {
                "reason": reason.value,
                "status": reason.status,
                "is_shed": reason.is_shed,
                "meaning": reason.meaning,
            }
        )
    else:
        print(f"{reason.value} (HTTP {reason.status}): {reason.meaning}")
    return command.OK


def as_json(value: Any) -> Any:
    """A record of the domain as JSON, with its defaults. Secrets (fields without a repr) are left out.

    An infinite number, which stands for "no bound", is ``null``.
    """
    if isinstance(value, Amount):
        return {name: as_json(number) for name, number in value.as_dict().items()}
    if is_dataclass(value):
        return {each.name: as_json(getattr(value, each.name)) for each in fields(value) if each.repr}
    if isinstance(value, dict):
        return {str(name): as_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
