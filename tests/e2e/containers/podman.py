"""Podman, which runs a pod from its Kubernetes manifest. Its images and state are removed after the tests."""

from __future__ import annotations

import contextlib
import io
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
WITH_CURL = """\
FROM {image}
USER 0
RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
USER 65532:65532
"""
"""Podman runs httpGet probes with curl in the container. A kubelet does not need curl."""


@dataclass
class Podman:
    """A podman for the tests."""

    folder: Path

    def __call__(self, *arguments: str, given: str = "", timeout: float = 120) -> str:
        """Run a command, and return its output. Fails the test if the command fails."""
        where = ("--root", str(self.folder / "root"), "--runroot", str(self.folder / "run"))
        done = subprocess.run(
            ["podman", *where, *arguments],
            env=os.environ | {"CONTAINERS_CONF": str(self.folder / "containers.conf")},
            input=given,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def take(self, client: docker.DockerClient, image: str, name: str) -> None:
        """Copy an image from a Docker daemon, as ``localhost/NAME``."""
        dockerfile = io.BytesIO(WITH_CURL.format(image=image).encode())
        made, _ = client.images.build(fileobj=dockerfile, tag=name, rm=True, forcerm=True)
        archive = self.folder / "image.tar"
        with archive.open("wb") as file:
            for chunk in made.save(named=True):
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
