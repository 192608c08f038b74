"""The command line of the webhook: ``python -m injector``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from injector import settings
from runtime.options import SettingsError

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m injector",
        description="A mutating admission webhook that adds the sidecar to pods that ask for it.",
    )
    settings.add_serving_arguments(parser)
    settings.add_template_arguments(parser)
    try:
        return _serve(parser.parse_args(argv))
    except (SettingsError, OSError) as error:
        print(f"injector: {error}", file=sys.stderr)
        return USAGE_ERROR


def _serve(arguments: argparse.Namespace) -> int:
    # Imported here, so that an error in the options is printed at once.
    import uvloop  # noqa: PLC0415

    from injector import app  # noqa: PLC0415
    from runtime import logs  # noqa: PLC0415

    serving = settings.read_serving(arguments, os.environ)
    template = settings.read_template(arguments, os.environ)
    logs.configure(serving.log_level)
    uvloop.run(app.serve(serving, template))
    return 0


if __name__ == "__main__":
    sys.exit(main())
