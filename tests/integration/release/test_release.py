"""`make release` without a container engine: the packaged chart, its digest, and what it says is missing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import helm_python
import yaml

ROOT = Path(__file__).parents[3]
DIGEST = "sha256:" + "0a" * 32


def released(out: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a release, by default with the programs of this machine."""
    environment = {"PYTHONPATH": ":".join(sys.path), "HOME": str(out), "PATH": path or "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-m", "release", *arguments, "--out", str(out)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_packaged_chart_installs_the_image_by_digest(tmp_path: Path) -> None:
    done = released(
        tmp_path, "--only=chart", "--registry=registry.example.com/platform/", f"--digest={DIGEST}"
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tgz")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert (tmp_path / "SHA256SUMS").read_text() == f"{digest}  {archive.name}\n"
    assert f"{digest}  {archive.name}" in done.stdout
    assert f"helm install tokenpool {archive} " in done.stdout

    with helm_python.Chart.load(archive) as chart:
        made = chart.render({}, name="tokenpool", namespace="tokenpool")
    deployments = [
        each
        for path, text in made.items()
        if path.endswith(("/coordinator.yaml", "/injector.yaml"))
        for each in yaml.safe_load_all(text)
        if each and each["kind"] == "Deployment"
    ]
    images = {each["spec"]["template"]["spec"]["containers"][0]["image"] for each in deployments}
    version = archive.stem.removeprefix("tokenpool-")
    assert images == {f"registry.example.com/platform/tokenpool:{version}@{DIGEST}"}


def test_without_a_container_engine_all_but_the_image_is_made_and_the_reason_is_reported(
    tmp_path: Path,
) -> None:
    done = released(tmp_path, "--only=image", "--only=chart", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "no image: no container engine answers" in done.stdout
    assert [path.name for path in tmp_path.glob("*.tgz")]


def test_a_wrong_digest_ends_the_release(tmp_path: Path) -> None:
    done = released(tmp_path, "--only=chart", "--digest=latest")
    assert (done.returncode, list(tmp_path.glob("*.tgz"))) == (1, [])
    assert "'latest' is not a digest" in done.stderr
