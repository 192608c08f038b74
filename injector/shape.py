"""The shape of a pod: checked once, so that later steps may rely on it; and some accessors.

Pods stay plain dicts as the API server sends them, because unknown fields must pass unchanged.
The fields below have the API's names.
"""

# ruff: noqa: N815

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

Json = dict[str, Any]


class PodMalformed(ValueError):
    """A document that is not a pod; the text names the field."""


class _Port(msgspec.Struct):
    containerPort: int
    name: str | None = None
    protocol: str | None = None


class _Header(msgspec.Struct):
    name: str
    value: str


class _Asked(msgspec.Struct):
    port: int | str
    path: str | None = None
    host: str | None = None
    httpHeaders: list[_Header] | None = None


class _Exec(msgspec.Struct):
    command: list[str] | None = None


class _Handler(msgspec.Struct):
    exec: _Exec | None = None
    httpGet: _Asked | None = None
    tcpSocket: _Asked | None = None
    grpc: _Asked | None = None
    timeoutSeconds: int | None = None


class _Lifecycle(msgspec.Struct):
    preStop: _Handler | None = None
    postStart: _Handler | None = None


class _Named(msgspec.Struct):
    name: str


class _KeyOf(msgspec.Struct):
    name: str | None = None
    key: str | None = None


class _ValueFrom(msgspec.Struct):
    secretKeyRef: _KeyOf | None = None


class _Variable(msgspec.Struct):
    name: str
    value: str | None = None
    valueFrom: _ValueFrom | None = None


class _Variables(msgspec.Struct):
    prefix: str | None = None
    secretRef: _KeyOf | None = None


class _Mount(msgspec.Struct):
    name: str
    mountPath: str


class _Source(msgspec.Struct):
    defaultMode: int | None = None


class _Volume(msgspec.Struct):
    name: str
    secret: _Source | None = None
    configMap: _Source | None = None
    projected: _Source | None = None


class _Resources(msgspec.Struct):
    limits: dict[str, Any] | None = None
    requests: dict[str, Any] | None = None


class _Container(msgspec.Struct):
    name: str
    image: str | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    ports: list[_Port] | None = None
    env: list[_Variable] | None = None
    envFrom: list[_Variables] | None = None
    volumeMounts: list[_Mount] | None = None
    resources: _Resources | None = None
    restartPolicy: str | None = None
    livenessProbe: _Handler | None = None
    readinessProbe: _Handler | None = None
    startupProbe: _Handler | None = None
    lifecycle: _Lifecycle | None = None


class _Spec(msgspec.Struct):
    containers: list[_Container]
    initContainers: list[_Container] | None = None
    volumes: list[_Volume] | None = None
    resources: _Resources | None = None
    restartPolicy: str | None = None
    securityContext: dict[str, Any] | None = None
    hostNetwork: bool | None = None
    hostPID: bool | None = None
    shareProcessNamespace: bool | None = None
    terminationGracePeriodSeconds: int | None = None


class _Owner(msgspec.Struct):
    kind: str | None = None
    name: str | None = None


class _Metadata(msgspec.Struct):
    ownerReferences: list[_Owner] | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Pod(msgspec.Struct):
    spec: _Spec
    metadata: _Metadata | None = None


def check(pod: Any) -> None:
    """Raise ``PodMalformed`` unless this is a pod. Only the fields that the injector uses are checked."""
    try:
        spec = msgspec.convert(pod, _Pod).spec
    except msgspec.ValidationError as error:
        raise PodMalformed(f"not a pod: {error}") from error
    if not spec.containers:
        raise PodMalformed("not a pod: spec.containers is empty")


def metadata(pod: Json, field: str) -> dict[str, str]:
    """The labels or the annotations; empty if there are none."""
    return (pod.get("metadata") or {}).get(field) or {}


def containers(pod: Json) -> Iterator[Json]:
    """All containers, with the init containers."""
    yield from pod["spec"].get("initContainers") or []
    yield from pod["spec"]["containers"]


def ports(container: Json) -> list[Json]:
    """The declared ports of a container."""
    return container.get("ports") or []


def is_tcp(port: Json) -> bool:
    """Whether a declared port uses TCP, which HTTP needs."""
    return (port.get("protocol") or "TCP") == "TCP"


def owner(pod: Json) -> str | None:
    """The controller that creates a pod, such as ``ReplicaSet/vllm-7d9c``; ``None`` without one."""
    for each in (pod.get("metadata") or {}).get("ownerReferences") or []:
        return f"{each.get('kind')}/{each.get('name')}"
    return None


def title(document: Json) -> str:
    """The name of an object in a log. New objects may have no name yet."""
    named = document.get("metadata")
    if not isinstance(named, dict):
        return "*"
    return str(named.get("name") or f"{named.get('generateName') or ''}*")
