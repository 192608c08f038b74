"""Podman, which runs a pod from its Kubernetes manifest. Its images and state are removed after the tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
from tests import debian
from tests.e2e.containers.docker_daemon import NoEngine, provide

SETTINGS = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
"""


@dataclass
class Podman:
    """A podman for the tests."""

    folder: Path

    def __call__(self, *arguments: str, given: str = "", timeout: float = 120) -> str:
        """Run a command, and return its output. Fails the test if the command fails."""
        done = self._run(*arguments, given=given, timeout=timeout)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def executes(self, container: str, command: list[str], timeout: float) -> bool:
        """Whether a command in a container succeeds."""
        return self._run("exec", container, *command, timeout=timeout).returncode == 0

    def tells(self, container: str, signal: str) -> None:
        """Send a signal. A container that has ended does not get it."""
        self._run("kill", "--signal", signal, container)

    def _run(
        self, *arguments: str, given: str = "", timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        where = ("--root", str(self.folder / "root"), "--runroot", str(self.folder / "run"))
        return subprocess.run(
            ["podman", *where, *arguments],
            env=os.environ | {"CONTAINERS_CONF": str(self.folder / "containers.conf")},
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def take(self, client: docker.DockerClient, image: str, name: str) -> None:
        """Copy an image from a Docker daemon, as ``localhost/NAME``."""
        client.images.get(image).tag(name)
        archive = self.folder / "image.tar"
        with archive.open("wb") as file:
            for chunk in client.images.get(name).save(named=name):
                file.write(chunk)
        self("load", "--input", str(archive))
        archive.unlink()

    def address(self, pod: str) -> str:
        """The address of a pod on this machine."""
        infra = self("pod", "inspect", "--format", "{{.InfraContainerID}}", pod).strip()
        return self(
            "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", infra
        ).strip()


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Podman]:
    """A podman whose pods and images end with the context. Raises ``NoEngine``."""
    provide(debian.PODMAN)
    (folder / "containers.conf").write_text(SETTINGS)
    podman = Podman(folder)
    try:
        podman("info")
    except AssertionError as error:
        raise NoEngine(f"podman does not run: {str(error)[-300:]}") from error
    try:
        yield podman
    finally:
        podman("pod", "rm", "--all", "--force", "--time", "5")
        podman("rmi", "--all", "--force")
        shutil.rmtree(folder, ignore_errors=True)
