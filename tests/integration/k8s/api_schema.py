"""The schemas of the Kubernetes API, as the package ``kubernetes-validate`` carries them.

Its own function reads 5 MB of definitions for each object, which takes 80 ms. Here each file is read once.
"""

from __future__ import annotations

import functools
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

_MAJOR, _MINOR = map(int, kubernetes_validate.latest_version().split(".")[:2])
NEWEST = [f"{_MAJOR}.{_MINOR - 1}", f"{_MAJOR}.{_MINOR}"]
"""The two newest releases."""


def validate(each: dict[str, Any], release: str) -> None:
    """Raise ``jsonschema.ValidationError`` if a release's API refuses an object, or does not know a field."""
    _validator(release, each["kind"].lower(), each["apiVersion"]).validate(each)


@functools.cache
def _validator(release: str, kind: str, api_version: str) -> jsonschema.protocols.Validator:
    group, _, version = api_version.rpartition("/")
    name = "-".join(part for part in (kind, group.partition(".")[0], version) if part)
    schema = schema_contents(f"{_folder(release)}/{name}.json", release)
    registry: Registry[Any] = Resource.from_contents(schema) @ _definitions(release)
    return jsonschema.Draft202012Validator(schema, registry=registry)


@functools.cache
def _definitions(release: str) -> Registry[Any]:
    read = schema_contents(f"{_folder(release)}/_definitions.json", release)
    made: Registry[Any] = Resource.from_contents(read) @ Registry()
    return made


def _folder(release: str) -> str:
    (full,) = {v for v in kubernetes_validate.utils.all_versions() if v.startswith(f"{release}.")}
    return f"kubernetes-json-schema/v{full}-local-strict"
