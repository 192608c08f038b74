"""The subset of kustomize that these kustomizations use, so that tests need no installation of it.

A test compares the results with ``kubectl`` if it is installed. An unknown field is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from injector.patch import apply

Json = dict[str, Any]

KNOWN = {"apiVersion", "kind", "resources", "components", "images", "namespace", "patches"}
CLUSTER_WIDE = {"CustomResourceDefinition", "MutatingWebhookConfiguration"}


def build(folder: Path) -> list[Json]:
    """All objects of a kustomization."""
    return _finish(folder, _read(folder), [])


def _read(folder: Path) -> Json:
    kustomization: Json = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= KNOWN, kustomization.keys() - KNOWN
    return kustomization


def _finish(folder: Path, kustomization: Json, objects: list[Json]) -> list[Json]:
    """Add the objects of a kustomization and its components to ``objects``, and apply its changes."""
    for name in kustomization.get("resources", []):
        path = folder / name
        objects = [*objects, *(build(path) if path.is_dir() else _documents(path))]
    for name in kustomization.get("components", []):
        objects = _finish(folder / name, _read(folder / name), objects)
    for patch in kustomization.get("patches", []):
        objects = [_patched(each, patch, folder) for each in objects]
    for image in kustomization.get("images", []):
        for each in objects:
            _rename(each, image)
    if "namespace" in kustomization:
        for each in objects:
            if each["kind"] not in CLUSTER_WIDE:
                each["metadata"]["namespace"] = kustomization["namespace"]
    return objects


def _documents(path: Path) -> list[Json]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def _patched(object_: Json, patch: Json, folder: Path) -> Json:
    target = patch["target"]
    if (object_["kind"], object_["metadata"]["name"]) != (target["kind"], target["name"]):
        return object_
    for operation in yaml.safe_load((folder / patch["path"]).read_text()):
        if operation["op"] == "move":
            object_ = apply(object_, _moved(object_, operation))
        else:
            object_ = apply(object_, [operation])
    return object_


def _moved(object_: Json, operation: Json) -> list[Json]:
    value: Any = object_
    for key in operation["from"].split("/")[1:]:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return [
        {"op": "remove", "path": operation["from"]},
        {"op": "add", "path": operation["path"], "value": value},
    ]


def _rename(object_: Json, image: Json) -> None:
    spec = object_.get("spec", {}).get("template", {}).get("spec", {})
    for container in (*spec.get("initContainers", []), *spec.get("containers", [])):
        if container["image"].partition(":")[0] == image["name"]:
            container["image"] = f"{image['newName']}:{image['newTag']}"
