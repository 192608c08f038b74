"""The sidecar's container, its volumes, and the times that a pod with it needs. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from injector.engine_container import LOOPBACK
from injector.settings import Template
from injector.shape import Json

NAME = "tokenpool-sidecar"
ADMIN_PORT_NAME = "tokenpool-admin"
PEER_PORT_NAME = "tokenpool-peer"
PROXY_PORT_NAME = "tokenpool"
_ROOT = "/etc/tokenpool"
_POOL_VOLUME, _KEYS_VOLUME, _KEY_VOLUME = "tokenpool-pool", "tokenpool-keys", "tokenpool-upstream-key"
STOP_S = 15
"""Time for the engine's end after the sidecar has drained."""
_HOOK_S = 2
"""Time for the hooks themselves."""
_START_S = 5
"""The longest time between the starts of two hooks on a busy node."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The chosen ports of one pod."""

    engine: int
    listen: int
    admin: int
    peer: int | None
    """The peer port; ``None`` without handover."""
    taken_over: tuple[Json, ...]
    """Declared ports of the engine that become the sidecar's, names included."""


def sidecar(template: Template, ports: Settled) -> Json:
    """The container."""
    made: Json = {
        "name": NAME,
        "image": template.image,
        "imagePullPolicy": template.pull_policy,
        "command": ["tokenpool-sidecar", "run"],
        "args": _arguments(template, ports),
        "ports": [*_proxied(ports), *_own(ports)],
        "startupProbe": _asks("/healthz", ports.admin, periodSeconds=1, failureThreshold=60),
        "readinessProbe": _asks("/readyz", ports.admin, periodSeconds=2, failureThreshold=2),
        "livenessProbe": _asks("/healthz", ports.admin, periodSeconds=10, failureThreshold=3),
        "lifecycle": {"preStop": {"exec": {"command": ["python3", "-c", _ends(template)]}}},
        "resources": _resources(template),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsGroup": template.run_as_user,
            "runAsNonRoot": True,
            "runAsUser": template.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": name, "mountPath": path, "readOnly": True} for name, path, _ in _mounts(template)
        ],
    }
    if template.store_secret is not None:
        made["env"] = [_store(template.store_secret)]
    return {**made, "restartPolicy": "Always"} if template.native else made


def _arguments(template: Template, ports: Settled) -> list[str]:
    given = {
        "--config": f"{_ROOT}/pool/pool.yaml",
        "--upstream": f"http://{LOOPBACK}:{ports.engine}",
        "--listen": f"{template.bind}:{ports.listen}",
        "--admin": f"{template.bind}:{ports.admin}",
        "--drain-timeout": f"{template.drain_timeout:g}",
    }
    if ports.peer is not None:
        given["--peer"] = f"{template.bind}:{ports.peer}"
    elif template.store_secret is not None:
        given["--handover"] = "off"
    if template.pool is not None:
        given["--pool"] = template.pool
    if template.upstream_key_secret is not None:
        given["--upstream-key-file"] = f"{_ROOT}/upstream/api-key"
    words = [word for pair in given.items() for word in pair]
    return [*words, *(template.sidecar_args or ())]


def _store(secret: str) -> Json:
    """The store's URL from a Secret, because readers of the pod must not see the password in it."""
    return {"name": "TOKENPOOL_STORE", "valueFrom": {"secretKeyRef": {"name": secret, "key": "url"}}}


def _proxied(ports: Settled) -> list[Json]:
    if not ports.taken_over:
        return [{"name": PROXY_PORT_NAME, "containerPort": ports.listen}]
    return [{**each, "containerPort": ports.listen} for each in ports.taken_over]


def _own(ports: Settled) -> list[Json]:
    """The ports that are not for tenants."""
    own = [{"name": ADMIN_PORT_NAME, "containerPort": ports.admin}]
    return own if ports.peer is None else [*own, {"name": PEER_PORT_NAME, "containerPort": ports.peer}]


def hands_over(template: Template) -> bool:
    """Whether the sidecar has a peer port. A lone sidecar knows no other replica."""
    return template.handover == "on" and template.store_secret is not None


def _asks(path: str, port: int, **timing: int) -> Json:
    return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": 2, **timing}


def _ends(template: Template) -> str:
    """The hook before the sidecar's end. It delays the drain, because clients learn late that the pod ends.

    The kubelet stops a native sidecar only after the engine, which is too late to drain. So this hook sends
    the signal. The kubelet itself stops a plain sidecar, and a second signal would end its requests at once.
    """
    waits = f"import os, signal, time; time.sleep({template.drain_delay:g})"
    return f"{waits}; os.kill(1, signal.SIGTERM)" if template.native else waits


def _resources(template: Template) -> Json:
    asked = {"cpu": template.cpu_request, "memory": template.memory_request}
    most = {"cpu": template.cpu_limit, "memory": template.memory_limit}
    both = {
        name: {kind: amount for kind, amount in amounts.items() if amount is not None}
        for name, amounts in (("requests", asked), ("limits", most))
    }
    return {name: amounts for name, amounts in both.items() if amounts}


def volumes(template: Template) -> list[Json]:
    """The volumes that the sidecar mounts."""
    return [{"name": name, **source} for name, _, source in _mounts(template)]


def _mounts(template: Template) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, path and source of each mount. Folders are mounted: Kubernetes never updates a single file."""
    found = [(_POOL_VOLUME, f"{_ROOT}/pool", {"configMap": {"name": template.pool_config}})]
    for name, folder, secret in (
        (_KEYS_VOLUME, "keys", template.keys_secret),
        (_KEY_VOLUME, "upstream", template.upstream_key_secret),
    ):
        if secret is not None:
            found.append((name, f"{_ROOT}/{folder}", {"secret": {"secretName": secret}}))
    return found


def drains_within(template: Template) -> int:
    """Seconds from a pod's deletion until its sidecar begins to drain, at most."""
    return math.ceil(template.drain_delay) + _START_S


def longest_drain(template: Template) -> int:
    """Seconds from a pod's deletion until its sidecar has drained, at most."""
    return math.ceil(template.drain_delay + template.drain_timeout) + _HOOK_S


def grace(template: Template) -> int:
    """Seconds that a pod with a sidecar needs to end."""
    return longest_drain(template) + STOP_S
