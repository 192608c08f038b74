"""Pods as users write them and as the API server sends them, and the resolution of their ports."""

from __future__ import annotations

import copy
from typing import Any

from injector.decisions import Denial, Injection
from injector.inject import inject
from injector.patch import apply
from injector.settings import Template
from injector.sidecar_container import NAME

Json = dict[str, Any]

VLLM: Json = {
    "name": "vllm",
    "image": "vllm/vllm-openai:v0.11.0",
    "args": ["Qwen/Qwen3-0.6B", "--port", "8000", "--max-num-seqs=64"],
    "ports": [{"name": "http", "containerPort": 8000, "protocol": "TCP"}],
    "livenessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10},
    "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "failureThreshold": 3},
    "startupProbe": {"tcpSocket": {"port": "8000"}, "failureThreshold": 120},
    "resources": {"limits": {"nvidia.com/gpu": "1"}},
    "env": [{"name": "HF_HOME", "value": "/cache"}],
    "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
}
"""An engine with all fields of a realistic Deployment."""

LOADER: Json = {"name": "load-model", "image": "busybox:1.37", "command": ["sh", "-c", "true"]}
EXPORTER: Json = {
    "name": "gpu-exporter",
    "image": "exporter:1",
    "ports": [{"name": "metrics", "containerPort": 9400}],
}


def pod(*containers: Json, annotations: dict[str, str] | None = None, **spec: Any) -> Json:
    """A pod with the label for a sidecar, as its ReplicaSet creates it: without a name."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "vllm-7d9c-",
            "labels": {"app": "vllm", "tokenpool.io/inject": "true"},
            "annotations": {f"tokenpool.io/{key}": value for key, value in (annotations or {}).items()},
        },
        "spec": {
            "containers": copy.deepcopy(list(containers) or [VLLM]),
            "volumes": [{"name": "cache", "emptyDir": {}}],
            "terminationGracePeriodSeconds": 30,
            **copy.deepcopy(spec),
        },
    }


def engine(**fields: Any) -> Json:
    """The engine with some fields changed; ``None`` removes a field."""
    made = {**copy.deepcopy(VLLM), **fields}
    return {name: value for name, value in made.items() if value is not None}


def injected(before: Json, template: Template | None = None) -> Json:
    """The pod after the patch. Fails without a patch."""
    decision = decided(before, template)
    assert isinstance(decision, Injection), decision
    assert decision.patch
    after: Json = apply(before, decision.patch)
    return after


def decided(before: Json, template: Template | None = None) -> Injection | Denial:
    """The decision."""
    return inject(before, template or Template())


def warnings(before: Json) -> str:
    """All warnings in one text. Each is short enough for the API server, which truncates long ones."""
    decision = decided(before)
    assert isinstance(decision, Injection), decision
    assert all(len(each) <= 256 for each in decision.warnings)
    return "\n".join(decision.warnings)


def denial(before: Json) -> str:
    """The reason of the pod's refusal."""
    decision = decided(before)
    assert isinstance(decision, Denial), decision
    return decision.message


def container(after: Json, name: str) -> Json:
    """A container or init container by its name."""
    spec = after["spec"]
    found = [each for each in (*spec.get("initContainers", []), *spec["containers"]) if each["name"] == name]
    assert len(found) == 1
    made: Json = found[0]
    return made


def sidecar(after: Json) -> Json:
    """The sidecar's container."""
    return container(after, NAME)


def option(words: list[str], name: str) -> str:
    """The value of an option, which must occur exactly once."""
    assert words.count(name) == 1
    return words[words.index(name) + 1]


def resolve(after: Json, target: int | str) -> tuple[str, int]:
    """The container and the port that a Service with this ``targetPort`` reaches, as Kubernetes does it."""
    spec = after["spec"]
    native = [each for each in spec.get("initContainers", []) if each.get("restartPolicy") == "Always"]
    for each in (*spec["containers"], *native):
        for port in each.get("ports", []):
            if target in (port.get("name"), port["containerPort"]):
                return each["name"], port["containerPort"]
    raise AssertionError(f"nothing is declared for {target}")
