"""What a release writes into the chart, and the commands that it runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

from release.steps import (
    BAKE_FILE,
    PLATFORMS,
    CannotRelease,
    Image,
    bake,
    build_here,
    kustomize_lines,
    stamped,
    wheels_for,
)

ROOT = Path(__file__).parents[3]
VALUES = (ROOT / "charts" / "tokenpool" / "values.yaml").read_text()
DIGEST = "sha256:" + "0a" * 32
REGISTRY = "registry.example.com/platform"


def test_the_values_name_the_image_by_digest_and_keep_everything_else() -> None:
    made = stamped(VALUES, Image(REGISTRY, DIGEST))
    before, after = yaml.safe_load(VALUES), yaml.safe_load(made)
    assert after["image"] == before["image"] | {"registry": REGISTRY, "digest": DIGEST}
    assert after | {"image": None} == before | {"image": None}
    assert [line for line in made.splitlines() if line.lstrip().startswith("#")] == [
        line for line in VALUES.splitlines() if line.lstrip().startswith("#")
    ]


def test_without_a_registry_the_values_stay() -> None:
    assert yaml.safe_load(stamped(VALUES, Image("", None))) == yaml.safe_load(VALUES)


@pytest.mark.parametrize("digest", ["latest", "sha256:0a", "0a" * 32, ""])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(CannotRelease, match="is not a digest"):
        Image(REGISTRY, digest)


@pytest.mark.parametrize("values", ["", "image: {}\n", VALUES.replace("  registry:", "  host:")])
def test_values_of_another_shape_are_refused(values: str) -> None:
    with pytest.raises(CannotRelease, match=re.escape("has no `image:`")):
        stamped(values, Image(REGISTRY, DIGEST))


def test_with_a_registry_the_image_is_pushed_and_without_one_it_is_a_file() -> None:
    assert bake(REGISTRY, "a.tar", "m.json")[-1] == "--push"
    assert bake("", "a.tar", "m.json")[-2:] == ["--set", "tokenpool.output=type=oci,dest=a.tar"]
    assert build_here("tokenpool:1", ["VERSION=1"])[-3:] == ["--build-arg", "VERSION=1", "."]


def test_a_kustomization_names_the_digest_or_else_the_version() -> None:
    named = yaml.safe_load(kustomize_lines(Image(REGISTRY, DIGEST), "1.2.3"))["images"]
    assert named == [{"name": "tokenpool", "newName": f"{REGISTRY}/tokenpool", "digest": DIGEST}]
    here = yaml.safe_load(kustomize_lines(Image("", None), "1.2.3"))["images"]
    assert here == [{"name": "tokenpool", "newName": "tokenpool", "newTag": "1.2.3"}]


def test_wheels_of_another_architecture_are_looked_for_and_not_installed() -> None:
    options = wheels_for("aarch64", "3.12", ["aiohttp>=3"], "folder")
    assert "--dry-run" in options
    assert "manylinux2014_aarch64" in options
    assert options[options.index("--only-binary") + 1 :] == [":all:", "aiohttp>=3"]


# --- the build file ---
def unquoted(value: Any) -> Any:
    """hcl2 keeps the quotes of strings."""
    if isinstance(value, dict):
        return {unquoted(name): unquoted(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [unquoted(inner) for inner in value]
    return value.strip('"') if isinstance(value, str) else value


def blocks(kind: str) -> dict[str, Any]:
    read = unquoted(hcl2.loads((ROOT / BAKE_FILE).read_text()))
    return {name: block for each in read[kind] for name, block in each.items()}


def test_the_build_file_builds_every_architecture_with_sbom_and_provenance() -> None:
    target = blocks("target")["tokenpool"]
    assert tuple(target["platforms"]) == PLATFORMS
    assert target["attest"] == ["type=sbom", "type=provenance,mode=max"]
    assert target["tags"] == ["${REGISTRY}tokenpool:${VERSION}"]
    assert blocks("group")["default"]["targets"] == ["tokenpool"]


def test_the_build_file_has_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert blocks("variable")["VERSION"]["default"] == project["version"]


@pytest.mark.parametrize("name", ["tokenpool", "engine"])
def test_the_build_file_gives_arguments_that_the_dockerfile_has(name: str) -> None:
    target = blocks("target")[name]
    declared = set(re.findall(r"^ARG (\w+)", (ROOT / target["dockerfile"]).read_text(), re.M))
    assert set(target["args"]) <= declared
    assert set(target["args"].values()) <= {f"${{{each}}}" for each in blocks("variable")} | set(
        blocks("variable")
    )
