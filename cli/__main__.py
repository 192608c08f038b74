"""The command line: ``tokenpool COMMAND``.

The exit status is 0 after success, and 2 if the command could not run. It is 1 if the answer is negative:
for example, the pool file has problems.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cli import check, command, completion, explain, export, keys, simulate, top, usage
from runtime.build import add_version
from runtime.options import SettingsError
from tokenpool.poolfile.problems import PoolFileError

COMMANDS = (check, explain, top, keys, usage, export, simulate, completion)
"""The modules of all commands, in the order of ``--help``. They import what only they need when they run."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    arguments.parser = parser
    return perform(arguments)


def perform(arguments: argparse.Namespace) -> int:
    """Run the command of parsed arguments, and report its failure; returns the exit status."""
    run: command.Run = arguments.run
    try:
        status = run(arguments)
        sys.stdout.flush()
    except PoolFileError as error:
        print(error, file=sys.stderr)
        return command.PROBLEMS
    except BrokenPipeError:
        # The reader of the output, such as `head`, has ended. Python would report the same at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return command.OK
    except (command.CommandFailed, SettingsError, OSError, UnicodeError) as error:
        command.say(str(error))
        return command.USAGE_ERROR
    except KeyboardInterrupt:
        return command.INTERRUPTED
    return status


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tokenpool",
        description="Operates a pool: checks its file, shows its entitlements, and reports their usage.",
        allow_abbrev=False,
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for each in COMMANDS:
        each.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
