"""The command line: ``tokenpool-sidecar run``, ``tokenpool-sidecar check`` and ``--version``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime import config_files
from runtime.build import add_version
from sidecar import settings, worker
from sidecar.configuration import ConfigurationInvalid
from tokenpool.poolfile import explain
from tokenpool.poolfile.problems import PoolFileError
from tokenpool.poolfile.reading import parse_all

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    command = {"run": _run, "check": _check}[arguments.command]
    try:
        return command(arguments)
    except (settings.SettingsError, PoolFileError, ConfigurationInvalid, OSError, UnicodeError) as error:
        print(f"tokenpool-sidecar: {error}", file=sys.stderr)
        return USAGE_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenpool-sidecar",
        description="A reverse proxy next to a vLLM engine that shares it fairly among tenants.",
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the sidecar", allow_abbrev=False)
    settings.add_arguments(run)
    check = commands.add_parser("check", help="validate a pool file and explain it")
    check.add_argument("file", type=Path, help="the file, or a folder of *.yaml files")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    # Imported here: `check` needs neither an event loop nor a web server.
    import uvloop  # noqa: PLC0415

    from runtime import logs  # noqa: PLC0415

    read = settings.read(arguments, os.environ)
    logs.configure(read.log_level)
    place = worker.read(os.environ)
    if read.workers > 1 and place is None:
        from sidecar.workers import supervisor  # noqa: PLC0415

        return uvloop.run(supervisor.serve(read))
    from sidecar import app  # noqa: PLC0415

    uvloop.run(app.serve(read, place))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    print(explain(parse_all(config_files.read(arguments.file))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
