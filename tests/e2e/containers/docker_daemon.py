"""A Docker daemon for tests, with all its images in a removable folder."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import docker
from tests import debian
from toolbox.processes import NotReady, Process

ROOT = Path(__file__).parents[3]
CACHE = Path(os.environ.get("CONTAINERS_CACHE") or ROOT / ".cache" / "containers").resolve()
"""The folder of images and layers, which are kept between runs. `make clean` removes it."""
START_S = 60


class NoEngine(Exception):
    """No container engine can be started here. The text gives the reason."""


def provide(packages: Mapping[str, str]) -> None:
    """Install missing programs. Raises ``NoEngine`` if they cannot be used."""
    if os.geteuid() != 0:
        raise NoEngine("a container engine is started by root only")
    try:
        debian.provide(packages)
    except debian.NotInstalled as error:
        raise NoEngine(str(error)) from error


@dataclass
class ContainerEngine:
    """A running daemon."""

    host: str
    """The value for ``DOCKER_HOST``."""
    client: docker.DockerClient
    notes: dict[str, str] = field(default_factory=dict)
    """The measurements, which are printed at the end of the run."""

    def compose(self, *arguments: str, environment: Mapping[str, str], timeout: float) -> str:
        """Run docker-compose on this project's file, and return its output. Fails the test if it fails."""
        done = subprocess.run(
            ["docker-compose", *arguments],
            cwd=ROOT,
            env=os.environ | {"DOCKER_HOST": self.host} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout


@contextlib.contextmanager
def running(folder: Path) -> Iterator[ContainerEngine]:
    """Start a daemon; it ends with the context. Raises ``NoEngine``."""
    provide(debian.DOCKER)
    host = f"unix://{folder / 'docker.sock'}"
    command = [
        *("dockerd", "--host", host, "--data-root", str(CACHE / "docker")),
        *("--exec-root", str(folder / "exec"), "--pidfile", str(folder / "docker.pid")),
    ]
    daemon = Process("dockerd", command, folder).start()
    try:
        _wait(daemon, folder / "docker.sock")
        client = docker.DockerClient(base_url=host, version="1.41", timeout=300)
        with contextlib.closing(client):
            yield ContainerEngine(host, client)
    finally:
        daemon.stop(30)


def _wait(daemon: Process, path: Path) -> None:
    def accepts() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0

    try:
        daemon.until(accepts, START_S)
    except NotReady as error:
        lines = [
            line for line in daemon.log.read_text(errors="replace").splitlines() if "level=info" not in line
        ]
        raise NoEngine("dockerd does not start: " + " | ".join(lines[-3:])) from error
