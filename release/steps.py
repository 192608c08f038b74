"""The decisions of a release: names, commands, and what goes into the packaged chart. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

BAKE_FILE = "docker/bake.hcl"
PLATFORMS = ("linux/amd64", "linux/arm64")
"""The architectures of the image, as in the build file."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE = re.compile(
    r'(?m)^image:\n  registry: ""\n  repository: (?P<name>\S+)\n(?P<tag>  tag: .*\n)  digest: ""'
)


class CannotRelease(Exception):
    """A release cannot be made. The text names the reason and the next step."""


@dataclass(frozen=True, slots=True)
class Image:
    """A built image, as a manifest names it."""

    registry: str
    """The registry with its path, without a slash at the end; empty: the image is on this machine only."""
    digest: str | None
    """``sha256:...`` of what a registry serves; none if no registry has the image."""

    def __post_init__(self) -> None:
        """Raise ``CannotRelease`` for what is not a digest."""
        if self.digest is not None and not _DIGEST.fullmatch(self.digest):
            raise CannotRelease(f"{self.digest!r} is not a digest such as sha256:..., 64 digits long")


def stamped(values: str, image: Image) -> str:
    """The chart's values with the image's registry and digest as defaults. Comments stay."""
    found = _IMAGE.search(values)
    if found is None:
        raise CannotRelease(
            "charts/tokenpool/values.yaml has no `image:` with registry, repository, tag, digest"
        )
    made = "\n".join(
        [
            "image:",
            f'  registry: "{image.registry}"',
            f"  repository: {found['name']}",
            f'{found["tag"]}  digest: "{image.digest or ""}"',
        ]
    )
    return values[: found.start()] + made + values[found.end() :]


def bake(registry: str, archive: str, metadata: str) -> list[str]:
    """The command that builds the image for every architecture.

    With a registry it pushes; without one it writes an OCI archive with all architectures.
    """
    command = ["docker", "buildx", "bake", "--file", BAKE_FILE, "--metadata-file", metadata, "tokenpool"]
    return (
        [*command, "--push"] if registry else [*command, "--set", f"tokenpool.output=type=oci,dest={archive}"]
    )


def build_here(tag: str, arguments: Sequence[str]) -> list[str]:
    """The command that builds the image for this machine's architecture, without buildx."""
    words = [word for each in arguments for word in ("--build-arg", each)]
    return ["docker", "build", "--file", "docker/Dockerfile", "--tag", tag, *words, "."]


def kustomize_lines(image: Image, version: str) -> str:
    """The ``images`` of a kustomization that uses this release."""
    name = f"{image.registry}/tokenpool" if image.registry else "tokenpool"
    which = f"digest: {image.digest}" if image.digest else f'newTag: "{version}"'
    return f"images:\n  - {{name: tokenpool, newName: {name}, {which}}}"


def wheels_for(machine: str, python: str, requirements: Sequence[str], folder: str) -> list[str]:
    """The options of pip that find wheels for another architecture, and install nothing.

    ``machine`` is pip's name of it, such as ``aarch64``; ``python`` such as ``3.12``.
    """
    tags = [f"manylinux{each}_{machine}" for each in ("_2_28", "_2_17", "2014")]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    return [
        *("install", "--quiet", "--disable-pip-version-check", "--dry-run", "--target", folder),
        *(*platforms, "--python-version", python, "--implementation", "cp", "--only-binary", ":all:"),
        *requirements,
    ]
