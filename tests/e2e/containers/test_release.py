"""`make release` with a container engine: the image of this architecture, and what it consists of."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from tests.e2e.containers import standins
from tests.e2e.containers.docker_daemon import ROOT
from tests.e2e.containers.stack import BUILD_S, Stack


def test_a_release_builds_the_image_and_lists_what_is_in_it(built: Stack, tmp_path: Path) -> None:
    environment = os.environ | {
        "DOCKER_HOST": built.engine.host,
        "PYTHON_IMAGE": standins.PYTHON,
        "COMPILE": "0",  # docker shares no layer with docker-compose, and compiling takes minutes of CPU
    }
    done = subprocess.run(
        [sys.executable, "-m", "release", "--only=image", "--only=chart", "--registry=", f"--out={tmp_path}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=BUILD_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"the image is for {platform.machine()} only" in done.stdout
    assert ": every dependency has a wheel" in done.stdout
    assert "the image is in no registry" in done.stdout

    (sbom,) = tmp_path.glob("*.cdx.json")
    listed = json.loads(sbom.read_text())
    assert listed["bomFormat"] == "CycloneDX"
    packages = {each.get("purl", "").partition("?")[0].partition("@")[0] for each in listed["components"]}
    assert {"pkg:pypi/aiohttp", "pkg:pypi/uvloop", "pkg:pypi/tokenpool"} <= packages
    assert any(each.startswith("pkg:deb/debian/") for each in packages)
    sums = (tmp_path / "SHA256SUMS").read_text()
    assert {line.split("  ")[1] for line in sums.splitlines()} == {
        path.name for path in tmp_path.iterdir() if path.name != "SHA256SUMS"
    }
    name = f"tokenpool:{sbom.name.removeprefix('tokenpool-').removesuffix('.cdx.json')}"
    labels = built.engine.client.images.get(name).labels
    assert labels["org.opencontainers.image.version"] == name.partition(":")[2]
    assert labels["org.opencontainers.image.revision"] != "unknown"
