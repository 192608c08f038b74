"""The command line: ``tokenpool-coordinator run``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from coordinator import settings
from coordinator.pool_file import PoolFileInvalid
from runtime.build import add_version
from runtime.options import SettingsError

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="tokenpool-coordinator",
        description="Recomputes the limits of all tenants of a pool, and its number of replicas.",
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the coordinator", allow_abbrev=False)
    settings.add_arguments(run)
    try:
        return _run(parser.parse_args(argv))
    except (SettingsError, PoolFileInvalid, OSError) as error:
        print(f"tokenpool-coordinator: {error}", file=sys.stderr)
        return USAGE_ERROR


def _run(arguments: argparse.Namespace) -> int:
    # Imported here, so that an error in the options is printed at once.
    import uvloop  # noqa: PLC0415

    from coordinator import app  # noqa: PLC0415
    from runtime import logs  # noqa: PLC0415

    read = settings.read(arguments, os.environ)
    logs.configure(read.log_level)
    uvloop.run(app.serve(read))
    return 0


if __name__ == "__main__":
    sys.exit(main())
