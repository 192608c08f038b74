"""The sidecar's container, its volumes, and the times that a pod with it needs. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from injector.command_line import LOOPBACK
from injector.engine_tls import TakenCertificate
from injector.settings import Template
from injector.shape import Json

NAME = "tokenpool-sidecar"
ADMIN_PORT_NAME = "tokenpool-admin"
PEER_PORT_NAME = "tokenpool-peer"
PROXY_PORT_NAME = "tokenpool"
_ROOT = "/etc/tokenpool"
_POOL_VOLUME, _STORE_VOLUME = "tokenpool-pool", "tokenpool-store"
_SPOOL_VOLUME, _SPOOL = "tokenpool-spool", "/var/spool/tokenpool"
_KEYS_VOLUME, _KEY_VOLUME = "tokenpool-keys", "tokenpool-upstream-key"
STOP_S = 15
"""Time for the engine's end after the sidecar has drained."""
_HOOK_S = 2
"""Time for the hooks themselves."""
_EXEC_S = 6
"""Time limit of a probe that starts an interpreter on a busy node."""
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


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Facts about the pod that change its sidecar."""

    certificate: TakenCertificate | None = None
    """The engine's certificate, which the sidecar serves instead."""
    exposes_metrics: bool = False
    """Whether the engine's metrics are served on the proxied port without a key."""
    shares_processes: bool = False
    """Whether process 1 is not the sidecar's: the pod's or the node's processes are visible."""
    is_in_mesh: bool = False
    """Whether probes over the network would need mutual TLS."""


def sidecar(template: Template, ports: Settled, around: Surroundings) -> Json:
    """The container."""
    asks = _asks_inside if around.is_in_mesh else _asks
    made: Json = {
        "name": NAME,
        "image": template.image,
        "imagePullPolicy": template.pull_policy,
        "command": ["tokenpool-sidecar", "run"],
        "args": _arguments(template, ports, around),
        "ports": [*_proxied(ports), *_own(ports)],
        "startupProbe": asks("/healthz", ports.admin, periodSeconds=1, failureThreshold=60),
        "readinessProbe": asks("/readyz", ports.admin, periodSeconds=2, failureThreshold=2),
        "livenessProbe": asks("/healthz", ports.admin, periodSeconds=10, failureThreshold=3),
        "lifecycle": {"preStop": {"exec": {"command": ["python3", "-c", _ends(template, around)]}}},
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
            *({"name": name, "mountPath": path, "readOnly": True} for name, path, _ in _mounts(template)),
            *({"name": _SPOOL_VOLUME, "mountPath": _SPOOL} for _ in _spool(template)),
            *(around.certificate.mounts if around.certificate else ()),
        ],
    }
    return {**made, "restartPolicy": "Always"} if template.native else made


def _arguments(template: Template, ports: Settled, around: Surroundings) -> list[str]:
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
    if template.store_secret is not None:
        given["--store-file"] = f"{_ROOT}/store/url"
    if template.upstream_key_secret is not None:
        given["--upstream-key-file"] = f"{_ROOT}/upstream/api-key"
    if around.certificate is not None:
        given |= {"--tls-cert": around.certificate.cert, "--tls-key": around.certificate.key}
    words = [word for pair in given.items() for word in pair]
    if template.workers > 1:
        words += ["--workers", str(template.workers)]
    if around.exposes_metrics:
        words.append("--expose-engine-metrics")
    return [*words, *(template.sidecar_args or ())]


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


def _asks_inside(path: str, port: int, **timing: int) -> Json:
    """A probe as a command in the sidecar's container, which a service mesh does not see."""
    code = (
        "import sys, urllib.request as u; u.build_opener(u.ProxyHandler({}))"
        f".open('http://{LOOPBACK}:{port}{path}', timeout=2)"
    )
    command = ["python3", "-I", "-S", "-c", code]
    return {"exec": {"command": command}, "timeoutSeconds": _EXEC_S, **timing}


def _ends(template: Template, around: Surroundings) -> str:
    """The hook before the sidecar's end. It delays the drain, because clients learn late that the pod ends.

    The kubelet stops a native sidecar only after the engine, which is too late to drain. So this hook sends
    the signal. The kubelet itself stops a plain sidecar. A second SIGTERM changes nothing.
    """
    waits = f"import os, signal, time; time.sleep({template.drain_delay:g})"
    if not template.native:
        return waits
    if around.shares_processes:
        return f"{waits}\n{FINDS_SIDECAR}"
    return f"{waits}; os.kill(1, signal.SIGTERM)"


FINDS_SIDECAR = """\
def ours(process):
    try:
        words = open(f'/proc/{process}/cmdline', 'rb').read().split(b'\\0')
        return (
            os.readlink(f'/proc/{process}/ns/mnt') == os.readlink('/proc/self/ns/mnt')
            and any(a.endswith(b'tokenpool-sidecar') and b == b'run' for a, b in zip(words, words[1:]))
        )
    except OSError:
        return False
for process in filter(str.isdigit, os.listdir('/proc')):
    if ours(process):
        os.kill(int(process), signal.SIGTERM)
"""
"""Signals the sidecar where process 1 is another one. Each container has a mount namespace of its own, so a
sidecar of another pod on the node is not found."""


def _resources(template: Template) -> Json:
    asked = {"cpu": template.cpu_request, "memory": template.memory_request}
    most = {"cpu": template.cpu_limit, "memory": template.memory_limit}
    both = {
        name: {
            kind: _multiplied(amount, template.workers)
            for kind, amount in amounts.items()
            if amount is not None
        }
        for name, amounts in (("requests", asked), ("limits", most))
    }
    return {name: amounts for name, amounts in both.items() if amounts}


def _multiplied(quantity: str, times: int) -> str:
    """An amount of a resource for so many processes."""
    number = quantity.rstrip("mkMGKi")
    return quantity if times == 1 else f"{float(number) * times:g}{quantity.removeprefix(number)}"


def volumes(template: Template) -> list[Json]:
    """The volumes that the sidecar mounts."""
    mounted = [{"name": name, **source} for name, _, source in _mounts(template)]
    return [*mounted, *({"name": _SPOOL_VOLUME, **source} for source in _spool(template))]


def _spool(template: Template) -> list[Json]:
    """The volume for usage records. It outlives a restart of the container, but not the pod."""
    if template.usage_spool is None or template.store_secret is None:
        return []
    return [{"emptyDir": {"sizeLimit": template.usage_spool}}]


def _mounts(template: Template) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, path and source of each mount. Folders are mounted: Kubernetes never updates a single file."""
    found = [(_POOL_VOLUME, f"{_ROOT}/pool", {"configMap": {"name": template.pool_config}})]
    if template.store_secret is not None:
        # As a file, because a changed password is then used without a restart.
        found.append((_STORE_VOLUME, f"{_ROOT}/store", {"secret": {"secretName": template.store_secret}}))
    if template.keys_secret is not None:
        secret: Json = {"secretName": template.keys_secret}
        found.append((_KEYS_VOLUME, f"{_ROOT}/keys", {"secret": secret}))
    if template.upstream_key_secret is not None:
        name, _, key = template.upstream_key_secret.partition("/")
        secret = {"secretName": name}
        if key:
            secret["items"] = [{"key": key, "path": "api-key"}]
        found.append((_KEY_VOLUME, f"{_ROOT}/upstream", {"secret": secret}))
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
