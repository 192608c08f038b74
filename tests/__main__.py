"""Fetch what tests need of Debian, and images for container tests: `make test` does it beside the rest.

What cannot be had is said here, and again by the tests that are skipped for it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests import debian
from tests.containers import docker_daemon, standins
from tests.containers.stack import Stack


def main() -> int:
    """1, and why, where something is missing."""
    try:
        debian.provide(debian.CHROMIUM | debian.DOCKER | debian.PODMAN)
        with tempfile.TemporaryDirectory() as folder, docker_daemon.running(Path(folder)) as daemon:
            standins.provide(daemon.client, Path(folder))
            Stack(daemon).build_ours()
    except (debian.NotInstalled, docker_daemon.NoEngine) as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
