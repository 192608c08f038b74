"""Installs the Debian packages that tests need, and makes the base images of the tests in containers.

`make test` runs it beside the first tests. Tests that need what cannot be installed are skipped, and say so.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests import debian
from tests.e2e.containers import docker_daemon, standins


def main() -> int:
    """Print what cannot be installed, if anything. Tests without it are skipped, so that is not a failure."""
    try:
        debian.provide(debian.CHROMIUM | debian.DOCKER | debian.PODMAN)
        with tempfile.TemporaryDirectory() as folder, docker_daemon.running(Path(folder)) as daemon:
            standins.provide(daemon.client, Path(folder))
    except (debian.NotInstalled, docker_daemon.NoEngine) as error:
        print(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
