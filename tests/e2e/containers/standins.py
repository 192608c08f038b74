"""Stand-ins for public images without an image registry: Debian's base system with packages.

compose.yaml gets them by its variables for images, and Dockerfiles by their arguments.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

from docker.errors import DockerException, ImageNotFound

import docker
from tests.e2e.containers.docker_daemon import CACHE, NoEngine

PYTHON, PARTS = "stand-in/python:1", "stand-in/parts:1"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
WHEELS = Path(links) if (links := os.environ.get("PIP_FIND_LINKS", "")).startswith("/") else None
"""Wheels that pip finds on this machine besides its index. Image builds get them too."""
BOOTSTRAP_S = 300
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PARTS = f"""\
FROM {PYTHON}
RUN apt-get update \\
 && apt-get install -y --no-install-recommends redis-server nginx-light prometheus wget libnuma1 \\
 && rm -rf /var/lib/apt/lists/* \\
 && mkdir /prometheus && chown 65534:65534 /prometheus
"""


def provide(client: docker.DockerClient, folder: Path) -> None:
    """Make missing stand-ins. Raises ``NoEngine`` if that fails."""
    try:
        if not _has(client, PYTHON):
            _import(client, _bootstrap(folder / "base"))
        if not _has(client, PARTS):
            client.images.build(fileobj=io.BytesIO(_PARTS.encode()), tag=PARTS, rm=True, forcerm=True)
    except (DockerException, subprocess.SubprocessError) as error:
        raise NoEngine(f"no stand-in images could be made: {error}") from error


def _has(client: docker.DockerClient, name: str) -> bool:
    try:
        client.images.get(name)
    except ImageNotFound:
        return False
    return True


def _archive() -> tuple[str, str]:
    """The package archive of this machine, and its release."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"],
        capture_output=True, text=True, timeout=BOOTSTRAP_S, check=True,
    ).stdout  # fmt: skip
    found = sorted({line for line in listed.splitlines() if line.partition(" ")[0].endswith("/debian/")})
    if not found:
        raise NoEngine("this machine has no archive of Debian packages for a base image")
    uri, _, release = found[0].partition(" ")
    return uri, release


def _bootstrap(root: Path) -> Path:
    """Install a base system in a folder."""
    uri, release = _archive()
    command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", release, str(root), uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOOTSTRAP_S, check=False)
    if done.returncode != 0:
        raise NoEngine(f"debootstrap failed: {done.stdout[-300:]}{done.stderr[-300:]}")
    if CERTIFICATES.exists():
        shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    # Installed packages must not start their services.
    policy = root / "usr" / "sbin" / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    shutil.rmtree(root / "var" / "cache" / "apt" / "archives", ignore_errors=True)
    if WHEELS is not None and WHEELS.is_dir():
        shutil.copytree(WHEELS, root / "opt" / "wheels")
    return root


def _import(client: docker.DockerClient, root: Path) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    tar = root.with_suffix(".tar")
    subprocess.run(["tar", "-C", str(root), "-cf", str(tar), "."], check=True, timeout=BOOTSTRAP_S)
    repository, _, tag = PYTHON.partition(":")
    links = ["ENV PIP_FIND_LINKS=/opt/wheels"] if WHEELS is not None else []
    changes = [
        *links,
        f"ENV PATH={_PATH}",
        f"ENV PIP_CERT={CERTIFICATES}",
        f"ENV SSL_CERT_FILE={CERTIFICATES}",
    ]
    client.api.import_image_from_file(str(tar), repository=repository, tag=tag, changes=changes)
    os.unlink(tar)
    shutil.rmtree(root)
