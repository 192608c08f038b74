"""Programs from Debian's packages, which some tests need and a fresh machine lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

CHROMIUM = {"chromium": "chromium"}
DOCKER = {
    "dockerd": "docker.io",
    "docker-compose": "docker-compose",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
}
PODMAN = {"podman": "podman", "catatonit": "catatonit", "iptables": "iptables"}
"""Programs, and the packages that they are in."""
INSTALL_S = 400


class NotInstalled(LookupError):
    """A program is not here and cannot be had; the text says why."""


def provide(packages: Mapping[str, str]) -> None:
    """Install what is missing. Raises ``NotInstalled``."""
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if not missing:
        return
    names = ", ".join(missing)
    if shutil.which("apt-get") is None:
        raise NotInstalled(f"{names} are not installed, and there is no apt-get to install them")
    if os.geteuid() != 0:
        raise NotInstalled(
            f"{names} are not installed, and only root can: apt-get install {' '.join(missing)}"
        )
    # The run level keeps packages from starting services: daemons are the tests' own.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (
        ["apt-get", "update"],
        ["apt-get", "install", "--yes", "--no-install-recommends", *missing],
    ):
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=INSTALL_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotInstalled(str(error)) from error
        if done.returncode != 0:
            raise NotInstalled(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
