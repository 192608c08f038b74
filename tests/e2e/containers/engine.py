"""A container engine of the tests' own: its daemon, with all its images in a folder that may be removed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import docker
from tests import debian

ROOT = Path(__file__).parents[3]
CACHE = Path(os.environ.get("CONTAINERS_CACHE") or ROOT / ".cache" / "containers").resolve()
"""What takes long to make, and is kept from run to run: images and their layers. `make clean` removes it."""
START_S = 60


class NoEngine(Exception):
    """No container engine can be started here; the text says why."""


def provide(packages: Mapping[str, str]) -> None:
    """See to it that programs are there, and may be used. Raises ``NoEngine``."""
    if os.geteuid() != 0:
        raise NoEngine("a container engine is started by root only")
    try:
        debian.provide(packages)
    except debian.NotInstalled as error:
        raise NoEngine(str(error)) from error


@dataclass
class ContainerEngine:
    """A daemon that runs."""

    host: str
    """What ``DOCKER_HOST`` is to be."""
    client: docker.DockerClient
    notes: dict[str, str] = field(default_factory=dict)
    """What was measured, for the end of the run."""

    def compose(self, *arguments: str, environment: Mapping[str, str], timeout: float) -> str:
        """Run docker-compose on this project's file; its output. Fails the test where that fails."""
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
    log_file = folder / "dockerd.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait(folder / "docker.sock", process, log_file)
        client = docker.DockerClient(base_url=host, version="1.41", timeout=300)
        with contextlib.closing(client):
            yield ContainerEngine(host, client)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                return
        time.sleep(0.1)
    lines = [line for line in log.read_text(errors="replace").splitlines() if "level=info" not in line]
    raise NoEngine("dockerd does not start: " + " | ".join(lines[-3:]))
