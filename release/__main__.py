"""``make release``: wheels, the image with its SBOM, and the chart in ``dist/``, with their digests.

It reports each step that this machine cannot do, with the reason, and does the others. An image needs a
container engine, and other architectures need buildx. A digest that manifests can name needs a registry
(``REGISTRY``).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from release.steps import CannotRelease, Image, bake, build_here, kustomize_lines, stamped, wheels_for

ROOT = Path(__file__).parent.parent
STEPS = ("wheels", "image", "chart")
IMAGE_S, WHEEL_S, SHORT_S = 3600, 1800, 120
"""Time limits of commands, in seconds. Another architecture is emulated, which takes ten times as long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is asked for; returns the exit status."""
    parser = argparse.ArgumentParser("python -m release", description=__doc__)
    parser.add_argument("--only", action="append", choices=STEPS, help="make this; by default everything")
    parser.add_argument("--registry", default=os.environ.get("REGISTRY", ""), help="where images are pushed")
    parser.add_argument(
        "--digest", help="of an image that the registry has; by default of the image built now"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    given = parser.parse_args(arguments)
    steps = given.only or STEPS
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        made = Release(given.out.resolve(), given.registry.strip().rstrip("/"))
        if "wheels" in steps:
            made.wheels()
        image = Image(made.registry, given.digest)
        if "image" in steps:
            image = made.image()
        if "chart" in steps:
            made.chart(image)
    except CannotRelease as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    made.report(image)
    return 0


class Release:
    """One release in a folder."""

    def __init__(self, out: Path, registry: str) -> None:
        self.registry = registry
        self._out = out
        self._made: list[Path] = []
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        self._version = str(project["version"])
        self._dependencies: list[str] = [
            *project["dependencies"],
            *project["optional-dependencies"]["kubernetes"],
            *project["optional-dependencies"]["postgres"],
        ]
        """Those of the image, see docker/Dockerfile."""
        self._revision = _output("git", "describe", "--always", "--dirty", "--abbrev=40") or "unknown"
        if self._revision.endswith("-dirty"):
            print("release: the working tree has changes that are in no commit", file=sys.stderr)

    def wheels(self) -> None:
        """A pure wheel for every platform, and a compiled one for this Python and this machine."""
        with tempfile.TemporaryDirectory() as folder:
            # A build writes beside its sources.
            sources = Path(folder) / "sources"
            ignored = shutil.ignore_patterns(
                ".*", "__pycache__", "build", "dist", "out", "tests", "*.egg-info"
            )
            shutil.copytree(ROOT, sources, ignore=ignored)
            self._wheel(sources, compiled=False)
            if shutil.which("cc") is None:
                print("no compiled wheel: there is no C compiler (cc)")
            else:
                self._wheel(sources, compiled=True)

    def _wheel(self, sources: Path, *, compiled: bool) -> None:
        shutil.rmtree(sources / "build", ignore_errors=True)
        code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["TOKENPOOL_COMPILE"] = str(int(compiled))
        done = subprocess.run(
            [sys.executable, "-c", code, self._out],
            cwd=sources, env=environment, capture_output=True, text=True, timeout=WHEEL_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise CannotRelease(f"the wheel does not build: {done.stderr[-2000:]}")
        self._made.append(self._out / done.stdout.splitlines()[-1])

    def image(self) -> Image:
        """The image: for every architecture with buildx, else for this one."""
        if not _works("docker", "version"):
            print("no image: no container engine answers (docker version); the chart names the tag alone")
            return Image(self.registry, None)
        if _works("docker", "buildx", "version"):
            return self._baked()
        print(f"the image is for {platform.machine()} only, and has no provenance: docker has no buildx")
        self._look_for_wheels()
        return self._built_here()

    def _look_for_wheels(self) -> None:
        """Say whether the image can be built for the architectures that are not built here."""
        found = re.search(
            r"^ARG PYTHON_IMAGE=python:(3\.\d+)", (ROOT / "docker/Dockerfile").read_text(), re.M
        )
        if found is None:
            raise CannotRelease("docker/Dockerfile has no `ARG PYTHON_IMAGE=python:VERSION`")
        for machine in sorted({"aarch64", "x86_64"} - {platform.machine()}):
            with tempfile.TemporaryDirectory() as folder:
                options = wheels_for(machine, found[1], self._dependencies, folder)
                works = _works(sys.executable, "-m", "pip", *options)
            every = (
                "every dependency has a wheel" if works else "pip does not find a wheel of every dependency"
            )
            print(f"for {machine}, Python {found[1]}: {every}")

    def _baked(self) -> Image:
        archive = self._out / f"tokenpool-{self._version}.oci.tar"
        metadata = self._out / "image.json"
        environment = {"VERSION": self._version, "REVISION": self._revision, "PYTHON_IMAGE": _base_image()}
        environment["REGISTRY"] = f"{self.registry}/" if self.registry else ""
        _run(bake(self.registry, str(archive), str(metadata)), environment)
        read = json.loads(metadata.read_text())["tokenpool"]
        if not self.registry:
            print("the image is in no registry: REGISTRY=... pushes it; its digest there is the same")
            self._made.append(archive)
            self._sbom(archive)
        return Image(self.registry, read["containerimage.digest"])

    def _built_here(self) -> Image:
        tag = f"{self.registry}/tokenpool:{self._version}" if self.registry else f"tokenpool:{self._version}"
        arguments = [
            f"VERSION={self._version}",
            f"REVISION={self._revision}",
            f"PYTHON_IMAGE={_base_image()}",
        ]
        arguments += [f"{name}={os.environ[name]}" for name in ("COMPILE", "OPTIMIZE") if name in os.environ]
        _run(build_here(tag, arguments), {})
        archive = self._out / f"tokenpool-{self._version}-{platform.machine()}.docker.tar"
        _run(["docker", "save", "--output", str(archive), tag], {})
        self._made.append(archive)
        self._sbom(archive)
        if not self.registry:
            print("the image is in no registry, which gives it a digest: REGISTRY=... pushes it")
            return Image("", None)
        _run(["docker", "push", tag], {})
        name = _output("docker", "image", "inspect", "--format", "{{index .RepoDigests 0}}", tag)
        return Image(self.registry, name.partition("@")[2])

    def _sbom(self, archive: Path) -> None:
        """The packages of an image, as CycloneDX. Trivy reads the archive, and fetches nothing."""
        trivy = Path(sys.executable).with_name("trivy")
        found = str(trivy) if trivy.exists() else shutil.which("trivy")
        if found is None:
            print("no SBOM file: trivy is not installed (the dev extra has it on Linux)")
            return
        sbom = self._out / f"tokenpool-{self._version}.cdx.json"
        words = ["image", "--quiet", "--skip-version-check", "--format", "cyclonedx", "--output", str(sbom)]
        _run([found, *words, "--input", str(archive)], {})
        self._made.append(sbom)

    def chart(self, image: Image) -> None:
        """The packaged chart, which names the image by its registry and digest."""
        import helm_python  # noqa: PLC0415 - only this step needs it

        with tempfile.TemporaryDirectory() as folder:
            copied = Path(folder) / "tokenpool"
            shutil.copytree(ROOT / "charts" / "tokenpool", copied)  # with the files that it links
            values = copied / "values.yaml"
            values.write_text(stamped(values.read_text(), image))
            with helm_python.Chart.load(copied) as chart:
                self._made.append(Path(chart.save(self._out)))

    def report(self, image: Image) -> None:
        """Write ``SHA256SUMS``, and print the digests and the next steps."""
        lines = [f"{_sha256(path)}  {path.name}" for path in self._made]
        (self._out / "SHA256SUMS").write_text("".join(f"{line}\n" for line in lines))
        print(f"\ntokenpool {self._version}, commit {self._revision}, in {self._out}:")
        print(*lines, sep="\n")
        if image.digest is not None:
            print(f"image: {image.registry or 'not pushed'} {image.digest}")
        print(f"\nFor a kustomization:\n{kustomize_lines(image, self._version)}")
        charts = [path for path in self._made if path.suffix == ".tgz"]
        for path in charts:
            print(f"\nInstall: helm install tokenpool {path} --namespace tokenpool --create-namespace")
            if image.registry:
                print(f"Publish: helm push {path} oci://{image.registry}/charts")


def _base_image() -> str:
    """The base image, by its digest where buildx can ask the registry for it."""
    name = os.environ.get("PYTHON_IMAGE", "python:3.12-slim")
    if "@" in name:
        return name
    digest = _output("docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", name)
    if digest.startswith("sha256:"):
        return f"{name}@{digest}"
    print(f"the base image is {name} without a digest: no registry answers")
    return name


def _run(command: Sequence[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, timeout=IMAGE_S, check=False)
    if done.returncode != 0:
        raise CannotRelease(f"{' '.join(command)} failed ({done.returncode})")


def _works(*command: str) -> bool:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SHORT_S, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _output(*command: str) -> str:
    """What a command prints; empty if it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SHORT_S, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
