"""The pod templates in a manifest, of any kind of object. Pure.

Every object that has ``spec.containers`` is a template: of a Deployment, a CronJob, a LeaderWorkerSet, a
RayCluster, a StormService, or of a kind that no list has. A pod spec without an object around it is completed
by its controller, so its labels and its command are not known before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from injector.shape import Json

_NOT_WALKED = frozenset({"status", "metadata"})


def templates(document: Any) -> Iterator[tuple[Json, str]]:
    """Each pod or pod template in a document, with the JSON pointer to it."""
    if not isinstance(document, dict):
        return
    if document.get("kind") == "Pod":
        yield document, ""
        return
    for inner, path in _below(document, ""):
        if path and _has_containers(inner.get("spec")):
            yield inner, path


def completed_elsewhere(document: Any) -> list[str]:
    """The JSON pointers to pod specs that a controller completes, such as those of KServe."""
    if not isinstance(document, dict) or document.get("kind") == "Pod":
        return []
    known = {f"{path}/spec" for _, path in templates(document)}
    return [path for inner, path in _below(document, "") if _has_containers(inner) and path not in known]


def _below(value: Any, path: str) -> Iterator[tuple[Json, str]]:
    """Each object in a document, with the pointer to it. Nothing inside a template is a template."""
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _below(inner, f"{path}/{index}")
    elif isinstance(value, dict):
        yield value, path
        if _has_containers(value):
            return
        for key, inner in value.items():
            if key not in _NOT_WALKED:
                yield from _below(inner, f"{path}/{str(key).replace('~', '~0').replace('/', '~1')}")


def _has_containers(spec: Any) -> bool:
    """Whether this is the spec of a pod, and not of another object."""
    if not isinstance(spec, dict) or not isinstance(containers := spec.get("containers"), list):
        return False
    return all(isinstance(each, dict) and "name" in each for each in containers)
